"""What integration's metrics need that look beyond labels: expression before and after, phases, pseudotime."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from tenfold.data.cell_cycle import phase_scores
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError, KeyMissingError, closest
from tenfold.integrate._trial import CONTROL_CELLS, N_GENES
from tenfold.method import Corrector, Method
from tenfold.metrics import Beyond, Corrected
from tenfold.metrics.silhouettes import sample_cells

_GENES_AT_ONCE = 250  # of corrected expression, which is dense and of all cells


def beyond_labels(method: Method, data: Inputs, adata: AnnData, roles: dict[str, str], seed: int) -> Beyond:
    """Return expression before and, where the method corrects it, after; phases of the cell cycle; pseudotime.

    Parameters
    ----------
    method
        Fitted.
    data, adata
        The cells that it was fitted on.
    roles
        ``pseudotime`` names the column with the reference.
    seed
        Of the cells whose corrected expression is looked at.
    """
    batch, genes = data.batch_or_one.values, data.variable_genes(N_GENES)
    return Beyond(
        before=data.lognorm[:, genes],
        phases=phase_scores(data.lognorm, data.gene_names, batch),
        corrected=_corrected(method, data, genes, seed) if isinstance(method, Corrector) else None,
        pseudotime=reference_pseudotime(adata, roles["pseudotime"]) if "pseudotime" in roles else None,
    )


def _corrected(method: Corrector, data: Inputs, genes: np.ndarray, seed: int) -> Corrected:
    """Return the genes that the method corrects, of at most `CONTROL_CELLS` cells a batch."""
    known = set(method.genes_)  # type: ignore[attr-defined]  # fitted state
    genes = genes[[str(name) in known for name in data.gene_names[genes]]]
    cells = sample_cells(data.batch_or_one.values, CONTROL_CELLS, seed)
    names = data.gene_names[genes].tolist()
    parts = [
        method.correct(names[start : start + _GENES_AT_ONCE])[cells] for start in range(0, len(names), _GENES_AT_ONCE)
    ]
    return Corrected(data.lognorm[cells][:, genes], np.hstack(parts), cells)


def reference_pseudotime(adata: AnnData, key: str) -> np.ndarray:
    """Return a reference pseudotime, NaN where a cell has none, shape (n_cells,).

    Raises
    ------
    KeyMissingError
        No such column.
    DataError
        It holds no numbers, or fewer than 10.
    """
    if key not in adata.obs.columns:
        raise KeyMissingError(f"pseudotime='{key}': obs has no such column.{closest(key, adata.obs.columns)}")
    time = pd.to_numeric(adata.obs[key], errors="coerce").to_numpy(dtype=np.float64)
    known = int(np.isfinite(time).sum())
    if known < 10:
        raise DataError(
            f"pseudotime='{key}' holds a number in {known} of {adata.n_obs:,} cells; at least 10 are needed. It "
            "must be a pseudotime from a trusted analysis of single batches, NaN where a cell has none."
        )
    return np.where(np.isfinite(time), time, np.nan)
