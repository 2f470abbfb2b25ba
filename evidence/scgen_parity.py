"""scGen: with the weights of an scgen 2.1.0 model, its loss, its batch removal, and its time at equal epochs.

Needs scgen 2.1.0 beside scvi-tools in the environment of TENFOLD_REFERENCE_PYTHON; what scgen imports from older
versions of scvi-tools, and its plotting, are stood in for. Run ``python evidence/scgen_parity.py``.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import torch
from recording import record, run_apart, sha256, version, write
from scvi_parity import encoder_weights, layer_weights

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.engine import History, Minibatches
from tenfold.integrate.scgen import SCGen
from tenfold.nn.priors import Gaussian

EPOCHS = 10
TOLERANCE = 1e-4

SETUP = """
import importlib.util, types, typing
import anndata, pandas as pd, torch
torch.set_num_threads(1)
def stand_in(name, **parts):
    sys.modules[name] = types.ModuleType(name)
    for part, value in parts.items():
        setattr(sys.modules[name], part, value)
stand_in("scvi._compat", Literal=typing.Literal)
stand_in("adjustText", adjust_text=None)
import scvi
import scvi.module.base as base
base.LossRecorder = base.LossOutput
stand_in("scgen", __path__=[importlib.util.find_spec("scgen").submodule_search_locations[0]])
from scgen._scgen import SCGEN
if not hasattr(anndata.AnnData, "concatenate"):
    anndata.AnnData.concatenate = lambda self, *others, **options: anndata.concat([self, *others])
def latent(self, adata=None, **options):
    x = torch.as_tensor(np.asarray((self.adata if adata is None else adata).X))
    with torch.no_grad():
        return self.module.inference(x)["qz_m"].numpy()
SCGEN.get_latent_representation = latent
scvi.settings.seed = 0
obs = pd.DataFrame({"batch": given["batch"], "labels": given["labels"]})
obs.index = obs.index.astype(str)
adata = anndata.AnnData(given["x"], obs=obs)
SCGEN.setup_anndata(adata, batch_key="batch", labels_key="labels")
model = SCGEN(adata)
"""
TRAIN = """
model.train(max_epochs=int(given["epochs"]), batch_size=128, train_size=1.0, accelerator="cpu",
            enable_progress_bar=False, logger=False)
"""
AFTER = """
model.module.eval()
result = {"w:" + name: value.numpy() for name, value in model.module.state_dict().items()}
with torch.no_grad():
    x = torch.as_tensor(given["x"])
    inferred = model.module.inference(x)
    found = model.module.loss({"X": x}, inferred, model.module.generative(inferred["z"]))
    result["z"] = inferred["z"].numpy()
    result["mean_nll"] = float(0.5 * ((model.module.generative(inferred["qz_m"])["px"] - x) ** 2).sum(1).mean())
result["loss"] = float(found.loss)
corrected = model.batch_removal()
result |= {"corrected": np.asarray(corrected.X), "latent": corrected.obsm["corrected_latent"]}
"""
CLOCK = "began = time.process_time()\n" + TRAIN + "\ntrained = time.process_time() - began\n" + AFTER + (
    "\nresult['seconds'] = trained\n"
)  # fmt: skip
OURS_SETUP = """
import anndata, torch
from scipy import sparse
torch.set_num_threads(1)
import tenfold as tf
from tenfold.integrate.scgen import SCGen
adata = tf.data.simulate(4_000, 2_000, n_types=5, n_batches=2, depth=600.0, seed=0)
roles = {"batch": "batch", "labels": "cell_type", "progress": False}
options = {"train_fraction": 1.0, "early_stopping": False, "device": "cpu"}
SCGen(epochs=1, **options).fit(adata[::20].copy(), **roles)  # compiles what is compiled at first use
"""
OURS = """
m = SCGen(epochs=int(given["epochs"]), **options)
m.fit(adata, **roles)
"""
OURS_AFTER = """
from tenfold.engine import predict
from tenfold.data.inputs import Inputs
cells = m._take(Inputs(adata, m.roles_))
nll = predict(m.net_, cells, lambda net, batch: net.nll(batch, net.encode(batch).z.mean))
result = {"mean_nll": float(nll.mean())}
"""


def translated(net: Any, weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the state of our network that holds the weights of theirs."""
    found = {f"encoder.{k}": v for k, v in encoder_weights(net.encoder, "z_encoder", weights).items()}
    found |= {
        f"decoder.hidden.{k}": v for k, v in layer_weights(net.decoder.hidden, "decoder.decoder", weights).items()
    }
    found |= {f"decoder.mean_head.{part}": weights[f"decoder.linear_out.{part}"] for part in ("weight", "bias")}
    return {k: torch.as_tensor(np.ascontiguousarray(v)) for k, v in found.items()}


def relative(found: Any, expected: Any) -> float:
    """Return the largest difference, relative to the largest size of what is expected."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def main() -> None:
    warnings.simplefilter("ignore")
    adata = tf.data.simulate(4_000, 2_000, n_types=5, n_batches=2, depth=600.0, seed=0)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    data = Inputs(adata, {"batch": "batch", "labels": "cell_type"})
    given = {
        "x": data.lognorm.toarray(), "batch": adata.obs["batch"].to_numpy().astype("U"),
        "labels": adata.obs["cell_type"].to_numpy().astype("U"), "epochs": EPOCHS,
    }  # fmt: skip
    theirs = run_apart(CLOCK, given, SETUP)
    weights = {name[2:]: np.asarray(value) for name, value in theirs.items() if name.startswith("w:")}
    model = SCGen(n_top_genes=None)
    cells = model._take(data)
    model.means_ = np.zeros((1, 1, 1), np.float32)
    net = model._build().eval()
    net.load_state_dict(translated(net, weights), strict=False)
    batch = next(iter(Minibatches(cells, None, shuffle=False)))
    sample = Gaussian.sample
    try:
        Gaussian.sample = lambda self: torch.from_numpy(theirs["z"])  # type: ignore[method-assign]
        with torch.no_grad():
            loss = float(net.terms(batch, model.kl_weight)["loss"])
    finally:
        Gaussian.sample = sample  # type: ignore[method-assign]
    model._progress = False
    model._keep(net, History(np.arange(1), np.arange(0)), cells)
    used, digest = version("scgen"), sha256(adata.X.data)
    shared = {"dataset": "simulated, 4,000 x 2,000, 2 batches", "digest": digest, "reference": used}
    code = "began = time.process_time()\n" + OURS + "\ntrained = time.process_time() - began\n" + OURS_AFTER
    ours = run_apart(code + "\nresult['seconds'] = trained\n", {"epochs": EPOCHS}, OURS_SETUP, python=sys.executable)
    corrected = model._corrected(np.arange(adata.n_vars))
    copied, equal = "at copied weights", f"{EPOCHS} epochs of minibatches of 128, one thread"
    records = [
        record("scgen", "parity", copied, metric="loss", value=loss, reference_value=theirs["loss"],
               tolerance=TOLERANCE, passed=abs(loss / theirs["loss"] - 1) <= TOLERANCE, **shared),
        record("scgen", "parity", copied, metric="corrected expression, largest relative difference",
               value=relative(corrected, theirs["corrected"]), reference_value=0.0, tolerance=TOLERANCE,
               passed=relative(corrected, theirs["corrected"]) <= TOLERANCE, **shared),
        record("scgen", "parity", copied, metric="corrected latent variables, largest relative difference",
               value=relative(model.embedding_, theirs["latent"]), reference_value=0.0, tolerance=TOLERANCE,
               passed=relative(model.embedding_, theirs["latent"]) <= TOLERANCE, **shared),
        record("scgen", "parity", equal, metric="half squared error per cell at latent means",
               value=ours["mean_nll"], reference_value=theirs["mean_nll"], tolerance=0.02,
               passed=ours["mean_nll"] <= 1.02 * theirs["mean_nll"], **shared),
        record("scgen", "benchmark", equal, metric="CPU seconds of training", value=ours["seconds"],
               reference_value=theirs["seconds"], passed=ours["seconds"] <= theirs["seconds"], **shared),
    ]  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
