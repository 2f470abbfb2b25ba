"""scVI: with the weights of an scvi-tools model, losses of every cell are those of scvi-tools, for every option.

Needs scvi-tools 1.4.2 in the environment of TENFOLD_REFERENCE_PYTHON. Run ``python evidence/scvi_parity.py``.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from recording import record, run_apart, sha256, version, write

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.embed.scvi import SCVI
from tenfold.engine import Minibatches
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.mlp import MLP

TOLERANCE = 1e-4
#: Name, options of ours, options of theirs where they are called otherwise, roles.
CASES: list[tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...]]] = [
    ("NB", {}, {}, ("batch",)),
    ("NB without batch", {}, {}, ()),
    ("ZINB", {"likelihood": "zinb"}, {}, ("batch",)),
    ("Poisson", {"likelihood": "poisson"}, {}, ("batch",)),
    ("gene-batch dispersion", {"dispersion": "gene-batch"}, {}, ("batch",)),
    ("gene-label dispersion", {"dispersion": "gene-label"}, {}, ("batch", "labels")),
    ("gene-cell dispersion, ZINB", {"dispersion": "gene-cell", "likelihood": "zinb"}, {}, ("batch",)),
    ("surgery-ready", {"n_layers": 2, "encode_covariates": True, "deeply_inject_covariates": False,
                       "batch_norm": "none", "layer_norm": "both"}, {}, ("batch",)),
    ("covariates", {"n_layers": 2, "encode_covariates": True, "layer_norm": "both", "likelihood": "zinb"}, {},
     ("batch", "categorical_covariates", "continuous_covariates")),
    ("size factor", {}, {}, ("batch", "size_factor")),
    ("latent library", {"library": "latent"}, {}, ("batch",)),
    ("logistic normal, raw input", {"latent_distribution": "ln", "log_variational": False}, {}, ("batch",)),
    ("batch embedding", {"batch_embedding": 5, "encode_covariates": True}, {"batch_representation": "embedding"},
     ("batch", "continuous_covariates")),
]  # fmt: skip
COLUMNS = {
    "batch": "batch", "labels": "cell_type", "size_factor": "factor", "categorical_covariates": ["site"],
    "continuous_covariates": ["age", "depth"],
}  # fmt: skip
THEIRS = {
    "dropout": "dropout_rate", "likelihood": "gene_likelihood", "batch_norm": "use_batch_norm",
    "layer_norm": "use_layer_norm",
}  # fmt: skip

REFERENCE = """
import json
import anndata, pandas as pd, scvi, torch
from scipy import sparse
setup, options = json.loads(str(given["setup"])), json.loads(str(given["options"]))
obs = pd.DataFrame({name[4:]: given[name] for name in given if name.startswith("obs:")})
obs.index = obs.index.astype(str)
adata = anndata.AnnData(sparse.csr_matrix(given["counts"]), obs=obs)
scvi.settings.seed = 0
scvi.model.SCVI.setup_anndata(adata, **setup)
model = scvi.model.SCVI(adata, **options)
model.train(max_epochs=3, accelerator="cpu", enable_progress_bar=False)
model.module.eval()
result = {"w:" + name: value.numpy() for name, value in model.module.state_dict().items()}
rows = []
with torch.no_grad():
    for tensors in model._make_data_loader(adata, batch_size=128):
        inferred, generated, loss = model.module(tensors, loss_kwargs={"kl_weight": 1.0})
        rows.append({
            "z": inferred["z"], "library": inferred["library"], "mean": inferred["qz"].loc,
            "variance": inferred["qz"].variance, "nll": loss.reconstruction_loss["reconstruction_loss"],
            "kl": loss.kl_local["kl_divergence_z"], "kl_library": loss.kl_local["kl_divergence_l"],
        })
for name in rows[0]:
    result[name] = torch.cat([row[name] for row in rows]).numpy()
"""


def cells() -> Any:
    """Bundled blood cells with covariates made up for the purpose."""
    adata, rng = tf.data.pbmc(), np.random.default_rng(0)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)  # both sides then sort the levels
    adata.obs["batch"] = rng.choice(["a", "b", "c"], adata.n_obs)
    adata.obs["site"] = rng.choice(["x", "y", "z"], adata.n_obs)
    ages = rng.normal(size=(adata.n_obs, 2))
    ages = (ages - ages.mean(axis=0)) / ages.std(axis=0)  # scvi-tools takes them as they are, tenfold standardises
    adata.obs["age"], adata.obs["depth"] = ages.T
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.obs["factor"] = totals / np.median(totals)
    return adata


def reference(adata: Any, ours: dict[str, Any], theirs: dict[str, Any], roles: tuple[str, ...]) -> dict[str, Any]:
    """Return weights and losses of an scvi-tools model of the same options."""
    names = {
        "batch": "batch_key", "labels": "labels_key", "size_factor": "size_factor_key",
        "categorical_covariates": "categorical_covariate_keys", "continuous_covariates": "continuous_covariate_keys",
    }  # fmt: skip
    options = {THEIRS.get(name, name): value for name, value in {"likelihood": "nb", **ours}.items()}
    if options.pop("library", "") == "latent":
        options["use_observed_lib_size"] = False
    options.pop("batch_embedding", None)
    setup = {names[role]: COLUMNS[role] for role in roles}
    obs = {f"obs:{name}": np.asarray(adata.obs[name]) for name in adata.obs}
    obs = {name: value.astype(str) if value.dtype.kind in "OU" else value for name, value in obs.items()}
    given = {
        "counts": adata.X.toarray(),
        "setup": json.dumps(setup),
        "options": json.dumps({**options, **theirs}),
        **obs,
    }
    return run_apart(REFERENCE, given)


def layer_weights(block: MLP, prefix: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Translate hidden layers: their inputs are the units, continuous covariates and one-hot levels, in this order."""
    found = {}
    for number, layer in enumerate(block.layers):
        name, own = f"{prefix}.fc_layers.Layer {number}.", f"layers.{number}."
        matrix, bias = weights[f"{name}0.weight"].T, weights[f"{name}0.bias"]
        start = layer.weight.shape[0]
        found[own + "weight"] = matrix[:start]
        if layer.slopes is not None:
            found[own + "slopes"] = matrix[start : start + len(layer.slopes)]
            start += len(layer.slopes)
        for column, table in enumerate(layer.tables):
            found[f"{own}tables.{column}"] = matrix[start : start + len(table)]
            start += len(table)
        if layer.batch_norm is None:
            found[own + "bias"] = bias
            continue
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            found[f"{own}batch_norm.{part}"] = weights[f"{name}1.{part}"]
        found[f"{own}batch_norm.running_mean"] = found[f"{own}batch_norm.running_mean"] - bias
    return found


def encoder_weights(encoder: GaussianEncoder, prefix: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Translate an encoder, whose two heads are one here."""
    found = {f"hidden.{k}": v for k, v in layer_weights(encoder.hidden, f"{prefix}.encoder", weights).items()}
    for part in ("weight", "bias"):
        both = [weights[f"{prefix}.{head}_encoder.{part}"] for head in ("mean", "var")]
        found[f"heads.{part}"] = np.concatenate(both)
    return found


def translated(net: Any, weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the state of our network that holds the weights of theirs."""
    found = {f"encoder.{k}": v for k, v in encoder_weights(net.encoder, "z_encoder", weights).items()}
    if net.library is not None:
        found |= {f"library.{k}": v for k, v in encoder_weights(net.library, "l_encoder", weights).items()}
        found["library_prior"] = np.concatenate([weights["library_log_means"], weights["library_log_vars"]])
    hidden = layer_weights(net.decoder.hidden, "decoder.px_decoder", weights)
    found |= {f"decoder.hidden.{k}": v for k, v in hidden.items()}
    heads = {"mean_head": "px_scale_decoder.0", "dropout_head": "px_dropout_decoder", "theta_head": "px_r_decoder"}
    for own, theirs in heads.items():
        if getattr(net.decoder, own) is not None:
            for part in ("weight", "bias"):
                found[f"decoder.{own}.{part}"] = weights[f"decoder.{theirs}.{part}"]
    if net.decoder.log_theta is not None:
        found["decoder.log_theta"] = weights["px_r"].T
    if net.batch_vectors is not None:
        found["batch_vectors.weight"] = next(v for k, v in weights.items() if "embedding" in k)
    return {name: torch.as_tensor(np.ascontiguousarray(value)) for name, value in found.items()}


def compare(adata: Any, ours: dict[str, Any], theirs: dict[str, Any], roles: tuple[str, ...]) -> float:
    """Return the largest relative difference of the loss terms over all cells."""
    expected = reference(adata, ours, theirs, roles)
    weights = {name[2:]: value for name, value in expected.items() if name.startswith("w:")}
    weights = {name: np.asarray(value) for name, value in weights.items()}
    method = SCVI(n_top_genes=None, **ours)
    data = Inputs(adata, {role: COLUMNS[role] for role in roles})
    arrays = method._take(data, None)
    method.library_prior_ = np.zeros((2, len(method.design_["batch"])), dtype=np.float32)
    net = method._build().eval()
    net.load_state_dict(translated(net, weights))
    batch = next(iter(Minibatches(arrays, None, shuffle=False)))
    z, log_size = torch.from_numpy(expected["z"]), batch["log_size"]
    with torch.no_grad():
        posterior = net.encode(batch)
        found = {"mean": posterior.z.mean, "variance": posterior.z.variance, "kl": posterior.z.kl_from_standard()}
        if posterior.log_size is not None:
            log_size = torch.from_numpy(expected["library"])[:, 0]
            found["kl_library"] = posterior.log_size.kl_from(net.prior_of_log_size(batch))
        found["nll"] = net.decoder.nll(batch["counts"], z, log_size, net.covariates(batch), net.level(batch))
    worst = 0.0
    for name, value in found.items():
        # Means may be 0, so relative to their spread; losses relative to themselves.
        scale = np.abs(expected[name]) if name in ("nll", "kl", "kl_library") else expected[name].std()
        worst = max(worst, float((np.abs(value.numpy() - expected[name]) / np.maximum(scale, 1e-3)).max()))
    return worst


def main() -> None:
    adata, used, records = cells(), version("scvi-tools"), []
    digest = sha256(adata.X.toarray())
    for name, ours, theirs, roles in CASES:
        worst = compare(adata, ours, theirs, roles)
        metric = f"largest relative difference of a cell's loss terms and posterior, {name}"
        records.append(record(
            "scvi", "parity", "per-cell loss at copied weights", "tenfold.data.pbmc", digest, metric, worst,
            reference=used, reference_value=0.0, tolerance=TOLERANCE, passed=worst <= TOLERANCE,
        ))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
