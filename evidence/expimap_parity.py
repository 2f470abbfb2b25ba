"""expiMap: with the weights of the published network, its loss, and its weights after some penalised steps.

Needs scarches 0.6.1 in the environment of TENFOLD_REFERENCE_PYTHON; it installs without its dependencies, of which
scHPL, which expiMap does not use, may be missing. Run ``python evidence/expimap_parity.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recording import record, run_apart, sha256, write
from scipy import sparse

from tenfold.count_models.programs import bayes_factors
from tenfold.data.minibatches import Minibatches
from tenfold.nn.programs import Penalties, ProgramDecoder, ProgramEncoder, ProgramVAE
from tenfold.nn.proximal import ProximalAdam

N_CELLS, N_GENES, N_SETS, N_BATCHES, STEPS = 96, 120, 12, 2, 5
KL, ALPHA, L1, GAMMA, BETA, RATE = 0.5, 16.0, 4.0, 3.0, 2.0, 0.01
TOLERANCE = 1e-4
REFERENCE = "scarches 0.6.1"
SETUP = """
import logging, types
from unittest.mock import MagicMock
logging.disable(50)
import anndata
anndata.read = anndata.read_h5ad  # a name that newer versions have dropped
sys.modules["scHPL"] = MagicMock()
import torch
torch.set_num_threads(1)
from scarches.models.expimap.expimap import expiMap
from scarches.trainers.expimap.regularized import ProxGroupLasso, ProxL1
"""
CODE = """
torch.manual_seed(0)
given = {name: value.item() if value.ndim == 0 else value for name, value in given.items()}
soft = given["soft"]
mask = torch.from_numpy(given["mask"]).float()
net = expiMap(given["x"].shape[1], mask.shape[0], mask, ["a", "b"], [32, 32], 0.0, "nb", soft_mask=soft,
              n_ext=2, use_hsic=True, hsic_one_vs_all=True)
result = {"w:" + name: value.numpy().copy() for name, value in net.state_dict().items()}
x, batch = torch.from_numpy(given["x"]), torch.from_numpy(given["batch"])
optimizer = torch.optim.Adam(net.parameters(), lr=given["rate"], eps=0.01, weight_decay=0.04)
lasso, off, new = (ProxGroupLasso(given["alpha"] * given["rate"]), ProxL1(given["l1"] * given["rate"], mask.t()),
                   ProxL1(given["gamma"] * given["rate"]))
losses = []
for step in range(given["steps"]):
    torch.manual_seed(step)
    parts = net(x=x, batch=batch, sizefactor=x.sum(1))
    losses.append([float(part.detach()) for part in parts])
    loss = parts[0] + given["kl"] * parts[1] + given["beta"] * parts[2]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if soft:
        off(net.decoder.L0.expr_L.weight.data)
    lasso(net.decoder.L0.expr_L.weight.data)
    new(net.decoder.L0.ext_L.weight.data)
with torch.no_grad():
    mean, log_var = net.encoder(torch.log(1 + x), batch)
result |= {"a:" + name: value.numpy() for name, value in net.state_dict().items()}
result |= {"losses": np.array(losses), "mean": mean.numpy(), "variance": np.exp(log_var.numpy()) + 1e-4}
"""
#: Of the published enrichment, on the posterior of its own network.
ENRICH = """
from scipy.special import erfc
from types import SimpleNamespace
from scarches.models.expimap.expimap_model import EXPIMAP
import pandas as pd
mean, variance, group = given["mean"], given["variance"], given["group"]
adata = anndata.AnnData(np.arange(len(mean), dtype=np.float32)[:, None])
adata.obs["g"] = pd.Categorical(np.where(group, "one", "two"))
adata.obs["b"] = "x"
def latent(x, c, mean_=None, **options):
    rows = np.asarray(x)[:, 0].astype(int)
    return mean[rows].copy(), variance[rows].copy()
stub = SimpleNamespace(adata=adata, condition_key_="b", get_latent=lambda x, c, **options: latent(x, c))
np.random.seed(0)
EXPIMAP.latent_enrich(stub, "g", n_sample=int(given["n_pairs"]))
result = {"bf": adata.uns["bf_scores"]["one"]["bf"]}
"""


def ours(mask: np.ndarray, soft: bool, weights: dict[str, np.ndarray]) -> ProgramVAE:
    """Return our network with their weights."""
    free = np.concatenate([np.zeros(N_SETS, dtype=bool), np.ones(2, dtype=bool)])
    whole = np.concatenate([mask, np.ones((2, N_GENES), dtype=bool)])
    entries = GAMMA * free[:, None] + (L1 * ~whole if soft else 0.0) + np.zeros(whole.shape)
    encoder = ProgramEncoder(
        N_GENES, [N_SETS, 2], n_hidden=(32, 32), batch_norm=False, layer_norm=True, categories=(N_BATCHES,),
        deep_covariates=False,
    )  # fmt: skip
    decoder = ProgramDecoder(whole, [N_SETS, 2], Penalties(ALPHA * ~free, entries), soft=soft, categories=(N_BATCHES,),
                             n_levels=N_BATCHES)  # fmt: skip
    net = ProgramVAE(encoder, decoder)
    net.load_state_dict({name: torch.as_tensor(value.copy()) for name, value in translated(weights).items()})
    return net.train()


def translated(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return their weights under our names."""
    found = {
        "encoder.hidden.layers.0.weight": weights["encoder.FC.L0.expr_L.weight"].T,
        "encoder.hidden.layers.0.bias": weights["encoder.FC.L0.expr_L.bias"],
        "encoder.hidden.layers.0.tables.0": weights["encoder.FC.L0.cond_L.weight"].T,
        "encoder.hidden.layers.1.weight": weights["encoder.FC.L1.weight"].T,
        "encoder.hidden.layers.1.bias": weights["encoder.FC.L1.bias"],
        "decoder.linear.weight": weights["decoder.L0.expr_L.weight"].T,
        "decoder.linear.tables.0": weights["decoder.L0.cond_L.weight"].T,
        "decoder.more.0": weights["decoder.L0.ext_L.weight"].T,
        "decoder.log_theta": weights["theta"].T,
    }
    heads = {"encoder.heads": ("mean_encoder", "log_var_encoder"),
             "encoder.more.0": ("expand_mean_encoder", "expand_var_encoder")}  # fmt: skip
    for name, both in heads.items():
        for part in ("weight", "bias"):
            found[f"{name}.{part}"] = np.concatenate([weights[f"encoder.{each}.{part}"] for each in both])
    return found


def trained(net: ProgramVAE, batch: Any) -> np.ndarray:
    """Take the steps; return the parts of the loss at each."""
    optimizer = ProximalAdam(net.parameters(), net.decoder.shrink, lr=RATE, eps=0.01, weight_decay=0.04)
    losses = []
    for step in range(STEPS):
        torch.manual_seed(step)
        terms = net.program_terms(batch, KL, [N_SETS, N_SETS + 1], BETA)
        losses.append([float(terms[name].detach()) for name in ("nll", "kl", "dependence")])
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    return np.array(losses)


def main() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((N_SETS, N_GENES)) < 0.2
    level = rng.integers(0, N_BATCHES, N_CELLS)
    x = rng.poisson(rng.lognormal(0, 1, N_GENES) * (1 + level[:, None])).astype(np.float32)
    digest, records, theirs = sha256(x), [], {}
    settings = {"kl": KL, "alpha": ALPHA, "l1": L1, "gamma": GAMMA, "beta": BETA, "rate": RATE, "steps": STEPS}
    told = {"counts": sparse.csr_matrix(x), "log_size": np.log(x.sum(1)), "levels": level[:, None]}
    batch = next(iter(Minibatches(told, None, shuffle=False)))
    shared: dict[str, Any] = {
        "dataset": "Poisson counts, 96 cells, 120 genes, 12 sets", "digest": digest, "reference": REFERENCE,
        "reference_value": 0.0, "tolerance": TOLERANCE,
    }  # fmt: skip
    for soft in (False, True):
        theirs = run_apart(CODE, {"x": x, "mask": mask, "batch": level, "soft": soft, **settings}, SETUP)
        net = ours(mask, soft, {name[2:]: value for name, value in theirs.items() if name.startswith("w:")})
        losses = trained(net, batch)
        words = "soft mask" if soft else "hard mask"
        worst = float(np.abs(losses / theirs["losses"] - 1).max())
        records.append(record("expimap", "parity", f"likelihood, KL and HSIC at each of {STEPS} steps, {words}",
                              metric="largest relative difference", value=worst, passed=worst <= TOLERANCE,
                              **shared))  # fmt: skip
        after = translated({name[2:]: value for name, value in theirs.items() if name.startswith("a:")})
        state = {name: value.numpy() for name, value in net.state_dict().items()}
        worst = max(float(np.abs(state[name] - value).max()) for name, value in after.items())
        records.append(record("expimap", "parity", f"weights after {STEPS} steps of Adam and penalties, {words}",
                              metric="largest difference", value=worst, passed=worst <= TOLERANCE,
                              **shared))  # fmt: skip
        differ = int(sum(((state[name] == 0) != (value == 0)).sum() for name, value in after.items()))
        silent = int((after["decoder.linear.weight"] == 0).sum() - (~mask).sum() * (not soft))
        records.append(record("expimap", "parity", f"the same weights are exactly zero, {words}",
                              metric=f"weights that are zero in one only ({silent} inside the mask are in both)",
                              value=differ, passed=differ == 0, **{**shared, "tolerance": 0.0}))  # fmt: skip
    group, n_pairs = level == 0, 20_000
    given = {"mean": theirs["mean"], "variance": theirs["variance"], "group": group, "n_pairs": n_pairs}
    expected = run_apart(ENRICH, given, SETUP)["bf"]
    found = bayes_factors(theirs["mean"], theirs["variance"], group, ~group, n_pairs, 0)["bayes_factor"]
    worst = float(np.abs(found.to_numpy() - expected).max())
    records.append(record("expimap", "parity", f"Bayes factors over {n_pairs:,} pairs of cells drawn at random",
                          metric="largest difference", value=worst, passed=worst <= 0.05,
                          **{**shared, "tolerance": 0.05}))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
