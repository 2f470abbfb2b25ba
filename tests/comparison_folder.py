"""Made-up comparison folders for the tests of the report: invented numbers, written by the real writers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tenfold.compare.files import write_json, write_tensors, write_text
from tenfold.compare.results import score_table
from tenfold.integrate._task import TASK
from tenfold.task import Assessment, Control

TITLES = {"pca": "PCA", "harmony": "Harmony", "combat": "ComBat", "bbknn": "BBKNN", "scvi": "scVI"}
#: Texts that break a page that trusts its data.
NASTY = [
    "<script>window.pwned = 1</script>",
    "</script><img src=x onerror='window.pwned = 1'>",
    "T‑Zellen (γδ) 細胞 🧬",
    "\"quoted\" & 'apostrophes' <b>bold</b> {{ 7 * 7 }}",
    "very long name " + "of a cell type " * 20,
]


@dataclass
class Folder:
    """What to make up. `failures` gives a method's status and message, by method or by method and seed."""

    n_cells: int = 400
    methods: tuple[str, ...] = ("pca", "harmony", "combat", "scvi")
    seeds: int = 2
    batches: list[str] = field(default_factory=lambda: ["donor 1", "donor 2"])
    labels: list[str] | None = field(
        default_factory=lambda: ["B cell", "CD4 T cell", "CD8 T cell", "Monocyte", "NK cell"]
    )
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    sees_labels: tuple[str, ...] = ()
    verdict: str = "integrate"
    name: str = "made-up cells.h5ad"

    def write(self, directory: Path) -> Path:
        """Write everything but the report; return the folder."""
        rng = np.random.default_rng(0)
        (directory / "runs").mkdir(parents=True)
        codes = {"batch": rng.integers(len(self.batches), size=self.n_cells).astype(np.int32)}
        if self.labels is not None:
            codes["labels"] = rng.integers(len(self.labels), size=self.n_cells).astype(np.int32)
        write_tensors(directory / "cells.safetensors", {"shown": np.arange(self.n_cells), **codes})
        runs = []
        for place, method in enumerate(self.methods):
            for seed in range(self.seeds if method not in ("pca", "combat") else 1):
                run = self._run(method, seed, place, rng)
                runs.append(run)
                write_json(directory / "runs" / f"{method}-{seed}.json", run)
                if run["status"] == "ok":
                    layout = _layout(codes, place, rng)
                    write_tensors(directory / "runs" / f"{method}-{seed}.safetensors", {"layout": layout})
        self._write_summary(directory, runs, codes)
        for name in self.missing:
            (directory / name).unlink()
        return directory

    def _run(self, method: str, seed: int, place: int, rng: np.random.Generator) -> dict[str, Any]:
        failure = self.failures.get(f"{method}-{seed}", self.failures.get(method))
        run = {
            "task": "integrate", "method": method, "title": TITLES.get(method, method), "seed": seed, "status": "ok",
            "message": "", "seconds": 2.0 + 10 * place + seed, "peak_memory_mb": 400.0 + 90 * place,
            "parameters": {"n_components": 50, "seed": seed}, "versions": {"tenfold": "0.1.0"}, "warnings": [],
            "doi": "10.1038/s41592-019-0619-0", "readiness": "recommended", "sees_labels": method in self.sees_labels,
            "fingerprint": "made-up", "complete": True, "scores": [], "controls": [],
        }  # fmt: skip
        if failure:
            return {**run, "status": failure[0], "message": failure[1], "seconds": None, "peak_memory_mb": None}
        run["scores"] = self._scores(place, rng)
        if seed == 0:
            run["controls"] = [asdict(control) for control in _controls(place)]
        return run

    def _scores(self, place: int, rng: np.random.Generator) -> list[dict[str, Any]]:
        scores = []
        for metric, about in TASK.metrics().items():
            needs_labels = about["group"] in ("bio", "literature") or metric in ("cilisi", "removed_type_purity")
            if self.labels is None and needs_labels:
                continue
            value = float(np.clip(0.3 + 0.12 * place + rng.normal(0, 0.03), 0, 1))
            scores.append({"group": about["group"], "metric": metric, "value": value})
        for metric in ("clisi", "cilisi"):
            for name in self.labels or []:
                scores.append({"group": f"label:{name}", "metric": metric, "value": float(rng.uniform(0.3, 1))})
        for name in self.batches:
            value = float(rng.uniform(0.3, 1))
            scores.append({"group": f"batch:{name}", "metric": "within_batch_neighbors", "value": value})
        return scores

    def _write_summary(self, directory: Path, runs: list[dict[str, Any]], codes: dict[str, np.ndarray]) -> None:
        scores = score_table(runs)
        assessment = Assessment(
            self.verdict,
            "The batch can be read off the cells (AUC 0.93; 0.52 when shuffled among cells of the same kind): a "
            "substantial batch effect, worth integrating.",
            "How well a classifier reads the batch off 30 PCs against 19 shuffles: integrate when it exceeds all.",
            {"batch_auc": 0.93, "batch_auc_shuffled_mean": 0.52, "strata": "labels"},
        )
        controls = {run["method"]: [Control(**c) for c in run["controls"]] for run in runs if run["controls"]}
        done = [run["method"] for run in runs if run["status"] == "ok"]
        ranking, advice = TASK.rank(scores[scores["method"].isin(done)], controls, assessment, set(self.sees_labels))
        names = {"batch": self.batches, "labels": self.labels}
        levels = {
            role: {"key": key, "names": names[role], "sizes": np.bincount(codes[role], minlength=len(names[role]))}
            if role in codes
            else None
            for role, key in (("batch", "donor"), ("labels", "cell_type"))
        }
        plan = {method: [run["seed"] for run in runs if run["method"] == method] for method in self.methods}
        summary = {
            "task": "integrate", "created": "2026-01-02T03:04:05+00:00", "tenfold": "0.1.0",
            "versions": {"numpy": "2.3.0", "torch": "2.13.0"},
            "machine": {"system": "Linux", "processor": "x86_64", "cores": 2, "memory_gb": 8.0, "python": "3.11.2"},
            "data": {"name": self.name, "n_cells": self.n_cells, "n_genes": 2000},
            "roles": {"batch": "donor"} | ({"labels": "cell_type"} if self.labels is not None else {}),
            **levels, "methods": list(self.methods), "seeds": list(range(self.seeds)), "plan": plan,
            "fingerprint": "made-up", "warnings": [], "assessment": asdict(assessment), "ranking": ranking,
            "recommendation": asdict(advice), "metrics": TASK.metrics(),
        }  # fmt: skip
        write_text(directory / "scores.csv", scores.to_csv(index=False))
        write_json(directory / "compare.json", summary)


def _layout(codes: dict[str, np.ndarray], place: int, rng: np.random.Generator) -> np.ndarray:
    """Return a blob for each label, batches further apart for earlier methods."""
    kind = codes.get("labels", codes["batch"])
    angle = kind * 2.4
    centre = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (6 + kind[:, None])
    shift = np.stack([codes["batch"] * 3.0 / (1 + place), np.zeros(len(kind))], axis=1)
    return (centre + shift + rng.normal(0, 0.8, centre.shape)).astype(np.float32)


def _controls(place: int) -> list[Control]:
    verdicts = ("pass", "warn", "fail", "info")
    rule = "Share regained of the neighbours that the planted effect hides: pass from 0.5, warn from 0.2."
    return [
        Control("planted_effect", "Planted batch effect (D6)", "pass" if place else "warn",
                "62% of the true neighbours are found again after a known batch effect was planted (21% without).",
                rule, {"recovered": 0.62, "uncorrected": 0.21, "cells": 300}),
        Control("null_batch", "Null batch (D1)", "fail" if place == 2 else "pass",
                "With a made-up batch, 97% of a cell's 15 neighbours are kept. It leaves such data alone.",
                "Noise that would lose as many neighbours: pass up to 1 % of the variance.", {"neighbors_kept": 0.97}),
        Control("within_batch", "Neighbours within batches (D4)", verdicts[place % 4],  # type: ignore[arg-type]
                "81% of the neighbours within batches are kept.", "Overlap of the 15 nearest neighbours.",
                {"donor 1": {"kept": 0.81, "cells": 200}}),
    ]  # fmt: skip


def frame_of(directory: Path) -> pd.DataFrame:
    """Return the scores of a folder."""
    return pd.read_csv(directory / "scores.csv")
