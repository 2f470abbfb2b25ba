"""sysVI: with the weights of an scvi-tools model its loss terms are those of scvi-tools; time at equal epochs.

Needs scvi-tools 1.4.2 in the environment of TENFOLD_REFERENCE_PYTHON. Run ``python evidence/sysvi_parity.py``.
"""

from __future__ import annotations

import sys
import warnings
from math import log, pi
from typing import Any

import numpy as np
import torch
from recording import record, run_apart, sha256, version, write
from scvi_parity import layer_weights

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.engine import Minibatches
from tenfold.integrate.sysvi import SysVI

EPOCHS = 5
TOLERANCE = 1e-4

SETUP = """
import anndata, pandas as pd, scvi, torch
from scvi.external import SysVI
torch.set_num_threads(1)
scvi.settings.num_threads = 1
scvi.settings.seed = 0
obs = pd.DataFrame({"batch": given["batch"]})
obs.index = obs.index.astype(str)
adata = anndata.AnnData(given["x"], obs=obs)
SysVI.setup_anndata(adata, batch_key="batch")
model = SysVI(adata)
"""
CODE = """
began = time.process_time()
model.train(max_epochs=int(given["epochs"]), batch_size=128, train_size=1.0, accelerator="cpu",
            enable_progress_bar=False, logger=False)
seconds = time.process_time() - began
module = model.module.eval()
result = {"w:" + name: value.numpy().copy() for name, value in module.state_dict().items()}
seen = []
module.encoder.register_forward_hook(lambda layer, inputs, outputs: seen.append(outputs["q"]))
with torch.no_grad():
    tensors = next(iter(model._make_data_loader(adata, batch_size=adata.n_obs)))
    inferred, generated, loss = module(tensors)
    result |= {
        "z": seen[0].numpy(), "mean": inferred["qz"].loc.numpy(),
        "nll": loss.reconstruction_loss["reconstruction_loss"].numpy(),
        "kl": next(iter(loss.kl_local.values())).numpy(), "cycle": float(loss.extra_metrics["cycle_loss"]),
    }
    px = module.generative(inferred["qz"].loc, tensors["batch"], None, [], None, compute_cycle=False)["px"]
    nll = torch.nn.GaussianNLLLoss(reduction="none")(px.loc, tensors["X"], px.scale)
    result["mean_nll"] = float(nll.sum(1).mean())
result["seconds"] = seconds
"""
OURS_SETUP = """
import anndata, torch
torch.set_num_threads(1)
import tenfold as tf
from tenfold.integrate.sysvi import SysVI
adata = tf.data.simulate(4_000, 2_000, n_types=5, n_batches=2, depth=600.0, seed=0)
options = {"train_fraction": 1.0, "device": "cpu", "as_reference": True}
SysVI(epochs=1, **options).fit(adata[::20].copy(), batch="batch", progress=False)  # compiles what is compiled
"""
OURS = """
began = time.process_time()
m = SysVI(epochs=int(given["epochs"]), **options).fit(adata, batch="batch", progress=False)
seconds = time.process_time() - began
from tenfold.engine import predict
from tenfold.data.inputs import Inputs
cells = m._take(Inputs(adata, m.roles_))
nll = predict(m.net_, cells, lambda net, batch: net.nll(batch, net.encode(batch).z.mean))
result = {"mean_nll": float(nll.mean()), "seconds": seconds}
"""


def translated(net: Any, weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the state of our network that holds the weights of theirs."""
    found: dict[str, Any] = {}
    for part in ("encoder", "decoder"):
        hidden = layer_weights(getattr(net, part).hidden, f"{part}.decoder_y", weights)
        found |= {f"{part}.hidden.{name}": value for name, value in hidden.items()}
    for part in ("weight", "bias"):
        heads = [weights[f"encoder.{head}.{part}"] for head in ("mean_encoder", "var_encoder.encoder")]
        found[f"encoder.heads.{part}"] = np.concatenate(heads)
        found[f"decoder.mean_head.{part}"] = weights[f"decoder.mean_encoder.{part}"]
    found["decoder.raw_variance"] = weights["decoder.var_encoder.var_param"][0]
    found["prior.expression"] = weights["prior.u"]
    found["prior.weight_logits"] = weights["prior.w"][:, 0, 0]
    found["prior.levels"] = weights["prior.u_cat.0"].argmax(axis=1)[:, None]  # never trained: they stay one-hot
    return {name: torch.as_tensor(np.ascontiguousarray(value)) for name, value in found.items()}


def relative(found: Any, expected: Any) -> float:
    """Return the largest difference, relative to the mean size of what is expected."""
    return float(np.abs(found - expected).max() / np.abs(expected).mean())


def main() -> None:
    warnings.simplefilter("ignore")
    adata = tf.data.simulate(4_000, 2_000, n_types=5, n_batches=2, depth=600.0, seed=0)
    data, model = Inputs(adata, {"batch": "batch"}), SysVI(n_top_genes=None, as_reference=True)
    cells = model._take(data)
    x, batch_names = cells["expression"].toarray(), adata.obs["batch"].to_numpy().astype("U")
    theirs = run_apart(CODE, {"x": x, "batch": batch_names, "epochs": EPOCHS}, SETUP)
    weights = {name[2:]: np.asarray(value) for name, value in theirs.items() if name.startswith("w:")}
    model.pseudo_ = model._drawn(cells)
    net = model._build().eval()
    missing = net.load_state_dict(translated(net, weights), strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys, missing
    batch = next(iter(Minibatches(cells, None, shuffle=False)))
    z = torch.from_numpy(theirs["z"])
    with torch.no_grad():
        posterior = net.encode(batch).z
        mean = net.decoder.scale(z, net.covariates(batch))
        found = {
            "mean": posterior.mean.numpy(),
            # Theirs leaves out the constant.
            "nll": net.decoder.nll_of(batch["expression"], mean).numpy() - x.shape[1] / 2 * log(2 * pi),
            "kl": net.kl(posterior, z).numpy(),
            "cycle": float(net.cycle(batch, posterior, z, mean).mean()),
        }  # fmt: skip
    ours = run_apart(OURS, {"epochs": EPOCHS}, OURS_SETUP, python=sys.executable)
    nll = ours["mean_nll"] - x.shape[1] / 2 * log(2 * pi)
    shared = {
        "dataset": "simulated, 4,000 x 2,000, 2 batches", "digest": sha256(adata.X.data),
        "reference": version("scvi-tools"),
    }  # fmt: skip
    names = {
        "mean": "latent means", "nll": "normal NLL of a cell", "kl": "KL term of a cell", "cycle": "cycle consistency",
    }  # fmt: skip
    records = [
        *(record("sysvi", "parity", "at copied weights, as_reference=True",
                 metric=f"{name}, largest difference relative to the mean", value=relative(found[key], theirs[key]),
                 reference_value=0.0, tolerance=TOLERANCE, passed=relative(found[key], theirs[key]) <= TOLERANCE,
                 **shared) for key, name in names.items()),
        record("sysvi", "parity", f"{EPOCHS} epochs, one thread, as_reference=True",
               metric="normal NLL per cell at latent means, without its constant", value=nll,
               reference_value=theirs["mean_nll"], tolerance=0.02,
               passed=nll <= theirs["mean_nll"] + 0.02 * abs(theirs["mean_nll"]), **shared),
        record("sysvi", "benchmark", f"{EPOCHS} epochs, one thread, as_reference=True",
               metric="CPU seconds of training", value=ours["seconds"], reference_value=theirs["seconds"],
               passed=ours["seconds"] <= theirs["seconds"], **shared),
    ]  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
