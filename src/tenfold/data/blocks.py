"""Minibatches from disk: blocks of neighbouring cells, read in random order and mixed in a buffer, one buffer ahead.

How many blocks share a buffer decides how random minibatches are: with 1,024, a file sorted by batch and cell type
trains as well as a shuffled one. How long blocks are decides how fast they are read. Blocks are dealt evenly over the
buffers: a short last one, of few blocks, would leave its cells' statistics in every batch norm. (A short first one does
no harm, and training begins sooner.)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse

from tenfold.data.streamed import StreamedCounts
from tenfold.kernels.rows import SparseRows, joined, take_rows

#: Bytes of a buffer; two are held at a time.
BUFFER_BYTES = 256 * 2**20
#: Blocks that a buffer should hold, and cells that a block should have at the least.
BLOCKS = 1024
SMALLEST_BLOCK = 8
#: Blocks in a buffer below which minibatches of a sorted file differ too much from random ones.
FEWEST_BLOCKS = 256
#: How many times smaller the first of several buffers is: training waits for it, and reads the others meanwhile.
FIRST = 8


def buffer_rows(counts: StreamedCounts) -> int:
    """Return the number of cells that a buffer holds."""
    return max(SMALLEST_BLOCK, int(BUFFER_BYTES / counts.row_bytes))


def dealt(
    index: np.ndarray, capacity: int, seed: int, epoch: int, share: tuple[int, int] = (0, 1)
) -> tuple[np.ndarray, np.ndarray]:
    """Deal the cells of an epoch over buffers; the order depends on these arguments only.

    Parameters
    ----------
    index
        Rows to visit; a row may come several times.
    capacity
        Cells that a buffer holds, about.
    seed, epoch
        Of the order.
    share
        Process and number of processes: blocks are dealt to all before they are dealt to buffers, so that each process
        sees all parts of a sorted file.

    Returns
    -------
    Rows of this process in the order to visit them, and the positions in it where buffers begin, with its length last.
    """
    index, (process, processes) = np.sort(index), share
    heads, n_buffers = _layout(index, capacity, processes)
    tails = np.append(heads[1:], len(index))
    blocks = np.random.default_rng([seed, 2, epoch]).permutation(len(heads))[process::processes]
    buffers = []
    for number, own in enumerate(_piles(blocks, n_buffers)):
        rows = np.concatenate([index[heads[block] : tails[block]] for block in own])
        buffers.append(np.random.default_rng([seed, 2, epoch, process, number]).permutation(rows))
    return np.concatenate(buffers), np.cumsum([0, *map(len, buffers)])


def _layout(index: np.ndarray, capacity: int, processes: int) -> tuple[np.ndarray, int]:
    """Return where blocks begin in ascending rows, and the number of buffers of each process."""
    size = max(SMALLEST_BLOCK, capacity // BLOCKS)
    size = max(1, min(size, int(index[-1] + 1) // (SMALLEST_BLOCK * processes)))  # of few cells, few in a block
    heads = np.flatnonzero(np.diff(index // size, prepend=-1))
    return heads, max(1, round(len(index) / processes / capacity))


def _piles(blocks: np.ndarray, n_buffers: int) -> list[np.ndarray]:
    """Deal blocks evenly over buffers, after a short first one if there are several."""
    if n_buffers == 1:
        return [blocks]
    first = max(1, len(blocks) // (FIRST * n_buffers))
    return [blocks[:first], *np.array_split(blocks[first:], n_buffers)]


def warn_of_few_blocks(index: np.ndarray, capacity: int, processes: int, name: object) -> None:
    """Warn where buffers mix so few blocks that minibatches of a sorted file are far from random."""
    heads, n_buffers = _layout(np.sort(index), capacity, processes)
    mixed = len(heads) // (n_buffers * processes)
    if n_buffers > 1 and mixed < FEWEST_BLOCKS:
        warnings.warn(
            f"Cells of '{name}' have so many counts that only {mixed} stretches of the file are mixed at a time, and "
            f"{FEWEST_BLOCKS} are wanted. If the file is sorted by batch or cell type, training will be worse than in "
            "memory: shuffle its cells first, or model fewer genes (n_top_genes).",
            stacklevel=2,
        )


def in_order(index: np.ndarray, capacity: int) -> np.ndarray:
    """Return where buffers begin if rows are visited as they come, with the number of rows last."""
    return np.append(np.arange(0, len(index), max(1, capacity // SMALLEST_BLOCK)), len(index))


def follow(counts: StreamedCounts, order: np.ndarray, cuts: np.ndarray, edges: Sequence[int]) -> Iterator[SparseRows]:
    """Iterate over minibatches of counts on disk, reading the next buffer while one is in use.

    Parameters
    ----------
    counts
        Where the rows are.
    order
        Rows in the order to visit them.
    cuts
        Positions in `order` where buffers begin, with its length last.
    edges
        Positions in `order` where minibatches begin, with the end of the last one last.
    """

    def load(number: int) -> tuple[sparse.csr_matrix, np.ndarray]:
        rows, local = np.unique(order[cuts[number] : cuts[number + 1]], return_inverse=True)
        return counts.rows(rows), local

    with ThreadPoolExecutor(1, thread_name_prefix="tenfold-read") as reader:
        number = int(np.searchsorted(cuts, edges[0], side="right")) - 1
        ahead: Future | None = reader.submit(load, number)
        held: Any = None
        begin, end = 0, -1
        for first, last in pairwise(edges):
            parts = []
            while first < last:
                if first >= end:
                    held = None  # before the next one is waited for, so that two buffers are the most
                    held = ahead.result() if ahead else load(number)
                    begin, end, number = int(cuts[number]), int(cuts[number + 1]), number + 1
                    ahead = reader.submit(load, number) if end < edges[-1] else None
                stop = min(last, end)
                parts.append(take_rows(held[0], held[1][first - begin : stop - begin]))
                first = stop
            yield joined(parts)
