"""Real data that need no download."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from tenfold.errors import DataError

# The bundled values are log1p(counts per 10,000), rounded to three decimals.
ROUNDING = 5e-4


def pbmc(planted_batch: bool = False, seed: int = 0) -> AnnData:
    """Return 700 human blood cells × 765 variable genes with raw counts and 10 labels; ships inside Scanpy.

    Peripheral blood mononuclear cells of one donor by 10x Chromium (Zheng et al., 2017), thinned out by the authors
    of Scanpy (``scanpy.datasets.pbmc68k_reduced``), who kept log-normalised values; the raw counts are recovered from
    them exactly. Labels were transferred from sorted populations, so T-cell subsets overlap.

    **There is no batch**: all cells come from one sample. With `planted_batch` a known batch effect is planted on a
    random half of them (`tenfold.data.plant_batch`: a log-normal factor for each gene, half the depth, 5 % ambient
    RNA). What a method should remove is then known, and nothing of it is biology.

    Parameters
    ----------
    planted_batch
        Plant a batch effect and name the halves in ``obs["batch"]``: ``"untouched"``, ``"planted"``.
    seed
        Of the halves and the effect.

    Returns
    -------
    Counts in ``X`` (CSR, float32); ``obs["cell_type"]``, ``obs["n_counts"]`` (of all genes, before the choice of
    765); with `planted_batch` also ``obs["batch"]``, ``layers["untouched"]`` (counts before) and
    ``var["planted_factor"]``.

    Raises
    ------
    DataError
        The installed Scanpy holds other data than expected.

    Examples
    --------
    >>> import tenfold as tf
    >>> tf.data.pbmc().shape
    (700, 765)

    References
    ----------
    Zheng et al. (2017), doi 10.1038/ncomms14049.
    """
    import scanpy as sc

    stored = sc.datasets.pbmc68k_reduced()
    depth = stored.obs["n_counts"].to_numpy(dtype=np.float64)
    values = stored.raw.X
    counts = recovered_counts(values.toarray() if sparse.issparse(values) else np.asarray(values), depth)
    obs = pd.DataFrame(
        {"cell_type": stored.obs["bulk_labels"].cat.remove_unused_categories(), "n_counts": depth.astype(np.float32)},
        index=stored.obs_names.astype(str),
    )
    adata = AnnData(counts, obs=obs, var=pd.DataFrame(index=stored.raw.var_names.astype(str).rename(None)))
    adata.uns["source"] = "scanpy.datasets.pbmc68k_reduced; Zheng et al. (2017), doi 10.1038/ncomms14049"
    return _with_batch(adata, seed) if planted_batch else adata


def recovered_counts(lognorm: np.ndarray, depth: np.ndarray) -> sparse.csr_matrix:
    """Undo log1p(counts / depth × 10,000) that was rounded to three decimals.

    Parameters
    ----------
    lognorm
        Cells × genes.
    depth
        Total counts of each cell, over all genes, shape (n_cells,).

    Returns
    -------
    CSR, float32, whole numbers: the only ones from which the values can have been made.

    Raises
    ------
    DataError
        No whole numbers give these values, or more than one set of them does.
    """
    lognorm = np.asarray(lognorm, dtype=np.float64)
    scale = np.asarray(depth, dtype=np.float64)[:, None] / 1e4
    counts = np.rint(np.expm1(lognorm) * scale)
    tolerance = ROUNDING + 1e-6
    again = np.abs(np.log1p(counts / scale) - lognorm).max(initial=0)
    # A neighbouring whole number must lie outside the rounding, or the recovery is a guess.
    other = np.abs(np.log1p((counts + 1) / scale) - lognorm).min(initial=np.inf)
    if not (again <= tolerance < other) or counts.min(initial=0) < 0:
        raise DataError(
            "The raw counts cannot be recovered exactly from these log-normalised values "
            f"(largest deviation {again:.3g}, allowed {tolerance:.3g}). Another version of Scanpy may hold other data."
        )
    return sparse.csr_matrix(counts.astype(np.float32))


def _with_batch(adata: AnnData, seed: int) -> AnnData:
    from tenfold.data.simulation import plant_batch

    halves = np.random.default_rng(seed).permutation(np.arange(adata.n_obs) % 2)
    planted = plant_batch(adata.X, halves, seed=seed)
    adata.layers["untouched"] = adata.X
    adata.X = planted.counts
    adata.obs["batch"] = pd.Categorical.from_codes(halves, ["untouched", "planted"])
    adata.var["planted_factor"] = planted.factors
    return adata
