"""Log-normalised expression of chosen genes as networks read it: in memory or from disk, scaled gene by gene."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import sparse

from tenfold.data.inputs import Inputs
from tenfold.data.preprocess import DEPTH, normalize_log1p
from tenfold.data.streamed import StreamedCounts, cell_sums

#: How genes are scaled: not at all; to [0, 1] by their largest value, in all cells or in each batch; to mean 0 and
#: variance 1, which makes the matrix dense.
Scaling = Literal["none", "max", "batch max", "standard"]


class StreamedExpression(StreamedCounts):
    """Counts on disk that are normalised, and scaled, as rows are read.

    Parameters
    ----------
    counts
        Counts of the chosen genes.
    factor
        What the counts of each cell are multiplied by, shape (n_cells,).
    share
        What the expression of each gene is multiplied by, (n_groups, n_genes); ``None`` for no scaling.
    group
        Row of `share` for each cell, shape (n_cells,).
    """

    def __init__(
        self, counts: StreamedCounts, factor: np.ndarray, share: np.ndarray | None = None,
        group: np.ndarray | None = None,
    ):  # fmt: skip
        vars(self).update(vars(counts))
        self.factor, self.share, self.group = factor, share, group

    @property
    def checksum(self) -> int:
        """A number that tells these data from others."""
        checksum = super().checksum
        for part in (self.factor, self.share, self.group):
            checksum = zlib.crc32(b"" if part is None else np.ascontiguousarray(part).data, checksum)
        return checksum

    def rows(self, rows: np.ndarray, raw: bool = False) -> sparse.csr_matrix:
        """Read rows, ascending and none twice: CSR, shape (len(rows), n_genes), float32."""
        found = super().rows(rows, raw)
        if not raw:
            lengths = np.diff(found.indptr)
            found.data = np.log1p(found.data * np.repeat(self.factor[rows], lengths))
            if self.share is not None and self.group is not None:
                found.data *= self.share[np.repeat(self.group[rows], lengths), found.indices]
        return found


def expression_of(data: Inputs, columns: np.ndarray, in_memory: bool = False) -> sparse.csr_matrix | StreamedExpression:
    """Return log(1 + counts per 10,000) of some genes, where counts of all genes make the 10,000.

    Parameters
    ----------
    data
        Checked inputs.
    columns
        Of the genes.
    in_memory
        Load counts that are on disk; an error where they are too large.

    Returns
    -------
    Shape (n_cells, len(columns)), float32: CSR, or read from disk where counts are too large to load.
    """
    on_disk = None if in_memory else data.counts_on_disk
    if on_disk is not None:
        return StreamedExpression(on_disk.select(columns), (DEPTH / cell_sums(on_disk)).astype(np.float32))
    return normalize_log1p(data.counts[:, columns], totals=cell_sums(data.counts))


@dataclass(frozen=True)
class GeneScale:
    """How the expression of each gene is scaled.

    Attributes
    ----------
    kind
        See `Scaling`.
    groups
        Names of the groups of cells with widths of their own: batches, or a single one for all cells.
    width
        What expression is divided by, (n_groups, n_genes), float32; 1 where a gene does not vary or was not seen.
    centre
        What is subtracted first, (n_genes,), float32; zero unless the kind is ``"standard"``.
    """

    kind: Scaling
    groups: list[str]
    width: np.ndarray
    centre: np.ndarray

    @classmethod
    def of(
        cls, kind: Scaling, expression: sparse.csr_matrix | StreamedExpression, batch: np.ndarray, names: list[str]
    ) -> GeneScale:
        """Take the scale from the cells of a fit, of batches with these codes and names."""
        n_genes = expression.shape[1]
        centre = np.zeros(n_genes, np.float32)
        if kind == "batch max":
            return cls(kind, names, _positive(_largest(expression, batch, len(names))), centre)
        width = np.ones((1, n_genes), np.float32)
        if kind == "max":
            width = _positive(_largest(expression, np.zeros(len(batch), np.int64), 1))
        elif kind == "standard":
            assert not isinstance(expression, StreamedExpression)  # it is loaded for a scaling that makes it dense
            mean = np.asarray(expression.mean(axis=0, dtype=np.float64)).ravel()
            square = np.asarray(expression.multiply(expression).mean(axis=0, dtype=np.float64)).ravel()
            width = _positive(np.sqrt(np.maximum(square - mean**2, 0)))[None, :].astype(np.float32)
            centre = mean.astype(np.float32)
        return cls(kind, ["all"], width, centre)

    def apply(
        self, expression: sparse.csr_matrix | StreamedExpression, batch: np.ndarray, names: list[str]
    ) -> sparse.csr_matrix | StreamedExpression | np.ndarray:
        """Scale cells of batches with these codes and names; a batch that is new has the widths of its own cells.

        Returns
        -------
        As `expression`; dense for the kind ``"standard"``.
        """
        if self.kind == "none":
            return expression
        if self.kind == "standard":
            assert not isinstance(expression, StreamedExpression)
            dense = expression.toarray()
            dense -= self.centre
            dense /= self.width[0]
            return dense
        width, group = self.width, np.zeros(len(batch), np.int64)
        if self.kind == "batch max":
            group = batch.astype(np.int64)
            known = [name in self.groups for name in names]
            own = self.width if all(known) else _positive(_largest(expression, group, len(names)))
            width = np.stack([
                self.width[self.groups.index(name)] if seen else own[code]
                for code, (name, seen) in enumerate(zip(names, known, strict=True))
            ])  # fmt: skip
        share = 1 / width
        if isinstance(expression, StreamedExpression):
            return StreamedExpression(expression, expression.factor, share, group)
        values = expression.data * share[np.repeat(group, np.diff(expression.indptr)), expression.indices]
        return sparse.csr_matrix((values, expression.indices, expression.indptr), shape=expression.shape)

    def undo(self, scaled: np.ndarray, group: int, genes: np.ndarray) -> np.ndarray:
        """Return scaled expression of some genes, as if of this group, in units of log(1 + counts per 10,000)."""
        if self.kind == "none":
            return scaled
        return scaled * self.width[group if len(self.groups) > 1 else 0, genes] + self.centre[genes]


def grouped_means(
    values: sparse.csr_matrix | StreamedExpression | np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    shape: tuple[int, int],
) -> np.ndarray:
    """Return the mean over the cells of each pair of two groupings.

    Parameters
    ----------
    values
        Shape (n_cells, n).
    first, second
        Number of each cell's group in the two groupings, shape (n_cells,).
    shape
        Number of groups in each.

    Returns
    -------
    Shape (*shape, n), float32; NaN where there are no cells.
    """
    pair, n_pairs = first * shape[1] + second, shape[0] * shape[1]
    total = np.zeros((n_pairs, values.shape[1]))
    for rows, chunk in _chunks(values, "means"):
        n_rows = chunk.shape[0]
        member = sparse.csr_matrix((np.ones(n_rows), (pair[rows], np.arange(n_rows))), shape=(n_pairs, n_rows))
        found = member @ chunk
        total += found.toarray() if sparse.issparse(found) else found
    sizes = np.bincount(pair, minlength=n_pairs)[:, None]
    means = np.where(sizes > 0, total / np.maximum(sizes, 1), np.nan)
    return means.reshape(*shape, -1).astype(np.float32)


def _largest(expression: sparse.csr_matrix | StreamedExpression, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Return the largest value of each gene in each group, (n_groups, n_genes), float32."""
    n_genes = expression.shape[1]
    largest = np.zeros(n_groups * n_genes, np.float32)
    for rows, chunk in _chunks(expression, "scaling"):
        place = np.repeat(group[rows].astype(np.int64) * n_genes, np.diff(chunk.indptr)) + chunk.indices
        np.maximum.at(largest, place, chunk.data)
    return largest.reshape(n_groups, n_genes)


def _chunks(values: Any, what: str) -> Iterable[tuple[slice, Any]]:
    return values.chunks(what) if isinstance(values, StreamedExpression) else [(slice(None), values)]


def _positive(width: np.ndarray) -> np.ndarray:
    return np.where(width > 0, width, 1)
