"""cellDancer: signs on simulations, what they owe to the start of training, a real set, permuted counts, time.

Run ``python evidence/celldancer_acceptance.py [PART ...]`` (parts are named at the end); parts that are not named keep
their records. One seed on the real set and one permutation of each kind, there with at most 300 genes and 60 epochs,
for the sake of time.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from cell_rate_checks import (
    known,
    on_pancreas,
    on_permuted_branching,
    on_permuted_pancreas,
    on_simulations,
    simulations,
)
from recording import ROOT, record, sha256, write

import tenfold as tf
from tenfold.kernels.adam import Adam
from tenfold.nn.gene_networks import CosineTraining, GeneNetworks, plane_of
from tenfold.velocity import celldancer
from tenfold.velocity.celldancer import CellDancer, factors_of

NAME = "celldancer"
#: The sheet's share of right signs on genes that go on and off, and its seconds for 1,000 genes × 3,000 cells.
LEAST_SIGNS, MOST_SECONDS = 0.8, 300
#: Updates from which the time of a whole training is told, since it is linear in them.
UPDATES = 4


def backwards(kind: celldancer.Start, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return places and shares by which spliced counts fall where they would rise, and rise where they would fall."""
    points, _ = celldancer_simulated("circle", rng)
    below = points[:, 0] < points[:, 1]
    shares = [np.where(below, high, low) for high, low in ((0.9, 0.1), (0.1, 0.9), (0.9, 0.03))]
    return points, np.stack(shares, axis=1).astype(np.float32)


celldancer_simulated = celldancer.simulated


def starts() -> list[dict[str, Any]]:
    """Train from the start as it is, from one that is turned round, and not at all."""
    rows = []
    for dataset, (adata, params, roles) in list(simulations().items())[:1]:  # genes that go on and off
        found = {}
        for name, taught, epochs in (("trained", celldancer_simulated, 200), ("turned round", backwards, 200),
                                     ("not trained", celldancer_simulated, 1)):  # fmt: skip
            celldancer.simulated = taught
            model = CellDancer(epochs=epochs, **params).fit(adata, progress=False, **roles)
            found[name] = known(model, adata)[0], float(np.nanmean(model.table_["loss"]))
        celldancer.simulated = celldancer_simulated
        print(found, flush=True)
        signs, loss = found["trained"]
        for claim, other, metric, at, passed in (
            ("signs do not depend on where training starts", "turned round", "share of right signs of ds/dt", 0,
             abs(signs - found["turned round"][0]) < 0.1),
            ("the loss tells the right start from one turned round", "turned round", "mean loss", 1,
             loss < 0.8 * found["turned round"][1]),
            ("training improves the signs of its start", "not trained", "share of right signs of ds/dt", 0,
             signs > found["not trained"][0]),
        ):  # fmt: skip
            rows.append(
                record(NAME, "check", claim, dataset, sha256(adata.layers["true_velocity"]), metric,
                       found["trained"][at], passed=passed, reference=f"start {other}" if at or "turned" in other
                       else "its start", reference_value=found[other][at])
            )  # fmt: skip
    return rows


def seconds() -> list[dict[str, Any]]:
    """Time updates of 1,000 genes × 3,000 cells: all 200 are told from a few, as if no gene stopped before."""
    adata = tf.data.simulate_splicing(n_cells=3000, n_genes=1000, seed=0)
    u, s = adata.layers["unspliced"], adata.layers["spliced"]
    begun = time.process_time()
    plane = plane_of(u, s)
    training = CosineTraining(GeneNetworks(1000, 100), plane, factors_of(plane), 0.125, 30)
    before = time.process_time() - begun
    optimizer = Adam(training.rates.parameters(), lr=1e-3, weight_decay=0.004)
    taken = []
    for epoch in range(UPDATES):
        begun = time.process_time()
        optimizer.zero_grad()
        training.terms(epoch)["loss"].backward()
        optimizer.step()
        taken.append(time.process_time() - begun)
    begun = time.process_time()
    training.finished().everywhere(u / u.max(axis=0), s / s.max(axis=0))
    total = before + 200 * float(np.median(taken[1:])) + time.process_time() - begun
    claim = f"1,000 genes × 3,000 cells, 200 epochs told from {UPDATES}, in at most twice 300 seconds on one core"
    return [
        record(NAME, "check", claim, "simulated on/off genes, 3,000 cells × 1,000 genes", sha256(u),
               "CPU seconds, one thread", total, passed=total <= 2 * MOST_SECONDS)
    ]  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    make = partial(tf.method, "velocity", NAME)
    parts = {
        "simulations": lambda: on_simulations(NAME, make, LEAST_SIGNS),
        "starts": starts,
        "pancreas": lambda: on_pancreas(NAME, make, 1),
        "permuted_branching": lambda: on_permuted_branching(NAME, make, 1),
        "permuted_pancreas": lambda: on_permuted_pancreas(
            NAME, partial(make, n_top_genes=300, epochs=60), 1, ", 300 genes and 60 epochs at most"
        ),
        "time": seconds,
    }
    kept = ROOT / "evidence" / "results" / f"{NAME}_acceptance.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for part in sys.argv[1:] or parts:
        new = parts[part]()
        told = {(row["claim"], row["dataset"]) for row in new}
        rows = [row for row in rows if (row["claim"], row["dataset"]) not in told] + new
        write(rows)
