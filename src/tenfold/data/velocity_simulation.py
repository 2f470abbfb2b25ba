"""Cells whose velocity and time are known: splicing kinetics solved exactly, one process or one that branches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from tenfold.data.kinetics import spliced_after, two_phases, unspliced_after
from tenfold.errors import ParameterError

#: Kinds of genes of a branching process and how many of them there are, without boosted ones.
SHARES = {"dynamic": 0.6, "constant": 0.3, "changing degradation": 0.1}


def simulate_splicing(
    n_cells: int = 500,
    n_genes: int = 50,
    *,
    alpha: float = 5.0,
    beta: float = 0.5,
    gamma: float = 0.3,
    spread: tuple[float, float, float] = (0.5, 0.3, 0.3),
    switches: tuple[float, float] = (0.3, 0.8),
    t_max: float = 20.0,
    noise: float = 0.8,
    seed: int = 0,
) -> AnnData:
    """Simulate one process in which each gene is switched on at the start and off at a time of its own.

    The scheme of scVelo's simulator with its generator of times (events of a Poisson process, scaled to `t_max`) and
    normal noise, of which the standard deviation is `noise` / 10 times the gene's 99th percentile.

    Parameters
    ----------
    n_cells, n_genes
        Sizes.
    alpha, beta, gamma
        Medians of the rates of transcription, splicing and degradation, log-normal over genes.
    spread
        Standard deviations of the logarithms of the three rates.
    switches
        Range of the switching times as a share of `t_max`.
    t_max
        Time of the last cell.
    noise
        0 for none.
    seed
        The same seed gives the same cells.

    Returns
    -------
    Real numbers, not counts, in layers ``"spliced"`` and ``"unspliced"`` and (spliced) in X; they are abundances that
    need no normalisation (``normalize=False``). Truth: ``obs["true_time"]``, ``layers["true_velocity"]`` (without
    noise), ``var["true_alpha"]``, ``"true_beta"``, ``"true_gamma"``, ``"true_switch"``.

    References
    ----------
    Bergen et al. (2020), doi 10.1038/s41587-020-0591-3.
    """
    rng = np.random.default_rng(seed)
    a, b, g = (
        middle * np.exp(sd * rng.normal(size=n_genes)) for middle, sd in zip((alpha, beta, gamma), spread, strict=True)
    )
    t = np.concatenate([[0.0], np.cumsum(rng.exponential(0.1, n_cells - 1))])
    t *= t_max / t[-1]
    switch = rng.uniform(*switches, n_genes) * t_max
    u, s = two_phases(t[:, None], switch, a, b, g)
    velocity = b * u - g * s
    for values in (u, s):
        values += rng.normal(size=values.shape) * (noise / 10 * np.percentile(values, 99, axis=0))
        np.maximum(values, 0, out=values)
    var = pd.DataFrame(
        {"true_alpha": a, "true_beta": b, "true_gamma": g, "true_switch": switch},
        index=[f"gene_{i}" for i in range(n_genes)],
    )
    obs = pd.DataFrame({"true_time": t}, index=[f"cell_{i}" for i in range(n_cells)])
    layers = {"spliced": s, "unspliced": u, "true_velocity": velocity}
    return AnnData(s.astype(np.float32), obs, var, layers={k: v.astype(np.float32) for k, v in layers.items()})


class _Course(NamedTuple):
    """Rates of every gene along one path from the start to the end of a branch, in segments.

    Attributes
    ----------
    starts
        Time at which each segment begins, (n_segments, n_genes).
    alpha, gamma
        Rates within the segment, (n_segments, n_genes).
    """

    starts: np.ndarray
    alpha: np.ndarray
    gamma: np.ndarray


def simulate_branching(
    n_cells: int = 1000,
    n_genes: int = 200,
    n_branches: int = 2,
    *,
    depth: float | None = None,
    boosted: float = 0.0,
    t_max: float = 20.0,
    seed: int = 0,
) -> AnnData:
    """Simulate counts of a process that branches, with exact kinetics behind them.

    All cells share a trunk up to half of `t_max` and then follow one of the branches. Modules of genes are switched on
    in the trunk or in one of the branches, each gene at a time of its own; rates are constant between switches, so that
    abundances are exact. Counts are Poisson, with a log-normal depth of the cell (sd 0.3). A third of the genes keeps
    constant rates; a tenth has a degradation rate that doubles half-way, which no model with constant rates can fit.

    Parameters
    ----------
    n_cells, n_genes
        Sizes; cells are spread evenly over branches and times.
    n_branches
        Number of branches; 1 for a process without any.
    depth
        Mean number of counts a cell, spliced and unspliced; default ten for each gene.
    boosted
        Share of dynamic genes whose transcription rises fivefold near the end (transcriptional boost).
    t_max
        Length of the process, in units of 1 / h where splicing takes about two.
    seed
        The same seed gives the same counts.

    Returns
    -------
    Counts (CSR, float32) in layers ``"spliced"``, ``"unspliced"`` and (spliced) in X. Truth: ``obs["true_time"]``,
    ``obs["branch"]``, ``obs["cell_type"]`` (stages), ``uns["transitions"]`` (their order, as `compare` takes it),
    ``layers["true_velocity"]`` (per expected count), ``var["kind"]``, ``"true_beta"``, ``"true_gamma"`` (at the start).

    Raises
    ------
    ParameterError
        No branch or no cell.
    """
    if n_branches < 1 or n_cells < 4:
        raise ParameterError("At least one branch and four cells are needed.")
    rng = np.random.default_rng(seed)
    kind = rng.choice(list(SHARES), size=n_genes, p=list(SHARES.values())).astype(object)
    kind[(kind == "dynamic") & (rng.random(n_genes) < boosted)] = "boosted"
    beta, gamma = np.exp(rng.normal(np.log(0.5), 0.3, n_genes)), np.exp(rng.normal(np.log(0.3), 0.3, n_genes))
    courses = _courses(rng, kind, gamma, n_branches, t_max)
    branch, t = rng.integers(n_branches, size=n_cells), rng.uniform(0, t_max, n_cells)
    u, s, velocity = (np.zeros((n_cells, n_genes)) for _ in range(3))
    for b, course in enumerate(courses):
        cells = np.flatnonzero(branch == b)
        u[cells], s[cells], velocity[cells] = _follow(course, t[cells, None], beta)
    scale = (depth or 10.0 * n_genes) / (u + s).sum(axis=1).mean()
    size = np.exp(rng.normal(0, 0.3, n_cells))[:, None] * scale
    counts = {
        name: sparse.csr_matrix(rng.poisson(size * values), dtype=np.float32)
        for name, values in (("spliced", s), ("unspliced", u))
    }
    obs, transitions = _stages(t, branch, n_branches, t_max)
    var = pd.DataFrame({"kind": pd.Categorical(kind), "true_beta": beta, "true_gamma": gamma})
    var.index = [f"gene_{i}" for i in range(n_genes)]
    layers = {**counts, "true_velocity": (scale * velocity).astype(np.float32)}
    return AnnData(counts["spliced"].copy(), obs, var, layers=layers, uns={"transitions": transitions})


def _courses(
    rng: np.random.Generator, kind: np.ndarray, gamma: np.ndarray, n_branches: int, t_max: float
) -> list[_Course]:
    """Draw the switches of every gene: one in the trunk, one in the branch, and one near the end."""
    n_genes = len(kind)
    basal = np.exp(rng.normal(0.0, 0.7, n_genes))
    fold = np.exp(rng.uniform(np.log(4), np.log(20), n_genes))
    module = rng.integers(n_branches + 1, size=n_genes)  # the trunk's, or a branch's
    starts = np.stack([
        np.zeros(n_genes), rng.uniform(0.02, 0.35, n_genes), rng.uniform(0.5, 0.7, n_genes), np.full(n_genes, 0.85)
    ]) * t_max  # fmt: skip
    moving = kind != "constant"
    courses = []
    for b in range(n_branches):
        on = np.ones((4, n_genes))
        trunk, own = moving & (module == n_branches), moving & (module == b)
        on[1, trunk] = fold[trunk]  # switched off again in the branch
        on[2:, own] = fold[own]
        on[3, (kind == "boosted") & (on[2] > 1)] *= 5
        degraded = np.tile(gamma, (4, 1))
        degraded[2:, kind == "changing degradation"] *= 2
        courses.append(_Course(starts, basal * on, degraded))
    return courses


def _follow(course: _Course, t: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Solve the kinetics at times `t`, (n, 1), from the steady state of the first segment on: u, s and ds/dt."""
    u0 = course.alpha[0] / beta
    s0 = course.alpha[0] / course.gamma[0]
    u, s, v = (np.zeros((len(t), len(beta))) for _ in range(3))
    ends = [*course.starts[1:], np.full(len(beta), np.inf)]
    for start, end, alpha, gamma in zip(course.starts, ends, course.alpha, course.gamma, strict=True):
        since = np.maximum(t - start, 0)
        here = (t >= start) & (t < end)
        own_u = unspliced_after(since, u0, alpha, beta)
        own_s = spliced_after(since, u0, s0, alpha, beta, gamma)
        u, s = np.where(here, own_u, u), np.where(here, own_s, s)
        v = np.where(here, beta * own_u - gamma * own_s, v)
        if np.isfinite(end).all():
            u0, s0 = (
                unspliced_after(end - start, u0, alpha, beta),
                spliced_after(end - start, u0, s0, alpha, beta, gamma),
            )
    return u, s, v


def _stages(t: np.ndarray, branch: np.ndarray, n_branches: int, t_max: float) -> tuple[pd.DataFrame, str]:
    """Name the stage of each cell, and say in which order stages follow."""
    stage = np.where(t < 0.25 * t_max, "start", "trunk").astype(object)
    later = t >= 0.5 * t_max
    stage[later] = [f"branch {b + 1}" for b in branch[later]]
    named = np.where(later, stage, "trunk")
    order = ["start > trunk", *(f"trunk > branch {b + 1}" for b in range(n_branches))]
    obs = pd.DataFrame({"true_time": t, "branch": pd.Categorical(named), "cell_type": pd.Categorical(stage)})
    obs.index = [f"cell_{i}" for i in range(len(t))]
    return obs, ", ".join(order)
