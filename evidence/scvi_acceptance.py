"""scVI on labelled cells: clusters as good as PCA's, and a held-out likelihood that mean profiles do not reach.

Criteria: k-means ARI of the latent space at most 0.05 below that of 30 principal components; held-out NB negative
log-likelihood below that of the gene means and of the means of the true labels, each with fitted dispersion. Run
``python evidence/scvi_acceptance.py``; needs the real data sets beside the checkout.
"""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import torch
from recording import DATA, record, sha256, write
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import tenfold as tf
from tenfold.data import preprocess
from tenfold.kernels.rows import take_rows
from tenfold.nn.likelihoods import count_nll

DATASETS = ("pbmc_sorted", "cite_cbmc")
MARGIN = 0.05
#: Counts of the overall mean that smooth the mean of a label.
PRIOR_COUNTS = 100.0


def profile_nll(train: ad.AnnData, test: ad.AnnData, labels: str | None, seed: int = 0) -> float:
    """Held-out NB negative log-likelihood of mean profiles, the dispersion of each gene fitted by gradient steps."""
    torch.manual_seed(seed)
    overall = np.asarray(train.X.sum(axis=0), dtype=np.float64).ravel() + 0.01
    overall /= overall.sum()
    names = ["all"] if labels is None else sorted(train.obs[labels].unique())
    profiles = np.empty((len(names), train.n_vars))
    for row, name in enumerate(names):
        chosen = train.X if labels is None else train.X[(train.obs[labels] == name).to_numpy()]
        profiles[row] = np.asarray(chosen.sum(axis=0)).ravel() + PRIOR_COUNTS * overall
    log_profiles = torch.from_numpy(np.log(profiles / profiles.sum(axis=1, keepdims=True))).float()
    log_theta = torch.zeros(train.n_vars, requires_grad=True)
    optimizer = torch.optim.Adam([log_theta], lr=0.1)

    def nll(cells: ad.AnnData, rows: np.ndarray) -> torch.Tensor:
        counts = take_rows(cells.X, rows)
        codes = np.zeros(len(rows), dtype=int) if labels is None else np.searchsorted(names, cells.obs[labels])[rows]
        logits = log_profiles[torch.from_numpy(codes)]
        return count_nll("nb", counts, logits, counts.sum().log(), link="exp", log_theta=log_theta)

    rng = np.random.default_rng(seed)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 300)
        optimizer.zero_grad()
        nll(train, rng.choice(train.n_obs, min(512, train.n_obs), replace=False)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        return float(nll(test, np.arange(test.n_obs)).mean())


def kmeans_ari(embedding: np.ndarray, truth: np.ndarray) -> float:
    """Agreement of k-means at the true number of types with the types."""
    found = KMeans(len(np.unique(truth)), n_init=20, random_state=0).fit_predict(embedding)
    return float(adjusted_rand_score(truth, found))


def check(name: str) -> list[dict[str, Any]]:
    """Fit on nine tenths of the cells and judge."""
    path = DATA / f"{name}.h5ad"
    adata, digest = ad.read_h5ad(path), sha256(path)
    adata.X = adata.X.astype(np.float32)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    genes = tf.embed.SCVI(epochs=1).fit(adata, progress=False).genes_
    adata = adata[:, genes].copy()
    order = np.random.default_rng(0).permutation(adata.n_obs)
    train, test = (adata[np.sort(rows)].copy() for rows in np.split(order, [adata.n_obs * 9 // 10]))
    model = tf.embed.SCVI(n_top_genes=None).fit(train, progress=False)
    components = preprocess.pca(preprocess.normalize_log1p(train.X), 30).embedding
    truth = train.obs["cell_type"].to_numpy()
    ours, base = (kmeans_ari(embedding, truth) for embedding in (model.embed(), components))
    nll = model.reconstruction_error(test)
    by_gene, by_label = profile_nll(train, test, None), profile_nll(train, test, "cell_type")
    shared = {
        "claim": "as good as PCA for types, better than mean profiles for counts",
        "dataset": name,
        "digest": digest,
    }
    return [
        record("scvi", "check", metric="k-means ARI", value=ours, reference="PCA, 30 components", reference_value=base,
               tolerance=MARGIN, passed=ours >= base - MARGIN, **shared),
        record("scvi", "check", metric="held-out NLL per cell, nats, against gene means", value=nll,
               reference="NB at the gene mean", reference_value=by_gene, passed=nll < by_gene, **shared),
        record("scvi", "check", metric="held-out NLL per cell, nats, against label means", value=nll,
               reference="NB at the mean of the true label", reference_value=by_label, passed=nll < by_label, **shared),
    ]  # fmt: skip


if __name__ == "__main__":
    found: list[dict[str, Any]] = []
    for dataset in DATASETS:
        found += check(dataset)
        write(found)
