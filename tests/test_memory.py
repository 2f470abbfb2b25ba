"""Freed memory is kept in a training and given back after it."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from tenfold.kernels import memory


def faults(size: int, repeats: int = 20) -> int:
    """Pages that the system had to hand out while arrays came and went."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        np.ones(size, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(memory._glibc() is None, reason="only glibc gives freed memory back at once")
def test_arrays_of_a_training_do_not_come_from_the_system_again():
    size = 48 << 20  # glibc never keeps blocks above 32 MB by itself
    outside = faults(size)
    with memory.memory_kept():
        np.ones(size, np.uint8)
        within = faults(size)
    assert within < outside / 4 and faults(size) > outside / 2


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with memory.memory_kept():
        pass
