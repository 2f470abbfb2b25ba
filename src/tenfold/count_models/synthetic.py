"""Synthetic cells from a fitted model of counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from tenfold.data.covariates import Design
from tenfold.errors import DataError, ParameterError

if TYPE_CHECKING:
    from anndata import AnnData

    from tenfold.nn.autoencoder import ConditionalVAE

#: Cells drawn at a time.
CHUNK = 1024


def synthetic_cells(
    net: ConditionalVAE, fitted: dict[str, np.ndarray], templates: np.ndarray, n: int, prior: bool, genes: np.ndarray,
    design: Design, seed: int,
) -> AnnData:  # fmt: skip
    """Draw cells from a model.

    Parameters
    ----------
    net
        The model.
    fitted
        Posterior and covariates of fitted cells, one row a cell.
    templates
        Rows to draw templates from.
    n
        Number of cells.
    prior
        Draw z from the prior rather than from the template's posterior.
    genes
        Names of the modelled genes.
    design
        Names of batches and labels.
    seed
        Of everything drawn.

    Returns
    -------
    AnnData, n × modelled genes: int32 CSR counts; ``obs`` has ``synthetic`` (True), ``template`` (row of the fitted
    cell), and ``batch`` and ``label`` where the model has them.

    Raises
    ------
    ParameterError
        `n` below 1.
    DataError
        No templates.
    """
    import pandas as pd
    from anndata import AnnData

    if n < 1:
        raise ParameterError(f"sample({n}): give the number of cells, at least 1.")
    if not len(templates):
        raise DataError("No fitted cell has this batch and label together, so there is nothing to draw from.")
    chosen = np.random.default_rng([seed, 3]).choice(templates, size=n)
    counts = sparse.vstack([
        _draw(net, fitted, chosen[start : start + CHUNK], prior, seed + start) for start in range(0, n, CHUNK)
    ], format="csr")  # fmt: skip
    columns: dict[str, Any] = {"synthetic": np.ones(n, dtype=bool), "template": chosen}
    if "levels" in fitted:
        columns["batch"] = pd.Categorical.from_codes(fitted["levels"][chosen, 0], categories=design.batch)
    if "label" in fitted:
        columns["label"] = pd.Categorical.from_codes(fitted["label"][chosen], categories=design.labels)
    obs = pd.DataFrame(columns, index=[f"synthetic_{i}" for i in range(n)])
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=list(genes)))


def _draw(
    net: ConditionalVAE, fitted: dict[str, np.ndarray], rows: np.ndarray, prior: bool, seed: int
) -> sparse.csr_matrix:
    import torch

    from tenfold.engine import predict
    from tenfold.nn.priors import Gaussian

    def draw(net: Any, batch: dict[str, Any]) -> Any:
        z = net.draw_prior(batch) if prior else Gaussian(batch["mean"], batch["variance"]).sample()
        return net.model(batch, z, batch["log_size"]).sample().to(torch.int32)

    cells = {name: value[rows] for name, value in fitted.items()}
    return sparse.csr_matrix(predict(net, cells, draw, batch_size=CHUNK, seed=seed))
