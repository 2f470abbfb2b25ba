"""BERMUDA beside its original: pairs from its own table, the loss at copied weights, MetaNeighbor written out.

Needs a checkout of github.com/txWang/BERMUDA (December 2019), named by TENFOLD_BERMUDA; three of its files are run as
they are. MetaNeighbor, which is R there, is written out in NumPy here. Above 3,000 cells ours draws a sample; how much
that matters is recorded on simulated cells.
Run ``python evidence/bermuda_parity.py``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import record, run_apart, sha256, write
from scipy.stats import rankdata

import tenfold as tf
from tenfold.data.cluster_similarity import BatchClusters, neighbour_votes, similar_pairs
from tenfold.integrate.bermuda import SCALES
from tenfold.kernels.rows import all_rows
from tenfold.nn.discrepancy import mmd_of_pairs
from tenfold.nn.expression_autoencoder import ExpressionAutoencoder

REFERENCE = "txWang/BERMUDA 1e1e031"
TABLE, LEAST = "pancreas/pancreas_metaneighbor.csv", 0.90
SIZE = 50

PAIRS = """
sys.path.insert(0, str(given["source"]))
import numpy as np
from pre_processing import read_cluster_similarity
result = {"pairs": read_cluster_similarity(str(given["table"]), float(given["least"]))}
"""
LOSS = """
sys.path.insert(0, str(given["source"]))
import numpy as np, torch
from ae import autoencoder_20
from mmd import mix_rbf_mmd2
torch.manual_seed(0)
x = [torch.from_numpy(part) for part in given["x"]]
net = autoencoder_20(x[0].shape[1])
found = [net(part) for part in x]
error = sum(torch.nn.functional.mse_loss(recon, part) for (_, recon), part in zip(found, x))
mmd = sum(mix_rbf_mmd2(found[i][0], found[j][0], [1, 2, 4, 8, 16]) for i, j in given["pairs"])
result = {"w:" + name: value.detach().numpy() for name, value in net.state_dict().items()}
result |= {"error": float(error), "mmd": float(mmd)}
"""
#: Our layers by theirs.
LAYERS = {"encoder.layers.0": "encoder.encoder.0", "code": "encoder.encoder.2",
          "decoder.layers.0": "decoder.decoder.0", "head": "decoder.decoder.2"}  # fmt: skip


def ranked_votes(x: np.ndarray, cluster: np.ndarray, home: np.ndarray) -> np.ndarray:
    """Return MetaNeighbor's areas as the R code has them: correlations of all cells, replaced by their ranks."""
    network = np.corrcoef(np.apply_along_axis(rankdata, 1, x))
    network = rankdata(network).reshape(network.shape)
    votes = network @ np.eye(len(home))[cluster] / network.sum(axis=0)[:, None] / network.max()
    area = np.full((len(home), len(home)), np.nan)
    for target, code in enumerate(home):
        rows = home[cluster] == code
        rank, inside = rankdata(votes[rows], axis=0), cluster[rows] == target
        area[target] = (rank[inside].mean(axis=0) - (inside.sum() + 1) / 2) / (~inside).sum()
    area[home[:, None] == home] = np.nan
    return (area + area.T) / 2


def compared(
    data: str, digest: str, claim: str, lognorm: Any, clusters: BatchClusters, tolerance: float
) -> list[dict[str, Any]]:
    """Return the records of our similarities beside those of the matrix of all cells."""
    ours = neighbour_votes(lognorm, clusters)
    exact = ranked_votes(lognorm.toarray(), *clusters)
    gap = float(np.nanmax(np.abs(ours - exact)))
    pairs = [{tuple(pair) for pair in similar_pairs(found, clusters.home, LEAST)} for found in (ours, exact)]
    shared: dict[str, Any] = {"reference": "MetaNeighbor's formula, all cells, in NumPy", "reference_value": 0}
    return [
        record("bermuda", "check", f"MetaNeighbor, {claim}", data, digest, "largest difference of a similarity", gap,
               tolerance=tolerance, passed=gap <= tolerance, **shared),
        record("bermuda", "check", f"MetaNeighbor, {claim}", data, digest,
               f"pairs that one of the two does not choose, of {len(pairs[1])}", len(pairs[0] ^ pairs[1]), tolerance=0,
               passed=pairs[0] == pairs[1], **shared),
    ]  # fmt: skip


def weights(expected: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the state of our network that holds the weights of theirs."""
    state = {}
    for ours, theirs in LAYERS.items():
        for part in ("weight", "bias"):
            value = expected[f"w:{theirs}.{part}"]
            state[f"{ours}.{part}"] = torch.from_numpy(
                value.T.copy() if "layers" in ours and value.ndim == 2 else value
            )
    return state


def main() -> None:
    source, records = os.environ["TENFOLD_BERMUDA"], []
    table = Path(source) / TABLE
    similarity = np.loadtxt(table, delimiter=",")[1:]
    home = np.concatenate([[0], (np.diagonal(similarity, 1) != 0).cumsum()])
    theirs = run_apart(PAIRS, {"source": source, "table": str(table), "least": LEAST})["pairs"]
    ours = similar_pairs(np.where(home[:, None] == home, np.nan, similarity), home, LEAST)
    same = {tuple(pair) for pair in ours} ^ {tuple(pair.astype(int) - 1) for pair in theirs[:, :2]}
    records.append(record(
        "bermuda", "parity", "pairs of 21 clusters of two pancreas data sets", TABLE, sha256(table),
        f"pairs that one of the two does not choose, of {len(theirs)}", len(same), reference=REFERENCE,
        reference_value=0, tolerance=0, passed=not same,
    ))  # fmt: skip

    adata = tf.data.pbmc()
    lognorm = tf.data.preprocess.normalize_log1p(adata.X)
    digest = sha256(adata.X.toarray())
    x = (lognorm / lognorm.max()).tocsr()[: 4 * SIZE].astype(np.float32)
    pairs = np.array([[0, 2], [1, 3], [0, 3]])
    expected = run_apart(LOSS, {"source": source, "x": x.toarray().reshape(4, SIZE, -1), "pairs": pairs})
    net = ExpressionAutoencoder(x.shape[1], 20, (200,), positive=True)
    net.load_state_dict(weights(expected))
    with torch.no_grad():
        z = net.encode(all_rows(x))
        error = (net.decode(z) - torch.from_numpy(x.toarray())).square().mean(1).reshape(4, SIZE).mean(1).sum()
        mmd = mmd_of_pairs(z, torch.arange(4).repeat_interleave(SIZE), torch.from_numpy(pairs), 4, SCALES).sum()
    worst = max(abs(float(error) / expected["error"] - 1), abs(float(mmd) / expected["mmd"] - 1))
    records.append(record(
        "bermuda", "parity", "loss at copied weights, four clusters of 50 cells", "tenfold.data.pbmc", digest,
        "largest relative difference of reconstruction and MMD", worst, reference=REFERENCE, reference_value=0,
        tolerance=1e-4, passed=worst <= 1e-4,
    ))  # fmt: skip

    label = np.unique(adata.obs["cell_type"].astype(str), return_inverse=True)[1]
    batch = np.random.default_rng(0).integers(0, 2, adata.n_obs)
    names, cluster = np.unique(batch * 100 + label, return_inverse=True)
    clusters = BatchClusters(cluster, names // 100)
    records += compared("tenfold.data.pbmc", digest, "all cells, two random halves", lognorm, clusters, 1e-4)
    large = tf.data.simulate(5_000, 300, n_types=8, n_batches=2, type_strength=0.7, batch_strength=0.4, seed=0)
    names, cluster = np.unique(
        large.obs["batch"].cat.codes * 100 + large.obs["cell_type"].cat.codes, return_inverse=True
    )
    clusters, lognorm = BatchClusters(cluster, names // 100), tf.data.preprocess.normalize_log1p(large.X)
    digest = sha256(large.X.data)
    records += compared("tenfold.data.simulate", digest, "3,000 of 5,000 cells drawn", lognorm, clusters, 0.02)
    write(records)


if __name__ == "__main__":
    main()
