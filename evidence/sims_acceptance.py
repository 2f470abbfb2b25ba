"""SIMS: labels of the bundled blood cells beside linear methods, and masks that sum to 1.

Run ``python evidence/sims_acceptance.py [masks] [labels] [permuted]``; results of other parts are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from deep_annotators import labelled, parts, permuted
from recording import record, sha256

import tenfold as tf
from tenfold.annotate import SIMS


def of_masks() -> list[dict[str, Any]]:
    adata = tf.data.pbmc()
    model = SIMS(epochs=20, calibration=0.0).fit(adata, labels="cell_type", progress=False)
    masks = model.masks(adata)
    off = max(float(np.abs(mask.sum(axis=1) - 1).max()) for mask in masks)
    looked = float(np.mean([mask.nnz / mask.shape[0] for mask in masks]))
    return [record("sims", "check", "masks of every step sum to 1 in each cell", "tenfold.data.pbmc",
                   sha256(adata.X.toarray()), f"largest difference ({looked:.0f} genes a mask)", off, tolerance=1e-4,
                   passed=off <= 1e-4)]  # fmt: skip


def main() -> None:
    params = {"calibration": 0.0}
    of_labels, control = (lambda: labelled("sims", params)), (lambda: permuted("sims", params))
    parts({"masks": of_masks, "labels": of_labels, "permuted": control})


if __name__ == "__main__":
    main()
