"""Product quantisation: cells stored as the numbers of the nearest centre in each part of their features."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import NamedTuple

import numpy as np

#: Genes in a part, up to so many genes; above, so many parts.
PART, LARGEST, PARTS = 10, 1000, 100
PASSES = 50
#: Cells that are searched for at a time.
BLOCK = 256


class Quantised(NamedTuple):
    """An index of cells for approximate cosine similarity.

    Attributes
    ----------
    edges
        Where each part of the features ends, shape (n_parts + 1,).
    centres
        Centres of all parts, shape (n_centres, n_genes): each part in its own columns.
    numbers
        Centre of each cell in each part, shape (n_cells, n_parts).
    """

    edges: np.ndarray
    centres: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, seed: int) -> Quantised:
        """Index cells, of length 1, shape (n_cells, n_genes): √n_cells centres by k-means in each part."""
        from sklearn.cluster import KMeans

        n_cells, n_genes = points.shape
        parts = max(1, n_genes // PART) if n_genes <= LARGEST else PARTS
        edges = np.linspace(0, n_genes, parts + 1).astype(np.int64)
        k = max(1, int(np.sqrt(n_cells)))
        centres = np.zeros((k, n_genes), dtype=np.float32)
        numbers = np.zeros((n_cells, parts), dtype=np.int64)
        for part, (first, last) in enumerate(pairwise(edges)):
            means = KMeans(k, n_init=1, max_iter=PASSES, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # fewer distinct points than centres: some stay unused
                numbers[:, part] = means.fit_predict(points[:, first:last])
            centres[:, first:last] = means.cluster_centers_
        return cls(edges, centres, numbers)

    def search(self, cells: np.ndarray, missing: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the `k` most similar indexed cells and their cosine similarities, best first; -1 for empty cells."""
        centres = np.where(missing, 0, self.centres)
        parts = list(pairwise(self.edges))
        square = sum(
            (centres[:, first:last] ** 2).sum(axis=1)[self.numbers[:, part]] for part, (first, last) in enumerate(parts)
        )
        size = np.sqrt(np.maximum(square, 1e-24))
        near = np.empty((len(cells), k), dtype=np.int64)
        similarity = np.empty((len(cells), k))
        for start in range(0, len(cells), BLOCK):
            rows = slice(start, start + BLOCK)
            block = np.where(missing, 0, cells[rows])
            found = np.zeros((len(block), len(self.numbers)))
            for part, (first, last) in enumerate(parts):
                found += (block[:, first:last] @ centres[:, first:last].T)[:, self.numbers[:, part]]
            length = np.linalg.norm(block, axis=1, keepdims=True)
            found = np.where(length > 0, found / np.maximum(length, 1e-12) / size, -1.0)
            near[rows] = np.argsort(-found, axis=1, kind="stable")[:, :k]
            similarity[rows] = np.take_along_axis(found, near[rows], axis=1)
        return near, similarity
