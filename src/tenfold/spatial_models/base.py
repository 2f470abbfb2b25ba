"""The base of methods that find spatial domains by clustering an embedding of cells in tissue."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import numpy as np

from tenfold.data.heads import Head, clusters_of
from tenfold.data.inputs import Inputs
from tenfold.data.refinement import majority, outvoted
from tenfold.data.spatial import Positions, positions_of
from tenfold.method import Clusterer, FixedEmbedder, Method, param

Refinement = Literal["none", "majority", "outvoted"]


class DomainMethod(Method, FixedEmbedder, Clusterer):
    """A method that implements ``_embed``; clustering and refinement are steps of their own, alike for all.

    The fitted state is ``embedding_``, ``domains_`` (before refinement), ``refined_`` (after), ``spacing_`` and
    ``unit_`` of the positions, and what ``_embed`` keeps.
    """

    n_clusters: int | None = param(None, low=2)
    head: Head = "kmeans"
    refinement: Refinement = "none"
    n_refining: int = param(50, low=2)
    seed: int = param(0, low=0)

    @abstractmethod
    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        """Return the embedding that is clustered, shape (n_cells, n_dimensions), float32."""

    def _fit(self, data: Inputs) -> None:
        positions = positions_of(data)
        self.spacing_, self.unit_ = positions.spacing, positions.unit
        self.embedding_ = np.ascontiguousarray(self._embed(data, positions), dtype=np.float32)
        self.domains_ = clusters_of(self.embedding_, self.n_clusters, self.head, self.seed)
        self.refined_ = self._refine(self.domains_, positions)

    def _refine(self, labels: np.ndarray, positions: Positions) -> np.ndarray:
        if self.refinement == "none":
            return labels
        return (majority if self.refinement == "majority" else outvoted)(labels, positions, self.n_refining)

    def cluster(self, refined: bool = True) -> np.ndarray:
        """Return the domain of each cell, integers from 0 (largest before refinement), shape (n_cells,).

        Parameters
        ----------
        refined
            After the refinement that was asked for; False: as clustered.
        """
        self._check_fitted()
        return self.refined_ if refined else self.domains_
