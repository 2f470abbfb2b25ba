"""Scanorama: pairs, panorama order and coordinates of the original with its exact search; and the sheet's checks.

The original needs a compiler; name the Python that has it in TENFOLD_SCANORAMA_PYTHON.
"""

from __future__ import annotations

import os
import warnings

import anndata as ad
import numpy as np
from anchor_data import acceptance
from recording import DATA, REFERENCE_PYTHON, record, run_apart, sha256, version, write

import tenfold as tf
from tenfold.data.panorama import match_batches, plan
from tenfold.integrate.scanorama import Scanorama

PYTHON = os.environ.get("TENFOLD_SCANORAMA_PYTHON", REFERENCE_PYTHON)
SETUP = """
from scanorama import assemble, find_alignments
"""
CODE = """
parts = [given["x"][given["batch"] == b] for b in range(given["batch"].max() + 1)]
alignments, matches = find_alignments([p.copy() for p in parts], knn=20, approx=False, alpha=0.1, verbose=0)
z = np.concatenate(assemble([p.copy() for p in parts], knn=20, approx=False, alpha=0.1, sigma=15, verbose=0,
                            batch_size=5000))
pairs = [(i, j, a, b) for (i, j), found in matches.items() for a, b in found]
result = {"z": z, "pairs": np.array(sorted(pairs)), "alignments": np.array(alignments)}
"""


def cases():
    """Yield name, counts with batches, digest."""
    for n_batches, shares in ((3, None), (5, [[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 1, 1]])):
        n_types = 3 if shares is None else 4
        adata = tf.data.simulate(1500, 400, n_types, n_batches, batch_strength=0.4, proportions=shares, seed=0)
        yield f"simulated, {n_batches} batches", adata, sha256(adata.X.toarray())
    yield "pbmc_3chem", ad.read_h5ad(DATA / "pbmc_3chem.h5ad"), sha256(DATA / "pbmc_3chem.h5ad")


def main() -> None:
    warnings.simplefilter("ignore")
    rows, reference = [], f"{version('scanorama', PYTHON)}, exact search"
    for name, adata, digest in cases():
        run = Scanorama().fit(adata, batch="batch", progress=False)
        batch = adata.obs["batch"].astype("category").cat.codes.to_numpy().astype(int)
        members = [np.flatnonzero(batch == b) for b in range(batch.max() + 1)]
        theirs = run_apart(CODE, {"x": run.start_.astype(np.float64), "batch": batch}, SETUP, PYTHON)
        matches, alignment = match_batches(run.start_, members, 20)
        ours = {
            (i, j, a, b)
            for (i, j), found in matches.items()
            for a, b in zip(
                np.searchsorted(members[i], found.left), np.searchsorted(members[j], found.right), strict=True
            )
        }
        named = set(map(tuple, theirs["pairs"].tolist()))
        share = len(ours & named) / len(ours | named)
        rows.append(
            record("scanorama", "parity", "the same mutual pairs", name, digest, "pairs in common, share of all",
                   share, reference=reference, reference_value=1.0, tolerance=1e-3, passed=share > 1 - 1e-3)
        )  # fmt: skip
        order = sorted(zip(*np.nonzero(np.triu(alignment > 0.1, 1)), strict=True), key=lambda p: alignment[p])[::-1]
        same = [list(map(int, pair)) for pair in order] == theirs["alignments"].tolist()
        assert len(plan(alignment, [len(cells) for cells in members], 0.1)[0]) == len(run.merges_)
        rows.append(
            record("scanorama", "parity", "the same order of batches", name, digest,
                   "pairs of batches in the same order", len(order) if same else 0, reference=reference,
                   reference_value=len(theirs["alignments"]), tolerance=0, passed=same)
        )  # fmt: skip
        grouped = run.embed()[np.concatenate(members)]
        off = float(np.linalg.norm(grouped - theirs["z"]) / np.linalg.norm(theirs["z"] - theirs["z"].mean(axis=0)))
        rows.append(
            record("scanorama", "parity", "the same coordinates", name, digest, "relative difference (Frobenius)", off,
                   reference=reference, reference_value=0.0, tolerance=1e-3, passed=off < 1e-3)
        )  # fmt: skip
    write([*rows, *acceptance(Scanorama)])


if __name__ == "__main__":
    main()
