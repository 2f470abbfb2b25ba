"""Harmony: batches aligned in PCA space by batch-diverse soft clusters and a ridge correction within each."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from tenfold.data import mixture
from tenfold.data.inputs import Inputs
from tenfold.errors import ParameterError
from tenfold.method import FixedEmbedder, Method, MethodInfo, param

if TYPE_CHECKING:
    pass

_ROUNDS = 4  # clustering rounds per outer iteration; the reference's inner stopping test cannot fire before the fifth
_TOLERANCE = 1e-2  # relative change of the objective
_STILL_MERGING = 0.02  # change of the separation of the batches
_SEPARATE = 0.5
_FEW_CELLS = 30


class Harmony(Method, FixedEmbedder):
    """Batch-corrected principal components by alternating soft clustering and linear mixture correction.

    Cells are clustered softly by cosine similarity, with a penalty on clusters in which a batch is over-represented;
    within each cluster a ridge regression finds the offset of every batch, and each cell is moved by the offsets of
    its clusters. The two steps alternate from the uncorrected coordinates. This is the algorithm of version 2 of the
    authors' R package (offsets with estimated penalty, centroids from the regression), in closed form where one
    covariate is given, and with a stopping rule that does not end before the batches have met.

    **Use it** first when batches share most of their cell types: the review's default, and the only method that
    Antonsson & Melsted (2025) found calibrated throughout on batches that differ in nothing.

    **Do not use it** where batch and biology are confounded (one condition per batch): it removes both. It gives
    coordinates only: test for differential expression on the counts. A cell type that has a close twin and occurs in
    one batch only loses some of its purity; the removed-type control of `compare` measures that.

    **Cost**: one or two seconds of processor time for 100,000 cells, linear in cells × components × clusters.

    **Writes** ``obsm["X_harmony"]``.

    Parameters
    ----------
    n_clusters
        Number of soft clusters; ``None`` takes one per 30 cells, at most 100.
    theta
        Strength of the diversity penalty, 0 for none. A list gives one for ``batch`` and one for each of
        ``categorical_covariates``.
    sigma
        Width of the soft assignment; larger is softer.
    lamb
        Ridge penalty of the batch offsets. ``None`` estimates it as `alpha` × the number of cells of the batch that
        are expected in the cluster, which protects clusters that a batch hardly takes part in.
    alpha
        See `lamb`.
    tau
        Protects batches much smaller than ``tau`` cells per cluster from the penalty; 0 protects none.
    block_size
        Share of cells that is re-assigned at a time.
    max_iter
        Largest number of outer iterations.
    stop
        ``"guarded"`` stops after two consecutive iterations in which the objective changes by less than 1 % and the
        separation of the batches by less than 0.02, never before the third. ``"reference"`` stops at the first change
        of the objective below 1 % or rise, which under a strong batch effect can be the first iteration, with the
        batches unmixed; its default for `max_iter` is 10.
    combine
        How the penalties of several covariates combine in one cell: their ``"sum"`` (the R package's) or ``"product"``.
    diversity
        ``"bounded"``: penalty ((2E + 1) / (O + E + 1))^theta of version 2; ``"original"``: ((E + 1) / (O + 1))^theta.
    n_components, n_top_genes
        Of the PCA to start from, unless ``use_rep`` names an embedding.
    seed
        Seed of the centroids and of the order of cells.

    Attributes
    ----------
    embedding_
        Corrected coordinates, (n_cells, n_components), float32.
    assignments_
        Soft clusters, (n_cells, n_clusters), float32, rows sum to 1.
    centroids_
        Unit centroids, (n_clusters, n_components), float32.
    objective_
        Objective at the start and after each outer iteration.
    separation_
        Separation of the batches after each outer iteration: 0 when they have their overall shares in every cluster,
        1 when no cluster holds two of them. Of several covariates, the most separate one.
    n_iter_
        Outer iterations run.

    Raises
    ------
    ParameterError
        More clusters than cells, or a list of thetas whose length is not that of the covariates.

    Warns
    -----
    UserWarning
        A batch of few cells, or batches that remain in separate clusters.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obs["batch"] = ["a", "b"] * 350
    >>> tf.integrate.Harmony(seed=0).fit(adata, batch="batch").write(adata)
    >>> adata.obsm["X_harmony"].shape
    (700, 50)

    References
    ----------
    Korsunsky et al. (2019), doi 10.1038/s41592-019-0619-0; version 2.0 of the R package (2026).
    Antonsson, Melsted (2025), Genome Research 35:1832 (calibration).
    """

    info = MethodInfo(
        title="Harmony",
        tasks=("integrate",),
        family="classical",
        year=2019,
        doi="10.1038/s41592-019-0619-0",
        needs=("batch",),
        accepts=("use_rep", "categorical_covariates"),
        gives=("embedding",),
        readiness="recommended",
        advice="The first choice when batches share most cell types; check that you need integration at all.",
    )

    n_clusters: int | None = param(None, low=2)
    theta: float | list[float] = param(2.0, low=0.0)
    sigma: float = param(0.1, low=1e-3)
    lamb: float | None = param(None, low=1e-6)
    alpha: float = param(0.2, low=1e-6)
    tau: float = param(0.0, low=0.0)
    block_size: float = param(0.05, low=1e-3, high=1.0)
    max_iter: int = param(20, low=1)
    stop: Literal["guarded", "reference"] = "guarded"
    combine: Literal["sum", "product"] = "sum"
    diversity: Literal["bounded", "original"] = "bounded"
    n_components: int = param(50, low=2)
    n_top_genes: int | None = param(2000, low=10)
    seed: int = 0

    def _fit(self, data: Inputs) -> None:
        assert data.batch is not None  # needs=("batch",)
        covariates = [data.batch, *data.categorical("categorical_covariates")]
        for covariate in covariates:
            _warn_of_few_cells(covariate.values, covariate.names)
        start = data.embedding(self.n_components, self.n_top_genes, self.seed)
        self._harmonize(start, [covariate.values for covariate in covariates])

    def _harmonize(self, start: np.ndarray, covariates: list[np.ndarray]) -> None:
        """Run the outer iterations on coordinates `start`, (n, d), and integer `covariates`, each (n,)."""
        design = mixture.make_design(covariates)
        n_clusters = self.n_clusters or max(2, min(round(len(start) / 30), 100))
        theta = self._theta_of_levels(design, n_clusters)
        if n_clusters > len(start):
            raise ParameterError(f"Harmony: n_clusters={n_clusters} is more than the {len(start)} cells there are.")
        rng = np.random.default_rng(self.seed)
        original = np.ascontiguousarray(start[design.order], dtype=np.float32)
        corrected, objective, separation = original, [], []
        centroids = mixture.seed_centroids(mixture.unit_rows(original), n_clusters, rng)
        while True:
            assigned, log_norm = mixture.soft_assign(mixture.unit_rows(corrected), centroids, self.sigma)
            mass, trace = self._diversify(assigned, log_norm, design, theta, rng)
            objective += trace if not objective else trace[1:]
            separation.append(mixture.separation_of(mass, design))
            moments = mixture.grouped_moments(assigned, original, design)
            offsets, centroids = mixture.ridge_offsets(mass, moments, design, self.lamb, self.alpha, centroids)
            corrected = mixture.move_cells(original, assigned, offsets, design)
            if len(separation) == self.max_iter or converged(objective, separation, self.stop):
                break
        if separation[-1] > _SEPARATE:
            _warn_of_separate_batches(separation)
        back = np.argsort(design.order)
        self.embedding_, self.assignments_, self.centroids_ = corrected[back], assigned[back], centroids
        self.objective_, self.separation_, self.n_iter_ = objective, separation, len(separation)

    def _theta_of_levels(self, design: mixture.Design, n_clusters: int) -> np.ndarray:
        n_covariates = int(design.covariate.max()) + 1
        given = self.theta if isinstance(self.theta, list) else [self.theta] * n_covariates
        if len(given) != n_covariates or min(given) < 0:
            raise ParameterError(
                f"Harmony: theta={self.theta!r} must be one number, or one number of at least 0 for each of the "
                f"{n_covariates} covariates (batch first)."
            )
        theta = np.asarray(given, dtype=np.float64)[design.covariate]
        if self.tau > 0:
            theta = theta * (1 - np.exp(-((design.sizes / (n_clusters * self.tau)) ** 2)))
        return theta

    def _penalty(self, observed: np.ndarray, expected: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return log of the diversity factor of every level and cluster, and that without theta (for the objective)."""
        if self.diversity == "bounded":
            plain = np.log((2 * expected + 1) / (observed + expected + 1))
        else:
            plain = np.log((expected + 1) / (observed + 1))
        return theta[:, None] * plain, plain

    def _diversify(
        self, assigned: np.ndarray, log_norm: float, design: mixture.Design, theta: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[float]]:
        """Re-assign the cells block by block (in place); return mass per group and cluster, and objective before/after.

        Of a block only its mass is kept between rounds: assignments are a row-normalised product of the affinities
        and a factor per group, so they are written out once, in the last round.
        """
        n_blocks = max(1, min(int(np.ceil(1 / self.block_size)), len(assigned)))
        blocks = [np.sort(block) for block in np.array_split(rng.permutation(len(assigned)), n_blocks)]
        masses = np.zeros((n_blocks, *design.membership.shape[:1], assigned.shape[1]))
        flat = np.ones(masses.shape[1:], dtype=np.float32)
        for block, mass in zip(blocks, masses, strict=True):
            mixture.reassign(assigned, block, design.group, flat, mass, False)
        total, fit = masses.sum(axis=0), -log_norm
        trace = [self._objective(fit, total, design, theta)]
        for step in range(_ROUNDS):
            fit = -log_norm
            for b in rng.permutation(n_blocks):
                total -= masses[b]
                observed, expected = mixture.tables(total, design)
                log_factor, _ = self._penalty(observed, expected, theta)
                factor = mixture.group_factor(log_factor, design, self.combine)
                fit -= mixture.reassign(assigned, blocks[b], design.group, factor, masses[b], step == _ROUNDS - 1)
                fit += float((masses[b] * np.log(factor)).sum())
                total += masses[b]
        return total, [*trace, self._objective(fit, total, design, theta)]

    def _objective(self, fit: float, mass: np.ndarray, design: mixture.Design, theta: np.ndarray) -> float:
        """Return the objective; `fit` is sum R (D / sigma + log R), which the factors give without a pass over R."""
        observed, expected = mixture.tables(mass, design)
        _, plain = self._penalty(observed, expected, theta)
        penalty = -(observed * theta[:, None] * plain).sum()
        return float(2000 / len(design.group) * self.sigma * (fit + penalty))


def converged(objective: list[float], separation: list[float], rule: str) -> bool:
    """Tell whether the outer iterations may stop; `objective` starts with its value before the first.

    Under a strong batch effect the first iterations hardly lower the objective, because few clusters hold two batches
    at first; that the batches are still coming together shows in their separation.
    """
    change = -np.diff(objective) / np.abs(objective[:-1])
    if rule == "reference":
        return bool(change[-1] < _TOLERANCE)
    settled = np.abs(change[1:]) < _TOLERANCE
    settled &= np.abs(np.diff(separation)) < _STILL_MERGING
    return len(settled) >= 2 and bool(settled[-2:].all())


def _warn_of_few_cells(values: np.ndarray, names: list[str]) -> None:
    sizes = np.bincount(values, minlength=len(names))
    few = [f"{names[i]} ({sizes[i]})" for i in np.flatnonzero(sizes < _FEW_CELLS)]
    if few:
        warnings.warn(
            f"Harmony pulls very small batches hard into the others: {', '.join(few)} have fewer than {_FEW_CELLS} "
            "cells. Raise tau (e.g. tau=5), merge them with a similar batch, or read their placement with care.",
            stacklevel=2,
        )


def _warn_of_separate_batches(separation: list[float]) -> None:
    warnings.warn(
        f"The batches are still in separate clusters after {len(separation)} iterations (separation "
        f"{separation[-1]:.2f}; 0 is mixed). Either they share no cell type, and should stay apart, or the batch "
        "effect is larger than the differences between types: then use softer clusters (sigma=0.3), or take out its "
        "linear part first (run combat, and start Harmony from it with use_rep='X_combat').",
        stacklevel=2,
    )
