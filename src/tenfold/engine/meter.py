"""Seconds and peak memory of a piece of work."""

from __future__ import annotations

import threading
import time


class Meter:
    """Context manager that measures wall seconds and the peak resident memory of this process.

    Attributes
    ----------
    seconds
        Wall time, available after the block.
    peak_memory_mb
        Largest resident memory seen inside the block, in MiB, sampled every 20 ms.
    """

    def __enter__(self) -> Meter:
        """Start measuring."""
        import psutil

        self._process = psutil.Process()
        self._done = threading.Event()
        self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._start = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *exc: object) -> None:
        """Stop measuring."""
        self.seconds = time.perf_counter() - self._start
        self._done.set()
        self._thread.join()
        self.peak_memory_mb = max(self._peak, self._process.memory_info().rss) / 2**20
