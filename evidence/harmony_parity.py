"""Harmony agrees with harmonypy: the correction step exactly, whole runs up to the seed noise of the reference."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
from harmony_simulation import simulate
from recording import DATA, record, run_apart, sha256, version, write

from tenfold.data.mixture import grouped_moments, make_design, move_cells, ridge_offsets
from tenfold.embed.pca import PCA
from tenfold.integrate.harmony import Harmony
from tenfold.kernels.knn import knn

SETUP = "import harmonypy, pandas as pd"
CODE = """
table = pd.DataFrame({f"v{i}": column.astype(str) for i, column in enumerate(given["covariates"].T)})
run = harmonypy.run_harmony(given["x"], table, list(table), verbose=False, ncores=1, random_state=int(given["seed"]))
result = {"z": run.Z_corr, "r": run.R, "n": len(run.objective_harmony) - 1}
"""


def kept(first: np.ndarray, second: np.ndarray, k: int = 30) -> float:
    """Mean Jaccard index of the neighbour sets of all cells."""
    pairs = zip(knn(first, k=k + 1)[0][:, 1:], knn(second, k=k + 1)[0][:, 1:], strict=True)
    shared = np.array([len(np.intersect1d(a, b)) for a, b in pairs])
    return float((shared / (2 * k - shared)).mean())


def correct(x: np.ndarray, r: np.ndarray, covariates: list[np.ndarray]) -> np.ndarray:
    """Our correction step alone, with given assignments."""
    design = make_design(covariates)
    points, assigned = x[design.order], np.ascontiguousarray(r[design.order], dtype=np.float32)
    mass = np.stack([assigned[a:b].sum(axis=0, dtype=np.float64)
                     for a, b in zip(design.starts[:-1], design.starts[1:], strict=True)])  # fmt: skip
    moments = grouped_moments(assigned, points, design)
    offsets, _ = ridge_offsets(mass, moments, design, None, 0.2, np.zeros((r.shape[1], x.shape[1])))
    return move_cells(points, assigned, offsets, design)[np.argsort(design.order)]


def cases():
    rng = np.random.default_rng(0)
    for n_batches in (2, 10):
        x, batch, _ = simulate(20_000, n_batches, 0.2)
        yield f"20,000 simulated cells, {n_batches} batches", x, [batch], sha256(x), 0.97
    x, batch, _ = simulate(10_000, 2, 0.2)
    chemistry = rng.integers(2, size=len(x))
    x = (x + 0.2 * rng.normal(size=(2, x.shape[1]))[chemistry]).astype(np.float32)
    yield "10,000 simulated cells, 2 × 2 batches (two covariates)", x, [batch, chemistry], sha256(x), 0.97
    for name in ("pbmc_3chem", "cellline_3x2", "starmap_mpfc"):
        adata = ad.read_h5ad(DATA / f"{name}.h5ad")
        x = PCA(n_components=30).fit(adata, batch="batch", progress=False).embed()
        yield name, x, [adata.obs["batch"].cat.codes.to_numpy()], sha256(DATA / f"{name}.h5ad"), None


def main() -> None:
    warnings.simplefilter("ignore")
    rows, reference = [], version("harmonypy")
    for name, x, covariates, digest, floor in cases():
        given = {"x": x, "covariates": np.stack(covariates, axis=1)}
        theirs, other = (run_apart(CODE, {**given, "seed": seed}, SETUP) for seed in (0, 1))
        r = theirs["r"] if theirs["r"].shape[0] == len(x) else theirs["r"].T
        step = correct(x, r, covariates)
        off = float(np.linalg.norm(step - theirs["z"]) / np.linalg.norm(theirs["z"] - x))
        rows.append(
            record("harmony", "parity", "correction step with the reference's clusters", name, digest,
                   "relative difference of the correction", off, reference=reference, reference_value=0.0,
                   tolerance=1e-4, passed=off < 1e-4)
        )  # fmt: skip
        run = Harmony(stop="reference", max_iter=10)
        run._harmonize(x, covariates)
        between, seeds = kept(run.embedding_, theirs["z"]), kept(theirs["z"], other["z"])
        least = seeds - 0.02 if floor is None else max(floor, seeds - 0.02)
        rows.append(
            record("harmony", "parity", "a whole run agrees up to seed noise", name, digest,
                   "30-neighbour Jaccard with the reference; beside it, of the reference with another seed", between,
                   reference=reference, reference_value=seeds, tolerance=seeds - least, passed=between >= least)
        )  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
