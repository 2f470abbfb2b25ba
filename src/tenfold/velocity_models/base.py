"""The base of velocity methods: everything but the rates of each gene."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from scipy import sparse

from tenfold.capabilities import VelocityModel
from tenfold.data import velocity_graph
from tenfold.data.inputs import Inputs
from tenfold.data.velocity import Moments, moments_of
from tenfold.errors import DataError
from tenfold.kernels.memory import release
from tenfold.kernels.velocity_graph import coherence, neighbor_cosines
from tenfold.method import Method, param

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_CELLS = 4096  # copied at a time
#: Genes with a trusted velocity below which a warning is due.
FEW_GENES = 10


class Rates(NamedTuple):
    """What a method found for the g genes of the moments.

    Attributes
    ----------
    velocity
        ds/dt, shape (n_cells, g), float32.
    trusted
        Genes whose velocity is to be used, shape (g,), bool.
    table
        Numbers for each gene by name (``"gamma"``, ``"r2"``, ...), each of shape (g,).
    time
        Of each cell where the method has one of its own, shape (n_cells,).
    """

    velocity: np.ndarray
    trusted: np.ndarray
    table: dict[str, np.ndarray]
    time: np.ndarray | None = None


class VelocityMethod(Method, VelocityModel):
    """A method that implements ``_rates``; moments, velocity graph, time and confidence are alike for all.

    The fitted state is ``genes_`` and ``columns_`` (those that were fitted), ``n_genes_`` (of the data), ``spliced_``
    and ``unspliced_`` (averages, Ms and Mu), ``velocity_``, ``trusted_``, ``table_``, the neighbours (``neighbors_``,
    ``distances_``, ``connectivities_``), the velocity graph ``cosines_``, ``roots_``, ``ends_``, ``time_`` and
    ``confidence_``.
    """

    #: Whether neighbours are those of either cell (scVelo), or of the cell itself (velocyto).
    _mutual: ClassVar[bool] = True
    #: Whether the velocity graph is that of signed square roots.
    _root: ClassVar[bool] = False

    n_top_genes: int | None = param(2000, low=2)
    min_shared_counts: int = param(20, low=1)
    n_components: int = param(30, low=2)
    n_neighbors: int = param(30, low=3)
    max_unspliced: float = param(0.5, low=0.0, high=1.0)
    normalize: bool = True

    @abstractmethod
    def _rates(self, data: Inputs, moments: Moments) -> Rates:
        """Return the velocity of each gene in each cell."""

    def _pooled(self, n_cells: int) -> int:
        """Return the number of neighbours to average over, the cell itself counted."""
        return self.n_neighbors

    def _fit(self, data: Inputs) -> None:
        moments = moments_of(
            data, n_top_genes=self.n_top_genes, min_shared_counts=self.min_shared_counts,
            n_components=self.n_components, n_neighbors=self._pooled(data.n_cells), max_unspliced=self.max_unspliced,
            normalize=self.normalize, mutual=self._mutual,
        )  # fmt: skip
        if not np.isfinite([limit for x in (moments.spliced, moments.unspliced) for limit in (x.min(), x.max())]).all():
            raise DataError("Averages over neighbours are missing (NaN) or infinite; look for such entries in layers.")
        rates = self._rates(data, moments)
        release()
        self.genes_, self.columns_, self.n_genes_ = data.gene_names[moments.columns], moments.columns, data.n_genes
        self.spliced_, self.unspliced_ = moments.spliced, moments.unspliced
        self.velocity_ = np.asarray(rates.velocity, dtype=np.float32)
        self.table_ = {name: np.asarray(values) for name, values in rates.table.items()}
        self.trusted_ = self._trusted(rates)
        self.neighbors_ = moments.neighbors
        self.distances_, self.connectivities_ = moments.graph
        self._follow(moments, rates.time)
        release()

    def _time(self, moments: Moments, states: velocity_graph.TerminalStates) -> np.ndarray:
        """Return how far along each cell is; methods with a time of their own override this."""
        return velocity_graph.pseudotime(self.cosines_, states, moments.mean)

    def _trusted(self, rates: Rates) -> np.ndarray:
        """Return the genes to use; where the method trusts none, those with the highest R², with a warning."""
        low, high = rates.velocity.min(axis=0), rates.velocity.max(axis=0)  # without masks of the size of all
        usable = np.isfinite(low) & np.isfinite(high) & ((low != 0) | (high != 0))
        trusted = rates.trusted & usable
        if trusted.sum() < 2:
            r2 = np.where(usable, rates.table["r2"], -np.inf)
            trusted = usable & (r2 >= np.percentile(r2[usable], 80)) if usable.any() else usable
            if not trusted.any():
                raise DataError(
                    "No gene has dynamics: unspliced and spliced counts move together in none of them. Are there cells "
                    "of a process under way in the data, and are the layers of the same cells and genes?"
                )
            warnings.warn(
                f"Hardly any gene has dynamics that {self.info.title} trusts; the {trusted.sum()} with the best fit "
                "are used instead. Do not read anything into these velocities.",
                stacklevel=4,
            )
        elif trusted.sum() < FEW_GENES:
            warnings.warn(
                f"Only {trusted.sum()} of {len(trusted):,} genes have dynamics that {self.info.title} trusts: "
                "directions rest on little.",
                stacklevel=4,
            )
        return trusted

    def _space(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return positions and velocities of the velocity graph, and which columns count (None: all).

        Methods that have the graph elsewhere override this.
        """
        return self.spliced_, self.velocity_, self.trusted_

    def _follow(self, moments: Moments, time: np.ndarray | None) -> None:
        """Compute what follows from the velocities: graph, confidence, beginnings, ends, time."""
        positions, own, genes = self._space()
        self.confidence_ = np.maximum(coherence(own, self.neighbors_, genes), 0)
        self.cosines_ = neighbor_cosines(positions, own, self.neighbors_, root=self._root, genes=genes)
        n, k = self.neighbors_.shape
        near = sparse.csr_matrix(
            (np.full(n * k, 1 / (k + 1)), self.neighbors_.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n)
        ) + sparse.identity(n) / (k + 1)
        states = velocity_graph.terminal_states(self.cosines_, near)
        self.roots_, self.ends_ = states.roots.astype(np.float32), states.ends.astype(np.float32)
        if time is None:
            time = self._time(moments, states)
        self.time_ = np.asarray(time, dtype=np.float32)

    # ---- results -----------------------------------------------------------------------------------------------------

    def velocity(self) -> np.ndarray:
        """Return ds/dt of the fitted cells in units of normalised counts, (n_cells, n_genes of the data), float32.

        Genes that were left out by a filter or have no trusted dynamics are NaN.
        """
        self._check_fitted()
        out = np.full((len(self.velocity_), self.n_genes_), np.nan, np.float32)
        columns = self.columns_[self.trusted_]
        for start in range(0, len(out), _CELLS):  # a copy of some cells at a time, not of all
            rows = slice(start, start + _CELLS)
            out[rows, columns] = self.velocity_[rows, self.trusted_]
        return out

    def time(self) -> np.ndarray:
        """Return how far along each fitted cell is, shape (n_cells,), float32, from 0 to 1."""
        self._check_fitted()
        return self.time_

    def confidence(self) -> np.ndarray:
        """Return the mean correlation of each cell's velocity with its neighbours', shape (n_cells,), from 0 to 1.

        Averages over neighbours make it high for any data, so that it is no evidence that cells move: see the null
        models of ``tf.compare("velocity", ...)``.
        """
        self._check_fitted()
        return self.confidence_

    def rates(self) -> pd.DataFrame:
        """Return what was found for each fitted gene, one row a gene, and whether its velocity is used (trusted)."""
        import pandas as pd

        self._check_fitted()
        return pd.DataFrame({**self.table_, "trusted": self.trusted_}, index=pd.Index(self.genes_))

    def transitions(self, backward: bool = False) -> sparse.csr_matrix:
        """Return the probabilities of moving from cell to cell along the velocities, (n_cells, n_cells), rows sum to 1.

        Parameters
        ----------
        backward
            Probabilities of where cells came from.
        """
        self._check_fitted()
        return velocity_graph.transition_matrix(self.cosines_, backward=backward)

    def project(self, embedding: np.ndarray) -> np.ndarray:
        """Return an arrow for each cell in an embedding; lengths have no unit.

        Parameters
        ----------
        embedding
            Coordinates of the fitted cells, e.g. ``adata.obsm["X_umap"]``, shape (n_cells, d).

        Returns
        -------
        Shape (n_cells, d), float32.

        Raises
        ------
        DataError
            Another number of cells.
        """
        self._check_fitted()
        if len(embedding) != len(self.time_):
            raise DataError(f"The embedding has {len(embedding):,} rows, and {len(self.time_):,} cells were fitted.")
        return velocity_graph.project(self.cosines_, embedding)

    def terminal_states(self) -> velocity_graph.TerminalStates:
        """Return how much each cell is a beginning and an end, each shape (n_cells,), float32, from 0 to 1."""
        self._check_fitted()
        return velocity_graph.TerminalStates(self.roots_, self.ends_)

    def to_scvelo(self, adata: AnnData) -> AnnData:
        """Return the fitted cells and genes under the names that scVelo's plots and CellRank read.

        Parameters
        ----------
        adata
            The AnnData that was given to `fit`; not changed.

        Returns
        -------
        A copy with layers ``Ms``, ``Mu``, ``velocity``; ``var["velocity_genes"]`` and the rates; neighbours;
        ``uns["velocity_graph"]`` and ``uns["velocity_graph_neg"]``; ``obs["velocity_confidence"]``, ``"latent_time"``,
        ``"root_cells"`` and ``"end_points"``.

        Raises
        ------
        DataError
            If `adata` holds other cells.
        """
        self._require_fitted_cells(adata)
        out = adata[:, self.columns_].copy()
        layers: dict[str, Any] = {"Ms": self.spliced_, "Mu": self.unspliced_, "velocity": self.velocity_}
        for name, matrix in layers.items():
            out.layers[name] = matrix
        for name, values in self.table_.items():
            out.var[f"velocity_{name}"] = values
        out.var["velocity_genes"] = self.trusted_
        columns = {"velocity_confidence": self.confidence_, "latent_time": self.time_, "root_cells": self.roots_}
        for name, values in {**columns, "end_points": self.ends_}.items():
            out.obs[name] = values
        out.obs["velocity_self_transition"] = velocity_graph.self_transitions(self.cosines_)
        out.obsp["distances"], out.obsp["connectivities"] = self.distances_, self.connectivities_
        parameters = {"n_neighbors": self.neighbors_.shape[1] + 1, "method": "umap", "metric": "euclidean"}
        out.uns["neighbors"] = {
            "distances_key": "distances", "connectivities_key": "connectivities", "params": parameters,
        }  # fmt: skip
        out.uns["velocity_graph"] = self.cosines_.maximum(0)
        out.uns["velocity_graph_neg"] = self.cosines_.minimum(0)
        out.uns["velocity_params"] = {"mode": "stochastic" if self._root else "deterministic", "perc": [5, 95]}
        return out
