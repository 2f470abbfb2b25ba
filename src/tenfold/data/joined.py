"""Labelled cells and cells to label as one data set, for methods that learn from both at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from tenfold.data.genes import match_genes
from tenfold.data.inputs import Inputs
from tenfold.errors import KeyMissingError

#: Roles whose columns go along, in both data sets under the same names.
_COVARIATES = ("size_factor", "categorical_covariates", "continuous_covariates")
#: Batch of the cells to label: where the reference has batches and they have none; where neither has.
_LONE_BATCH, _NO_BATCH = "query", "all"


class Joined(NamedTuple):
    """A reference and the cells to label.

    Attributes
    ----------
    data
        The cells of the reference, then those to label, over the genes that both have, with roles ``labels`` and
        ``batch``: the two differ by batch where they have no column that says otherwise.
    from_reference
        Mask of the cells of the reference, shape (n_cells,).
    """

    data: Inputs
    from_reference: np.ndarray


def joined(data: Inputs, unlabeled: str, more_labels: Sequence[str] = ()) -> Joined:
    """Join the cells to label with their reference.

    Parameters
    ----------
    data
        Cells to label, with ``reference``.
    unlabeled
        Label of the cells without one.
    more_labels
        Columns of the reference with further labels, which go along; the cells to label have none.

    Raises
    ------
    DataError
        Hardly any gene is shared.
    KeyMissingError
        A column of covariates is missing in one of the two.
    """
    reference = data.reference
    assert reference is not None and reference.labels is not None
    match = match_genes(data.adata.var_names, reference.gene_names)
    counts = sparse.vstack([reference.counts[:, match.places], data.counts[:, match.columns]], format="csr")
    roles: dict[str, str | list[str]] = {"labels": "labels", "batch": "batch"}
    keys: list[str] = []
    for role in _COVARIATES:
        if role in data.roles:
            value = data.roles[role]
            roles[role] = value
            keys += [value] if isinstance(value, str) else list(value)
    parts = {"reference": reference, "query": data}
    names = [f"{part}-{name}" for part, cells in parts.items() for name in cells.cell_names]
    obs = pd.concat([_columns(cells, keys, part) for part, cells in parts.items()]).set_axis(names, axis=0)
    given = np.array(reference.labels.names, dtype=object)[reference.labels.values]
    obs["labels"] = np.concatenate([given, np.full(data.n_cells, unlabeled, dtype=object)])
    lone = _LONE_BATCH if reference.batch is not None else _NO_BATCH
    for key in more_labels:
        given = _columns(reference, [key], "reference")[key].astype(str).to_numpy(dtype=object)
        obs[key] = np.concatenate([given, np.full(data.n_cells, unlabeled, dtype=object)])
    obs["batch"] = np.concatenate([_batch(reference, "reference"), _batch(data, lone)])
    adata = AnnData(counts, obs=obs, var=pd.DataFrame(index=reference.gene_names[match.places]))
    return Joined(Inputs(adata, roles, data.run), np.arange(adata.n_obs) < reference.n_cells)


def on_shared_genes(data: Inputs) -> Inputs:
    """Return the reference of cells to label over the genes that these have, too."""
    reference = data.reference
    assert reference is not None
    match = match_genes(data.adata.var_names, reference.gene_names)
    if len(match.places) == reference.n_genes:
        return reference
    return Inputs(reference.adata[:, match.places], reference.roles, reference.run)


def _columns(cells: Inputs, keys: list[str], part: str) -> pd.DataFrame:
    for key in keys:
        if key not in cells.adata.obs:
            raise KeyMissingError(f"obs of the {part} has no column '{key}', which is needed there, too.")
    return cells.adata.obs[keys]


def _batch(cells: Inputs, name: str) -> np.ndarray:
    if cells.batch is None:
        return np.full(cells.n_cells, name, dtype=object)
    return np.array(cells.batch.names, dtype=object)[cells.batch.values]
