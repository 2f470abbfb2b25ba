"""What a comparison hands to its runs and keeps of the data: counts, columns, a description, a fingerprint."""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from anndata import AnnData

from tenfold import __version__
from tenfold.compare.files import write_tensors
from tenfold.data.batches import absent_genes, small_batches
from tenfold.data.check import categories, numeric_column
from tenfold.data.inputs import Inputs
from tenfold.task import ComparedTask

MAX_SHOWN = 50_000
_VERSIONS = ("numpy", "scipy", "pandas", "anndata", "scanpy", "scikit-learn", "torch", "numba")


def prepared(adata: AnnData, judge: ComparedTask, roles: dict[str, str]) -> AnnData:
    """Return counts and the columns that the roles name, nothing else: what every process reads."""
    inputs = Inputs(adata, roles, needed=judge.needs)
    counts = inputs.counts
    columns = [key for role in ("batch", "labels", "sample", "pseudotime") if (key := roles.get(role))]
    for role in ("categorical_covariates", "continuous_covariates"):
        value = roles.get(role, [])
        columns += [value] if isinstance(value, str) else list(value)
    if "pseudotime" in roles:
        numeric_column(adata[adata.obs[roles["pseudotime"]].notna()] if roles["pseudotime"] in adata.obs else adata,
                       roles["pseudotime"], "pseudotime")  # fmt: skip
    obs = adata.obs[list(dict.fromkeys(columns))].copy()
    for role in ("batch", "labels", "sample"):
        if role in roles:
            obs[roles[role]] = obs[roles[role]].astype(str).astype("category")
    prepared = AnnData(counts, obs=obs, var=adata.var[[]].copy())
    if "spatial" in judge.accepts:
        _keep_positions(inputs, prepared)
    if "spliced" in judge.accepts:
        _keep_layers(inputs, prepared)
    if "use_rep" in roles:
        from tenfold.data.check import representation

        prepared.obsm[roles["use_rep"]] = representation(adata, roles["use_rep"])
    return prepared


def _keep_layers(inputs: Inputs, prepared: AnnData) -> None:
    """Keep spliced and unspliced counts, checked."""
    from tenfold.data.velocity import layers_of

    for role, counts in layers_of(inputs, most_unspliced=1.0)._asdict().items():
        prepared.layers[inputs.roles.get(role, role)] = counts


def _keep_positions(inputs: Inputs, prepared: AnnData) -> None:
    """Keep positions, checked, and what a slice comes with: the lattice of its spots, images, scale factors."""
    from tenfold.data.spatial import positions_of

    positions_of(inputs)
    adata, key = inputs.adata, inputs.roles.get("spatial", "spatial")
    prepared.obsm[key] = np.asarray(adata.obsm[key])
    for column in {"array_row", "array_col"}.intersection(adata.obs):
        prepared.obs[column] = adata.obs[column]
    if "spatial" in adata.uns:
        prepared.uns["spatial"] = adata.uns["spatial"]


def head(
    task: str, name: str, adata: AnnData, kept: dict[str, str], roles: dict[str, str], plan: dict[str, list[int]]
) -> dict[str, Any]:
    """Return what the comparison's summary says of the data, the machine and the plan."""

    def levels(role: str) -> dict[str, Any] | None:
        if role not in kept:
            return None
        column = adata.obs[kept[role]].cat
        sizes = np.bincount(column.codes, minlength=len(column.categories))
        return {"key": kept[role], "names": list(column.categories), "sizes": sizes.tolist()}

    return {
        "task": task,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "tenfold": __version__,
        "versions": {package: version(package) for package in _VERSIONS},
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": psutil.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "python": platform.python_version(),
        },
        "data": {"name": name, "n_cells": adata.n_obs, "n_genes": adata.n_vars},
        "roles": roles,
        "batch": levels("batch"),
        "labels": levels("labels"),
        "sample": levels("sample"),
        "methods": list(plan),
        "seeds": max(plan.values(), key=len),
        "plan": plan,
        "fingerprint": _fingerprint(adata, roles),
        "warnings": _warnings(adata, kept),
    }


def _warnings(adata: AnnData, roles: dict[str, str]) -> list[str]:
    """Return what is odd about the batches, for the report."""
    if "batch" not in roles:
        return []
    batch = categories(adata, roles["batch"], "batch")
    return [*small_batches(batch), *absent_genes(adata.X, batch, adata.var_names.to_numpy())]


def _fingerprint(adata: AnnData, roles: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps([roles, __version__, list(adata.var_names)], sort_keys=True).encode())
    for part in (adata.X.indptr, adata.X.indices, adata.X.data):
        digest.update(np.ascontiguousarray(part))
    digest.update(adata.obs.to_csv().encode())
    for name in sorted(adata.obsm):
        digest.update(np.ascontiguousarray(adata.obsm[name]))
    return digest.hexdigest()[:24]


def write_cells(directory: Path, adata: AnnData, roles: dict[str, str]) -> None:
    """Write which cells are shown in the report, with their batch, label and slice, and where they lie in tissue."""
    shown = np.arange(adata.n_obs)
    if adata.n_obs > MAX_SHOWN:
        shown = np.sort(np.random.default_rng(0).choice(adata.n_obs, MAX_SHOWN, replace=False))
    tensors = {"shown": shown.astype(np.int64)}
    for role in ("batch", "labels", "sample"):
        if role in roles:
            tensors[role] = adata.obs[roles[role]].cat.codes.to_numpy().astype(np.int32)
    key = roles.get("spatial", "spatial")
    if key in adata.obsm:
        tensors["positions"] = np.asarray(adata.obsm[key], dtype=np.float32)[:, :2]
    write_tensors(directory / "cells.safetensors", tensors)
