"""spaVAE against the original's code: terms and gradients at copied weights, and CPU time of equal epochs.

The original is pure PyTorch. Give the folder of its source (github.com/ttgump/spaVAE) as ``TENFOLD_SPAVAE_SOURCE``,
then run ``python evidence/spavae_parity.py [terms] [real] [simulated]``: parts may be run alone.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import numpy as np
from domain_rows import write_part
from domain_slices import digest, load
from recording import record, run_apart, sha256, version

from tenfold.data.simulation import simulate

#: Epochs that are timed; cells of the minibatch whose terms are compared.
EPOCHS, BATCH = 3, 512
#: Of terms and gradients, relative: our network is in float32, the original's in float64; its jitter enters otherwise.
TOLERANCE = 1e-4
BAR = 5.0
REFERENCE = "spaVAE 3673cad"

SETUP = """
import io, os, re, sys, tempfile, torch
from contextlib import redirect_stdout
torch.set_num_threads(1)
np.Inf = np.inf
sys.path.insert(0, os.path.join(str(given["source"]), "src", "spaVAE"))
from torch.distributions.normal import Normal
from spaVAE import SPAVAE
x, place = given["x"].astype(np.float64), given["place"]
size = x.sum(axis=1) / np.median(x.sum(axis=1))
y = np.log1p(x / size[:, None])
y = (y - y.mean(axis=0)) / y.std(axis=0)
steps = np.mgrid[0:(1 + 1e-5):(1 / 6), 0:(1 + 1e-5):(1 / 6)].reshape(2, -1).T * 20.0
torch.manual_seed(0)
model = SPAVAE(x.shape[1], 2, 8, [128, 64], [128], 0, 0, 0, True, steps, False, 20.0, len(x), 0.025, True, 10, 4, 25,
               torch.float64, "cpu")
"""
TERMS = """
result = {"w:" + name: value.numpy().copy() for name, value in model.state_dict().items()}
Normal.rsample = lambda self: self.loc
rows = given["rows"]
told = (torch.from_numpy(part[rows]) for part in (place, y, x, size))
out = model(*told)
out[0].backward()
b = len(rows)
result |= {"loss": out[0].item() / b, "nll": out[1].item() / b, "kl_space": out[2].item() / b,
           "kl_own": out[3].item() / b, "mean": out[6].detach().numpy(), "variance": out[7].detach().numpy()}
result |= {"g:" + name: value.grad.numpy() / b for name, value in model.named_parameters()}
"""
TRAIN = """
os.chdir(tempfile.mkdtemp())
said = io.StringIO()
with redirect_stdout(said):
    model.train_model(place, y, x, size, lr=1e-3, weight_decay=1e-6, batch_size=512, maxiter=int(given["epochs"]))
result = {"nll": float(re.findall(r"NB loss:([0-9.]+)", said.getvalue())[-1])}
"""
OURS_SETUP = """
import torch
torch.set_num_threads(1)
import anndata as ad
from scipy import sparse
from tenfold.data.inputs import Inputs
from tenfold.data.minibatches import Minibatches
from tenfold.data.spatial import positions_of
from tenfold.domains.spavae import SpaVAE
from tenfold.engine import History
from tenfold.nn.priors import Gaussian
from tenfold.types import RunOptions
adata = ad.AnnData(sparse.csr_matrix(given["x"].astype(np.float32)))
adata.obsm["spatial"] = given["place"]
def made(epochs=1):
    return SpaVAE(n_top_genes=None, epochs=epochs, device="cpu")
data = Inputs(adata, {}, RunOptions(progress=False))
where = positions_of(data)
"""
OURS_TERMS = """
model = made()
cells = model._read(data, where)
net = model._build()
w = {name[2:]: torch.from_numpy(np.array(value)).float() for name, value in given.items() if name.startswith("w:")}
def pairs(of_weight):
    first, second, last = net.encoder.hidden.layers[0], net.encoder.hidden.layers[1], net.decoder.hidden.layers[0]
    yield net.field.raw_scale, of_weight("svgp.kernel.scale")[0]
    for layer, name in ((first, "encoder.layers.0"), (second, "encoder.layers.3"), (last, "decoder.0")):
        after = name[:-1] + str(int(name[-1]) + 1)
        yield layer.weight, of_weight(name + ".weight").T
        yield layer.batch_norm.weight, of_weight(after + ".weight")
        yield layer.batch_norm.bias, of_weight(after + ".bias")
    for part in ("weight", "bias"):
        heads = [of_weight(f"encoder.enc_{name}.{part}") for name in ("mu", "var")]
        yield getattr(net.encoder.heads, part), torch.cat(heads)
        yield getattr(net.decoder.mean_head, part), of_weight(f"dec_mean.0.{part}")
    yield net.decoder.log_theta, of_weight("dec_disp")
with torch.no_grad():
    for mine, theirs in pairs(lambda name: w[name]):
        mine.copy_(theirs)
Gaussian.sample = lambda self: self.mean
batch = Minibatches(cells, None).take(given["rows"])
kept = {}
at = net.field.at
net.field.at = lambda *parts: kept.setdefault("smooth", at(*parts))
terms = net.train().terms(batch)
terms["loss"].backward()
result = {name: terms[name].item() for name in ("loss", "nll", "kl_space", "kl_own")}
result |= {"mean": kept["smooth"].mean.detach().numpy(), "variance": kept["smooth"].variance.detach().numpy()}
g = {name[2:]: torch.from_numpy(np.array(value)) for name, value in given.items() if name.startswith("g:")}
both = ((mine.grad, theirs) for mine, theirs in pairs(lambda name: g[name]))
result["gradients"] = max(float((mine - theirs).norm() / theirs.norm()) for mine, theirs in both)
"""
OURS_TRAIN = """
model = made(int(given["epochs"]))
model._embed(data, where)
result = {"nll": History.from_dict(model.history_).last("nll")}
"""
WARM = "made()._embed(data, where)\n"


def real() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return counts and places of the DLPFC slice, scaled as both scale them, and how the records call it."""
    adata = load("dlpfc_151510")
    where = np.asarray(adata.obsm["spatial"], dtype=np.float64)
    place = 20 * (where - where.min(axis=0)) / (where.max(axis=0) - where.min(axis=0))
    given = {"x": adata.X.toarray(), "place": place.astype(np.float32).astype(np.float64)}
    return given, {"dataset": "dlpfc_151510, 4,634 spots x 500 genes", "digest": digest("dlpfc_151510")}


def simulated() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return counts and places of the size of a Visium slice with 3,000 genes."""
    adata = simulate(3_500, 3_000, n_types=7, depth=2_000.0, seed=0)
    x = adata.X.toarray()
    place = 20 * np.random.default_rng(0).uniform(size=(3_500, 2))
    return {"x": x, "place": place.astype(np.float32).astype(np.float64)}, {
        "dataset": f"simulated, 3,500 spots x 3,000 genes, {(x > 0).mean():.0%} non-zero", "digest": sha256(x)
    }  # fmt: skip


def terms() -> list[dict[str, Any]]:
    given, shown = real()
    rows = np.random.default_rng(0).permutation(len(given["x"]))[:BATCH]
    given |= {"source": os.environ["TENFOLD_SPAVAE_SOURCE"], "rows": rows}
    theirs = run_apart(TERMS, given, SETUP, python=sys.executable)
    copied = {name: value for name, value in theirs.items() if name[:2] in ("w:", "g:")}
    ours = run_apart(OURS_TERMS, {**given, **copied}, OURS_SETUP, python=sys.executable)
    claim = f"at copied weights, a minibatch of {BATCH} in training mode, latent variables at their mean"
    shown |= {"reference": f"{REFERENCE}, {version('torch', sys.executable)}"}
    records = [
        record("spavae", "parity", claim, metric=f"{name}, nats per spot", value=ours[name], tolerance=TOLERANCE,
               reference_value=theirs[name], passed=abs(ours[name] / theirs[name] - 1) <= TOLERANCE, **shown)
        for name in ("loss", "nll", "kl_space", "kl_own")
    ]  # fmt: skip
    apart = {f"posterior {name} of the processes, largest difference": float(np.abs(ours[name] - theirs[name]).max())
             for name in ("mean", "variance")}  # fmt: skip
    apart["gradients of all weights, largest relative difference of one"] = ours["gradients"]
    return records + [
        record("spavae", "parity", claim, metric=name, value=value, reference_value=0.0, tolerance=10 * TOLERANCE,
               passed=value <= 10 * TOLERANCE, **shown)
        for name, value in apart.items()
    ]  # fmt: skip


def timed(given: dict[str, Any], shown: dict[str, Any]) -> list[dict[str, Any]]:
    given |= {"source": os.environ["TENFOLD_SPAVAE_SOURCE"], "epochs": EPOCHS}
    theirs = run_apart(TRAIN, given, SETUP, python=sys.executable)
    ours = run_apart(OURS_TRAIN, given, OURS_SETUP + WARM, python=sys.executable)
    shown |= {"reference": f"{REFERENCE}, {version('torch', sys.executable)}"}
    claim = f"{EPOCHS} epochs of default settings, one thread"
    return [
        record("spavae", "benchmark", f"{claim}, at least {BAR:g} times less", metric="CPU seconds",
               value=ours["_seconds"], reference_value=theirs["_seconds"], tolerance=BAR,
               passed=BAR * ours["_seconds"] <= theirs["_seconds"], **shown),
        record("spavae", "benchmark", f"{claim}: as good after them", metric="NB loss of the last epoch, nats per spot",
               value=ours["nll"], reference_value=theirs["nll"], tolerance=0.01,
               passed=ours["nll"] <= 1.01 * theirs["nll"], **shown),
        record("spavae", "benchmark", claim, metric="peak memory, MB", value=ours["_peak_mb"],
               reference_value=theirs["_peak_mb"], passed=ours["_peak_mb"] <= theirs["_peak_mb"], **shown),
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    parts = {"terms": terms, "real": lambda: timed(*real()), "simulated": lambda: timed(*simulated())}
    for part in sys.argv[1:] or parts:
        write_part(parts[part]())


if __name__ == "__main__":
    main()
