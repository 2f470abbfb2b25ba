"""The base of velocity methods whose network has a posterior over where each cell is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.data import check
from tenfold.method import param
from tenfold.velocity_models.directions import directional_spread, excess_error, neighbors_ahead, permuted_within
from tenfold.velocity_models.trained import TrainedVelocity

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

#: Cells of a group that a permutation score looks at.
SCORED = 200
#: Cells at a time when the posterior is sampled.
SAMPLED = 256


class PosteriorVelocity(TrainedVelocity):
    """A `TrainedVelocity` on averages scaled to [0, 1], whose network has an ``encoder`` and a ``course``.

    ``encoder(x)`` is the distribution of z given spliced, then unspliced RNA of the g genes ``modelled_``;
    ``course(z, drawn)`` returns what follows from z by name: ``velocity``, ``time``, ``s`` and ``u``, each (n, g).
    The fitted state has ``low_`` and ``spread_`` besides, each (2, genes of the averages): spliced, then unspliced.
    """

    n_draws: int = param(25, low=1)

    def _scale(self, spliced: np.ndarray, unspliced: np.ndarray) -> np.ndarray:
        """Scale the averages of the fit to [0, 1], gene by gene; return spliced and unspliced, stacked."""
        both = np.stack([spliced, unspliced])
        self.low_ = both.min(axis=1)
        spread = both.max(axis=1) - self.low_
        self.spread_ = np.where(spread > 0, spread, np.float32(1))
        return (both - self.low_[:, None]) / self.spread_[:, None]

    def _scaled(self, spliced: np.ndarray, unspliced: np.ndarray) -> np.ndarray:
        """Return what the network reads: spliced, then unspliced RNA of modelled genes, scaled as at the fit."""
        both = (np.stack([spliced, unspliced]) - self.low_[:, None]) / self.spread_[:, None]
        return np.hstack([part[:, self.modelled_] for part in both])

    def _posterior(self, x: np.ndarray, n_draws: int) -> dict[str, np.ndarray]:
        """Return the means over draws from the posterior of what follows from z."""
        from tenfold.engine import predict

        def drawn(net: Any, batch: dict[str, Any]) -> dict[str, Any]:
            posterior = net.encoder(batch["x"])
            draws = [net.course(posterior.sample()) for _ in range(n_draws)]
            return {name: sum(draw[name] for draw in draws) / n_draws for name in draws[0]}

        return predict(self.net_, {"x": x}, drawn, batch_size=SAMPLED, seed=self.seed)

    @property
    def modelled_genes(self) -> np.ndarray:
        """Names of the genes that posteriors are of, g of them."""
        self._check_fitted()
        return self.genes_[self.modelled_]

    def gene_times(self) -> np.ndarray:
        """Return how far along each gene is in each cell, shape (n_cells, g)."""
        return self._posterior(self._fitted_cells(), self.n_draws)["time"]

    def _fitted_cells(self) -> np.ndarray:
        self._check_fitted()
        return self._scaled(self.spliced_, self.unspliced_)

    def velocity_samples(self, n_samples: int = 25) -> np.ndarray:
        """Return draws of the velocity in units of normalised counts, shape (n_samples, n_cells, g), float32."""
        from tenfold.engine import predict

        x, spread = self._fitted_cells(), self.spread_[0, self.modelled_]

        def drawn(net: Any, batch: dict[str, Any]) -> Any:
            return net.course(net.encoder(batch["x"]).sample(), drawn=True)["velocity"]

        draws = [predict(self.net_, {"x": x}, drawn, seed=self.seed + i) for i in range(n_samples)]
        return np.stack([np.maximum(draw * spread, -self.spliced_[:, self.modelled_]) for draw in draws])

    def uncertainty(self, n_samples: int = 50, extrinsic: bool = False) -> pd.DataFrame:
        """Return how much draws from the posterior differ in direction, one row a cell.

        Parameters
        ----------
        n_samples
            Draws of the velocity.
        extrinsic
            Of the expression that neighbours in the direction of each draw have, instead of the velocity itself.

        Returns
        -------
        Of the correlation over genes of each draw with the mean of draws: ``cosine_mean``, ``cosine_variance``,
        ``cosine_range`` (5 to 95 %); of its angle: ``angle_variance`` and ``angle_range``, in radians.
        """
        draws = self.velocity_samples(n_samples)
        if extrinsic:
            expression = self.spliced_[:, self.modelled_]
            draws = np.stack([neighbors_ahead(expression, draw, self.neighbors_) for draw in draws])
        return directional_spread(draws / self.spread_[0, self.modelled_])

    def permutation_score(self, adata: AnnData, labels: str) -> pd.DataFrame:
        """Return how much worse than the cells themselves permuted ones are fitted, for each gene and group.

        Spliced and unspliced RNA are permuted apart within groups. A score is the t statistic of absolute errors in up
        to 200 cells: near 0, what the model says of the gene in the group it says of any counts.

        Parameters
        ----------
        adata
            The AnnData that was given to `fit`.
        labels
            Column of ``obs`` with the groups.

        Returns
        -------
        Modelled genes × groups, and ``"highest"``, the highest of a gene's scores.
        """
        self._require_fitted_cells(adata)
        groups, x = check.categories(adata, labels, "labels"), self._fitted_cells()
        mixed = permuted_within(x, groups, self.seed)
        errors = []
        for cells in (mixed, x):
            fitted = self._posterior(cells, 10)
            apart = np.abs(np.hstack([fitted["s"], fitted["u"]]) - cells)
            errors.append(sum(np.split(apart, 2, axis=1)))
        return excess_error(*errors, groups, self.modelled_genes, SCORED)
