"""The dynamical model at 20,000 cells against scVelo 0.3.4: CPU seconds a gene, and loss under one rule."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from recording import record, sha256, version, write  # noqa: E402
from velocity_dynamical_parity import projected_losses, theirs_of, timed  # noqa: E402

import tenfold as tf  # noqa: E402
from tenfold.data.inputs import Inputs  # noqa: E402
from tenfold.data.velocity import moments_of  # noqa: E402

GENES = 4


def main() -> None:
    torch.set_num_threads(1)
    adata = tf.data.simulate_splicing(20_000, GENES, seed=3)
    adata.obsm["X_time"] = np.stack([adata.obs["true_time"], np.zeros(adata.n_obs)], axis=1)
    moments = moments_of(Inputs(adata, {"use_rep": "X_time"}), n_top_genes=None, normalize=False)
    genes, peer = np.arange(len(moments.columns)), version("scvelo")
    rates, theirs = theirs_of(moments, genes)
    rows, digest = [], sha256(adata.layers["spliced"])
    dataset = f"exact two-phase simulation, 20,000 cells × {len(genes)} genes"
    for schedule, least in (("reference", 10), ("profile", 50)):
        fits, seconds = timed(moments, genes, schedule == "profile")
        rows.append(
            record("scvelo_dynamical", "benchmark", f"{schedule}: at least {least} times less CPU time than scVelo",
                   dataset, digest, "CPU seconds a gene, one thread", seconds / len(genes), reference=peer,
                   reference_value=theirs["seconds"] / len(genes), passed=least * seconds <= theirs["seconds"])
        )  # fmt: skip
        loss = projected_losses(moments, genes, rates, fits.ratio)
        quotient = float(np.median(projected_losses(moments, genes, fits.rates, fits.ratio) / loss))
        rows.append(
            record("scvelo_dynamical", "benchmark", f"{schedule}: at equal or lower loss", dataset, digest,
                   "median ratio of losses, times of both by projection", quotient, reference=peer,
                   reference_value=1.0, passed=quotient <= 1.001)
        )  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
