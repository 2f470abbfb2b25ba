"""scANVI: with the weights of an scvi-tools model, loss terms of every cell are those of scvi-tools.

Needs scvi-tools 1.4.2 in the environment of TENFOLD_REFERENCE_PYTHON. Run ``python evidence/scanvi_parity.py``.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from recording import record, run_apart, sha256, version, write
from scvi_parity import THEIRS, encoder_weights, layer_weights, translated

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.engine import Minibatches
from tenfold.integrate.scanvi import SCANVI
from tenfold.nn.priors import Gaussian

TOLERANCE = 1e-4
CASES: list[tuple[str, dict[str, Any]]] = [
    ("NB", {}),
    ("ZINB", {"likelihood": "zinb"}),
    ("gene-batch dispersion, two layers", {"dispersion": "gene-batch", "n_layers": 2}),
    ("linear classifier", {"linear_classifier": True}),
    ("layer norm, covariates encoded", {"layer_norm": "both", "batch_norm": "none", "encode_covariates": True}),
]

REFERENCE = """
import json
import anndata, pandas as pd, scvi, torch
from scipy import sparse
options = json.loads(str(given["options"]))
obs = pd.DataFrame({"batch": given["batch"], "known": given["known"]})
obs.index = obs.index.astype(str)
adata = anndata.AnnData(sparse.csr_matrix(given["counts"]), obs=obs)
scvi.settings.seed = 0
scvi.model.SCANVI.setup_anndata(adata, batch_key="batch", labels_key="known", unlabeled_category="Unknown")
model = scvi.model.SCANVI(adata, **options)
model.train(max_epochs=3, accelerator="cpu", enable_progress_bar=False, logger=False)
model.module.eval()
result = {"w:" + name: value.numpy() for name, value in model.module.state_dict().items()}
seen = []
model.module.encoder_z2_z1.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs[1]))
with torch.no_grad():
    tensors = next(iter(model._make_data_loader(adata, batch_size=adata.n_obs)))
    inferred, generated, loss = model.module(tensors, loss_kwargs={"kl_weight": 1.0})
    labelled = {name: value[torch.as_tensor(given["labelled"])] for name, value in tensors.items()}
    cross_entropy, y, logits = model.module.classification_loss(labelled)
result |= {
    "z1": inferred["z"].numpy(), "z2": seen[0].numpy(), "classification": float(cross_entropy),
    "bound": loss.reconstruction_loss["reconstruction_loss"].numpy(), "kl": next(iter(loss.kl_local.values())).numpy(),
    "probabilities": model.predict(soft=True).to_numpy(), "labels": y.numpy()[:, 0],
}
"""


def cells() -> Any:
    """Bundled blood cells in made-up batches, labelled in part."""
    adata, rng = tf.data.pbmc(), np.random.default_rng(0)
    adata.obs["batch"] = rng.choice(["a", "b", "c"], adata.n_obs)
    adata.obs["known"] = adata.obs["cell_type"].astype(str).where(rng.random(adata.n_obs) < 0.6, "Unknown")
    return adata


def all_weights(net: Any, weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the state of our network that holds the weights of theirs."""
    found = {f"label_encoder.{k}": v for k, v in encoder_weights(net.label_encoder, "encoder_z2_z1", weights).items()}
    hidden = layer_weights(net.label_decoder.hidden, "decoder_z1_z2.decoder", weights)
    found |= {f"label_decoder.hidden.{k}": v for k, v in hidden.items()}
    for part in ("weight", "bias"):
        heads = [weights[f"decoder_z1_z2.{head}_decoder.{part}"] for head in ("mean", "var")]
        found[f"label_decoder.heads.{part}"] = np.concatenate(heads)
        last = len(net.classifier) - 1
        found[f"classifier.{last}.{part}"] = weights[f"classifier.classifier.{last}.{part}"]
    if len(net.classifier) > 1:
        hidden = layer_weights(net.classifier[0], "classifier.classifier.0", weights)
        found |= {f"classifier.0.{k}": v for k, v in hidden.items()}
    arrays = {name: torch.as_tensor(np.ascontiguousarray(value)) for name, value in found.items()}
    return {**translated(net, weights), **arrays}


def compare(adata: Any, ours: dict[str, Any]) -> float:
    """Return the largest relative difference of the loss terms over all cells."""
    known = adata.obs["known"].to_numpy().astype("U")
    options = {THEIRS.get(name, name): value for name, value in {"likelihood": "nb", **ours}.items()}
    expected = run_apart(REFERENCE, {
        "counts": adata.X.toarray(), "batch": adata.obs["batch"].to_numpy().astype("U"), "known": known,
        "labelled": np.flatnonzero(known != "Unknown"), "options": json.dumps(options),
    })  # fmt: skip
    weights = {name[2:]: np.asarray(value) for name, value in expected.items() if name.startswith("w:")}
    method = SCANVI(n_top_genes=None, **ours)
    arrays = method._take(Inputs(adata, {"batch": "batch", "labels": "known"}), None)
    method.library_prior_ = np.zeros((2, len(method.design_["batch"])), dtype=np.float32)
    net = method._build().eval()
    net.load_state_dict(all_weights(net, weights))
    batch = next(iter(Minibatches(arrays, None, shuffle=False)))
    draws = iter([torch.from_numpy(expected["z1"]), torch.from_numpy(expected["z2"])])
    sample = Gaussian.sample
    try:
        Gaussian.sample = lambda self: next(draws)  # type: ignore[method-assign]
        with torch.no_grad():
            posterior = net.encode(batch)
            terms = net.cell_terms(batch, posterior)
            classification = float(net.classification_loss(batch, posterior))
            probabilities = net.classifier(posterior.z.mean).softmax(dim=1).numpy()
    finally:
        Gaussian.sample = sample  # type: ignore[method-assign]
    found = {
        "bound": (terms["nll"] + terms["gap"]).numpy(),
        "kl": terms["kl"].numpy(),
        "classification": np.array(classification),
    }
    worst = float(np.abs(probabilities - expected["probabilities"]).max())
    for name, value in found.items():
        worst = max(worst, float((np.abs(value - expected[name]) / np.abs(expected[name])).max()))
    return worst


def main() -> None:
    adata, used, records = cells(), version("scvi-tools"), []
    digest = sha256(adata.X.toarray())
    for name, ours in CASES:
        worst = compare(adata, ours)
        metric = f"largest relative difference of a cell's loss terms and label probabilities, {name}"
        records.append(record(
            "scanvi", "parity", "per-cell loss at copied weights", "tenfold.data.pbmc", digest, metric, worst,
            reference=used, reference_value=0.0, tolerance=TOLERANCE, passed=worst <= TOLERANCE,
        ))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
