"""What both versions of scMerge do once the factors are known: remove them, from fitted cells and from new ones."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from tenfold.data import check
from tenfold.data.inputs import Inputs
from tenfold.data.unwanted import components_without, lost_variance
from tenfold.method import Corrector, Embedder, Method

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse

    from tenfold.types import Codes

_MUCH_LOST = 0.2
_CHUNK = 2048


class FactorRemoval(Method, Embedder, Corrector):
    """Expression less factors × effects; a subclass says how the effects are found, and on which scale."""

    def _remove(self, alpha: np.ndarray, weights: np.ndarray, variable: np.ndarray, batch: Codes) -> None:
        """Regress the effects out of ``expression_``, and take components of what is left of the variable genes.

        Parameters
        ----------
        alpha
            Effects on the scale of ``expression_``, (k, n_genes).
        weights
            What centred expression is multiplied with to give the factors, (n_genes, k).
        variable
            Columns of the genes that the components are of.
        batch
            For the share of variance lost in each.
        """
        title = self.info.title
        mean = np.asarray(self.expression_.mean(axis=0, dtype=np.float64)).ravel()
        factors = self.expression_ @ weights - mean @ weights
        self.alpha_, self.factors_ = alpha.astype(np.float32), factors.astype(np.float32)
        self.weights_, self.mean_, self.variable_ = weights, mean, variable
        self.lost_variance_ = lost_variance(self.expression_, factors, alpha, batch.values)
        worst = int(self.lost_variance_.argmax())
        if self.lost_variance_[worst] > _MUCH_LOST:
            warnings.warn(
                f"{title}: {len(alpha)} factors removed {self.lost_variance_[worst]:.0%} of the variance within "
                f"batch '{batch.names[worst]}' (over {_MUCH_LOST:.0%} is a warning sign): differences between "
                "its own cells went with them. Remove fewer (n_factors), or give control_genes that are alike in all "
                "types.",
                stacklevel=3,
            )
        self.embedding_, self.loadings_ = components_without(
            self.expression_[:, variable], self.factors_, self.alpha_[:, variable], self.n_components
        )

    @abstractmethod
    def _scaled(self, lognorm: sparse.csr_matrix) -> sparse.csr_matrix:
        """Return log-expression of all genes on the scale that is corrected."""

    def embed(self, adata: AnnData | None = None) -> np.ndarray:
        """Return the components of the corrected variable genes, of the fitted cells or of new ones.

        Parameters
        ----------
        adata
            New cells with raw counts (same layer role as in `fit`) and the fitted genes; their batch may be a new one.
            ``None`` for the fitted cells.

        Returns
        -------
        Shape (n_cells, n_components), float32.
        """
        self._check_fitted()
        if adata is None:
            return self.embedding_
        values, factors = self._new(adata)
        loadings, centre = self.loadings_.astype(np.float64), self.mean_[self.variable_]
        without = factors @ (self.alpha_[:, self.variable_] @ loadings)
        return (values[:, self.variable_] @ loadings - centre @ loadings - without).astype(np.float32)

    def correct_cells(self, adata: AnnData, genes: list[str] | None = None) -> np.ndarray:
        """Return corrected expression of cells that were not in the fit, by its effects, dense, float32.

        Parameters
        ----------
        adata
            Raw counts (same layer role as in `fit`) of the fitted genes.
        genes
            Names of the genes to expand; ``None`` for all fitted ones, in their order.

        Returns
        -------
        Shape (n_cells, n_genes).

        Raises
        ------
        KeyMissingError
            A fitted gene is missing from `adata`, or one of `genes` from the fit.
        """
        self._check_fitted()
        columns = check.named_columns(genes, self.genes_)
        values, factors = self._new(adata)
        return _without(values[:, columns], factors.astype(np.float32), self.alpha_[:, columns])

    def _new(self, adata: AnnData) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Return the values of new cells and their factors, (n_cells, k), float64."""
        data = Inputs(adata, {role: value for role, value in self.roles_.items() if role == "layer"})
        values = self._scaled(data.lognorm[:, check.gene_columns(adata, self.genes_)])
        return values, values @ self.weights_ - self.mean_ @ self.weights_

    def _corrected(self, columns: np.ndarray) -> np.ndarray:
        return _without(self.expression_[:, columns], self.factors_, self.alpha_[:, columns])


def _without(matrix: sparse.csr_matrix, factors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return matrix - factors × alpha, made dense in blocks."""
    corrected = np.empty(matrix.shape, dtype=np.float32)
    for start in range(0, len(corrected), _CHUNK):
        rows = slice(start, start + _CHUNK)
        corrected[rows] = matrix[rows].toarray() - factors[rows] @ alpha
    return corrected
