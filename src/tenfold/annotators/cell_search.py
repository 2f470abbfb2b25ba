"""What annotators that index labelled cells on a unit sphere share: votes of neighbours, cell search, another index."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import pandas as pd
from scipy import sparse

from tenfold.annotators.base import AnnotatorMethod
from tenfold.annotators.calibration import Calibration, held_out, smoothed
from tenfold.annotators.cell_index import CellIndex, pvalues
from tenfold.data.genes import match_genes
from tenfold.data.inputs import Inputs
from tenfold.errors import NotFittedError, ParameterError, closest
from tenfold.method import param

if TYPE_CHECKING:
    from anndata import AnnData


class CellSearch(AnnotatorMethod):
    """An annotator that implements ``_points``, cells on a unit sphere, and calls ``_index`` for labelled ones.

    The fitted state adds ``index_`` (a `CellIndex` as a dict), ``names_`` and ``studies_`` of the indexed cells, and
    ``known_``: distance to the nearest indexed cell of cells of known types that neither model nor index had seen.
    """

    n_neighbors: int = param(50, low=1)
    weights: Literal["uniform", "distance"] = "uniform"
    rejection: float = param(0.0, low=0.0, high=1.0)
    search_by: Literal["points", "quantised"] = "points"
    device: str = "auto"
    seed: int = param(0, low=0)

    @abstractmethod
    def _points(self, x: sparse.csr_matrix) -> np.ndarray:
        """Return cells, given as log-expression, on the unit sphere, shape (n_cells, n_latent), float32."""

    def _name(self, source: Inputs) -> None:
        """Keep the names of labelled cells and their studies."""
        self.names_ = source.cell_names
        self.studies_ = np.full(source.n_cells, "", dtype=object)
        if source.batch is not None:
            self.studies_ = np.array(source.batch.names, dtype=object)[source.batch.values]

    def _calibrate(self, points: np.ndarray, codes: np.ndarray, groups: np.ndarray | None, held: np.ndarray) -> None:
        """Calibrate on what an index without the held-out cells says of these."""
        found, known = Calibration.none(len(self.labels_)), np.zeros(0)
        if held.any():
            self._index(points[~held], codes[~held])
            scores, distance = self._votes(points[held])
            known = distance[:, 0]
            found = Calibration.of(scores, codes[held], None if groups is None else groups[held])
        self.calibration_, self.known_ = found._asdict(), known

    def _index(self, points: np.ndarray, codes: np.ndarray) -> None:
        self.index_ = CellIndex.of(points, codes, self.search_by == "quantised", self.seed)._asdict()

    def _votes(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return smoothed shares of votes, and distances to the voters."""
        index = CellIndex(**self.index_)
        near, distance = index.search(points, self.n_neighbors, self.seed)
        shares = index.shares(near, distance, len(self.labels_), self.weights == "distance")
        return smoothed(shares, near.shape[1]), distance

    def _score(self, x: sparse.csr_matrix) -> np.ndarray:
        return self._votes(self._points(x))[0]

    def _judge(self, x: sparse.csr_matrix, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, distance = self._votes(self._points(x))
        return scores, pvalues(distance, self.known_) > self.rejection

    def embed(self, adata: AnnData) -> np.ndarray:
        """Return cells, given as raw counts, on the unit sphere, shape (n_cells, n_latent), float32."""
        self._check_encoder()
        data = Inputs(adata, {"layer": self.roles_["layer"]} if "layer" in getattr(self, "roles_", {}) else {})
        chunks = self._chunks(data, match_genes(adata.var_names, self.genes_))
        return np.concatenate([self._points(x) for x in chunks])

    def search(self, adata: AnnData, n_neighbors: int = 100) -> pd.DataFrame:
        """Return the indexed cells that are most like each cell.

        Parameters
        ----------
        adata
            Cells to search for, raw counts.
        n_neighbors
            How many for each.

        Returns
        -------
        One row for each of them, best first: ``cell``, ``rank`` (from 1), ``found`` (the indexed cell's name),
        ``label``, ``study`` (its batch), ``distance`` (1 - cosine, 0 to 2).
        """
        index = self._own_index()
        near, distance = index.search(self.embed(adata), n_neighbors, self.seed)
        rows, k = near.ravel(), near.shape[1]
        return pd.DataFrame({
            "cell": np.repeat(np.asarray(adata.obs_names), k), "rank": np.tile(np.arange(1, k + 1), len(near)),
            "found": self.names_[rows], "label": self.labels_[index.codes[rows]], "study": self.studies_[rows],
            "distance": distance.ravel(),
        })  # fmt: skip

    def neighbors(self, adata: AnnData) -> pd.DataFrame:
        """Return what the votes for each cell look like.

        Parameters
        ----------
        adata
            Cells, raw counts.

        Returns
        -------
        One row a cell: ``nearest`` and ``farthest``, distances to the voters; ``pvalue``, the share of held-out known
        cells that are as far from their nearest; ``label``, ``share`` of its votes, ``against_second`` (share of the
        votes of the first two); and these three again, ``_weighted`` by 1 / distance.
        """
        index = self._own_index()
        near, distance = index.search(self.embed(adata), self.n_neighbors, self.seed)
        return index.described(near, distance, self.labels_, self.known_).set_axis(adata.obs_names, axis=0)

    def index(self, adata: AnnData, labels: str, batch: str | None = None, layer: str | None = None) -> Self:
        """Replace the index by one of other labelled cells; the encoder stays.

        Parameters
        ----------
        adata
            Labelled cells, raw counts; genes are found by name, missing ones count as not expressed.
        labels, batch
            Columns of ``obs``: labels, and studies. Of three or more, whole studies are held out to calibrate.
        layer
            With the counts; default X.

        Returns
        -------
        The method itself.
        """
        self._check_encoder()
        roles = {"labels": labels, "batch": batch, "layer": layer}
        data = Inputs(adata, {role: key for role, key in roles.items() if key is not None}, needed=("labels",))
        assert data.labels is not None
        codes, self.labels_ = data.labels.values.astype(np.int64), np.array(data.labels.names, dtype=object)
        groups = None if data.batch is None else data.batch.values
        self._name(data)
        with self._measured():
            chunks = list(self._chunks(data, match_genes(adata.var_names, self.genes_), show=False))
            points = np.concatenate([self._points(x) for x in chunks])
            self._calibrate(points, codes, groups, held_out(codes, groups, self.calibration, self.seed))
            self._index(points, codes)
            self._watch(data, codes, groups)
            self.found_, self.told_ = self._tell(data)
            self.depths_ = self._depths(adata, layer)
        self._remember(data.digest, data.roles)
        return self

    def restricted(self, allow: list[str] | None = None, block: list[str] | None = None) -> Self:
        """Return the same annotator with an index of some labels only.

        Parameters
        ----------
        allow
            Labels to keep.
        block
            Labels to leave out. Give one of the two.

        Raises
        ------
        ParameterError
            A label that is not in the index, or none or both of the lists.
        """
        index = self._own_index()
        if (allow is None) == (block is None):
            raise ParameterError("restricted takes either allow=[labels] or block=[labels].")
        named = allow if block is None else block
        for label in named or []:
            if label not in self.labels_:
                raise ParameterError(f"The index has no label '{label}'.{closest(label, self.labels_)}")
        mask = np.isin(self.labels_[index.codes].astype(str), named or []) == (block is None)
        if not mask.any():
            raise ParameterError("No labelled cell is left in the index.")
        other = copy.copy(self)
        other.index_, other.names_, other.studies_ = index.kept(mask)._asdict(), self.names_[mask], self.studies_[mask]
        # What is known of the fitted cells was said by the whole index.
        other.cells_ = ""
        return other

    def _own_index(self) -> CellIndex:
        self._check_fitted()
        return CellIndex(**self.index_)

    def _check_encoder(self) -> None:
        if not hasattr(self, "net_"):
            super()._check_fitted()

    def _check_fitted(self) -> None:
        if hasattr(self, "net_") and not hasattr(self, "index_"):
            raise NotFittedError(
                f"This {self.info.title} is an encoder without labelled cells: call .index(adata, labels=...) first."
            )
        super()._check_fitted()
