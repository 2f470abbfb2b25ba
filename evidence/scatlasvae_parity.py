"""scAtlasVAE: with the weights of the published network, its losses, and its weights after some steps.

Needs scatlasvae 1.0.5.9 in the environment of TENFOLD_REFERENCE_PYTHON; it installs without its dependencies, of which
scirpy, which the model does not use, may be missing. Run ``python evidence/scatlasvae_parity.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recording import record, run_apart, sha256, write
from scipy import sparse
from torch import nn

from tenfold.data.minibatches import Minibatches
from tenfold.nn.decoders import CountDecoder
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.headed_vae import HeadedVAE

N_CELLS, N_GENES, N_BATCHES, KINDS, STEPS, RATE, KL = 128, 150, 3, (4, 2), 5, 1e-3, 0.3
TOLERANCE = 1e-5
REFERENCE = "scatlasvae 1.0.5.9"
SETUP = """
import logging
from unittest.mock import MagicMock
logging.disable(50)
sys.modules["scirpy"] = MagicMock()
import contextlib, io
import anndata, torch
import pandas as pd
torch.set_num_threads(1)
from scatlasvae.model._gex_model import scAtlasVAE
"""
CODE = """
given = {name: value.item() if value.ndim == 0 else value for name, value in given.items()}
adata = anndata.AnnData(given["x"].astype(np.int32))
adata.obs = pd.DataFrame({name: pd.Categorical(given[name].astype(str)) for name in ("batch", "first", "second")},
                         index=adata.obs_names)
torch.manual_seed(0)
with contextlib.redirect_stdout(io.StringIO()):
    net = scAtlasVAE(adata=adata, batch_key="batch", label_key=["first", "second"], dropout_rate=0.0, device="cpu")
torch.nn.init.normal_(net.px_rna_dropout_decoder.weight, std=0.1)  # zero at the start, so that it would not show
net.train()
result = {"w:" + name: value.numpy().copy() for name, value in net.state_dict().items()}
result |= {"weights_0": net.label_category_weight.numpy(), "weights_1": net.additional_label_category_weight[0].numpy()}
x = torch.from_numpy(given["x"])
codes = {name: torch.from_numpy(adata.obs[name].cat.codes.to_numpy().astype(int))[:, None] for name in adata.obs}
optimizer = torch.optim.AdamW(net.parameters(), given["rate"], weight_decay=1e-6)
losses = []
for step in range(given["steps"]):
    torch.manual_seed(step)
    H, R, L = net.forward(x, x.sum(1), codes["batch"], codes["first"], [codes["second"]], None)
    gate = torch.sigmoid(R["px_rna_dropout"]).sum(dim=1).mean()
    parts = [L["reconstruction_loss"].mean(), L["kldiv_loss"].mean(), gate,
             (L["prediction_loss"].sum() + L["additional_prediction_loss"].sum()) / 2]
    losses.append([float(part.detach()) for part in parts])
    loss = parts[0] + given["kl"] * parts[1] + parts[2] + parts[3]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
result |= {"a:" + name: value.numpy() for name, value in net.state_dict().items()}
result |= {"losses": np.array(losses)}
"""


def translated(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return their weights under our names; a bias before batch norm cancels, and ours has none."""
    first, second = "encoder.layers.0._fclayer", "decoder._fclayer"
    inward = weights[f"{second}.0.weight"]
    n_latent = weights["z_mean_fc.weight"].shape[0]
    found = {
        "encoder.hidden.layers.0.weight": weights[f"{first}.0.weight"].T,
        "decoder.hidden.layers.0.weight": inward[:, :n_latent].T,
        "decoder.hidden.layers.0.slopes": inward[:, n_latent:].T,
        "batch_vectors.weight": weights["decoder.cat_embedding.0.weight"],
    }
    for part in ("weight", "bias"):
        both = [weights[f"{name}.{part}"] for name in ("z_mean_fc", "z_var_fc")]
        found[f"encoder.heads.{part}"] = np.concatenate(both)
        names = {"mean_head": "px_rna_scale_decoder.0", "theta_head": "px_rna_rate_decoder",
                 "dropout_head": "px_rna_dropout_decoder"}  # fmt: skip
        found |= {f"decoder.{name}.{part}": weights[f"{theirs}.{part}"] for name, theirs in names.items()}
        found[f"heads.0.{part}"] = weights[f"fc.0.{part}"]
        found[f"heads.1.{part}"] = weights[f"additional_fc.0.{part}"]
    for part in ("weight", "bias", "running_mean", "running_var"):
        for name, theirs in (("encoder", first), ("decoder", second)):
            found[f"{name}.hidden.layers.0.batch_norm.{part}"] = weights[f"{theirs}.1.{part}"]
    return found


def ours(theirs: dict[str, Any]) -> HeadedVAE:
    """Return our network with their weights."""
    weights = [torch.as_tensor(theirs[f"weights_{number}"]).float() for number in range(2)]
    net = HeadedVAE(
        GaussianEncoder(N_GENES, 10), CountDecoder(10, N_GENES, likelihood="zinb", dispersion="gene-cell",
        n_continuous=8), batch_vectors=nn.Embedding(theirs["w:decoder.cat_embedding.0.weight"].shape[0], 8),
        label_weights=weights,
    )  # fmt: skip
    start = translated({name[2:]: value for name, value in theirs.items() if name.startswith("w:")})
    left = net.load_state_dict({name: torch.as_tensor(value.copy()) for name, value in start.items()}, strict=False)
    assert not left.unexpected_keys and all("num_batches" in name for name in left.missing_keys), left
    return net.train()


def main() -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, KINDS[0], N_CELLS)
    level = rng.integers(0, N_BATCHES, N_CELLS)
    x = rng.poisson(rng.lognormal(0, 1, (KINDS[0], N_GENES))[kind]).astype(np.float32)
    given = {"x": x, "batch": level, "first": kind, "second": kind // 2, "steps": STEPS, "rate": RATE, "kl": KL}
    theirs = run_apart(CODE, given, SETUP)
    net = ours(theirs)
    told = {"counts": sparse.csr_matrix(x), "log_size": np.log(x.sum(1)), "levels": level[:, None],
            "all_labels": np.stack([kind, kind // 2], axis=1)}  # fmt: skip
    batch = next(iter(Minibatches(told, None, shuffle=False)))
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=1e-6)
    names, losses = ("nll", "kl", "gate", "classification"), []
    for step in range(STEPS):
        torch.manual_seed(step)
        # Theirs sums the two heads and divides by one less than their number, which in `CODE` is made the mean.
        terms = net.headed_terms(batch, KL, gate=1.0, labels=1.0)
        losses.append([float(terms[name].detach()) for name in names])
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    shared: dict[str, Any] = {
        "dataset": "Poisson counts, 128 cells, 150 genes, two sets of labels", "digest": sha256(x),
        "reference": REFERENCE, "reference_value": 0.0,
    }  # fmt: skip
    records = []
    for number, name in enumerate(names):
        worst = float(np.abs(np.array(losses)[:, number] / theirs["losses"][:, number] - 1).max())
        records.append(record("scatlasvae", "parity", f"{name} at each of {STEPS} steps", metric="largest relative "
                              "difference", value=worst, tolerance=TOLERANCE, passed=worst <= TOLERANCE,
                              **shared))  # fmt: skip
    after = translated({name[2:]: value for name, value in theirs.items() if name.startswith("a:")})
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    # The least of Adam's steps is the rate itself: a weight whose gradient is rounding goes either way.
    # (The running mean of what is normalised holds the constant that ours has not.)
    off = [np.abs(state[name] - value).ravel() for name, value in after.items() if "running_mean" not in name]
    share = float((np.concatenate(off) > 0.1 * RATE).mean())
    records.append(record("scatlasvae", "parity", f"weights after {STEPS} steps of AdamW", metric="share that differs "
                          "by over a tenth of a step", value=share, tolerance=0.01, passed=share <= 0.01,
                          **shared))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
