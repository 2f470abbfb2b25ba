"""Share a loop of a compiled kernel among threads.

The kernels release the interpreter's lock, so that plain threads do; no second OpenMP pool waits beside PyTorch's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import torch

#: Multiply-adds of a minibatch (cells × weights) up to which training keeps to one thread of the processor: threads of
#: products so short mostly wait for one another. A small scVI beside other work took 20 times the CPU time on two.
FEW_PRODUCTS = 2e8


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


@contextmanager
def threads_for(products: float, reading: bool = False) -> Iterator[None]:
    """Compute on one thread in the block where a minibatch has few products; a fixed rule, so that results repeat.

    With `reading`, a thread that reads from disk beside the others takes the place of one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if products <= FEW_PRODUCTS else max(1, before - reading))
    try:
        yield
    finally:
        torch.set_num_threads(before)
