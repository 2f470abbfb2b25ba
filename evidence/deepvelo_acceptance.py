"""DeepVelo: signs and time on simulations, the known direction of a real set, and what it makes of permuted counts.

Run ``python evidence/deepvelo_acceptance.py [simulations pancreas permuted_pancreas permuted_branching]``; parts that
are not named keep their records. Three seeds on the real set (the sheet asks for five) and two permutations of each
kind, for the sake of time.
"""

from __future__ import annotations

import json
import sys
import warnings
from functools import partial

import torch
from cell_rate_checks import on_pancreas, on_permuted_branching, on_permuted_pancreas, on_simulations
from recording import ROOT, write

import tenfold as tf

NAME = "deepvelo"

if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    make = partial(tf.method, "velocity", NAME)
    parts = {
        "simulations": lambda: on_simulations(NAME, make),
        "pancreas": lambda: on_pancreas(NAME, make, 3),
        "permuted_pancreas": lambda: on_permuted_pancreas(NAME, make, 2),
        "permuted_branching": lambda: on_permuted_branching(NAME, make, 2),
    }
    kept = ROOT / "evidence" / "results" / f"{NAME}_acceptance.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for part in sys.argv[1:] or parts:
        new = parts[part]()
        told = {(row["claim"], row["dataset"]) for row in new}
        rows = [row for row in rows if (row["claim"], row["dataset"]) not in told] + new
        write(rows)
