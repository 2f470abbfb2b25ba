"""VeloVAE against the original: losses of equal training from copied weights, courses, and CPU time of training.

Give the folder of its source (github.com/welch-lab/VeloVAE) as ``TENFOLD_VELOVAE_SOURCE`` and an interpreter with
torch, anndata, tqdm, matplotlib and scikit-learn as ``TENFOLD_VELOVAE_PYTHON``, then run
``python evidence/velovae_parity.py [steps] [timed]``. Plots and preprocessing of the original are not loaded.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from anndata import read_h5ad
from deep_annotators import parts
from recording import DATA, record, run_apart, sha256, version

from tenfold.data.inputs import Inputs
from tenfold.data.velocity import moments_of

PYTHON = os.environ.get("TENFOLD_VELOVAE_PYTHON", sys.executable)
#: Genes; steps that are compared and steps that are timed, of each stage; largest relative difference.
N_GENES, STEPS, TIMED = 800, 5, 20
TOLERANCE = 1e-3
REFERENCE = "VeloVAE 834f9f2"

SETUP = """
import io, contextlib, sys, types, warnings
from unittest.mock import MagicMock
import torch
from anndata import AnnData
warnings.simplefilter("ignore")
torch.set_num_threads(1)
for name in ("velovae", "velovae.model"):
    sys.modules[name] = package = types.ModuleType(name)
    package.__path__ = [str(given["source"]) + "/" + name.replace(".", "/")]
for name in ("plotting", "scvelo_preprocessing.moments", "scvelo_preprocessing.neighbors", "model.transition_graph"):
    sys.modules["velovae." + name] = MagicMock()
sys.modules["velovae.scvelo_preprocessing"] = MagicMock()
sys.modules["velovae.model.transition_graph"].encode_type = lambda types: ({t: i for i, t in enumerate(types)}, {})
from velovae.model.vae import VAE
from velovae.model.training_data import SCData
from torch.utils.data import DataLoader
u, s = given["u"], given["s"]
a = AnnData(s.copy(), layers={"Mu": u.copy(), "Ms": s.copy()})
def made(dropout=0.2):
    np.random.seed(0)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model = VAE(a, tmax=20, dim_z=5)
    for net in (model.encoder, model.decoder):
        for module in net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
    return model
def optimizers(model):
    d = model.decoder
    first = [*model.encoder.parameters(), *d.net_rho.parameters(), *d.fc_out1.parameters()]
    second = [*d.net_rho2.parameters(), *d.fc_out2.parameters()]
    of_genes = [d.alpha, d.beta, d.gamma, d.u0, d.s0, d.logit_pw, d.ton]
    return (*(torch.optim.Adam(p, lr=1e-3, weight_decay=1e-3) for p in (first, second)),
            torch.optim.Adam(of_genes, lr=8e-3))
x = torch.from_numpy(np.hstack([u, s])).float()
def stage_two(model):
    model.encoder.eval()
    model.use_knn, model.train_stage = True, 2
    model.decoder.logit_pw.requires_grad = False
    model.u0, model.s0, model.t0 = given["u0"], given["s0"], given["t0"]
"""
STEPS_OF_THEIRS = """
model = made(dropout=0.0)
result = {"w:" + key: value.numpy().copy() for net, name in ((model.encoder, "e."), (model.decoder, "d."))
          for key, value in ((name + k, v) for k, v in net.state_dict().items())}
model.sample = lambda mean, sd: mean
cells = torch.arange(128)
adam, adam_2, adam_ode = optimizers(model)
def step(stage, update=True):
    told = [None] * 3 if stage == 1 else [torch.from_numpy(part[:128]) for part in (model.u0, model.s0, model.t0)]
    for one in (adam, adam_2, adam_ode):
        one.zero_grad()
    mean, sd, z, z_sd, _, _, uhat, shat, _, _, vu, vs, _, _ = model.forward(x[:128], *told, None, None)
    loss = model.vae_risk((mean, sd), model.p_t[:, :128], (z, z_sd), model.p_z[:, :128], x[:128, :u.shape[1]],
                          x[:128, u.shape[1]:], uhat, shat, vu, vs, *told[:2])
    if update:
        loss.backward()
        (adam if stage == 1 else adam_2).step()
        adam_ode.step()
    return loss.item(), uhat.detach(), shat.detach(), vs.detach()
model.set_mode("eval")
out, _ = model.pred_all(np.hstack([u, s])[:128], None, "both", ["uhat", "shat", "t", "z"])
kl = model._compute_kl_term(*(pair for q, p in (((torch.from_numpy(out["t"])[:, None].float(),
     torch.from_numpy(out["std_t"])[:, None].float()), model.p_t[:, :128]), ((torch.from_numpy(out["z"]).float(),
     torch.from_numpy(out["std_z"]).float()), model.p_z[:, :128])) for pair in (q, p)))
kl = kl.item() - 0.01 * sys.modules["velovae.model.vae"].elbo_collapsed_categorical(
    model.decoder.logit_pw, model.alpha_w, 2, u.shape[1]).item()
result |= {"time": out["t"], "state": out["z"], "first_course": np.hstack([out["uhat"], out["shat"]])}
model.set_mode("train")
result["first_losses"] = np.array([step(1)[0] for _ in range(int(given["steps"]))])
model = made(dropout=0.0)
model.sample = lambda mean, sd: mean
adam, adam_2, adam_ode = optimizers(model)
stage_two(model)
model.set_mode("eval")
_, *course, velocity = step(2, False)
result |= {"second_course": torch.cat(course, dim=1).numpy(), "velocity": velocity.numpy()}
model.set_mode("train")
result["second_losses"] = np.array([step(2)[0] for _ in range(int(given["steps"]))]) - kl
"""
TIMED_OF_THEIRS = """
import time as clock
model = made()
begin = clock.process_time()
made()
result = {"start": clock.process_time() - begin}
model.n_type = 1
model.config["test_iter"], model.counter = 10**9, 2
loader = DataLoader(SCData(np.hstack([u, s])[model.train_idx].astype(float), np.zeros(len(model.train_idx), int)),
                    batch_size=128, shuffle=True)
adam, adam_2, adam_ode = optimizers(model)
epochs = -(-int(given["timed"]) // len(loader))
model._train_epoch(loader, None, adam_ode, adam, 0)
begin = clock.process_time()
for _ in range(epochs):
    model._train_epoch(loader, None, adam_ode, adam, 0)
result["first"] = (clock.process_time() - begin) / (epochs * len(loader))
stage_two(model)
begin = clock.process_time()
for _ in range(epochs):
    model._train_epoch(loader, None, adam_2, adam_ode, 0)
result["second"] = (clock.process_time() - begin) / (epochs * len(loader))
"""
OURS_SETUP = """
import torch
torch.set_num_threads(1)
from tenfold.engine import seeded
from tenfold.nn.velo_vae import VeloVAENet
from tenfold.velocity.velovae import VeloVAE, _adam
u, s = given["u"], given["s"]
n, g = u.shape
def network(numbers, sd, dropout):
    with seeded(0):
        return VeloVAENet(numbers, sd, n, n_latent=5, n_origins=10, n_hidden=250, dropout=dropout, t_max=20.0,
                          state_sd=0.01)
def optimizers(net):
    first = [*net.encoder.parameters(), *net.heads.parameters(), *net.first.parameters(), net.numbers]
    return _adam(first, 1e-3, 1e-3), _adam([*net.second.parameters(), net.numbers], 1e-3, 1e-3)
def step(net, adam, loss):
    for parameter in net.parameters():
        parameter.grad = None
    loss = loss()
    loss.backward()
    adam.step()
    return loss.item()
def stage_two(net, scale):
    left = np.hstack([given["u0"] / scale, given["s0"]])
    for name, value in (("origin", given["t0"]), ("left", left)):
        getattr(net, name).copy_(torch.from_numpy(value))
def placed(net, x):
    with torch.no_grad():
        times, states = net.eval().encode(x)
    for name, value in (("time", times.mean), ("time_variance", times.variance), ("state", states.mean),
                        ("state_variance", states.variance)):
        getattr(net, name).copy_(value)
    net.train()
"""
STEPS_OF_OURS = """
w = {key[2:]: np.array(value) for key, value in given.items() if key.startswith("w:")}
scale = np.exp(w["d.scaling"])
numbers = np.stack([w["d." + name] for name in ("alpha", "beta", "gamma", "u0", "s0", "ton")] + [w["d.logit_pw"][:, 0]])
sd = np.exp(np.stack([w["d.sigma_u"] - w["d.scaling"], w["d.sigma_s"]]))
def copied():
    net = network(numbers, sd, 0.0)
    theirs = dict(net.state_dict())
    layers = (("encoder.layers", "e.fc", "e.bn", (1, 2)), ("first.hidden.layers", "d.fc", "d.bn", (1, 2)),
              ("second.hidden.layers", "d.fc", "d.bn", (3, 4)))
    for mine, fc, bn, places in layers:
        for i, k in enumerate(places):
            theirs[f"{mine}.{i}.weight"] = w[f"{fc}{k}.weight"].T
            for part in ("weight", "bias", "running_mean", "running_var"):
                theirs[f"{mine}.{i}.batch_norm.{part}"] = w[f"{bn}{k}.{part}"]
    heads = ("mu_t", "std_t", "mu_z", "std_z")
    for part in ("weight", "bias"):
        theirs[f"heads.{part}"] = np.concatenate([w[f"e.fc_{name}.{part}"] for name in heads])
        theirs[f"first.out.{part}"], theirs[f"second.out.{part}"] = w[f"d.fc_out1.{part}"], w[f"d.fc_out2.{part}"]
    net.load_state_dict({name: torch.as_tensor(value) for name, value in theirs.items()})
    placed(net, x)
    stage_two(net, scale)
    return net
x = torch.from_numpy(np.hstack([u / scale, s])).float()
cells, steps = torch.arange(128), range(int(given["steps"]))
constant = np.log(scale).sum()  # a density of scaled unspliced RNA there, of what it was scaled from in the original
back = np.concatenate([scale, np.ones(g)])
net = copied()
adam = optimizers(net)[0]
with torch.no_grad():
    course, whole = net.eval().likelier_course(cells), net.outputs(cells)
result = {"time": net.time[:128, 0].numpy(), "state": net.state[:128].numpy(), "first_course": course.numpy() * back,
          "second_course": whole["x"].numpy() * back, "velocity": whole["velocity"].numpy()}
net.train()
losses = [step(net, adam, lambda: net.first_terms(x[:128], False)["loss"]) for _ in steps]
net = copied()
adam = optimizers(net)[1]
second = [step(net, adam, lambda: net.second_loss(x[:128], cells, False)) for _ in steps]
result |= {"first_losses": np.array(losses) + constant, "second_losses": np.array(second) + constant}
"""
TIMED_OF_OURS = """
import time as clock
scale = u.std(axis=0) / s.std(axis=0)
model = VeloVAE()
def begun():
    return model._start((u / scale).astype(np.float64), s.astype(np.float64))
begun()
begin = clock.process_time()
numbers, sd = begun()
net = network(numbers, sd, 0.2)
result = {"start": clock.process_time() - begin}
x = torch.from_numpy(np.hstack([u / scale, s])).float()
stage_two(net, scale)
adam, adam_2 = optimizers(net)
rng = np.random.default_rng(0)
net.train()
def first():
    rows = torch.from_numpy(rng.choice(n, 128, replace=False))
    step(net, adam, lambda: net.first_terms(x[rows], True)["loss"])
def second():
    rows = torch.from_numpy(rng.choice(n, 128, replace=False))
    step(net, adam_2, lambda: net.second_loss(x[rows], rows, True))
for name, one in (("first", first), ("second", second)):
    placed(net, x)
    one()
    begin = clock.process_time()
    for _ in range(int(given["timed"])):
        one()
    result[name] = (clock.process_time() - begin) / int(given["timed"])
"""


def given() -> dict[str, Any]:
    """Return averages of a real set, and beginnings of courses near them: the original cuts off large errors."""
    moments = moments_of(Inputs(read_h5ad(DATA / "pancreas_velocity.h5ad"), {}), n_top_genes=N_GENES)
    u, s = moments.unspliced, moments.spliced
    before = np.random.default_rng(0).uniform(0, 0.5, (len(s), 1)).astype(np.float32)
    u0, s0 = u * np.float32(0.9), s * np.float32(0.9)
    return {"u": u, "s": s, "u0": u0, "s0": s0, "t0": before, "steps": STEPS, "timed": TIMED}


def shown(data: dict[str, Any]) -> dict[str, str]:
    n, g = data["s"].shape
    return {"dataset": f"averages of pancreas_velocity.h5ad, {n} cells × {g} genes", "digest": sha256(data["s"]),
            "reference": f"{REFERENCE}, {version('torch', PYTHON)}"}  # fmt: skip


def compared() -> list[dict[str, Any]]:
    data = given()
    theirs = run_apart(STEPS_OF_THEIRS, {**data, "source": os.environ["TENFOLD_VELOVAE_SOURCE"]}, SETUP, python=PYTHON)
    weights = {name: value for name, value in theirs.items() if name.startswith("w:")}
    ours = run_apart(STEPS_OF_OURS, {**data, **weights}, OURS_SETUP, python=sys.executable)
    claim = f"from copied weights without noise, {STEPS} steps of each stage"
    names = {"first_losses": "losses of the first stage", "time": "times", "state": "states", "first_course":
             "courses of the first stage", "second_losses": "losses of the second stage", "second_course":
             "courses of the second stage", "velocity": "velocities"}  # fmt: skip
    rows = []
    for name, what in names.items():
        apart = float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max())
        rows.append(record(
            "velovae", "parity", f"{claim}: {what}", metric="largest relative difference", value=apart,
            reference_value=0.0, tolerance=TOLERANCE, passed=apart <= TOLERANCE, **shown(data),
        ))  # fmt: skip
    return rows


def timed() -> list[dict[str, Any]]:
    data = given()
    theirs = run_apart(TIMED_OF_THEIRS, {**data, "source": os.environ["TENFOLD_VELOVAE_SOURCE"]}, SETUP, python=PYTHON)
    ours = run_apart(TIMED_OF_OURS, data, OURS_SETUP, python=sys.executable)
    names = {"start": "where training starts", "first": "a step of the first stage", "second": "a step of the second"}
    return [
        record("velovae", "benchmark", f"{what}, one thread, less than the original", metric="CPU seconds",
               value=ours[name], reference_value=theirs[name], passed=ours[name] < theirs[name], **shown(data))
        for name, what in names.items()
    ]  # fmt: skip


if __name__ == "__main__":
    parts({"steps": compared, "timed": timed})
