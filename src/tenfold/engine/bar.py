"""The progress bar of a training."""

from __future__ import annotations

import time

from rich.console import Console
from rich.errors import LiveError
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from tenfold.engine import phases

#: Shorter work shows no bar.
SHOW_AFTER = 1.0


class Bar:
    """Rich bar with phase, epoch, loss and remaining time, over `total` minibatches if no phase stops early.

    It is silent where not `wanted`, for short work and outside a terminal.
    """

    def __init__(self, name: str, total: int, wanted: bool):
        self.name, self.total = name, total
        self._console = Console(stderr=True)
        self._wanted = wanted and (self._console.is_terminal or self._console.is_jupyter)
        self._started = time.perf_counter()
        self._bar: Progress | None = None

    def show(self, done: int, at: phases.Progress, loss: float) -> None:
        """Bring the bar to `done` minibatches, drawing it once the work has proved long."""
        if self._wanted and self._bar is None and time.perf_counter() - self._started > SHOW_AFTER:
            self._open()
        if self._bar is not None:
            epoch = f"{at.epoch + 1}/{at.epochs}"
            self._bar.update(self._task, completed=done, phase=at.phase, epoch=epoch, loss=f"{loss:.5g}")

    def _open(self) -> None:
        columns = (
            TextColumn("{task.description} {task.fields[phase]}"), BarColumn(), TaskProgressColumn(),
            TextColumn("epoch {task.fields[epoch]} · loss {task.fields[loss]} ·"), TimeRemainingColumn(),
        )  # fmt: skip
        bar = Progress(*columns, console=self._console, transient=True, refresh_per_second=4)
        self._task = bar.add_task(self.name, total=self.total, phase="", epoch="", loss="")
        try:
            bar.start()
            self._bar = bar
        except LiveError:  # another bar is on the screen already
            self._wanted = False

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
