"""trVAE: with the weights of the original's network, the terms of the loss are the original's.

Needs a checkout of scarches 0.6.1 (github.com/theislab/scarches; its package does not install beside current
libraries, its three files of trVAE run), named by TENFOLD_SCARCHES, and scvi-tools in the environment of
TENFOLD_REFERENCE_PYTHON. Run ``python evidence/trvae_parity.py``.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from recording import record, run_apart, sha256, write

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.engine import Minibatches
from tenfold.integrate.trvae import TRVAE
from tenfold.nn.discrepancy import SCALES, mmd_of_groups

TOLERANCE = 1e-4
#: The original's kernels.
ALL_SCALES = (1e-6, 1e-5, 1e-4, 1e-3, *SCALES, 1e4, 1e5, 1e6)
CASES = (("nb", "z"), ("nb", "y"), ("zinb", "z"), ("mse", "z"))

REFERENCE = """
import sys, types
import anndata, torch
for name in ("scarches", "scarches.models", "scarches.models.base", "scarches.models.trvae"):
    package = types.ModuleType(name)  # their files as they are, without the package's other dependencies
    package.__path__ = [str(given["source"]) + "/" + name.replace(".", "/")]
    sys.modules[name] = package
if not hasattr(anndata, "read"):
    anndata.read = anndata.read_h5ad
from scarches.models.trvae.trvae import trVAE
torch.manual_seed(0)
x, level = torch.from_numpy(given["counts"]), torch.from_numpy(given["level"])
net = trVAE(x.shape[1], ["a", "b", "c"], use_mmd=True, mmd_on=str(given["mmd_on"]), recon_loss=str(given["loss"]))
net.eval()
seen = []
net.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
with torch.no_grad():
    recon, kl, mmd = net(x, level, x.sum(1))
result = {"w:" + name: value.numpy() for name, value in net.state_dict().items()}
result |= {"z": seen[0].numpy(), "nll": float(recon), "kl": float(kl), "mmd": float(mmd)}
"""


def translated(net: Any, weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the state of our network that holds the weights of theirs; biases that theirs lacks are 0."""
    found = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}

    def put(ours: str, *theirs: str) -> None:
        value = np.concatenate([weights[name] for name in theirs])
        found[ours] = torch.from_numpy(np.ascontiguousarray(value.T if "layers" in ours or "theta" in ours else value))

    for ours, theirs in (("encoder", "encoder.FC.L0"), ("decoder", "decoder.FirstL.L0")):
        put(f"{ours}.hidden.layers.0.weight", f"{theirs}.expr_L.weight")
        put(f"{ours}.hidden.layers.0.tables.0", f"{theirs}.cond_L.weight")
    put("encoder.hidden.layers.0.bias", "encoder.FC.L0.expr_L.bias")
    put("encoder.hidden.layers.1.weight", "encoder.FC.L1.weight")
    put("encoder.hidden.layers.1.bias", "encoder.FC.L1.bias")
    put("decoder.hidden.layers.1.weight", "decoder.HiddenL.L1.weight")
    for part in ("weight", "bias"):
        put(f"encoder.heads.{part}", f"encoder.mean_encoder.{part}", f"encoder.log_var_encoder.{part}")
        mean = "recon_decoder" if net.decoder.likelihood == "mse" else "mean_decoder"
        put(f"decoder.mean_head.{part}", f"decoder.{mean}.0.{part}")
        if f"decoder.dropout_head.{part}" in found:
            put(f"decoder.dropout_head.{part}", f"decoder.dropout_decoder.{part}")
    if "decoder.log_theta" in found:
        put("decoder.log_theta", "theta")
    return found


def gradient(z: torch.Tensor, level: torch.Tensor, scales: tuple[float, ...]) -> torch.Tensor:
    z = z.clone().requires_grad_()
    return torch.autograd.grad(mmd_of_groups(z, level, 3, scales).sum() / 2, z)[0]


def main() -> None:
    adata, rng, records = tf.data.pbmc(), np.random.default_rng(0), []
    adata.obs["batch"] = rng.choice(["a", "b", "c"], adata.n_obs)
    digest = sha256(adata.X.toarray())
    for loss, mmd_on in CASES:
        method = TRVAE(n_top_genes=None, likelihood=loss)
        cells = method._take(Inputs(adata, {"batch": "batch"}), None)
        batch = next(iter(Minibatches(cells, None, shuffle=False)))
        level = batch["levels"][:, 0]
        # For squared errors theirs is given log-expression, which ours makes of counts.
        read = batch["counts"] if loss != "mse" else method._build().encoder_input(batch)
        expected = run_apart(REFERENCE, {
            "counts": read.dense().numpy(), "level": level.numpy(), "loss": loss, "mmd_on": mmd_on,
            "source": os.environ["TENFOLD_SCARCHES"],
        })  # fmt: skip
        net = method._build().eval()
        net.load_state_dict(translated(net, {name[2:]: v for name, v in expected.items() if name.startswith("w:")}))
        z = torch.from_numpy(expected["z"])
        with torch.no_grad():
            compared = z if mmd_on == "z" else net.decoder.hidden.layers[0](z, net.covariates(batch))
            found = {
                "nll": net.nll(batch, z, batch["log_size"]).mean(),
                "kl": net.encode(batch).z.kl_from_standard().mean(),
                "mmd": mmd_of_groups(compared, level, 3, ALL_SCALES).sum() / 2,
            }
        worst = max(abs(float(found[name]) - expected[name]) / abs(expected[name]) for name in found)
        records.append(record(
            "trvae", "parity", "loss at copied weights, three batches", "tenfold.data.pbmc", digest,
            f"largest relative difference of reconstruction, KL and MMD; {loss}, MMD on {mmd_on}", worst,
            reference="scarches 0.6.1", reference_value=0.0, tolerance=TOLERANCE, passed=worst <= TOLERANCE,
        ))  # fmt: skip
    theirs, ours = (gradient(z, level, scales) for scales in (ALL_SCALES, SCALES))
    change = float((theirs - ours).abs().max() / theirs.abs().max())
    records.append(record(
        "trvae", "check", "kernels left out", "tenfold.data.pbmc", digest,
        "largest change of the gradient of MMD, relative to its largest entry", change, tolerance=0.01,
        passed=change <= 0.01,
    ))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
