"""SCALEX: with the weights of a scalex 1.0.4 model, its loss and its places of cells, and its time at equal epochs.

Needs scalex 1.0.4 in the environment of TENFOLD_REFERENCE_PYTHON. Run ``python evidence/scalex_parity.py``.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import torch
from recording import record, run_apart, sha256, version, write

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.engine import Minibatches
from tenfold.integrate.scalex import SCALEX
from tenfold.nn.priors import Gaussian

EPOCHS = 5
TOLERANCE = 1e-4

SETUP = """
import anndata, pandas as pd, torch
from scipy import sparse
from torch.utils.data import DataLoader
torch.set_num_threads(1)
from scalex.data import SingleCellDataset
from scalex.net.vae import VAE
obs = pd.DataFrame({"batch": pd.Categorical(given["batch"])})
obs.index = obs.index.astype(str)
adata = anndata.AnnData(sparse.csr_matrix(given["x"]), obs=obs)
torch.manual_seed(0)
n_domains = obs["batch"].nunique()
model = VAE([["fc", 1024, 1, "relu"], ["fc", 10, "", ""]], [["fc", adata.n_vars, n_domains, "sigmoid"]], n_domains)
loader = DataLoader(SingleCellDataset(adata), batch_size=64, drop_last=True, shuffle=True)
class Never:
    early_stop = False
    def __call__(self, loss, model):
        pass
"""
CODE = """
began = time.process_time()
model.fit(loader, max_iteration=int(given["epochs"]) * len(loader), device="cpu", early_stopping=Never())
seconds = time.process_time() - began
model.eval()
result = {"w:" + name: value.numpy().copy() for name, value in model.state_dict().items()}
with torch.no_grad():
    x, y = torch.as_tensor(given["x"]), torch.as_tensor(obs["batch"].cat.codes.to_numpy().astype("int64"))
    z, mean, variance = model.encoder(x)
    torch.manual_seed(1)
    noise = torch.randn_like(mean)
    model.encoder.reparameterize = lambda m, v: m + v.sqrt() * noise
    z, decoded, loss = model(x, y)
    result |= {"noise": noise.numpy(), "mean": mean.numpy(), "loss": float(sum(loss.values())), "decoded": decoded}
    model.encoder.reparameterize = lambda m, v: m
    result["mean_nll"] = float(model(x, y)[2]["recon_loss"])
    model.train()
    own = torch.nonzero(y == 0)[:64, 0]
    result["by_minibatch"] = model.encoder(x[own])[1].numpy()
result["seconds"] = seconds
"""
OURS_SETUP = """
import anndata, torch
torch.set_num_threads(1)
import tenfold as tf
from tenfold.integrate.scalex import SCALEX
adata = tf.data.simulate(4_000, 2_000, n_types=5, n_batches=2, depth=600.0, seed=0)
options = {"early_stopping": False, "device": "cpu"}
SCALEX(epochs=1, **options).fit(adata[::20].copy(), batch="batch", progress=False)  # compiles what is compiled
"""
OURS = """
began = time.process_time()
m = SCALEX(epochs=int(given["epochs"]), **options).fit(adata, batch="batch", progress=False)
seconds = time.process_time() - began
from tenfold.engine import predict
from tenfold.data.inputs import Inputs
cells = m._take(Inputs(adata, m.roles_), "max")
nll = predict(m.net_, cells, lambda net, batch: net.nll(batch, net.encode(batch).z.mean))
result = {"mean_nll": float(nll.mean()), "seconds": seconds}
"""


def translated(weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the state of our network that holds the weights of theirs; where a norm follows, biases cancel."""
    first, own = "encoder.enc.net.0.", "encoder.hidden.layers.0."
    found = {own + "weight": weights[first + "fc.weight"].T}
    for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        found[f"{own}batch_norm.{part}"] = weights[f"{first}norm.{part}"]
    found[f"{own}batch_norm.running_mean"] = found[f"{own}batch_norm.running_mean"] - weights[first + "fc.bias"]
    for part in ("weight", "bias"):
        heads = [weights[f"encoder.{head}_enc.net.0.fc.{part}"] for head in ("mu", "var")]
        found[f"encoder.heads.{part}"] = np.concatenate(heads)
    found["decoder.linear.weight"] = weights["decoder.net.0.fc.weight"]
    n_domains = sum(name.startswith("decoder.net.0.norm.bns") and name.endswith("running_var") for name in weights)
    names = {"slope": "weight", "offset": "bias", "mean": "running_mean", "variance": "running_var"}
    for ours, theirs in names.items():
        found[f"decoder.norm.{ours}"] = np.stack(
            [weights[f"decoder.net.0.norm.bns.{domain}.{theirs}"] for domain in range(n_domains)]
        )
    found["decoder.norm.mean"] = found["decoder.norm.mean"] - weights["decoder.net.0.fc.bias"]
    return {name: torch.as_tensor(np.ascontiguousarray(value)) for name, value in found.items()}


def relative(found: Any, expected: Any) -> float:
    """Return the largest difference, relative to the largest size of what is expected."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def main() -> None:
    warnings.simplefilter("ignore")
    adata = tf.data.simulate(4_000, 2_000, n_types=5, n_batches=2, depth=600.0, seed=0)
    data, model = Inputs(adata, {"batch": "batch"}), SCALEX(n_top_genes=None)
    cells = model._take(data, "max")
    x = cells["expression"].toarray()
    theirs = run_apart(CODE, {"x": x, "batch": adata.obs["batch"].to_numpy().astype("U"), "epochs": EPOCHS}, SETUP)
    net = model._build().eval()
    weights = {name[2:]: np.asarray(value) for name, value in theirs.items() if name.startswith("w:")}
    missing = net.load_state_dict(translated(weights), strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys, missing
    batch, sample = next(iter(Minibatches(cells, None, shuffle=False))), Gaussian.sample
    try:
        noise = torch.from_numpy(theirs["noise"])
        Gaussian.sample = lambda self: self.mean + self.variance.sqrt() * noise  # type: ignore[method-assign]
        with torch.no_grad():
            loss = float(net.terms(batch, model.kl_weight)["loss"])
            posterior = net.encode(batch).z
            decoded = net.scale(batch, posterior.sample()).numpy()
    finally:
        Gaussian.sample = sample  # type: ignore[method-assign]
    # A minibatch of the original is made by hand: 64 cells of one batch, in training mode.
    model.net_, model.inference, model.batch_size, model._progress = net, "reference", 64, False
    own = np.flatnonzero(cells["levels"][:, 0] == 0)[:64]
    placed = model._placed_by_domain({"expression": cells["expression"]}, own)
    ours = run_apart(OURS, {"epochs": EPOCHS}, OURS_SETUP, python=sys.executable)
    shared = {
        "dataset": "simulated, 4,000 x 2,000, 2 batches", "digest": sha256(adata.X.data),
        "reference": version("scalex"),
    }  # fmt: skip
    copied, equal = "at copied weights", f"{EPOCHS} epochs, one thread"
    differences = [
        ("latent means", relative(posterior.mean.numpy(), theirs["mean"])),
        ("decoded expression", relative(decoded, theirs["decoded"])),
        ("latent means of a minibatch of one batch in training mode", relative(placed, theirs["by_minibatch"])),
    ]
    records = [
        record("scalex", "parity", copied, metric="loss", value=loss, reference_value=theirs["loss"],
               tolerance=TOLERANCE, passed=abs(loss / theirs["loss"] - 1) <= TOLERANCE, **shared),
        *(record("scalex", "parity", copied, metric=f"{name}, largest relative difference", value=value,
                 reference_value=0.0, tolerance=TOLERANCE, passed=value <= TOLERANCE, **shared)
          for name, value in differences),
        record("scalex", "parity", equal, metric="cross-entropy per cell at latent means", value=ours["mean_nll"],
               reference_value=theirs["mean_nll"], tolerance=0.02, passed=ours["mean_nll"] <= 1.02 * theirs["mean_nll"],
               **shared),
        record("scalex", "benchmark", equal, metric="CPU seconds of training", value=ours["seconds"],
               reference_value=theirs["seconds"], passed=ours["seconds"] <= theirs["seconds"], **shared),
    ]  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
