"""SAUCIE: with the weights of the original's network, code, reconstruction and the losses of batch correction are its.

Needs a checkout of github.com/KrishnaswamyLab/SAUCIE in a folder of that name, inside of the one that TENFOLD_SAUCIE
names, and a Python with TensorFlow up to 2.15, named by TENFOLD_TENSORFLOW_PYTHON: the original is of TensorFlow 1,
whose functions that still has. Run ``python evidence/saucie_parity.py``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import record, run_apart, sha256, write

import tenfold as tf
from tenfold.data.preprocess import normalize_log1p
from tenfold.nn.expression_autoencoder import ExpressionAutoencoder
from tenfold.nn.saucie_net import pair_terms

TOLERANCE, WEIGHT, WIDTHS = 1e-4, 0.1, (512, 256, 128)

REFERENCE = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow
tf = tensorflow.compat.v1
tf.disable_v2_behavior()
sys.modules["tensorflow"] = tf
sys.path.insert(0, str(given["source"]))
tf.set_random_seed(0)
from SAUCIE.model import SAUCIE
net = SAUCIE(given["x"].shape[1], lambda_b=float(given["weight"]), no_gpu=True)
result = {"w:" + v.name: net.sess.run(v) for v in tf.trainable_variables()}
asked = {"code": net.embedded, "reconstruction": net.reconstructed, "loss_recon": net.loss_recon, "loss_b": net.loss_b}
result |= net.sess.run(asked, {net.x: given["x"], net.y: given["x"], net.batches: given["batch"]})
"""


def loaded(weights: dict[str, np.ndarray], n_genes: int) -> Any:
    """Return our network with their weights."""
    net = ExpressionAutoencoder(n_genes, 2, WIDTHS, activation="leaky_relu", slope=0.2)
    with torch.no_grad():
        for part in ("encoder", "decoder"):
            for place, layer in enumerate(getattr(net, part).layers):
                layer.weight.copy_(torch.from_numpy(weights[f"{part}{place}/kernel:0"]))
                layer.bias.copy_(torch.from_numpy(weights[f"{part}{place}/bias:0"]))
        for module, name in ((net.code, "embedding"), (net.head, "recon")):
            module.weight.copy_(torch.from_numpy(weights[f"{name}/kernel:0"].T.copy()))
            module.bias.copy_(torch.from_numpy(weights[f"{name}/bias:0"]))
    return net


def main() -> None:
    adata = tf.data.pbmc()
    x = normalize_log1p(adata.X.tocsr()).toarray()[:256].astype(np.float32)
    batch = np.random.default_rng(0).integers(0, 2, len(x)).astype(np.int32)
    python = os.environ["TENFOLD_TENSORFLOW_PYTHON"]
    source = str(Path(os.environ["TENFOLD_SAUCIE"]).resolve())
    expected = run_apart(REFERENCE, {"x": x, "batch": batch, "weight": WEIGHT, "source": source}, python=python)
    net = loaded({name[2:]: value for name, value in expected.items() if name.startswith("w:")}, x.shape[1])
    cells = torch.from_numpy(x)
    with torch.no_grad():
        z = net.encode(cells)
        terms = pair_terms(net, cells, torch.from_numpy(batch == 1), WEIGHT)
        found = {
            "code": z, "reconstruction": net.decode(z), "loss_recon": terms["reference"] + 0.01 * terms["other"],
            "loss_b": WEIGHT * terms["mmd"],
        }  # fmt: skip
    names = {"loss_recon": "reconstruction loss", "loss_b": "weighted discrepancy"}
    records = []
    for name, value in found.items():
        theirs = np.asarray(expected[name])
        worst = float(np.abs(value.numpy() - theirs).max() / np.abs(theirs).max())
        records.append(record(
            "saucie", "parity", "at copied weights", "tenfold.data.pbmc, 256 cells", sha256(adata.X.toarray()),
            f"{names.get(name, name)}, largest difference relative to the largest value", worst,
            reference="SAUCIE (github, TensorFlow 2.15 as 1)", reference_value=0.0, tolerance=TOLERANCE,
            passed=worst <= TOLERANCE,
        ))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
