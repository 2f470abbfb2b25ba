"""scVelo 0.3.4's averages of arrows on a grid, from the same arrows; and what becomes of both in another unit.

scVelo's kernel is a density, so that its lengths depend on the unit of the embedding. The embedding is scaled once so
that a cell on a point of the grid counts as one there, too: then all numbers are compared. scVelo runs in the
reference environment.
"""

from __future__ import annotations

import numpy as np
from anndata import read_h5ad
from recording import DATA, record, run_apart, sha256, version, write

import tenfold as tf
from tenfold.plot.field import averaged, crowded, flowing

NAME = "pancreas_velocity.h5ad"
METHOD = "scvelo_deterministic"
SETUP = """
from scvelo.plotting.velocity_embedding_grid import compute_velocity_on_grid as on_grid
import sklearn.neighbors
"""
CODE = """
result = {}
for name in ("matched", "pixels"):
    points, arrows = given[name], given["arrows"]
    x, v = on_grid(points, arrows, autoscale=False)
    result[f"{name}_grid_x"], result[f"{name}_grid_v"] = x, v
    x, v = on_grid(points, arrows, autoscale=False, adjust_for_stream=True)
    result[f"{name}_stream_x"], result[f"{name}_stream_v"] = x, v
"""


def main() -> None:
    path = DATA / NAME
    adata, digest = read_h5ad(path), sha256(path)
    model = tf.velocity.ScVeloDeterministic().fit(adata, progress=False)
    points = np.asarray(adata.obsm["X_pca_authors"])[:, :2].astype(np.float64)
    arrows = model.project(points).astype(np.float64)
    field = averaged(points, arrows)
    step = (field.x[1] - field.x[0] + field.y[1] - field.y[0]) / 2
    matched = points / (0.5 * step * np.sqrt(2 * np.pi))
    given = {"matched": matched, "pixels": 1000 * matched, "arrows": arrows}
    theirs = run_apart(CODE, given, setup=SETUP)
    reference, records = version("scvelo"), []

    def add(claim: str, metric: str, value: float, *, passed: bool, beside: float, tolerance: float | None) -> None:
        records.append(record(
            METHOD, "parity", claim, NAME, digest, metric, value, passed=passed, reference=reference,
            reference_value=beside, tolerance=tolerance,
        ))  # fmt: skip

    ours = averaged(matched, arrows)
    kept = crowded(ours)
    where = np.stack(np.meshgrid(ours.x, ours.y), axis=-1)[kept]
    same = where.shape == theirs["matched_grid_x"].shape
    for what, a, b in (
        ("places of arrows", where, theirs["matched_grid_x"]), ("arrows", ours.arrows[kept], theirs["matched_grid_v"]),
    ):  # fmt: skip
        far = float(np.abs(a - b).max()) if same else float("inf")
        add("arrows on a grid", f"largest difference of {what}", far, passed=far <= 1e-9, beside=0.0, tolerance=1e-9)
    shown = np.where(flowing(ours), ours.arrows[:, :, 0], np.nan)
    told = np.isfinite(theirs["matched_stream_v"][0])
    differ = float((told != np.isfinite(shown)).sum())
    add("streamlines", "points that one side leaves out", differ, passed=differ == 0, beside=0.0, tolerance=0.0)
    far = float(np.abs(shown - theirs["matched_stream_v"][0])[told & np.isfinite(shown)].max())
    add("streamlines", "largest difference of arrows", far, passed=far <= 1e-9, beside=0.0, tolerance=1e-9)
    pixels = float(flowing(averaged(given["pixels"], arrows)).mean() / flowing(ours).mean())
    beside = float(np.isfinite(theirs["pixels_stream_v"][0]).mean() / told.mean())
    add("the unit does not matter", "points that lines may cross, in a unit a thousandth as long, by those before",
        pixels, passed=pixels == 1.0, beside=beside, tolerance=0.0)  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
