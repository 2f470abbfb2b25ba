"""Rows that every method of spatial domains gets: beside smoothed PCA and PCA + Leiden, number of domains known or not.

Without and with refinement (majority of 6 neighbours where fewer than half agree, as SpaGCN does; and of 50).
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from domain_slices import Score, digest, load, n_domains, score, shown
from recording import ROOT, record, write

from tenfold.data.inputs import Inputs
from tenfold.data.refinement import majority, outvoted
from tenfold.data.spatial import positions_of
from tenfold.domains.smooth_pca import SmoothPCA

#: Title → what is done to labels afterwards.
REFINEMENTS = {"as clustered": None, "outvoted by 6": (outvoted, 6), "majority of 50": (majority, 50)}
BASELINES = {
    "pca + leiden": {"n_rounds": 0, "head": "leiden"}, "smooth_pca, 2 rounds": {"n_rounds": 2},
    "smooth_pca, 5 rounds": {"n_rounds": 5},
}  # fmt: skip


def refined(name: str, labels: np.ndarray) -> dict[str, Score]:
    """Score labels as they are and after each refinement."""
    adata = load(name)
    positions = positions_of(Inputs(adata, {}))
    return {
        title: score(adata, labels if how is None else how[0](labels, positions, how[1]))
        for title, how in REFINEMENTS.items()
    }


@cache
def _baselines(name: str, known: bool) -> dict[str, dict[str, Score]]:
    adata = load(name)
    wanted = n_domains(adata) if known else None
    return {
        title: refined(name, SmoothPCA(n_clusters=wanted, **options).fit(adata, progress=False).cluster())
        for title, options in BASELINES.items()
    }


def rows(
    method: str,
    name: str,
    fitted: Callable[[Any, int | None, int], np.ndarray],
    seeds: Sequence[int],
    given: Sequence[bool] = (True, False),
    label: str = "",
) -> list[dict[str, Any]]:
    """Run a method with each seed and record its median ARI beside each baseline.

    Parameters
    ----------
    method
        Its catalog name.
    name
        Of the slice.
    fitted
        ``fitted(adata, n_domains or None, seed)`` gives its labels before refinement.
    seeds
        To take the median over.
    given
        Whether the number of domains is known: True, False or both.
    label
        Of a variant.
    """
    adata, records = load(name), []
    title = f"{method} {label}".strip()
    for known in given:
        number = "number of domains known" if known else "number of domains unknown"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runs = [refined(name, fitted(adata, n_domains(adata) if known else None, seed)) for seed in seeds]
            others = _baselines(name, known)
        for how in REFINEMENTS:
            for seed, run in zip(seeds, runs, strict=True):
                shown(f"{title}, seed {seed}, {number[21:]}, {how}", run[how])
            value = float(np.median([run[how].ari for run in runs]))
            for baseline, found in others.items():
                records.append(record(
                    method, "check", f"{label}, {number}, {how}; above the baseline, likewise".lstrip(", "), name,
                    digest(name), f"ARI, median of {len(seeds)} seeds", value, reference=f"tenfold {baseline}",
                    reference_value=found[how].ari, passed=value > found[how].ari,
                ))  # fmt: skip
    return records


def write_part(fresh: list[dict[str, Any]]) -> None:
    """Write records of one part of the running script; those of its other parts stay."""
    path = ROOT / "evidence" / "results" / f"{Path(sys.argv[0]).stem}.json"
    kept = json.loads(path.read_text()) if path.exists() else []
    redone = {(row["dataset"], row["claim"]) for row in fresh}
    write([row for row in kept if (row["dataset"], row["claim"]) not in redone] + fresh)
