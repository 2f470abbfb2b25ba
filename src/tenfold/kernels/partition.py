"""Points dealt to the nearest of many centres, so that what is near a point is in few of the lists."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

_POINTS_A_CENTRE = 64  # as many are enough to place it
_ROUNDS = 6
_BLOCK = 4096


class Partition(NamedTuple):
    """Points in lists, one of each centre.

    Attributes
    ----------
    centres
        Shape (n_lists, d), float32.
    rows
        Numbers of the points, list after list, shape (n,), int64.
    starts
        The points of list i are ``rows[starts[i]:starts[i + 1]]``; shape (n_lists + 1,), int64.
    """

    centres: np.ndarray
    rows: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, n_lists: int, seed: int) -> Partition:
        """Divide points, shape (n, d), float32, among centres by k-means on a sample, which `seed` draws."""
        chosen = np.random.default_rng(seed).permutation(len(points))[: _POINTS_A_CENTRE * n_lists]
        sample = torch.from_numpy(points[chosen])
        centres = sample[:n_lists].clone()
        for _ in range(_ROUNDS):
            nearest = torch.from_numpy(nearest_centre(sample.numpy(), centres.numpy()))
            sizes = torch.bincount(nearest, minlength=n_lists)[:, None]
            sums = torch.zeros_like(centres).index_add_(0, nearest, sample)
            centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
        nearest_list = nearest_centre(points, centres.numpy())
        rows = np.argsort(nearest_list, kind="stable")
        return cls(centres.numpy(), rows, np.searchsorted(nearest_list[rows], np.arange(n_lists + 1)))

    def around(self, number: int, n_lists: int, fewest: int) -> np.ndarray:
        """Return the points of the lists nearest to one of them, ascending: of more lists where they are too few."""
        away = np.square(self.centres - self.centres[number]).sum(axis=1)
        nearest = np.argsort(away, kind="stable")
        sizes = np.diff(self.starts)[nearest]
        enough = int(np.searchsorted(np.cumsum(sizes), fewest)) + 1
        lists = nearest[: max(n_lists, enough)]
        return np.sort(np.concatenate([self.rows[self.starts[i] : self.starts[i + 1]] for i in lists]))


def nearest_centre(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the centre nearest to each point, shape (n,), int64; of several the first."""
    twice, square = torch.from_numpy(-2 * centres.T), torch.from_numpy(np.square(centres).sum(axis=1))
    blocks = torch.from_numpy(points).split(_BLOCK)
    return torch.cat([torch.addmm(square, block, twice).argmin(dim=1) for block in blocks]).numpy()
