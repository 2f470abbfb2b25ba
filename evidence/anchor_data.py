"""The data on which the anchor methods are checked, and the measures of the checks."""

from __future__ import annotations

from collections.abc import Iterator

import anndata as ad
import numpy as np
from recording import DATA, record, sha256

import tenfold as tf
from tenfold.embed.pca import PCA
from tenfold.kernels.knn import knn
from tenfold.metrics.diversity import lisi
from tenfold.metrics.neighborhoods import neighbors

K = 15


def overlapping() -> Iterator[tuple[str, ad.AnnData, tuple[str, str], str]]:
    """Yield two batches that share types and hold one of their own each: name, cells, the unique types, digest.

    Simulated types differ from one another alike, so that the two unique ones are each other's nearest across batches:
    the hardest case for mutual neighbours. The blood cells are of two 10x chemistries; B cells are left out of one and
    NK cells of the other.
    """
    for strength in (1.0, 2.0):
        adata = tf.data.simulate(
            2000, 1000, n_types=5, n_batches=2, type_strength=strength, batch_strength=0.3,
            proportions=[[1, 1, 1, 1, 0], [1, 1, 1, 0, 1]], seed=0,
        )  # fmt: skip
        name = f"simulated, 3 shared + 1 unique type each, type strength {strength:g}"
        yield name, adata, ("type_4", "type_5"), sha256(adata.X.toarray())
    path = DATA / "pbmc_3chem.h5ad"
    adata = ad.read_h5ad(path)
    adata.obs["cell_type"] = adata.obs["cell_type_broad"].astype(str)
    first = (adata.obs["batch"] == "3pv2") & adata.obs["cell_type"].isin(["T", "Mono", "B"])
    second = (adata.obs["batch"] == "5p") & adata.obs["cell_type"].isin(["T", "Mono", "NK"])
    adata = adata[first | second].copy()
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    yield "pbmc_3chem, T and Mono shared, B and NK in one batch each", adata, ("B", "NK"), sha256(path)


def null_pbmc(seed: int) -> ad.AnnData:
    """Blood cells of one sample, split at random."""
    adata = tf.data.pbmc()
    adata.obs["batch"] = np.where(np.random.default_rng(seed).random(adata.n_obs) < 0.5, "a", "b")
    return adata


def shared_mixing(embedding: np.ndarray, types: np.ndarray, batch: np.ndarray, unique: tuple[str, str]) -> float:
    """Return the mean LISI of batch within each shared type, over that of batches permuted within the type."""
    rng, ratios = np.random.default_rng(0), []
    for name in sorted(set(types) - set(unique)):
        inside = types == name
        near = neighbors(embedding[inside])
        permuted = [lisi(near, rng.permutation(batch[inside])).mean() - 1 for _ in range(5)]
        ratios.append((lisi(near, batch[inside]).mean() - 1) / np.mean(permuted))
    return float(np.mean(ratios))


def unique_purity(embedding: np.ndarray, types: np.ndarray, unique: tuple[str, str]) -> float:
    """Return the share of a unique type's 15 neighbours that are of that type."""
    near = knn(embedding, k=K + 1)[0][:, 1:]
    own = np.isin(types, unique)
    return float((types[near[own]] == types[own, None]).mean())


def spread_ratio(embedding: np.ndarray, types: np.ndarray, batch: np.ndarray, unique: tuple[str, str]) -> float:
    """Return the variance within shared types in one batch over that in the other, the smaller over the larger."""
    ratios = []
    for name in sorted(set(types) - set(unique)):
        one, two = (embedding[(types == name) & (batch == b)].var(axis=0).sum() for b in (0, 1))
        ratios.append(min(one, two) / max(one, two))
    return float(np.mean(ratios))


def kept(before: np.ndarray, after: np.ndarray) -> float:
    """Return the mean share of 15 nearest neighbours that two embeddings have in common."""
    pairs = zip(knn(before, k=K + 1)[0][:, 1:], knn(after, k=K + 1)[0][:, 1:], strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in pairs]))


def displacement(before: np.ndarray, after: np.ndarray) -> float:
    """Return the root of the mean squared move over the total variance before."""
    moved = ((after - before) ** 2).sum(axis=1).mean()
    return float(np.sqrt(moved / before.var(axis=0).sum()))


def acceptance(cls: type, **params: object) -> list[dict]:
    """Run the sheet's check of types shared by two batches, and of types that only one holds; return its records."""
    rows, method = [], cls.name()
    for name, adata, unique, digest in overlapping():
        name += "".join(f", {key}={value}" for key, value in params.items())
        run = cls(**params).fit(adata, batch="batch", progress=False)
        types, batch = (adata.obs[key].astype(str).to_numpy() for key in ("cell_type", "batch"))
        codes = np.unique(batch, return_inverse=True)[1]
        mixing = shared_mixing(run.embed(), types, codes, unique)
        rows.append(
            record(method, "check", "shared types mix, unique types stay pure", name, digest,
                   "iLISI within shared types, share of that of permuted batches", mixing, tolerance=0.8,
                   passed=mixing > 0.8)
        )  # fmt: skip
        purity = unique_purity(run.embed(), types, unique)
        before = unique_purity(PCA().fit(adata, progress=False).embed(), types, unique)
        rows.append(
            record(method, "check", "shared types mix, unique types stay pure", name, digest,
                   "share of a unique type's 15 neighbours of its own type", purity, reference="our PCA, nothing moved",
                   reference_value=before, tolerance=0.95, passed=purity >= 0.95)
        )  # fmt: skip
        spread = spread_ratio(run.embed(), types, codes, unique)
        rows.append(
            record(method, "check", "batches that move are not smoothed", name, digest,
                   "variance within shared types, least over most spread batch", spread, tolerance=0.8,
                   passed=spread > 0.8)
        )  # fmt: skip
    return rows
