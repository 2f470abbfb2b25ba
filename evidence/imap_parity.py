"""iMAP: with the weights of the original's networks, codes, expression, translation and the critic's loss are its.

Needs a checkout of github.com/Svvord/iMAP, named by TENFOLD_IMAP, and scanpy in the environment of
TENFOLD_REFERENCE_PYTHON. Run ``python evidence/imap_parity.py``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import record, run_apart, sha256, write

import tenfold as tf
from tenfold.data.preprocess import normalize_log1p
from tenfold.nn.imap_net import ContentStyle, Critic, critic_loss

TOLERANCE, N_LATENT, WIDTHS = 1e-4, 256, (1024, 512)

REFERENCE = """
import inspect, sys, textwrap, types
sys.modules["annoy"] = types.ModuleType("annoy")  # its search of neighbours is not asked for
sys.modules["annoy"].AnnoyIndex = None
sys.path.insert(0, str(given["source"]))
import torch
from imap import stage1, stage2
x, own, other = (torch.from_numpy(given[name]) for name in ("x", "own", "other"))
stage1.data_size, stage1.n_classes = x.shape[1], own.shape[1]
torch.manual_seed(0)
E, D = stage1.Encoder(256), stage1.Decoder(256 + own.shape[1])
# The networks of the second stage are classes inside of its training function.
text = inspect.getsource(stage2.train)
names = {**vars(stage2), "data_size": x.shape[1], "latent_dim": 256}
exec(textwrap.dedent(text[text.index("    class Generator"):text.index("    # Initialize generator")]), names)
G, C = names["Generator"](), names["Discriminator"]()
nets = {"E": E, "D": D, "G": G, "C": C}
for net in nets.values():
    net.apply(stage1.weights_init_normal)
result = {}
for key, net in nets.items():
    result |= {f"w:{key}.{name}": value.numpy().copy() for name, value in net.state_dict().items()}
content = E(x)
found = {"content": content, "decoded": D(content, own), "content after a change of style": E(D(content, other))}
half = len(x) // 2
found["translated"] = fake = G(x[:half])
torch.manual_seed(1)
penalty = stage2.calculate_gradient_penalty(x[half:], fake.detach(), C)
found["loss of the critic"] = C(fake).mean() - C(x[half:]).mean() + 10 * penalty
result |= {name: value.detach().numpy() for name, value in found.items()}
"""


def loaded(net: Any, weights: dict[str, np.ndarray], names: dict[str, str]) -> Any:
    """Put weights into a network: `names` maps modules of ours to theirs; hidden layers are stored transposed."""
    with torch.no_grad():
        for ours, theirs in names.items():
            module = net.get_submodule(ours)
            for part in ("weight", "bias"):
                if getattr(module, part, None) is not None:
                    value = torch.from_numpy(weights[f"{theirs}.{part}"])
                    getattr(module, part).copy_(value.T if "layers" in ours and value.ndim == 2 else value)
    return net.train()


def networks(weights: dict[str, np.ndarray], n_genes: int) -> tuple[Any, Any]:
    """Return our networks with their weights."""
    first = weights["D.decoder.0.weight"]
    weights = {**weights, "D.decoder.0.weight": np.ascontiguousarray(first[:, :N_LATENT])}
    net = loaded(ContentStyle(n_genes, 2, N_LATENT, WIDTHS, 0, 10), weights, {
        "encoder.layers.0": "E.encoder.0", "encoder.layers.0.batch_norm": "E.encoder.1",
        "encoder.layers.1": "E.encoder.3", "encoder.layers.1.batch_norm": "E.encoder.4", "code": "E.encoder.6",
        "decoder.layers.0": "D.decoder.0", "decoder.layers.1": "D.decoder.2", "head": "D.decoder.4",
        "style.layers.0": "D.decoder2.0", "style.layers.1": "D.decoder2.2", "style_head": "D.decoder2.4",
    })  # fmt: skip
    with torch.no_grad():
        net.decoder.layers[0].tables[0].copy_(torch.from_numpy(first[:, N_LATENT:].T.copy()))
    loaded(net.translators["1"], weights, {
        "down.layers.0": "G.encoder.0", "down.layers.0.batch_norm": "G.encoder.1", "down.layers.1": "G.encoder.3",
        "down.layers.1.batch_norm": "G.encoder.4", "code": "G.encoder.6", "code_norm": "G.encoder.7",
        "up.layers.0": "G.decoder.0", "up.layers.0.batch_norm": "G.decoder.1", "up.layers.1": "G.decoder.3",
        "up.layers.1.batch_norm": "G.decoder.4", "head": "G.decoder.6",
    })  # fmt: skip
    critic = loaded(Critic(n_genes, 512), weights, {
        "hidden.layers.0": "C.model.0", "hidden.layers.1": "C.model.2", "head": "C.adv_layer.0"
    })  # fmt: skip
    return net, critic


def main() -> None:
    adata = tf.data.pbmc()
    x = normalize_log1p(adata.X.tocsr()).toarray()[:256].astype(np.float32)
    level = np.random.default_rng(0).integers(0, 2, len(x))
    styles = np.eye(2, dtype=np.float32)
    expected = run_apart(REFERENCE, {
        "x": x, "own": styles[level], "other": styles[1 - level],
        "source": str(Path(os.environ["TENFOLD_IMAP"]).resolve()),
    })  # fmt: skip
    net, critic = networks({name[2:]: v for name, v in expected.items() if name.startswith("w:")}, x.shape[1])
    cells, own = torch.from_numpy(x), torch.from_numpy(level)
    content, half = net.content(cells), len(x) // 2
    found = {"content": content, "decoded": net.decode(content, own)}
    found["content after a change of style"] = net.content(net.decode(content, 1 - own))
    found["translated"] = fake = net.translators["1"](cells[:half])
    torch.manual_seed(1)
    found["loss of the critic"] = critic_loss(critic, cells[half:], fake.detach())
    records = []
    for name, value in found.items():
        theirs = np.asarray(expected[name])
        worst = float(np.abs(value.detach().numpy() - theirs).max() / np.abs(theirs).max())
        records.append(record(
            "imap", "parity", "at copied weights", "tenfold.data.pbmc, 256 cells", sha256(adata.X.toarray()),
            f"{name}, largest difference relative to the largest value", worst, reference="iMAP 1.0.0",
            reference_value=0.0, tolerance=TOLERANCE, passed=worst <= TOLERANCE,
        ))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
