"""Pictures in Python: velocities in an embedding, and the phase portraits that they come from.

Matplotlib is loaded when the first picture is drawn. Every function returns the axes it drew on; save a picture with
``ax.figure.savefig("picture.png", dpi=200)``.
"""

from __future__ import annotations

from tenfold.plot.phase import phase_portrait
from tenfold.plot.velocity import velocity_grid, velocity_stream

__all__ = ["phase_portrait", "velocity_grid", "velocity_stream"]
