"""On batches that differ in nothing, Harmony keeps as many neighbours as the reference with its defaults."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
from recording import DATA, record, run_apart, sha256, version, write

import tenfold as tf
from tenfold.embed.pca import PCA
from tenfold.integrate.harmony import Harmony
from tenfold.kernels.knn import knn

SETUP = "import harmonypy, pandas as pd"
CODE = """
table = pd.DataFrame({"batch": given["batch"].astype(str)})
result = {"z": harmonypy.run_harmony(given["x"], table, "batch", verbose=False, ncores=1).Z_corr}
"""


def kept(before: np.ndarray, after: np.ndarray, k: int = 15) -> float:
    pairs = zip(knn(before, k=k + 1)[0][:, 1:], knn(after, k=k + 1)[0][:, 1:], strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in pairs]))


def one_batch(name: str) -> tuple[ad.AnnData, str]:
    if name == "pbmc68k_reduced":
        adata = tf.data.pbmc()
        return adata, sha256(adata.X.toarray())
    return ad.read_h5ad(DATA / f"{name}.h5ad"), sha256(DATA / f"{name}.h5ad")


def main() -> None:
    warnings.simplefilter("ignore")
    rows, reference = [], version("harmonypy")
    for name in ("pbmc68k_reduced", "pbmc_sorted", "pbmc_frozen_a"):
        adata, digest = one_batch(name)
        x = PCA(n_components=30).fit(adata, progress=False).embed()
        for share in (0.5, 0.1):
            ours, theirs = [], []
            for seed in range(3):
                batch = (np.random.default_rng(seed).random(len(x)) < share).astype(int)
                run = Harmony(seed=seed)
                run._harmonize(x, [batch])
                ours.append(kept(x, run.embedding_))
                theirs.append(kept(x, run_apart(CODE, {"x": x, "batch": batch}, SETUP)["z"]))
            rows.append(
                record("harmony", "check", "null batches keep their neighbours", f"{name}, split at random", digest,
                       f"15 neighbours kept, {share:.0%} in the second batch, mean of 3 seeds", np.mean(ours),
                       reference=reference, reference_value=np.mean(theirs), tolerance=0.01,
                       passed=np.mean(ours) >= np.mean(theirs) - 0.01)
            )  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
