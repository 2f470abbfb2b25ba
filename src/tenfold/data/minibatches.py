"""Minibatches from memory or disk, sparse where the data are, in an order that depends on seed and epoch only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import sparse

from tenfold.data.blocks import buffer_rows, dealt, follow, in_order, warn_of_few_blocks
from tenfold.data.streamed import StreamedCounts
from tenfold.errors import DataError, ParameterError
from tenfold.kernels.rows import take_rows

#: A minibatch: a tensor or `SparseRows` for each entry of the data, and ``"index"``.
Batch = dict[str, Any]
#: Batch norm needs two cells at least, and a mean over two is noise; a shorter last batch joins the one before.
SMALLEST_BATCH = 3


def split(n_cells: int, train_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw training and validation cells at random: two sorted int64 arrays of rows.

    `train_fraction` is the share to train on, rounded up to a whole cell; 1 leaves no validation.

    Raises
    ------
    ParameterError
        If `train_fraction` is not above 0 and at most 1.
    """
    if not 0 < train_fraction <= 1:
        raise ParameterError(f"train_fraction is {train_fraction}; give a share above 0 and at most 1.")
    order = np.random.default_rng([seed, 1]).permutation(n_cells)
    n_train = math.ceil(round(train_fraction * n_cells, 6))
    return np.sort(order[:n_train]), np.sort(order[n_train:])


class Minibatches:
    """Minibatches of cells.

    Parameters
    ----------
    data
        Arrays, tensors, CSR matrices or counts on disk (`StreamedCounts`), with one row a cell. Floats become float32,
        integers int64; CSR stays sparse. With counts on disk, cells are visited in the order of `tenfold.data.blocks`.
    batch_size
        Cells in a batch; ``None`` for all at once. A last batch of one or two joins the one before.
    index
        Rows to draw from; default all.
    shuffle
        New order each epoch; otherwise the order of `index`.
    seed
        Seed of the order; epoch *e* has the same batches whenever it is asked for.
    weights
        Sampling weight of each cell in `data`, not negative: an epoch then draws ``len(index)`` cells with replacement.
    device
        Where batches go.
    share
        Process and number of processes: which part of every batch to take.

    Attributes
    ----------
    streamed
        The entries that are read from disk.

    Raises
    ------
    DataError
        Entries of different lengths, no cells, or unusable weights.
    ParameterError
        `batch_size` below 1.
    """

    def __init__(
        self,
        data: dict[str, Any],
        batch_size: int | None = 128,
        *,
        index: np.ndarray | None = None,
        shuffle: bool = True,
        seed: int = 0,
        weights: np.ndarray | None = None,
        device: torch.device | str = "cpu",
        share: tuple[int, int] = (0, 1),
    ):
        lengths = {name: value.shape[0] for name, value in data.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"Every entry needs one row a cell, but their lengths are {lengths or 'none given'}.")
        n_cells = next(iter(lengths.values()))
        self.index = np.arange(n_cells) if index is None else np.asarray(index, dtype=np.int64)
        if len(self.index) == 0:
            raise DataError("There are no cells to train on or to predict for.")
        if batch_size is not None and batch_size < 1:
            raise ParameterError(f"batch_size is {batch_size}; it must be at least 1.")
        self.data = {name: _prepared(value) for name, value in data.items()}
        self.streamed = {name: value for name, value in self.data.items() if isinstance(value, StreamedCounts)}
        self.shuffle, self.seed = shuffle, seed
        self.device = torch.device(device)
        self._share = None if weights is None else _shares(np.asarray(weights, dtype=np.float64), n_cells, self.index)
        size = min(batch_size or len(self.index), len(self.index))
        self._edges = [*range(0, len(self.index), size), len(self.index)]
        self._process, self._processes = share
        if len(self._edges) > 2 and self._edges[-1] - self._edges[-2] < min(SMALLEST_BATCH * share[1], size):
            del self._edges[-2]
        if shuffle:
            for counts in self.streamed.values():
                warn_of_few_blocks(self.index, buffer_rows(counts), self._processes, counts.name)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._edges) - 1

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over epoch 0."""
        return self.epoch(0)

    def epoch(self, number: int = 0, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch, from batch `start` on."""
        if self.streamed:
            yield from self._from_disk(number, start)
            return
        order = self.order(number)
        for first, last in pairwise(self._edges[start:]):
            yield self.take(order[first:last][self._process :: self._processes])

    def _from_disk(self, number: int, start: int) -> Iterator[Batch]:
        rows = self.order(number)
        capacity = min(buffer_rows(counts) for counts in self.streamed.values())
        if self.shuffle or self._share is not None:
            # Each process reads its own blocks, and is given its share of every minibatch from them.
            order, cuts = dealt(rows, capacity, self.seed, number, (self._process, self._processes))
        else:
            order, cuts = rows, in_order(rows, capacity)
        edges = [round(edge * len(order) / len(rows)) for edge in self._edges[start:]]
        readers = [follow(counts, order, cuts, edges) for counts in self.streamed.values()]
        for (first, last), *parts in zip(pairwise(edges), *readers, strict=True):
            yield self.take(order[first:last], dict(zip(self.streamed, parts, strict=True)))

    def order(self, number: int) -> np.ndarray:
        """Return the rows of epoch `number` in the order they are visited; of data on disk, ascending."""
        generator = np.random.default_rng([self.seed, 2, number])
        if self._share is not None:
            chosen = generator.choice(self.index, size=len(self.index), p=self._share)
            return np.sort(chosen) if self.streamed else chosen
        return generator.permutation(self.index) if self.shuffle and not self.streamed else self.index

    def replace(self, name: str, value: Any) -> None:
        """Set an entry of the data, new or not; DataError if it does not have one row a cell."""
        n_cells = next(iter(self.data.values())).shape[0]
        if value.shape[0] != n_cells:
            raise DataError(f"Entry '{name}' has {value.shape[0]} rows, but there are {n_cells} cells.")
        self.data[name] = _prepared(value)

    def take(self, rows: np.ndarray, found: Batch | None = None) -> Batch:
        """Return the batch that holds these rows of the data; `found` holds what was read of them from disk."""
        index = torch.from_numpy(rows)
        batch: Batch = {"index": index, **(found or {})}
        for name, value in self.data.items():
            if name in self.streamed:
                continue
            batch[name] = value.index_select(0, index) if isinstance(value, torch.Tensor) else take_rows(value, rows)
        if self.device.type != "cpu":
            batch = {name: value.to(self.device) for name, value in batch.items()}
        return batch


def _prepared(value: Any) -> torch.Tensor | sparse.csr_matrix | StreamedCounts:
    if isinstance(value, StreamedCounts):
        return value
    if sparse.issparse(value):
        return value.tocsr().astype(np.float32, copy=False)
    tensor = torch.as_tensor(value)
    if tensor.is_floating_point():
        return tensor.to(torch.float32).contiguous()
    return tensor if tensor.dtype == torch.bool else tensor.to(torch.int64).contiguous()


def _shares(weights: np.ndarray, n_cells: int, index: np.ndarray) -> np.ndarray:
    if weights.shape != (n_cells,) or not np.isfinite(weights).all() or weights.min() < 0 or weights[index].sum() <= 0:
        raise DataError(f"Sampling weights must be {n_cells} finite numbers, none negative and not all zero.")
    return weights[index] / weights[index].sum()
