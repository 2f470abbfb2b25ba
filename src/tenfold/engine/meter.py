"""Seconds and peak memory of a piece of work."""

from __future__ import annotations

import threading
import time


class Meter:
    """Context that measures wall ``seconds`` and, sampled every 20 ms, this process's ``peak_memory_mb`` (MiB)."""

    def __enter__(self) -> Meter:
        """Start measuring."""
        import psutil

        self._memory = psutil.Process().memory_info
        self._peak, self._start = self._memory().rss, time.perf_counter()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._peak = max(self._peak, self._memory().rss)

    def __exit__(self, *exc: object) -> None:
        """Stop measuring."""
        self.seconds = time.perf_counter() - self._start
        self._done.set()
        self._thread.join()
        self.peak_memory_mb = max(self._peak, self._memory().rss) / 2**20
