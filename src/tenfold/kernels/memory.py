"""Memory that is freed in one step of a training is kept for the next.

The C library gives what lies free at its end back to the system, which hands it out again page by page, zeroed: in
steps whose intermediate results have a few megabytes that takes up to a third of the time.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MB = 1 << 20
#: Free bytes that are kept, and size of a block from which on it comes from the system by itself: in training, and
#: after it, where they are those up to which glibc itself raises its thresholds.
_TRAINING, _OTHERWISE = (512 * _MB, 256 * _MB), (64 * _MB, 32 * _MB)


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory in the block, and give it back at its end; does nothing without glibc."""
    library = _glibc()
    if library is None:
        yield
        return
    _set(library, *_TRAINING)
    try:
        yield
    finally:
        _set(library, *_OTHERWISE)
        release()


def release() -> None:
    """Give freed memory back to the system, between steps whose results are large; does nothing without glibc."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _set(library: Any, kept: int, largest: int) -> None:
    library.mallopt(_TRIM_THRESHOLD, kept)
    library.mallopt(_MMAP_THRESHOLD, largest)


@cache
def _glibc() -> Any:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
