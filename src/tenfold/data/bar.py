"""A progress bar, for passes over large data and for training."""

from __future__ import annotations

import time

from rich.console import Console
from rich.errors import LiveError
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

#: Shorter work shows no bar.
SHOW_AFTER = 1.0


class Bar:
    """Rich bar with remaining time over `total` pieces of work, fewer if it ends early.

    It is silent where not `wanted`, for short work and outside a terminal.
    """

    def __init__(self, name: str, total: int, wanted: bool):
        self.name, self.total = name, total
        self._console = Console(stderr=True)
        self._wanted = wanted and (self._console.is_terminal or self._console.is_jupyter)
        self._started = time.perf_counter()
        self._bar: Progress | None = None

    def show(self, done: int, now: str = "", result: str = "") -> None:
        """Bring the bar to `done`, drawing it once the work has proved long; words for where it is and what it got."""
        if self._wanted and self._bar is None and time.perf_counter() - self._started > SHOW_AFTER:
            self._open()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, now=now, result=result)

    def _open(self) -> None:
        columns = (
            TextColumn("{task.description} {task.fields[now]}"), BarColumn(), TaskProgressColumn(),
            TextColumn("{task.fields[result]}"), TimeRemainingColumn(),
        )  # fmt: skip
        bar = Progress(*columns, console=self._console, transient=True, refresh_per_second=4)
        self._task = bar.add_task(self.name, total=self.total, now="", result="")
        try:
            bar.start()
            self._bar = bar
        except LiveError:  # another bar is on the screen already
            self._wanted = False

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
