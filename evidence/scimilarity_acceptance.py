"""SCimilarity: the original's encoder and triplets on the same input, batches left out, new types, five folds.

Run ``python evidence/scimilarity_acceptance.py [parity] [batches] [folds]``; results of other parts are kept. Parity
needs the original (scimilarity 0.4.1, installed without its dependencies, with torch, numpy and networkx) in the
environment named by TENFOLD_REFERENCE_PYTHON.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import numpy as np
import torch
from annotator_folds import beside_baselines
from recording import ROOT, record, run_apart, sha256, version, write

import tenfold as tf
from tenfold import metrics
from tenfold.data.inputs import Inputs
from tenfold.nn.triplets import Kinship, MirroredDecoder, UnitEncoder, semi_hard_triplets, triplet_loss

MARGIN, POINTS, AUROC = 0.05, 0.02, 0.8
SEEDS = (1, 2, 3)
#: Cell, T cell, CD4 and CD8 T cell, B cell: each a kind of the one before the dash.
LABELS = ["cell", "T", "CD4", "CD8", "B"]
PARENTS = {"T": "cell", "CD4": "T", "CD8": "T", "B": "cell"}

# The package's modules are taken one by one: its first line imports databases that the network does not need.
SETUP = """
import importlib.util, types, torch, networkx
spec = importlib.util.find_spec("scimilarity")
package = types.ModuleType("scimilarity"); package.__path__ = list(spec.submodule_search_locations)
sys.modules["scimilarity"] = package
sys.modules.setdefault("obonet", types.ModuleType("obonet"))
from scimilarity import nn_models, triplet_selector
def tree():
    graph = networkx.DiGraph()
    for child, parent in zip(given["children"], given["parents"]):
        graph.add_edge(str(parent), str(child))
    for name in given["labels"]:
        graph.add_node(str(name), name=str(name))
    return graph
triplet_selector.import_cell_ontology = tree
"""
NETWORK = """
state = {key[2:]: torch.from_numpy(value) for key, value in given.items() if key.startswith("e/")}
encoder = nn_models.Encoder(200, 16, [32, 24]); encoder.load_state_dict(state); encoder.eval()
state = {key[2:]: torch.from_numpy(value) for key, value in given.items() if key.startswith("d/")}
decoder = nn_models.Decoder(200, 16, [24, 32]); decoder.load_state_dict(state); decoder.eval()
with torch.no_grad():
    z = encoder(torch.from_numpy(given["x"])); back = decoder(z)
result = {"z": z.numpy(), "back": back.numpy()}
"""
TRIPLETS = """
loss = triplet_selector.TripletLoss(margin=float(given["margin"]))
names = {number: str(name) for number, name in enumerate(given["labels"])}
z = torch.from_numpy(given["z"])
losses, _, _, rows = loss(z, torch.from_numpy(given["codes"]), names, torch.from_numpy(given["studies"]))
result = {"rows": np.array(rows), "loss": float(losses.mean())}
"""


def drawn(n_cells: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    codes, studies = rng.integers(0, len(LABELS), n_cells), rng.integers(0, 4, n_cells)
    points = rng.normal(size=(len(LABELS), 16))[codes] * 0.25 + rng.normal(size=(n_cells, 16))
    z = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    return {"z": z, "codes": codes, "studies": studies, "margin": np.float32(MARGIN), "labels": np.array(LABELS),
            "children": np.array(list(PARENTS)), "parents": np.array(list(PARENTS.values()))}  # fmt: skip


def kinship() -> Kinship:
    """Return which labels are above or below each other, by hand."""
    lines = {}
    for label in LABELS:
        above = [label]
        while above[-1] in PARENTS:
            above.append(PARENTS[above[-1]])
        lines[label] = set(above)
    related = [[b in lines[a] or a in lines[b] for b in LABELS] for a in LABELS]
    parents = [[PARENTS.get(a) == b for b in LABELS] for a in LABELS]
    return Kinship(torch.tensor(related), torch.tensor(parents))


def parity() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    encoder, decoder = UnitEncoder(200, 16, (32, 24)).eval(), MirroredDecoder(200, 16, (32, 24)).eval()
    for net in (encoder, decoder):  # as if trained: batch norm that does something
        for name, buffer in net.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + (0.5 if name.endswith("var") else -0.5))
    x = torch.rand(300, 200)
    with torch.no_grad():
        z = encoder(x)
        back = decoder(z)
    states = {f"{key}/{name}": value.numpy() for key, net in (("e", encoder), ("d", decoder))
              for name, value in net.state_dict().items()}  # fmt: skip
    theirs = run_apart(NETWORK, {"x": x.numpy(), "children": [], "parents": [], "labels": [], **states}, SETUP)
    peer, rows = version("scimilarity"), []
    for metric, mine, other in (("point", z, theirs["z"]), ("reconstruction", back, theirs["back"])):
        off = float(np.abs(mine.numpy() - other).max())
        rows.append(record("scimilarity", "parity", "the original's network with the same weights", "random",
                           sha256(x.numpy()), f"largest difference of a {metric}", off, reference=peer,
                           reference_value=0.0, tolerance=1e-5, passed=off <= 1e-5))  # fmt: skip
    given = drawn(400)
    found = run_apart(TRIPLETS, given, SETUP)
    points, codes, studies = (torch.from_numpy(given[name]) for name in ("z", "codes", "studies"))
    mine = semi_hard_triplets(points, codes, kinship(), studies, MARGIN, 10**9)
    pairs = [set(zip(*(np.asarray(part).tolist() for part in triplets[:2]), strict=True))
             for triplets in (mine, found["rows"])]  # fmt: skip
    differing = len(pairs[0] ^ pairs[1]) / len(pairs[1])
    digest = sha256(given["z"])
    rows.append(record("scimilarity", "parity", "the same pairs of cells have a semi-hard negative", "random", digest,
                       "share of pairs that differ", differing, reference=peer, reference_value=0.0, tolerance=1e-3,
                       passed=differing <= 1e-3))  # fmt: skip
    theirs_rows = type(mine)(*(torch.from_numpy(np.asarray(part)) for part in found["rows"]))
    loss = float(triplet_loss(points, theirs_rows, MARGIN))
    rows.append(record("scimilarity", "parity", "the loss of the original's triplets", "random", digest,
                       "triplet loss", loss, reference=peer, reference_value=found["loss"], tolerance=1e-6,
                       passed=abs(loss - found["loss"]) <= 1e-6))  # fmt: skip
    return rows


def batches() -> list[dict[str, Any]]:
    """A batch left out; and a type left out of the reference, found by the distance to the nearest cell."""
    scores: dict[str, list[float]] = {"scimilarity": [], "knn": [], "logistic": []}
    novel: dict[str, list[float]] = {"distance": [], "pca": []}
    for seed in SEEDS:
        adata = tf.data.simulate(1600, 600, 8, 4, type_strength=0.5, batch_strength=0.9, seed=seed)
        truth = adata.obs["cell_type"].astype(str).to_numpy()
        asked = (adata.obs["batch"] == "batch_4").to_numpy()
        for name, found in scores.items():
            params = {"calibration": 0.0, **({"voting": "off"} if name == "logistic" else {})}
            model = tf.method("annotate", name, **params).fit(adata[~asked].copy(), labels="cell_type", batch="batch",
                                                             progress=False)  # fmt: skip
            found.append(float((model.predict(adata[asked].copy()) == truth[asked]).mean()))
        new = truth == "type_3"
        kept = adata[~asked & ~new].copy()
        model = tf.annotate.SCimilarity(calibration=0.0).fit(kept, labels="cell_type", batch="batch",
                                              progress=False)  # fmt: skip
        query = adata[asked].copy()
        novel["distance"].append(metrics.novel_auroc(new[asked], model.neighbors(query)["nearest"].to_numpy()))
        detector = model._detector()
        far = detector.scores(detector.embed(Inputs(query, {})))[:, 0]
        novel["pca"].append(metrics.novel_auroc(new[asked], far))
        print(seed, {name: found[-1] for name, found in {**scores, **novel}.items()}, flush=True)
    digest, data = sha256(adata.X.data), f"simulated, batch effect 0.9, {len(SEEDS)} seeds"
    mean = {name: float(np.mean(found)) for name, found in {**scores, **novel}.items()}
    return [
        record("scimilarity", "check", "two points above neighbours in principal components, a batch left out", data,
               digest, "accuracy", mean["scimilarity"], reference="tenfold knn", reference_value=mean["knn"],
               tolerance=POINTS, passed=mean["scimilarity"] >= mean["knn"] + POINTS),
        record("scimilarity", "check", "beside logistic regression, a batch left out", data, digest, "accuracy",
               mean["scimilarity"], reference="tenfold logistic", reference_value=mean["logistic"], passed=True),
        record("scimilarity", "check", "a new type is far from the index", data, digest,
               "AUROC of new cells by distance to the nearest", mean["distance"], tolerance=AUROC,
               reference="distance in principal components", reference_value=mean["pca"],
               passed=mean["distance"] >= AUROC),
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    path = ROOT / "evidence" / "results" / "scimilarity_acceptance.json"
    parts = {
        "parity": parity,
        "batches": batches,
        "folds": lambda: beside_baselines("scimilarity", {"calibration": 0.0}),
    }
    for name, part in parts.items():
        if name in (sys.argv[1:] or [name]):
            fresh = part()
            kept = json.loads(path.read_text()) if path.exists() else []
            again = {(row["claim"], row["metric"]) for row in fresh}
            write([row for row in kept if (row["claim"], row["metric"]) not in again] + fresh)


if __name__ == "__main__":
    main()
