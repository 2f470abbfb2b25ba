"""The base of methods that decode counts from latent variables, some of which are processes over the tissue."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

from tenfold.data.inputs import Inputs
from tenfold.data.spatial import Positions
from tenfold.errors import DataError, ParameterError, closest
from tenfold.method import Denoiser, param
from tenfold.spatial_models.base import DomainMethod

if TYPE_CHECKING:
    import pandas as pd

#: Each section is scaled to this extent in every direction, the unit of the length of a kernel.
EXTENT = 20.0
#: Cells decoded at a time.
CHUNK = 4096
#: In units of the spacing: what lies farther from every cell is not interpolated but guessed.
FAR = 3.0


class FieldMethod(DomainMethod, Denoiser):
    """A `DomainMethod` whose embedding begins with processes that are known at any place; it denoises, and fills gaps.

    ``_embed`` of the method itself calls `_take` first and `_keep` after training. The fitted state is, beside that of
    the base, ``net_`` (with ``field(positions, section)``, the processes, and ``expected(batch)``, the decoder),
    ``history_``, the modelled genes ``genes_`` and their ``columns_`` of all ``n_genes_``, and the frame of each
    section.
    """

    n_spatial: int = param(2, low=1)
    n_top_genes: int | None = param(3000, low=10)

    # ---- what the network reads --------------------------------------------------------------------------------------

    def _take(self, data: Inputs, positions: Positions) -> dict[str, Any]:
        """Choose genes, and keep where the cells lie; return counts, log size factors and places."""
        self.columns_ = data.variable_genes(self.n_top_genes)
        self.genes_, self.n_genes_ = data.gene_names[self.columns_], data.n_genes
        counts = data.counts[:, self.columns_]
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        if not (none := int((totals == 0).sum())) < data.n_cells:
            raise DataError("No cell has counts in the modelled genes; raise n_top_genes.")
        if none:
            warnings.warn(
                f"{none:,} cells have no counts in the {len(self.genes_):,} modelled genes. Filter cells of few "
                "counts, or raise n_top_genes.",
                stacklevel=2,
            )
        size = np.maximum(totals, 1) / np.median(totals[totals > 0])
        return {"counts": counts, "log_size": np.log(size), **self._frame(positions)}

    def _frame(self, positions: Positions) -> dict[str, np.ndarray]:
        """Keep where the cells lie; return it as the network reads it."""
        self.sections_, self.section_ = positions.sections.names, positions.sections.values.astype(np.int64)
        self.points_ = positions.points
        ends = [(part.min(axis=0), part.max(axis=0)) for part in (self.points_[rows] for rows in positions.each())]
        self.low_, high = (np.stack(each) for each in zip(*ends, strict=True))
        self.span_ = np.where(high > self.low_, high - self.low_, 1.0)
        return self._placed(self.points_, self.section_)

    def _placed(self, points: np.ndarray, section: np.ndarray) -> dict[str, np.ndarray]:
        """Return places in the frame of their section, and the section where there are several."""
        placed = {"position": (EXTENT * (points - self.low_[section]) / self.span_[section]).astype(np.float32)}
        return placed if len(self.sections_) == 1 else placed | {"levels": section[:, None]}

    def _keep(self, net: Any, history: dict[str, Any]) -> None:
        """Keep the trained network and the course of its training."""
        self.net_, self.history_ = net.cpu(), history

    @property
    def history(self) -> pd.DataFrame:
        """Losses in nats per cell, one row an epoch and term: columns phase, epoch, term, train, validation."""
        from tenfold.engine import History

        self._check_fitted()
        return History.from_dict(self.history_).terms

    # ---- expression --------------------------------------------------------------------------------------------------

    def denoise(self, adata: Any = None) -> np.ndarray:
        """Return the expected counts of the fitted cells, had each the median number of counts.

        Returns
        -------
        Shape (n_cells, n_genes), float32; genes that are not modelled are NaN.

        Raises
        ------
        DataError
            If `adata` holds other cells; for other places there is `at`.
        """
        self._require_fitted_cells(adata)
        return np.concatenate(list(self.denoised()))

    def denoised(self) -> Iterator[np.ndarray]:
        """Iterate over the rows of ``denoise()``, 4,096 cells at a time."""
        self._check_fitted()
        for start in range(0, len(self.section_), CHUNK):
            rows = slice(start, start + CHUNK)
            found = self._expected(self.embedding_[rows], self.section_[rows])
            out = np.full((len(found), self.n_genes_), np.nan, dtype=np.float32)
            out[:, self.columns_] = found
            yield out

    def at(self, positions: np.ndarray, sample: str | None = None) -> pd.DataFrame:
        """Return the expected counts at places that were not measured, had they the median number of counts.

        The smooth latent variables are those of the Gaussian processes there, the others those of the nearest cell.

        Parameters
        ----------
        positions
            Coordinates in the unit and frame of those fitted, shape (n_places, 2 or 3).
        sample
            The section that the places are in, where several were fitted.

        Returns
        -------
        One row a place, one column a modelled gene, float32.

        Raises
        ------
        DataError
            Positions are not numbers in as many columns as those fitted.
        ParameterError
            There is no such section, or there are several and none was named.

        Warns
        -----
        UserWarning
            Places lie farther than three spacings from every cell of the section.
        """
        import pandas as pd
        import torch

        self._check_fitted()
        where = np.asarray(positions, dtype=np.float64)
        if where.ndim != 2 or where.shape[1] != self.points_.shape[1] or not np.isfinite(where).all():
            raise DataError(
                f"positions= takes finite numbers in {self.points_.shape[1]} columns, one row a place, in the unit of "
                f"the fitted positions; the shape given is {where.shape}."
            )
        code = self._code(sample)
        cells = np.flatnonzero(self.section_ == code)
        distance, nearest = cKDTree(self.points_[cells]).query(where)
        if far := int((distance > FAR * self.spacing_).sum()):
            warnings.warn(
                f"{far:,} of {len(where):,} places lie farther than {FAR:g} × the distance between cells from every "
                "cell: what is given there is a guess.",
                stacklevel=2,
            )
        section = np.full(len(where), code)
        placed = torch.from_numpy(self._placed(where, section)["position"])
        smooth = self.net_.field(placed, torch.from_numpy(section)).mean.numpy()
        z = np.hstack([smooth, self.embedding_[cells[nearest], self.n_spatial :]])
        return pd.DataFrame(self._expected(z, section), columns=self.genes_)

    def _code(self, sample: str | None) -> int:
        if sample is None and len(self.sections_) == 1:
            return 0
        if str(sample) not in self.sections_:
            found = "no section is named" if sample is None else f"there is no section '{sample}'"
            raise ParameterError(
                f"sample=: {found}.{closest(str(sample), self.sections_)} Fitted were: {', '.join(self.sections_)}."
            )
        return self.sections_.index(str(sample))

    def _expected(self, z: np.ndarray, section: np.ndarray) -> np.ndarray:
        from tenfold.engine import predict

        told = {} if len(self.sections_) == 1 else {"levels": section[:, None]}
        return predict(self.net_, {"z": z.astype(np.float32), **told}, lambda net, batch: net.expected(batch))
