"""fastMNN and MNN: the sheet's checks on shared and unique types, a second run, other orders, and null batches."""

from __future__ import annotations

import warnings

import numpy as np
from anchor_data import acceptance, displacement, kept, null_pbmc, overlapping
from anndata import AnnData
from recording import record, sha256, write

import tenfold as tf
from tenfold.data import anchors
from tenfold.integrate.fastmnn import FastMNN
from tenfold.integrate.mnn import MNN


def twice() -> list[dict]:
    """Merge the merged coordinates again: hardly anything is left to move."""
    rows = []
    for name, adata, _, digest in overlapping():
        batch = adata.obs["batch"].astype("category").cat.codes.to_numpy()
        first = FastMNN().fit(adata, batch="batch", progress=False)
        before = anchors.cosine_normalised(anchors.depth_matched(adata.X, batch), np.arange(adata.n_vars))
        before = anchors.multibatch_pca(before, batch, np.arange(adata.n_vars), 50).embedding
        again = FastMNN()
        again._merge(first.embedding_, batch, ["1", "2"], [0, 1])
        once, more = displacement(before, first.embedding_), displacement(first.embedding_, again.embedding_)
        rows.append(
            record("fastmnn", "check", "a second run changes little", name, digest,
                   "displacement by the second run, over that by the first", more / once, tolerance=0.25,
                   passed=more / once < 0.25)
        )  # fmt: skip
    return rows


def orders() -> list[dict]:
    """Compare the neighbours after two orders of merges; the sheet asks for the figure, the bar of a half is ours."""
    adata = tf.data.simulate(1500, 500, n_types=4, n_batches=3, batch_strength=0.3, seed=0)
    digest, rows = sha256(adata.X.toarray()), []
    for cls in (FastMNN, MNN):
        runs = [
            cls(merge_order=order).fit(adata, batch="batch", progress=False).embed()
            for order in (["batch_1", "batch_2", "batch_3"], ["batch_3", "batch_2", "batch_1"])
        ]
        share = kept(*runs)
        rows.append(
            record(cls.name(), "check", "the order of merges matters little", "simulated, 3 batches of 4 types", digest,
                   "15 nearest neighbours in common with the reversed order", share, tolerance=0.5,
                   passed=share > 0.5)
        )  # fmt: skip
    return rows


def unmoved(cls: type, adata: AnnData) -> np.ndarray:
    """Return the coordinates of a run in which no cell moves."""
    if cls is FastMNN:
        return FastMNN(min_batch_skip=10.0).fit(adata, batch="batch", progress=False).embed()
    batch = adata.obs["batch"].astype("category").cat.codes.to_numpy()
    every = np.arange(adata.n_vars)
    return anchors.components(anchors.cosine_normalised(anchors.depth_matched(adata.X, batch), every).toarray(), 50)


def calibration() -> list[dict]:
    """Split one sample at random: the neighbours should stay those of a run in which nothing moves."""
    rows = []
    digest = sha256(tf.data.pbmc().X.toarray())
    for cls, params in ((FastMNN, {}), (FastMNN, {"min_batch_skip": 0.1}), (MNN, {})):
        shares = []
        for seed in range(3):
            adata = null_pbmc(seed)
            run = cls(**params).fit(adata, batch="batch", progress=False)
            shares.append(kept(unmoved(cls, adata), run.embed()))
        words = f"pbmc68k_reduced, split at random{', min_batch_skip=0.1' if params else ''}"
        share = float(np.mean(shares))
        rows.append(
            record(cls.name(), "check", "null batches keep their neighbours", words, digest,
                   "15 nearest neighbours kept, mean of 3 splits", share, tolerance=0.9, passed=share > 0.9)
        )  # fmt: skip
    return rows


def main() -> None:
    warnings.simplefilter("ignore")
    write(
        [
            *acceptance(FastMNN),
            *acceptance(FastMNN, n_components=10),
            *acceptance(MNN),
            *twice(),
            *orders(),
            *calibration(),
        ]
    )


if __name__ == "__main__":
    main()
