"""GraphST against the original's network: loss and reconstruction at copied weights, and CPU time of an epoch.

The original is not installable beside current SciPy; its file ``GraphST/model.py`` needs PyTorch only. Give the folder
of its source (github.com/JinmiaoChenLab/GraphST) as ``TENFOLD_GRAPHST_SOURCE``, then run
``python evidence/graphst_parity.py``.
"""

from __future__ import annotations

import os
import sys
import warnings

import numpy as np
import torch
from recording import record, run_apart, sha256, version, write

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import averaging, normalised, positions_of, spatial_graph, symmetrised
from tenfold.domains.graphst import scaled
from tenfold.nn.graph_contrast import GraphContrast

TOLERANCE = 1e-4
#: Size of a Visium slice; epochs that are timed.
N_SPOTS, N_GENES = 3_500, 3_000
EPOCHS = {"theirs": 2, "ours": 20}
#: Times less CPU time than the original, at least.
BAR = 5.0

SETUP = """
import importlib.util, torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("model", str(given["source"]))
model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model)
x, adj, near = (torch.from_numpy(given[key]) for key in ("x", "adjacency", "near"))
net = model.Encoder(x.shape[1], 64, near)
target = torch.tensor([1.0, 0.0]).expand(len(x), 2)
bce = torch.nn.BCEWithLogitsLoss()
adam = torch.optim.Adam(net.parameters(), 1e-3)
def total(order):
    _, h, first, second = net(x, x[order], adj)
    return 10 * torch.nn.functional.mse_loss(x, h) + bce(first, target) + bce(second, target), h
"""
CODE = """
for _ in range(int(given["epochs"])):
    loss, h = total(torch.randperm(len(x)))
    adam.zero_grad()
    loss.backward()
    adam.step()
seconds = time.process_time() - start
result = {"w:" + name: value.detach().numpy().copy() for name, value in net.state_dict().items()}
with torch.no_grad():
    loss, h = total(torch.from_numpy(given["order"]))
result |= {"loss": float(loss), "h": h.numpy()[::50], "seconds": seconds}
"""
OURS_SETUP = """
import torch
torch.set_num_threads(1)
from scipy import sparse
from tenfold.engine import Phase, fit
from tenfold.nn.graph_contrast import GraphContrast
x, graph, around = (sparse.csr_matrix((given[key + " data"], given[key + " indices"], given[key + " indptr"]))
                    for key in ("x", "graph", "around"))
net = GraphContrast(x, graph, around, 64)
def train(epochs):
    phase = Phase("train", epochs, loss=lambda net, batch, progress: net.terms())
    fit(net, {"cell": np.arange(x.shape[0])}, [phase], batch_size=None, train_fraction=1.0, device="cpu")
train(1)
"""
OURS = 'train(int(given["epochs"]))\nresult = {}\n'


def simulated():
    """Return expression, adjacency and neighbours with the cells themselves, of a simulated slice."""
    adata = tf.data.simulate(N_SPOTS, N_GENES, n_types=7, depth=2_000.0, seed=0)
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(N_SPOTS, 2))
    data = Inputs(adata, {})
    directed = spatial_graph(positions_of(data), "knn", 3)
    return scaled(data.lognorm), normalised(symmetrised(directed), "after"), directed


def main() -> None:
    warnings.simplefilter("ignore")
    source = os.path.join(os.environ["TENFOLD_GRAPHST_SOURCE"], "GraphST", "model.py")
    x, graph, directed = simulated()
    given = {"x": x.toarray(), "adjacency": graph.toarray(), "near": directed.toarray() + np.eye(N_SPOTS, dtype="f4"),
             "order": np.random.default_rng(1).permutation(N_SPOTS), "source": source}  # fmt: skip
    theirs = run_apart(CODE, {**given, "epochs": EPOCHS["theirs"]}, SETUP)
    net = GraphContrast(x, graph, averaging(directed), 64)
    names = {"encoder": "weight1", "decoder": "weight2", "form": "disc.f_k.weight", "bias": "disc.f_k.bias"}
    state = {ours: torch.as_tensor(theirs[f"w:{name}"]) for ours, name in names.items()}
    net.load_state_dict({**state, "form": state["form"][0]})
    with torch.no_grad():
        loss = float(net.terms(torch.from_numpy(given["order"]))["loss"])
        h = (net.graph(net.graph(net.expression(net.encoder)))[::50] @ net.decoder).numpy()
    shown = {"dataset": f"simulated, {N_SPOTS:,} x {N_GENES:,}, {x.nnz / N_SPOTS / N_GENES:.0%} non-zero",
             "digest": sha256(x.data), "reference": f"GraphST d62b0b7, model.py, {version('torch')}"}  # fmt: skip
    difference = float(np.abs(h - theirs["h"]).max() / np.abs(theirs["h"]).max())
    matrices = {"x": x, "graph": graph, "around": averaging(directed)}
    given = {f"{key} {part}": getattr(matrix, part) for key, matrix in matrices.items()
             for part in ("data", "indices", "indptr")}  # fmt: skip
    ours = run_apart(OURS, {**given, "epochs": EPOCHS["ours"]}, OURS_SETUP, python=sys.executable)
    each = {"ours": ours["_seconds"] / EPOCHS["ours"], "theirs": theirs["seconds"] / EPOCHS["theirs"]}
    write([
        record("graphst", "parity", "at copied weights", metric="loss", value=loss, reference_value=theirs["loss"],
               tolerance=TOLERANCE, passed=abs(loss / theirs["loss"] - 1) <= TOLERANCE, **shown),
        record("graphst", "parity", "at copied weights", metric="reconstruction, largest relative difference",
               value=difference, reference_value=0.0, tolerance=TOLERANCE, passed=difference <= TOLERANCE, **shown),
        record("graphst", "benchmark", f"one thread, at least {BAR:g} times less", metric="CPU seconds of an epoch",
               value=each["ours"], reference_value=each["theirs"], tolerance=BAR,
               passed=BAR * each["ours"] <= each["theirs"], **shown),
        record("graphst", "benchmark", "one thread", metric="peak memory, MB", value=ours["_peak_mb"],
               reference_value=theirs["_peak_mb"], passed=ours["_peak_mb"] <= theirs["_peak_mb"], **shown),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
