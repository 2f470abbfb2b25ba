"""SIMS: with the weights of pytorch-tabnet, which it is made of, its loss, gradients, logits and masks.

scsims 3.0.6 itself does not import beside a torchmetrics of after 2023; its network is pytorch_tabnet's and is called
as it calls it. Needs pytorch-tabnet 4.1.0 in the environment of TENFOLD_REFERENCE_PYTHON. Run
``python evidence/sims_parity.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recording import record, run_apart, sha256, write

from tenfold.nn.tabnet import TabNet

N_CELLS, N_GENES, N_LABELS, RATE, SPARSITY = 256, 300, 5, 0.01, 1e-3
TOLERANCE = 1e-5
REFERENCE = "pytorch-tabnet 4.1.0"
SETUP = """
import torch
torch.set_num_threads(1)
from pytorch_tabnet.tab_network import TabNet
"""
CODE = """
given = {name: value.item() if value.ndim == 0 else value for name, value in given.items()}
torch.manual_seed(0)
n_genes = given["x"].shape[1]
net = TabNet(n_genes, given["n_labels"], n_d=8, n_a=8, n_steps=3, gamma=1.3, group_attention_matrix=torch.eye(n_genes))
x, y = torch.from_numpy(given["x"]), torch.from_numpy(given["y"])
result = {"w:" + name: value.numpy().copy() for name, value in net.state_dict().items()}
net.train()
logits, entropy = net(x)
loss = torch.nn.functional.cross_entropy(logits, y) - given["sparsity"] * entropy
loss.backward()
result |= {"g:" + name: weight.grad.numpy().copy() for name, weight in net.named_parameters(remove_duplicate=False)
           if weight.grad is not None}
result |= {"loss": float(loss.detach()), "entropy": float(entropy.detach())}
with torch.no_grad():
    for weight in net.parameters():  # a step, so that the weights below are not those of the start
        if weight.grad is not None:
            weight -= given["rate"] * weight.grad
net.eval()
with torch.no_grad():
    logits, entropy = net(x)
    explained, masks = net.forward_masks(x)
result |= {"a:" + name: value.numpy().copy() for name, value in net.state_dict().items()}
result |= {"logits": logits.numpy(), "explained": explained.numpy()}
result |= {f"mask_{step}": mask.numpy() for step, mask in masks.items()}
"""


def translated(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return their weights under our names."""
    found, root = {}, "tabnet.encoder"
    for name, value in weights.items():
        if name.startswith(f"{root}.initial_bn."):
            found[name.replace(f"{root}.initial_bn", "norm")] = value
    for step in range(4):
        theirs = f"{root}.initial_splitter" if step == 0 else f"{root}.feat_transformers.{step - 1}"
        for layer in range(4):
            block = f"{theirs}.{'shared' if layer < 2 else 'specifics'}.glu_layers.{layer % 2}"
            own = f"transformers.{step}.layers.{layer}"
            found[f"{own}.linear.weight"] = weights[f"{block}.fc.weight"]
            found |= _norm(weights, f"{block}.bn.bn", f"{own}.norm.norm")
        if step:
            theirs = f"{root}.att_transformers.{step - 1}"
            found[f"attention.{step - 1}.0.weight"] = weights[f"{theirs}.fc.weight"]
            found |= _norm(weights, f"{theirs}.bn.bn", f"attention.{step - 1}.1.norm")
    found["answer.weight"] = weights["tabnet.final_mapping.weight"]
    return found


def _norm(weights: dict[str, np.ndarray], theirs: str, own: str) -> dict[str, np.ndarray]:
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    there = [part for part in parts if f"{theirs}.{part}" in weights]
    return {f"{own}.{part}": np.asarray(weights[f"{theirs}.{part}"]) for part in there}


def main() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, N_LABELS, N_CELLS)
    x = np.log1p(rng.poisson(rng.lognormal(-0.5, 1, (N_LABELS, N_GENES))[y]))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    given = {"x": x, "y": y, "n_labels": N_LABELS, "rate": RATE, "sparsity": SPARSITY}
    theirs = run_apart(CODE, given, SETUP)
    net = TabNet(N_GENES, N_LABELS)
    start = translated({name[2:]: np.asarray(value) for name, value in theirs.items() if name.startswith("w:")})
    net.load_state_dict({name: torch.as_tensor(value.copy()) for name, value in start.items()})
    rows, labels = torch.from_numpy(x), torch.from_numpy(y)
    found = net.train()(rows)
    loss = torch.nn.functional.cross_entropy(found.logits, labels) - SPARSITY * found.entropy
    loss.backward()
    shared: dict[str, Any] = {
        "dataset": "Poisson counts, 256 cells, 300 genes", "digest": sha256(x), "reference": REFERENCE,
        "reference_value": 0.0,
    }  # fmt: skip

    def parity(claim: str, metric: str, value: float, tolerance: float) -> dict[str, Any]:
        return record("sims", "parity", claim, metric=metric, value=value, tolerance=tolerance,
                      passed=value <= tolerance, **shared)  # fmt: skip

    # (Over several steps rounding grows: in float32 the original parts from itself in float64 as far as from ours.)
    expected = translated({name[2:]: np.asarray(value) for name, value in theirs.items() if name.startswith("g:")})
    largest = max(float(np.abs(value).max()) for value in expected.values())
    off = max(float(np.abs(weight.grad.numpy() - expected[name]).max()) for name, weight in net.named_parameters())
    apart = max(abs(float(loss.detach()) - theirs["loss"]), abs(float(found.entropy.detach()) - theirs["entropy"]))
    records = [
        parity("training at copied weights", "largest difference of loss and entropy of masks", apart, TOLERANCE),
        parity("training at copied weights", "largest difference of a gradient, relative to the largest gradient",
               off / largest, 1e-4),
    ]  # fmt: skip
    # From here on at their weights after training, so that running statistics show.
    after = translated({name[2:]: np.asarray(value) for name, value in theirs.items() if name.startswith("a:")})
    net.load_state_dict({name: torch.as_tensor(value.copy()) for name, value in after.items()})
    with torch.no_grad():
        found = net.eval()(rows)
    pairs = {"logits": (found.logits.numpy(), theirs["logits"])}
    pairs |= {f"mask of step {step + 1}": (found.masks[step].numpy(), theirs[f"mask_{step}"]) for step in range(3)}
    weighed = sum(mask * share[:, None] for mask, share in zip(found.masks, found.shares.T, strict=True))
    pairs["explanation"] = (weighed.numpy(), theirs["explained"])
    for name, (own, other) in pairs.items():
        worst = float(np.abs(own - other).max())
        records.append(parity("network at copied weights", f"largest difference of the {name}", worst, TOLERANCE))
    write(records)


if __name__ == "__main__":
    main()
