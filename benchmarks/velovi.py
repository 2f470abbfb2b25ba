"""veloVI against scvi-tools' VELOVI: CPU time and held-out likelihood of the same cells, one thread each.

Averages over neighbours of a real pancreas, scaled to [0, 1]: 50 or 300 genes trained to the end by both sides' early
stopping, and all genes for a few epochs. Both have the same cells to train on, to stop by and to be judged on; the
likelihood of both is computed by one function (z and shares of states at their means, nats per cell), from the
original's weights in our network. Run ``python benchmarks/velovi.py [small] [few] [whole]`` with
TENFOLD_REFERENCE_PYTHON set; results of other parts are kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import read_h5ad

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))
from recording import DATA, record, run_apart, sha256, version, write  # noqa: E402
from velovi_parity import SETUP, with_weights  # noqa: E402

from tenfold.data.inputs import Inputs  # noqa: E402
from tenfold.data.minibatches import split  # noqa: E402
from tenfold.data.velocity import moments_of  # noqa: E402
from tenfold.velocity.velovi import VeloVI  # noqa: E402
from tenfold.velocity_models.steady_state import by_blocks, steady_state  # noqa: E402

NAME = "pancreas_velocity.h5ad"
#: Genes (None: all) and epochs at most.
RUNS = {"small": (50, 500), "few": (None, 5), "whole": (300, 500)}
FASTER, TOLERANCE = 4, 0.01

THEIRS = """
model = VELOVI(a)
model.train(max_epochs=int(given["epochs"]), accelerator="cpu", enable_progress_bar=False,
            external_indexing=[given["train"], given["validation"], given["test"]])
"""
THEIRS_AFTER = """
result = {name: value.numpy() for name, value in model.module.state_dict().items()}
result["_epochs"] = len(model.history["elbo_validation"])
"""
OURS_SETUP = """
from types import SimpleNamespace
import torch
torch.set_num_threads(1)
from tenfold.data.inputs import Inputs
from tenfold.engine import History, seeded
from tenfold.velocity.velovi import VeloVI, highest
x = np.hstack([given["s"], given["u"]])
nothing = SimpleNamespace(run=None)
def trained(epochs, cells):
    model = VeloVI(epochs=epochs, device="cpu", tied=bool(given["tied"]))
    model.top_ = highest(x)
    with seeded(0):
        net = model._build()
    model._train(net, nothing, {"x": x[cells]}, [model._phase()], train_fraction=0.9)
    return model
trained(1, np.arange(40))
"""
OURS = """
model = trained(int(given["epochs"]), given["rest"])
"""
OURS_AFTER = """
result = {name: value.numpy() for name, value in model.net_.state_dict().items()}
result["_epochs"] = int(History.from_dict(model.history_).terms["epoch"].max()) + 1
"""
#: The clock stops before results are written out.
STOP = "\nseconds_of_training = time.process_time() - start\n"


def trained(code: str, after: str, given: dict[str, Any], **where: Any) -> dict[str, Any]:
    after += 'result["_cpu"] = seconds_of_training\n'
    return run_apart(code + STOP + after, given, **where)


def race(s: np.ndarray, u: np.ndarray, epochs: int, digest: str) -> list[dict[str, Any]]:
    rest, test = split(len(s), 0.9, 1)
    train, validation = (rest[rows] for rows in split(len(rest), 0.9, 0))
    given = {"s": s, "u": u, "epochs": epochs, "rest": rest, "train": train, "validation": validation, "test": test}
    theirs = trained(THEIRS, THEIRS_AFTER, given, setup=SETUP)
    held_out = torch.as_tensor(np.hstack([s, u])[test])
    reference, rows = version("scvi-tools"), []
    for tied in (False, True):
        ours = trained(OURS, OURS_AFTER, {**given, "tied": tied}, setup=OURS_SETUP, python=sys.executable)
        nets = with_weights({name: value for name, value in theirs.items() if name[0] != "_"}), VeloVI(tied=tied)
        nets[1].top_ = np.stack([theirs["switch_unspliced"], theirs["switch_spliced"]])
        own = nets[1]._build().eval()
        own.load_state_dict({name: torch.as_tensor(value) for name, value in ours.items() if name[0] != "_"})
        with torch.no_grad():
            nll, beside = (float(net.nll_at_mean(held_out).mean()) for net in (own, nets[0]))
        kind = "tied" if tied else "a state for each"
        where = f"{NAME}, {s.shape[1]} genes, {epochs} epochs at most"
        ratio = theirs["_cpu"] / ours["_cpu"]
        rows.append(record(
            "velovi", "check", f"CPU time, {kind}", where, digest, "times less CPU time than the original", ratio,
            passed=ratio >= FASTER, reference=reference, reference_value=1.0, tolerance=FASTER,
        ))  # fmt: skip
        rows.append(record(
            "velovi", "check", f"CPU time, {kind}", where, digest, "CPU seconds", ours["_cpu"], passed=True,
            reference=reference, reference_value=theirs["_cpu"],
        ))  # fmt: skip
        rows.append(record(
            "velovi", "check", f"CPU time, {kind}", where, digest, "epochs", ours["_epochs"], passed=True,
            reference=reference, reference_value=theirs["_epochs"],
        ))  # fmt: skip
        if epochs > 100:
            rows.append(record(
                "velovi", "check", f"held-out likelihood, {kind}", where, digest,
                "negative log-likelihood per held-out cell (nats)", nll, passed=nll <= beside + TOLERANCE * abs(beside),
                reference=reference, reference_value=beside, tolerance=TOLERANCE,
            ))  # fmt: skip
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    moments = moments_of(Inputs(read_h5ad(DATA / NAME), {}))
    low, high = (getattr(np.stack([moments.spliced, moments.unspliced]), side)(axis=1) for side in ("min", "max"))
    s, u = (np.stack([moments.spliced, moments.unspliced]) - low[:, None]) / (high - low)[:, None]
    ratio, r2, _ = by_blocks(steady_state, s, u)
    dynamic = np.flatnonzero((r2 > 0.01) & (ratio > 0.01))
    kept = ROOT / "evidence" / "results" / "benchmark_velovi.json"
    for part in sys.argv[1:] or RUNS:
        number, epochs = RUNS[part]
        genes = dynamic if number is None else np.sort(np.random.default_rng(0).choice(dynamic, number, replace=False))
        new = race(s[:, genes], u[:, genes], epochs, sha256(DATA / NAME))
        old = json.loads(kept.read_text()) if kept.exists() else []
        write([row for row in old if row["dataset"] != new[0]["dataset"]] + new)
