"""TOSICA: with the weights of the published network, logits, latent token and attention are those of that network.

Also shows which tokens the published order lets a pathway reach. Needs torch and einops in the environment of
TENFOLD_REFERENCE_PYTHON, and in TENFOLD_TOSICA_SOURCE the folder that holds the package ``TOSICA`` of
github.com/JackieHanLab/TOSICA (which is not on PyPI). Run ``python evidence/tosica_parity.py``.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from recording import record, run_apart, sha256, write
from scipy import sparse

from tenfold.data.gene_sets import Memberships
from tenfold.data.minibatches import Minibatches
from tenfold.nn.set_tokens import SetTokens, SetTransformer

TOLERANCE = 1e-5
REFERENCE = "JackieHanLab/TOSICA 1.0.0"
CODE = """
import torch
from TOSICA.TOSICA_model import scTrans_model
torch.manual_seed(0)
net = scTrans_model(num_classes=4, num_genes=given["x"].shape[1], mask=given["mask"], has_logits=False).eval()
for parameter in net.parameters():  # far from the small weights of the start, so that every part shows
    if parameter.requires_grad:
        parameter.data += 0.1 * torch.randn_like(parameter)
net.feature_embed.fe.weight.data *= net.feature_embed.fe.mask
x = torch.from_numpy(given["x"])
with torch.no_grad():
    latent, logits, attention = net(x)
    tokens = net.feature_embed(x)
result = {"w:" + name: value.numpy() for name, value in net.state_dict().items()}
result |= {"latent": latent.numpy(), "logits": logits.numpy(), "attention": attention.numpy(), "tokens": tokens.numpy()}
"""


def ours(mask: np.ndarray, weights: dict[str, np.ndarray], mixed: bool) -> SetTransformer:
    """Return our network with their weights."""
    _, starts, sets = Memberships.of_mask(mask, map(str, range(mask.shape[1])))
    net = SetTransformer(SetTokens(starts, sets, mask.shape[1], 48), 4, mixed=mixed).eval()
    genes = np.repeat(np.arange(len(mask)), np.diff(starts))
    dense = weights["feature_embed.fe.weight"].reshape(mask.shape[1], 48, len(mask))
    found = {
        "tokens.weight": dense[sets, :, genes], "tokens.bias": weights["feature_embed.fe.bias"].reshape(-1, 48),
        "cell": weights["cls_token"],
    }  # fmt: skip
    names = {"first_norm": "norm1", "second_norm": "norm2", "attention.inward": "attn.qkv",
             "attention.outward": "attn.proj", "hidden": "mlp.fc1", "out": "mlp.fc2"}  # fmt: skip
    for part in ("weight", "bias"):
        for block in range(2):
            for name, theirs in names.items():
                found[f"blocks.{block}.{name}.{part}"] = weights[f"blocks.{block}.{theirs}.{part}"]
        for name in ("norm", "head"):
            found[f"{name}.{part}"] = weights[f"{name}.{part}"]
    net.load_state_dict({name: torch.as_tensor(np.ascontiguousarray(value)) for name, value in found.items()})
    return net


def main() -> None:
    source = os.environ["TENFOLD_TOSICA_SOURCE"]
    rng = np.random.default_rng(0)
    mask = rng.random((200, 30)) < 0.1
    mask[:10] = np.arange(30) == 0  # ten genes of one pathway alone
    x = rng.poisson(0.5, (40, 200)).astype(np.float32)
    theirs = run_apart(CODE, {"x": x, "mask": mask.astype(float)}, f"sys.path.insert(0, {source!r})")
    weights = {name[2:]: np.asarray(value) for name, value in theirs.items() if name.startswith("w:")}
    batch: Any = next(iter(Minibatches({"x": sparse.csr_matrix(x)}, None, shuffle=False)))["x"]
    net = ours(mask, weights, mixed=True)
    with torch.no_grad():
        of_sets = net.tokens(batch)
        found = {
            "tokens": net.sequence(of_sets)[:, 1:], "latent": net.latent(of_sets), "logits": net(batch),
            "attention": net.attention(batch),
        }  # fmt: skip
    shared: dict[str, Any] = {"dataset": "Poisson counts, 40 cells, 200 genes, 30 sets", "digest": sha256(x)}
    records = []
    for name, value in found.items():
        worst = float(np.abs(value.numpy() - theirs[name]).max() / np.abs(theirs[name]).max())
        records.append(record(
            "tosica", "parity", "network at copied weights, published order", metric=f"largest difference of {name}, "
            "relative to the largest value", value=worst, reference=REFERENCE, reference_value=0.0,
            tolerance=TOLERANCE, passed=worst <= TOLERANCE, **shared,
        ))  # fmt: skip
    raised = x.copy()
    raised[:, :10] += 1
    after: Any = next(iter(Minibatches({"x": sparse.csr_matrix(raised)}, None, shuffle=False)))["x"]
    for mixed, words in ((True, "published"), (False, "corrected")):
        net.mixed = mixed
        with torch.no_grad():
            moved = (net.sequence(net.tokens(after)) - net.sequence(net.tokens(batch)))[:, 1:].abs() > 1e-6
        n_tokens = int(moved.any(dim=2).any(dim=0).sum())
        right = n_tokens > 1 if mixed else n_tokens == 1
        records.append(record(
            "tosica", "check", "genes of a pathway reach its token alone", metric=f"tokens that move, {words} order",
            value=n_tokens, passed=right, **shared,
        ))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
