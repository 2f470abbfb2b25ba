"""TOSICA against the published network: CPU time of an epoch, and the loss that it ends with.

Both train the same network (300 random sets of density 0.015, the published sizes and dropout) on the same cells by
stochastic gradient descent in minibatches of 8, as published, on one thread. The published data loader, which is slow,
is left out: the published network is given ready minibatches of dense rows. Needs torch and einops in the environment
of TENFOLD_REFERENCE_PYTHON, and TENFOLD_TOSICA_SOURCE as in evidence/tosica_parity.py. Run
``python benchmarks/tosica.py``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))
from recording import record, run_apart, sha256, write  # noqa: E402

N_CELLS, N_GENES, N_SETS, EPOCHS = 160, 3000, 300, 1

DATA = """
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
x, y = given["x"], given["y"]
"""
OURS = """
from scipy import sparse
from tenfold.data.gene_sets import Memberships
from tenfold.data.minibatches import Minibatches
from tenfold.nn.set_tokens import SetTokens, SetTransformer
def make():
    names, starts, sets = Memberships.of_mask(given["mask"] > 0, map(str, range(given["mask"].shape[1])))
    return SetTransformer(SetTokens(starts, sets, len(names), 48), 8, start=0.01).train()
cells = Minibatches({"x": sparse.csr_matrix(x), "label": y}, 8)
def epoch(net, number):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-5)
    for batch in cells.epoch(number):
        loss = torch.nn.functional.cross_entropy(net(batch["x"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
"""
THEIRS = """
sys.path.insert(0, {source!r})
from TOSICA.TOSICA_model import scTrans_model
def make():
    return scTrans_model(num_classes=8, num_genes=x.shape[1], mask=given["mask"], has_logits=False).train()
rows, labels = torch.from_numpy(x), torch.from_numpy(y)
def epoch(net, number):
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.001, momentum=0.9,
                                weight_decay=5e-5)
    for chosen in torch.randperm(len(rows)).split(8):
        loss = torch.nn.functional.cross_entropy(net(rows[chosen])[1], labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
"""
CODE = """
net = make()
if {warm}:
    kept, cells = (cells, Minibatches({{"x": sparse.csr_matrix(x[:16]), "label": y[:16]}}, 8))
    epoch(net, 0)  # compiles what is compiled at first use
    cells = kept
start = time.process_time()
for number in range(int(given["epochs"])):
    loss = epoch(net, number)
result = {{"seconds": (time.process_time() - start) / int(given["epochs"]), "loss": loss}}
"""


def main() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 8, N_CELLS)
    x = np.log1p(rng.poisson(rng.lognormal(-2, 1, (8, N_GENES))[y])).astype(np.float32)
    mask = (rng.random((N_GENES, N_SETS)) < 0.015).astype(float)
    given = {"x": x, "y": y, "mask": mask, "epochs": EPOCHS}
    source = os.environ["TENFOLD_TOSICA_SOURCE"]
    ours = run_apart(CODE.format(warm=True), given, DATA + OURS, python=sys.executable)
    theirs = run_apart(CODE.format(warm=False), given, DATA + THEIRS.format(source=source))
    shared = {
        "claim": f"an epoch of {N_CELLS} cells, {N_GENES} genes, {N_SETS} sets, minibatches of 8, one thread",
        "dataset": "simulated", "digest": sha256(x), "reference": "JackieHanLab/TOSICA 1.0.0",
    }  # fmt: skip
    rows = []
    for metric, key in (("CPU seconds of an epoch", "seconds"), ("peak memory, MB", "_peak_mb")):
        passed = ours[key] <= theirs[key]
        rows.append(record("tosica", "benchmark", metric=metric, value=ours[key], reference_value=theirs[key],
                           passed=passed, **shared))  # fmt: skip
    rows.append(record("tosica", "benchmark", metric="loss of the last minibatch", value=ours["loss"],
                       reference_value=theirs["loss"], tolerance=0.2,
                       passed=abs(ours["loss"] - theirs["loss"]) <= 0.2, **shared))  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
