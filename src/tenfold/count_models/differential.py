"""Differential expression from draws of a model's posterior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tenfold.data.variable_genes import gene_moments
from tenfold.errors import DataError, ParameterError

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from tenfold.data.streamed import StreamedCounts
    from tenfold.nn.autoencoder import ConditionalVAE

#: A gene with a smaller mean count in a group counts as not expressed there.
SILENT = 0.01
LEAST_PSEUDOCOUNT = 1e-10
#: Keeps the logarithm of a probability of 0 finite.
TINY = 1e-16


def compare_groups(
    net: ConditionalVAE, counts: sparse.csr_matrix | StreamedCounts, cells: dict[str, np.ndarray], first: np.ndarray,
    second: np.ndarray, *, mode: Literal["vanilla", "change"] = "vanilla", delta: float = 0.25,
    pseudocount: float | None = None, fdr: float = 0.05, n_samples: int = 5000, batch_correction: bool = False,
    seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Compare the normalised expression ρ of two groups of cells.

    Cells are drawn with replacement from each group, z from their posteriors, and ρ₁, ρ₂ are compared pair by pair.

    ``"vanilla"``: Bayes factor log P(ρ₁ > ρ₂) - log P(ρ₁ ≤ ρ₂). ``"change"``: with
    LFC = log₂(ρ₁ + c) - log₂(ρ₂ + c), a gene differs where abs(LFC) > `delta`; the genes called have an expected
    posterior share of errors of at most `fdr`.

    Parameters
    ----------
    net
        The model.
    counts
        Counts of the modelled genes, shape (n_cells, n_genes).
    cells
        Posterior and covariates of the cells.
    first, second
        Masks of the two groups, shape (n_cells,).
    mode
        ``"vanilla"`` or ``"change"``.
    delta
        Smallest log₂ fold change of interest.
    pseudocount
        c. Default: the larger of the two groups' 0.9-quantiles, over genes with a mean count below 0.01 in the group,
        of the largest ρ drawn, divided by the number of genes; at least 1e-10. It keeps genes that are not expressed
        from having fold changes.
    fdr
        Target of ``"change"``.
    n_samples
        Draws from each group; they take 4 bytes × genes each.
    batch_correction
        Average ρ over the batches that both groups have cells in.
    seed
        Of the draws.

    Returns
    -------
    DataFrame indexed by gene number, the surest difference first. Both modes: ``bayes_factor`` (nats), ``scale1``,
    ``scale2`` (mean ρ), ``raw_mean1``, ``raw_mean2``, ``nonzero1``, ``nonzero2`` (share of cells). ``"vanilla"``:
    ``probability`` that ρ₁ > ρ₂. ``"change"``: ``probability`` of a difference, ``lfc_mean``, ``lfc_median``,
    ``lfc_std``, ``significant``, ``pseudocount``.

    Raises
    ------
    DataError
        A group without cells.
    ParameterError
        An unknown mode.

    References
    ----------
    Lopez et al. (2018), doi 10.1038/s41592-018-0229-2; Boyeau et al. (2019), doi 10.1101/794289.
    """
    import pandas as pd

    if mode not in ("vanilla", "change"):
        raise ParameterError(f"mode='{mode}' is not valid; give 'vanilla' or 'change'.")
    if not first.any() or not second.any():
        raise DataError("One of the two groups has no cells.")
    codes: list[int | None] = [None]
    if batch_correction and "levels" in cells:
        shared = np.intersect1d(cells["levels"][first, 0], cells["levels"][second, 0])
        if not len(shared):
            raise DataError("The groups have no batch in common; compare them with batch_correction=False.")
        codes = [int(code) for code in shared]
    rng = np.random.default_rng([seed, 4])
    drawn = [_draw(net, cells, rng.choice(np.flatnonzero(group), n_samples), codes, seed + i)
             for i, group in enumerate((first, second))]  # fmt: skip
    columns: dict[str, Any] = {}
    groups = np.where(first, 0, np.where(second, 1, -1))
    sizes = np.bincount(groups[groups >= 0])[:, None]
    total, seen = (gene_moments(counts, groups, np.full((2, counts.shape[1]), most))[0] for most in (np.inf, 1.0))
    for number, scale in enumerate(drawn):
        columns[f"scale{number + 1}"] = scale.mean(axis=0)
        columns[f"raw_mean{number + 1}"] = (total / sizes)[number]
        columns[f"nonzero{number + 1}"] = (seen / sizes)[number]
    if mode == "vanilla":
        probability = (drawn[0] > drawn[1]).mean(axis=0)
        order = -np.abs(probability - 0.5)
    else:
        if pseudocount is None:
            silent = [columns["raw_mean1"] < SILENT, columns["raw_mean2"] < SILENT]
            pseudocount = _pseudocount(drawn, silent)
        lfc = np.log2(drawn[0] + pseudocount) - np.log2(drawn[1] + pseudocount)
        probability = (np.abs(lfc) > delta).mean(axis=0)
        order = -probability
        columns |= {"lfc_mean": lfc.mean(axis=0), "lfc_median": np.median(lfc, axis=0), "lfc_std": lfc.std(axis=0)}
        columns |= {"significant": discoveries(probability, fdr), "pseudocount": pseudocount}
    factor = np.log(probability + TINY) - np.log(1 - probability + TINY)
    table = pd.DataFrame({"probability": probability, "bayes_factor": factor, **columns})
    return table.iloc[np.argsort(order, kind="stable")]


def discoveries(probability: np.ndarray, fdr: float) -> np.ndarray:
    """Call the most genes whose mean posterior probability of no difference is at most `fdr`.

    Parameters
    ----------
    probability
        Posterior probability of a difference of each gene, shape (n_genes,).
    fdr
        Largest expected share of errors among the genes called.

    Returns
    -------
    Boolean, shape (n_genes,).
    """
    order = np.argsort(-probability, kind="stable")
    errors = np.cumsum(1 - probability[order]) / np.arange(1, len(order) + 1)
    called = np.zeros(len(order), dtype=bool)
    called[order[: np.searchsorted(errors, fdr, side="right")]] = True
    return called


def _pseudocount(drawn: list[np.ndarray], silent: list[np.ndarray]) -> float:
    pairs = zip(drawn, silent, strict=True)
    highest = [float(np.quantile(scale.max(axis=0)[mask], 0.9)) for scale, mask in pairs if mask.any()]
    return max(LEAST_PSEUDOCOUNT, max(highest, default=0.0) / len(silent[0]))


def _draw(
    net: ConditionalVAE, cells: dict[str, np.ndarray], rows: np.ndarray, codes: list[int | None], seed: int
) -> np.ndarray:
    from tenfold.count_models.base import in_batch
    from tenfold.engine import predict
    from tenfold.nn.priors import Gaussian

    def draw(net: Any, batch: dict[str, Any]) -> Any:
        z = Gaussian(batch["mean"], batch["variance"]).sample()
        return sum(net.scale(in_batch(batch, code), z) for code in codes) / len(codes)

    return predict(net, {name: value[rows] for name, value in cells.items()}, draw, seed=seed)
