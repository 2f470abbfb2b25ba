"""Data-parallel training from disk: each process reads its own blocks, all together train one network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import torch

import tenfold as tf
from tenfold.data import blocks, minibatches, streamed

SIZES = {"n_cells": 600, "n_genes": 40, "n_types": 3, "n_batches": 2, "depth": 80.0}


def train(path: Path) -> tuple[tf.embed.SCVI, list[int], float]:
    """Train from disk; return the model, the rows that this process trained on, and the loss."""
    streamed.LARGEST_LOADED, streamed.AT_ONCE, streamed.GAP = 1000, 700, 0
    blocks.BUFFER_BYTES, blocks.BLOCKS = 20_000, 8
    rows: list[int] = []

    def noted(*arguments):
        order, cuts = blocks.dealt(*arguments)
        rows.extend(order.tolist())
        return order, cuts

    minibatches.dealt = noted
    model = tf.embed.SCVI(
        epochs=1, n_top_genes=None, n_hidden=16, batch_size=32, train_fraction=1.0, learning_rate=5e-3, device="cpu"
    )
    model.fit(ad.read_h5ad(path, backed="r"), batch="batch", progress=False)
    return model, sorted(rows), float(model.history.set_index("term").loc["nll", "train"])


def test_two_processes_read_halves_and_train_one_network(tmp_path):
    path = tmp_path / "cells.h5ad"
    tf.data.simulate(**SIZES).write_h5ad(path)
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in (together, [__file__, str(path)]):
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    first, second, alone = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0", "1", "alone"))
    assert first["weights"] == second["weights"]
    assert not set(first["rows"]) & set(second["rows"])
    assert sorted(first["rows"] + second["rows"]) == alone["rows"] == list(range(SIZES["n_cells"]))
    assert abs(len(first["rows"]) - len(second["rows"])) < 0.1 * SIZES["n_cells"]
    np.testing.assert_allclose(first["loss"], alone["loss"], rtol=0.02)


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = Path(sys.argv[1])
    model, rows, loss = train(path)
    weights = torch.cat([value.flatten() for value in model.net_.parameters()]).tolist()
    result = {"weights": weights, "rows": rows, "loss": loss}
    (path.parent / f"{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps(result))
