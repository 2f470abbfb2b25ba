"""SIMS against pytorch-tabnet, of which the original is made: CPU time of a training step, peak memory, and the loss.

Both train the same network (the published sizes) on the same cells by Adam in minibatches of 256 on one thread. The
original's data loader and metrics are left out. Needs pytorch-tabnet in the environment of TENFOLD_REFERENCE_PYTHON.
Run ``python benchmarks/sims.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))
from recording import record, run_apart, sha256, write  # noqa: E402

N_CELLS, N_GENES, N_LABELS, STEPS = 256, 4000, 10, 12

DATA = """
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
x, y = torch.from_numpy(given["x"]), torch.from_numpy(given["y"])
n_genes, n_labels = x.shape[1], int(given["n_labels"])
"""
OURS = """
from tenfold.nn.tabnet import TabNet
from tenfold.kernels.adam import Adam
net = TabNet(n_genes, n_labels).train()
optimizer = Adam(net.parameters(), lr=0.01, weight_decay=0.01)
def step():
    found = net(x)
    loss = torch.nn.functional.cross_entropy(found.logits, y) - 1e-3 * found.entropy
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
step()  # compiles what is compiled at first use
"""
THEIRS = """
from pytorch_tabnet.tab_network import TabNet
net = TabNet(n_genes, n_labels, group_attention_matrix=torch.eye(n_genes)).train()
optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=0.01)
def step():
    logits, entropy = net(x)
    loss = torch.nn.functional.cross_entropy(logits, y) - 1e-3 * entropy
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
step()
"""
CODE = """
start = time.process_time()
for _ in range(int(given["steps"])):
    loss = step()
result = {"seconds": (time.process_time() - start) / int(given["steps"]), "loss": loss}
"""


def main() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, N_LABELS, N_CELLS)
    x = np.log1p(rng.poisson(rng.lognormal(-2, 1, (N_LABELS, N_GENES))[y]))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    given = {"x": x, "y": y, "n_labels": N_LABELS, "steps": STEPS}
    ours = run_apart(CODE, given, DATA + OURS, python=sys.executable)
    theirs = run_apart(CODE, given, DATA + THEIRS)
    shared = {
        "claim": f"a training step of {N_CELLS} cells, {N_GENES:,} genes, {N_LABELS} labels, one thread",
        "dataset": "simulated", "digest": sha256(x), "reference": "pytorch-tabnet 4.1.0",
    }  # fmt: skip
    rows = [
        record("sims", "benchmark", metric=metric, value=ours[key], reference_value=theirs[key],
               passed=ours[key] <= theirs[key], **shared)
        for metric, key in (("CPU seconds of a step", "seconds"), ("peak memory, MB", "_peak_mb"))
    ]  # fmt: skip
    rows.append(record("sims", "benchmark", metric=f"training loss after {STEPS + 1} steps", value=ours["loss"],
                       reference_value=theirs["loss"], tolerance=0.2,
                       passed=ours["loss"] <= theirs["loss"] + 0.2, **shared))  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
