"""DeepVelo beside the original's network (DGL convolutions), loss and optimiser, at copied weights, on one real set.

Run ``TENFOLD_DEEPVELO_PYTHON=... TENFOLD_DEEPVELO_SOURCE=... python evidence/deepvelo_parity.py``: an environment with
torch, dgl (1.1.3, whose code for graphs without neighbours in torch is not used) and scikit-learn, and a clone of
bowang-lab/DeepVelo. Its model and loss files are run as they are; its data loader, which asks for a sampler that DGL no
longer has, is replaced by its few lines of graph. Dropout is 0 where numbers are compared, as in the original for time.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch
from anndata import read_h5ad
from recording import DATA, record, run_apart, sha256, version, write

from tenfold.nn.deepvelo_net import DeepVeloNet
from tenfold.velocity.deepvelo import DECAY, DeepVelo

PYTHON, SOURCE = (os.environ.get(f"TENFOLD_DEEPVELO_{name}", "") for name in ("PYTHON", "SOURCE"))
EPOCHS = 20
PANCREAS = DATA / "pancreas_velocity.h5ad"

SETUP = f"""
import types
import torch, dgl
torch.set_num_threads(1)
for name, path in (("deepvelo", "deepvelo"), ("deepvelo.model", "deepvelo/model")):
    module = types.ModuleType(name)
    module.__path__ = [{SOURCE!r} + "/" + path]
    sys.modules[name] = module
base = types.ModuleType("deepvelo.base")
base.BaseModel = torch.nn.Module
sys.modules["deepvelo.base"] = base
from deepvelo.model.loss import mle_plus_direction
from deepvelo.model.model import VeloGCN
near = given["near"]
cells = np.repeat(np.arange(len(near)), {DeepVelo.graph_neighbors})
others = near[:, :{DeepVelo.graph_neighbors}].ravel()
graph = dgl.graph((np.concatenate([cells, others]), np.concatenate([others, cells])), num_nodes=len(near))
s, u = torch.tensor(given["spliced"]), torch.tensor(given["unspliced"])
both = bool(given["with_unspliced"])
state = torch.cat([s, u], dim=1) if both else s
targets = torch.tensor(near[:, 1:{DeepVelo.target_neighbors}]).long()

def network(dropout):
    net = VeloGCN(graph, s.shape[1], layers=[64, 64], pred_unspliced=both, dropout=dropout)
    with torch.no_grad():
        for at, layer in enumerate(net.layers):
            layer.weight.copy_(torch.tensor(given[f"weight_{{at}}"]))
            layer.bias.copy_(torch.tensor(given[f"bias_{{at}}"]))
    return net

def loss_of(net):
    out = net(u, s)
    return out, mle_plus_direction(out, state, targets, state, s, u, pearson_scale=18.0, coeff_u=1.0,
                                   coeff_s=float(given["coeff_s"]))

def trained(net):
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001, weight_decay=0, amsgrad=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.97)
    losses = []
    for _ in range({EPOCHS}):
        _, loss = loss_of(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses
"""
COMPARED = """
net = network(0.0)
out, loss = loss_of(net)
loss.backward()
result = {"velocity": out.detach().numpy(), "loss": loss.item(),
          "gradient": torch.cat([p.grad.ravel() for p in net.parameters()]).numpy()}
net.zero_grad()
result["losses"] = np.array(trained(net))
result["trained"] = net(u, s).detach().numpy()
"""
TIMED = """
torch.manual_seed(0)
result = {"losses": np.array(trained(network(0.2)))}
"""


def trained(net: DeepVeloNet) -> list[float]:
    """Train as the method does, without the engine around it, as the original's steps are timed without its logging."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, amsgrad=True)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, DECAY)
    losses = []
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        loss = net.terms()["loss"]
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def both(with_unspliced: bool) -> list[dict[str, Any]]:
    model = DeepVelo(epochs=1, dropout=0.0, with_unspliced=with_unspliced)
    adata = read_h5ad(PANCREAS)
    model.fit(adata, progress=False)
    s, u = (model._scaled(x[:, model.fitted_]) for x in (model.spliced_, model.unspliced_))
    torch.manual_seed(0)
    net = model._network(s, u)
    weights = {name: value.numpy().copy() for name, value in net.state_dict().items()}  # not what is trained below
    given = {"spliced": s, "unspliced": u, "near": model.near_, "coeff_s": model.coeff_s_,
             "with_unspliced": with_unspliced, **weights}  # fmt: skip
    theirs = run_apart(COMPARED, given, SETUP, PYTHON)
    velocity = net.velocities()
    loss = net.terms()["loss"]
    loss.backward()
    names = [f"{part}_{at}" for at in range(net.n_convolutions) for part in ("weight", "bias")]
    gradient = torch.cat([net.get_parameter(name).grad.ravel() for name in names]).numpy()
    net.zero_grad()
    losses = trained(net)
    which = "α, β, γ" if with_unspliced else "β, γ"
    apart = {
        "velocity at copied weights": np.abs(velocity.detach().numpy() - theirs["velocity"]).max()
        / np.abs(theirs["velocity"]).max(),
        "loss at copied weights": abs(loss.item() / theirs["loss"] - 1),
        "gradient at copied weights": np.linalg.norm(gradient - theirs["gradient"])
        / np.linalg.norm(theirs["gradient"]),
        f"loss after {EPOCHS} updates": abs(losses[-1] / theirs["losses"][-1] - 1),
        f"velocity after {EPOCHS} updates": np.linalg.norm(net.velocities().detach().numpy() - theirs["trained"])
        / np.linalg.norm(theirs["trained"]),
    }  # fmt: skip
    bounds = (1e-4, 1e-4, 1e-3, 1e-3, 1e-2)
    rows = [
        record("deepvelo", "parity", f"{claim} ({which}) as in the original", PANCREAS.name, sha256(PANCREAS),
               "relative difference", value, passed=value <= bound, reference=version("dgl", PYTHON), tolerance=bound)
        for (claim, value), bound in zip(apart.items(), bounds, strict=True)
    ]  # fmt: skip
    return rows + (timed(model, given, s, u) if not with_unspliced else [])


def timed(model: DeepVelo, given: dict[str, Any], s: np.ndarray, u: np.ndarray) -> list[dict[str, Any]]:
    model.dropout = 0.2
    torch.manual_seed(0)
    net = model._network(s, u)
    net.terms()
    start = time.process_time()
    losses = trained(net)
    own = time.process_time() - start
    theirs = run_apart(TIMED, given, SETUP, PYTHON)
    print(f"loss after {EPOCHS} updates with dropout: {losses[-1]:.4f}, original {theirs['losses'][-1]:.4f}")
    return [
        record("deepvelo", "parity", f"{EPOCHS} updates faster than the original", PANCREAS.name, sha256(PANCREAS),
               "CPU seconds, one thread", own, passed=own < theirs["_seconds"], reference=version("dgl", PYTHON),
               reference_value=theirs["_seconds"])
    ]  # fmt: skip


if __name__ == "__main__":
    if not (PYTHON and SOURCE):
        sys.exit("Set TENFOLD_DEEPVELO_PYTHON and TENFOLD_DEEPVELO_SOURCE.")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    write([*both(False), *both(True)])
