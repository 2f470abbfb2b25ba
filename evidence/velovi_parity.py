"""veloVI against scvi-tools' VELOVI: the same weights give the same posterior, likelihood, gradients and velocities.

The original draws shares of states and the latent variable at every call; both sides take their means here, so that
nothing is left to chance. That draws follow the Dirichlet distribution is a matter of the tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recording import record, run_apart, sha256, version, write

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.data.velocity import moments_of
from tenfold.nn.splicing_vae import SplicingVAE

SETUP = """
import logging, torch
import anndata as ad, scvi
from scvi.external import VELOVI
logging.disable(logging.WARNING)
torch.set_num_threads(1)
scvi.settings.seed = 0
a = ad.AnnData(given["s"])
a.layers["Ms"], a.layers["Mu"] = given["s"], given["u"]
VELOVI.setup_anndata(a, spliced_layer="Ms", unspliced_layer="Mu")
"""
CODE = """
model = VELOVI(a)
model.train(max_epochs=15, accelerator="cpu", enable_progress_bar=False)
module = model.module.eval()
torch.distributions.Dirichlet.rsample = lambda self, *shape: self.mean
torch.distributions.Normal.rsample = lambda self, *shape: self.mean
keys = scvi.external.velovi._constants.VELOVI_REGISTRY_KEYS
tensors = {keys.X_KEY: torch.tensor(given["s"]), keys.U_KEY: torch.tensor(given["u"])}
inference, generative, loss = module(tensors, loss_kwargs={"kl_weight": 0.3})
loss.loss.backward()
result = {f"weight.{name}": value.numpy() for name, value in module.state_dict().items()}
result |= {
    "mean": inference["qzm"].detach(), "variance": inference["qzv"].detach(), "loss": loss.loss.item(),
    "shapes": generative["px_pi_alpha"].detach(), "rho": generative["px_rho"].detach(),
    "velocity": model.get_velocity(return_numpy=True), "time": model.get_latent_time(return_numpy=True),
}
for name in ("alpha_unconstr", "beta_mean_unconstr", "gamma_mean_unconstr", "switch_time_unconstr", "scale_unconstr"):
    result[f"grad.{name}"] = getattr(module, name).grad.numpy()
result["grad.pi"] = module.decoder.px_pi_decoder.weight.grad.numpy()
result["s"], result["u"] = model.get_expression_fit(return_numpy=True)
"""


def with_weights(weights: dict[str, np.ndarray], tied: bool = False) -> SplicingVAE:
    """Return our network with the original's weights."""
    top = weights["switch_unspliced"], weights["switch_spliced"]
    n_hidden, n_latent = weights["z_encoder.mean_encoder.weight"].shape[::-1]
    net = SplicingVAE(
        *top, n_hidden=n_hidden, n_latent=n_latent, n_layers=1, dropout=0.1, t_max=20.0, concentration=0.25, tied=tied
    )
    w = {name: torch.as_tensor(value) for name, value in weights.items()}
    state = net.state_dict()
    for ours, theirs in (
        ("encoder.hidden", "z_encoder.encoder"), ("phase_layers", "decoder.rho_first_decoder"),
        ("share_layers", "decoder.pi_first_decoder"),
    ):  # fmt: skip
        first, norm = f"{theirs}.fc_layers.Layer 0.0", f"{theirs}.fc_layers.Layer 0.1"
        state[f"{ours}.layers.0.weight"] = w[f"{first}.weight"].T
        for part in ("weight", "bias", "running_var"):
            state[f"{ours}.layers.0.batch_norm.{part}"] = w[f"{norm}.{part}"]
        # We have no bias before batch norm, where it cancels.
        state[f"{ours}.layers.0.batch_norm.running_mean"] = w[f"{norm}.running_mean"] - w[f"{first}.bias"]
    for part in ("weight", "bias"):
        state[f"encoder.heads.{part}"] = torch.cat([w[f"z_encoder.{head}_encoder.{part}"] for head in ("mean", "var")])
        state[f"phase.{part}"] = torch.cat([w[f"decoder.px_{head}_decoder.0.{part}"] for head in ("rho", "tau")])
        state[f"shares.{part}"] = by_state(w[f"decoder.px_pi_decoder.{part}"])
    for ours, theirs in (
        ("alpha", "alpha"), ("beta", "beta_mean"), ("gamma", "gamma_mean"), ("switch", "switch_time"),
    ):  # fmt: skip
        state[ours] = w[f"{theirs}_unconstr"]
    state["scale"] = torch.stack(w["scale_unconstr"][:, 0].chunk(2))
    net.load_state_dict(state)
    return net.eval()


def by_state(weight: torch.Tensor) -> torch.Tensor:
    """Put the rows of four states of one gene after another into rows of genes of one state after another."""
    return weight.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)


def ours(net: SplicingVAE, x: np.ndarray) -> dict[str, Any]:
    cells = torch.as_tensor(x)
    s, u = cells.chunk(2, dim=1)
    posterior, of = net.encoder(cells), net.kinetics()
    decoded = net.decode(posterior.mean)
    nll = net.nll(decoded, decoded.mean_shares().log(), of, u, s).sum(dim=1).mean()
    prior = torch.distributions.Dirichlet(torch.full_like(decoded.shapes.movedim(1, 2), net.concentration))
    shares = torch.distributions.Dirichlet(decoded.shapes.movedim(1, 2))
    kl = torch.distributions.kl_divergence(shares, prior).sum(dim=1).mean()
    end = ((torch.stack([of.u0, of.s0]) - net.top) ** 2).sum()
    loss = nll + 0.3 * posterior.kl_from_standard().mean() + kl + 0.2 * 0.7 * end
    loss.backward()
    with torch.no_grad():
        found = {name: value.numpy() for name, value in net.course(posterior.mean).items()}
    scale = net.scale.grad.flatten().numpy()
    return {
        "mean": posterior.mean.detach().numpy(), "variance": posterior.variance.detach().numpy(),
        "shapes": decoded.shapes.detach().movedim(1, 2).numpy(), "rho": decoded.phase.sigmoid()[:, 0].detach().numpy(),
        "loss": loss.item(), "velocity": np.maximum(found["velocity"], -s.numpy()), "time": found["time"],
        "u": found["u"], "s": found["s"], "grad.scale_unconstr": scale,
        "grad.pi": net.shares.weight.grad.numpy(),
        **{f"grad.{theirs}_unconstr": getattr(net, own).grad.numpy() for own, theirs in (
            ("alpha", "alpha"), ("beta", "beta_mean"), ("gamma", "gamma_mean"), ("switch", "switch_time"))},
    }  # fmt: skip


if __name__ == "__main__":
    simulated = tf.data.simulate_branching(n_cells=300, n_genes=60, seed=0)
    moments = moments_of(Inputs(simulated, {}))
    s, u = (part / part.max(axis=0) for part in (moments.spliced, moments.unspliced))
    found = run_apart(CODE, {"s": s, "u": u}, setup=SETUP)
    weights = {name.removeprefix("weight."): value for name, value in found.items() if name.startswith("weight.")}
    mine = ours(with_weights(weights), np.hstack([s, u]))
    found["grad.scale_unconstr"] = found["grad.scale_unconstr"][:, 0]
    found["grad.pi"] = by_state(torch.as_tensor(found["grad.pi"])).numpy()
    rows = []
    for claim, names, tolerance in (
        ("posterior", ("mean", "variance", "shapes", "rho"), 1e-4),
        ("loss", ("loss",), 1e-5),
        ("gradients", [name for name in mine if name.startswith("grad.")], 1e-3),
        ("velocity, time and fit", ("velocity", "time", "u", "s"), 1e-4),
    ):  # fmt: skip
        for name in names:
            far = float(np.abs(mine[name] - found[name]).max() / np.abs(found[name]).max())
            metric = f"largest difference of {name.replace('grad.', 'the gradient by ')}, relative to the largest value"
            rows.append(record(
                "velovi", "parity", claim, "simulated branching, 300 cells × 60 genes", sha256(s), metric, far,
                passed=far <= tolerance, reference=version("scvi-tools"), reference_value=0.0, tolerance=tolerance,
            ))  # fmt: skip
    write(rows)
