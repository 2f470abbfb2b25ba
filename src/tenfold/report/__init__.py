"""The faces of a finished comparison: one self-contained HTML page, and a table for the terminal.

Both read only the files that :mod:`tenfold.compare` leaves in its folder, so a report can be rebuilt at any time and on
any machine, and both show what is there when pieces are missing (no labels, a failed run, no layouts, one method).
"""

from __future__ import annotations

from tenfold.report.page import build
from tenfold.report.terminal import terminal_table

__all__ = ["build", "terminal_table"]
