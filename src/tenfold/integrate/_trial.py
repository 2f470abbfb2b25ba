"""What the controls of integration share: refitting a method on few cells, verdicts, and the noise yardstick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from anndata import AnnData

from tenfold import metrics
from tenfold.data.inputs import Inputs
from tenfold.integrate._neighbors import nearest
from tenfold.method import Method
from tenfold.task import Score, Verdict

CONTROL_CELLS = 3000
N_COMPONENTS = 50
N_GENES = 2000
#: obs column in which a control puts its own batches.
BATCH = "tenfold_batch"


@dataclass(frozen=True)
class Trial:
    """A method under control: how to make it, and how much its controls may cost."""

    make: Callable[[int], Method]
    #: obs column with labels, shown to methods that are made to see them.
    labels: str | None = None
    #: Whether all controls were asked for, whatever they cost.
    thorough: bool = False

    @property
    def deep(self) -> bool:
        """Whether the method is trained, so that each fit takes seconds to minutes even on few cells."""
        return self.make(0).info.family == "deep"

    @property
    def sparing(self) -> bool:
        """Whether to refit less often: deep models, unless all controls were asked for."""
        return self.deep and not self.thorough

    @property
    def stochastic(self) -> bool:
        """Whether the seed changes the result."""
        return self.make(0).info.stochastic

    @property
    def batch_free(self) -> bool:
        """Whether the method also runs without a batch, so that it can be its own yardstick."""
        return "batch" not in self.make(0).info.needs

    def fit(self, adata: AnnData, *, batch: bool, seed: int) -> Method:
        """Fit with the column `BATCH` as batch, or without any batch."""
        method = self.make(seed)
        roles = {"batch": BATCH} if batch and "batch" in (*method.info.needs, *method.info.accepts) else {}
        if self.labels is not None and method.info.sees_labels:
            roles["labels"] = self.labels
        return method.fit(adata, progress=False, **roles)


def judged(loss: float) -> Verdict:
    """Return the verdict on a share of neighbours lost: pass up to 0.05, warn up to 0.15."""
    return "pass" if loss <= 0.05 else "warn" if loss <= 0.15 else "fail"


def worse(first: Verdict, second: Verdict) -> Verdict:
    """Return the more severe of two verdicts."""
    return max(first, second, key=("pass", "warn", "fail").index)


def spread_over_cells(metric: str, shares: np.ndarray) -> Score:
    """Return the standard error of a mean over cells, which is what a bootstrap over cells tends to.

    Parameters
    ----------
    metric
        Whose error it is.
    shares
        Value of every cell, NaN where it has none, shape (n,).
    """
    known = shares[np.isfinite(shares)]
    return Score("spread:cells", metric, float(known.std(ddof=1) / np.sqrt(len(known))))


def largest_batch(adata: AnnData, batch: str, seed: int) -> AnnData:
    """Return at most `CONTROL_CELLS` cells of the largest batch on its variable genes: one batch, no batch effect."""
    largest = adata.obs[batch].value_counts().index[0]
    return variable(sample_cells(adata[adata.obs[batch] == largest], seed))


def sample_cells(adata: AnnData, seed: int) -> AnnData:
    """Return a random subset of at most `CONTROL_CELLS` cells, in their order."""
    if adata.n_obs <= CONTROL_CELLS:
        return adata.copy()
    chosen = np.random.default_rng(seed).choice(adata.n_obs, CONTROL_CELLS, replace=False)
    return adata[np.sort(chosen)].copy()


def variable(adata: AnnData) -> AnnData:
    """Return `adata` on its variable genes, without cells that are empty there.

    Choosing the genes once keeps the choice itself from counting as an effect of the method.
    """
    genes = Inputs(adata, {}).variable_genes(N_GENES)
    subset = adata[:, genes]
    filled = np.asarray(subset.X.sum(axis=1)).ravel() > 0
    return subset[filled].copy()


def components(adata: AnnData) -> np.ndarray:
    """Return principal components without any correction, shape (n_cells, N_COMPONENTS)."""
    return Inputs(adata, {}).pca(N_COMPONENTS, None).embedding


def equivalent_noise(embedding: np.ndarray, kept: float, seed: int) -> float:
    """Return the isotropic noise, in % of the variance, that loses as many neighbours as the method did.

    A yardstick that makes losses comparable over data sets: the same overlap means little damage where neighbourhoods
    are fragile and much where they are stable.
    """
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(embedding.shape).astype(np.float32)
    direction *= np.sqrt(embedding.var(axis=0).sum() / embedding.shape[1])
    before = nearest(embedding)
    low, high = -5.0, 1.0  # log10 of the share
    for _ in range(10):
        middle = (low + high) / 2
        noisy = nearest(embedding + np.sqrt(10**middle) * direction)
        low, high = (middle, high) if metrics.neighbor_overlap(before, noisy) > kept else (low, middle)
    return 100 * 10 ** ((low + high) / 2)
