"""Share a loop of a compiled kernel among threads.

The kernels release the interpreter's lock, so that plain threads do; no second OpenMP pool waits beside PyTorch's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


def in_threads(work: Callable[[int, int], object], n: int) -> None:
    """Call ``work(first, last)`` on ranges that cover ``range(n)``, one a thread of PyTorch's setting."""
    threads = min(torch.get_num_threads(), n)
    if threads <= 1:
        work(0, n)
        return
    limits = [n * t // threads for t in range(threads + 1)]
    others = [_pool(os.getpid()).submit(work, limits[t], limits[t + 1]) for t in range(1, threads)]
    work(limits[0], limits[1])
    for other in others:
        other.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One pool a process: a forked child inherits the object but not its threads."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="tenfold-kernel")
