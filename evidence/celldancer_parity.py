"""cellDancer beside the original's network and loss at copied weights, its training of one gene after the other.

Run ``TENFOLD_CELLDANCER_PYTHON=... TENFOLD_CELLDANCER_SOURCE=... python evidence/celldancer_parity.py``: an environment
with torch, scikit-learn, SciPy and pandas, and a clone of GuangyuWangLab2021/cellDancer. Its package pins a torch of
2021; its network, loss and choice of points are run as they are, Lightning and plots, which do not compute, are
stand-ins. Its bounds of the rates are given to ours where numbers are compared, since ours are others by design.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch
from cell_rate_checks import on_off
from recording import record, run_apart, sha256, write

from tenfold.data.inputs import Inputs
from tenfold.data.velocity import moments_of
from tenfold.kernels.adam import Adam
from tenfold.metrics import direction_accuracy
from tenfold.nn.gene_networks import CosineTraining, GeneNetworks, plane_of
from tenfold.velocity.celldancer import CellDancer

PYTHON, SOURCE = (os.environ.get(f"TENFOLD_CELLDANCER_{name}", "") for name in ("PYTHON", "SOURCE"))
GENES, UPDATES, NEIGHBORS, SAMPLED = 12, 20, 30, 0.125
REFERENCE = "cellDancer 1.1.7 (clone)"

SETUP = f"""
SOURCE = {SOURCE!r}
import types
import torch
torch.set_num_threads(1)
def stand_in(name, **parts):
    module = types.ModuleType(name)
    vars(module).update(parts)
    sys.modules[name] = module
    return module
stand_in("matplotlib").pyplot = stand_in("matplotlib.pyplot")
stand_in("pkg_resources")
callbacks = stand_in("pytorch_lightning.callbacks", ModelCheckpoint=object)
stand_in("pytorch_lightning.callbacks.early_stopping", EarlyStopping=object)
stand_in("pytorch_lightning", LightningModule=torch.nn.Module, LightningDataModule=object, callbacks=callbacks)
stand_in("numpy.core.fromnumeric", size=np.size)
stand_in("celldancer").__path__ = [{SOURCE!r} + "/src/celldancer"]
from celldancer.velocity_estimation import DNN_layer, DNN_module, getItem
import pandas as pd

u, s = given["u"], given["s"]
n_genes = u.shape[1]

def network(gene):
    layers = DNN_layer(100, 100)
    with torch.no_grad():
        for at, layer in enumerate((layers.l1, layers.l2, layers.l3)):
            layer.weight.copy_(torch.tensor(given[f"weight_{{at}}"][gene].T))
            layer.bias.copy_(torch.tensor(given[f"bias_{{at}}"][gene, 0]))
    return DNN_module(layers, n_neighbors={NEIGHBORS})

def table(gene):
    return pd.DataFrame({{"gene_name": "g", "unsplice": u[:, gene], "splice": s[:, gene],
                         "embedding1": u[:, gene], "embedding2": s[:, gene]}})

def points(gene, share):
    cells = table(gene)
    return getItem(cells, cells, "fit_dataset", permutation_ratio=share, norm_u_s=True, norm_cell_distribution=True)

def loss_of(module, item):
    unspliced, spliced, _, u_max, s_max, first, second = item
    parts = [torch.tensor(part) for part in (unspliced, spliced)]
    places = [torch.tensor(part) for part in (first, second)]
    bounds = (np.float32(u_max * 2), np.float32(1), np.float32(u_max / s_max))
    return module.velocity_calculate(*parts, *bounds, 0.5, *places, loss_func="cosine", trace_cost_ratio=0,
                                     corrcoef_cost_ratio=0)[0]

def trained(module, data):
    optimizer = torch.optim.Adam(module.parameters(), lr=0.001, weight_decay=0.004)
    for _ in range({UPDATES}):
        optimizer.zero_grad()
        loss = loss_of(module, data[0])
        loss.backward()
        optimizer.step()
    return loss.item()
"""
COMPARED = """
first, last = [], []
for gene in range(n_genes):
    module, data = network(gene), points(gene, 1)
    first.append(loss_of(module, data[0]).item())
    last.append(trained(module, data))
result = {"first": np.array(first), "last": np.array(last)}
"""
TIMED = f"""
np.random.seed(0)
result = {{"last": np.array([trained(network(gene), points(gene, {SAMPLED})) for gene in range(n_genes)])}}
"""
SIGNS = """
import torch.nn.functional as F
velocity = np.zeros_like(s)
for gene in range(n_genes):
    high = ((u[:, gene] > 0.9 * u[:, gene].max()) & (s[:, gene] > 0.9 * s[:, gene].max())).mean() > 0.001
    module = network(gene)
    kept = torch.load(SOURCE + "/src/celldancer/model/" + ("circle.pt" if high else "branch.pt"), weights_only=False)
    for name, layer in kept.items():
        setattr(module.module, name, layer)
    data = points(gene, 0.125)
    torch.manual_seed(0)
    np.random.seed(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.001, weight_decay=0.004)
    for _ in range(100):
        optimizer.zero_grad()
        loss_of(module, data[0]).backward()
        optimizer.step()
    u_max, s_max = np.float32(u[:, gene].max()), np.float32(s[:, gene].max())
    own = [torch.tensor(x[:, gene] / top) for x, top in ((u, u_max), (s, s_max))]
    with torch.no_grad():
        ahead = module.module(*own, u_max * 2, np.float32(1), u_max / s_max, 0.5)[1]
    velocity[:, gene] = (ahead - own[1]).numpy() * s_max
result = {"velocity": velocity}
"""


def updates(training: CosineTraining) -> torch.Tensor:
    """Take as many updates as the original here does, without the engine, and return the last losses, gene by gene."""
    optimizer = Adam(training.rates.parameters(), lr=1e-3, weight_decay=0.004)
    for epoch in range(UPDATES):
        optimizer.zero_grad()
        training.terms(epoch)["loss"].backward()
        optimizer.step()
    return training.smoothed


def main() -> list[dict[str, Any]]:
    adata = on_off()
    moments = moments_of(Inputs(adata, {"use_rep": "X_pca"}), n_top_genes=None, normalize=False)
    chosen = np.arange(GENES)
    s, u = moments.spliced[:, chosen], moments.unspliced[:, chosen]
    plane = plane_of(u, s)
    bounds = np.stack([2 * plane.highest[:, 0], np.ones(GENES), plane.highest[:, 0] / plane.highest[:, 1]], axis=1)
    torch.manual_seed(0)
    net = GeneNetworks(GENES, 100)
    weights = {name: value.numpy().copy() for name, value in net.state_dict().items()}
    given = {"u": u, "s": s, **weights}
    theirs = run_apart(COMPARED, given, SETUP, PYTHON)
    training = CosineTraining(net, plane, bounds, 1.0, NEIGHBORS)
    own = training.losses(torch.from_numpy(plane.points), torch.from_numpy(plane.counts), torch.arange(GENES))
    before = [value.clone() for value in net.state_dict().values()]
    optimizer = Adam(net.parameters(), lr=1e-3, weight_decay=0.004)
    for _ in range(UPDATES):
        optimizer.zero_grad()
        last = training.losses(torch.from_numpy(plane.points), torch.from_numpy(plane.counts), torch.arange(GENES))
        last.sum().backward()
        optimizer.step()
    shown = {"dataset": f"simulated on/off genes, 800 cells × {GENES} genes", "digest": sha256(u)}
    rows = [
        record("celldancer", "parity", claim, **shown, metric="largest difference over genes", value=value,
                passed=value <= bound, reference=REFERENCE, tolerance=bound)
        for claim, value, bound in (
            ("loss at copied weights as in the original", np.abs(own.detach().numpy() - theirs["first"]).max(), 1e-5),
            (f"loss after {UPDATES} updates as in the original",
             np.abs(last.detach().numpy() - theirs["last"]).max(), 1e-2),
        )
    ]  # fmt: skip
    for parameter, value in zip(net.parameters(), before, strict=True):
        parameter.data.copy_(value)
    sampled = CosineTraining(net, plane, bounds, SAMPLED, NEIGHBORS)
    start = time.process_time()
    updates(sampled)
    seconds = time.process_time() - start
    slower = run_apart(TIMED, given, SETUP, PYTHON)
    rows.append(
        record("celldancer", "parity", f"{UPDATES} updates of {GENES} genes faster than the original", **shown,
               metric="CPU seconds, one thread", value=seconds, passed=seconds < slower["_seconds"],
               reference=REFERENCE, reference_value=slower["_seconds"])
    )  # fmt: skip
    truth = adata.layers["true_velocity"][:, moments.columns[chosen]]
    model = CellDancer(n_top_genes=None, normalize=False, min_r2=-1e9, min_ratio=-1e9, epochs=100)
    model.fit(adata[:, moments.columns[chosen]].copy(), use_rep="X_pca", progress=False)
    found = run_apart(SIGNS, given, SETUP, PYTHON)["velocity"]
    right, beside = direction_accuracy(model.velocity_, truth), direction_accuracy(found, truth)
    rows.append(
        record("celldancer", "parity", "signs right at least as often as the original's, 100 updates", **shown,
               metric="share of right signs of ds/dt", value=right, passed=right >= beside,
               reference=REFERENCE, reference_value=beside)
    )  # fmt: skip
    return rows


if __name__ == "__main__":
    if not (PYTHON and SOURCE):
        sys.exit("Set TENFOLD_CELLDANCER_PYTHON and TENFOLD_CELLDANCER_SOURCE.")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    write(main())
