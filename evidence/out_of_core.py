"""scVI trained from disk: a file sorted by batch and cell type trains as well as a shuffled one, and as memory does.

The same simulated cells from a sorted file, from a shuffled file and from memory, seed by seed: loss of each epoch, and
error on other cells at the end. Buffers have 1,024 blocks and a quarter of the cells each. Beside them, what mixing is
for: the sorted file with a single block in a buffer. Run ``python evidence/out_of_core.py``; a minute or two.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch
from large_store import N_GENES, write_cells
from recording import record, write

N_CELLS, N_TEST, EPOCHS, SEEDS = 40_000, 4000, 4, (0, 1)
#: Largest difference from the loss of the other source, as a share of it.
TOLERANCE = 0.003
#: Buffers in an epoch and blocks in a buffer, as in use and unmixed.
MIXED, UNMIXED = (4, 1024), (160, 1)


def train(source: ad.AnnData, test: ad.AnnData, seed: int, mixing: tuple[int, int]) -> np.ndarray:
    """Return the training loss of every epoch, and the reconstruction error on other cells as a last number."""
    from tenfold.data import blocks, streamed
    from tenfold.embed import SCVI

    n_buffers, blocks.BLOCKS = mixing
    blocks.BUFFER_BYTES = int(streamed.ENTRY * (test.X.nnz / N_TEST + 1) * N_CELLS / n_buffers)
    model = SCVI(n_top_genes=None, epochs=EPOCHS, train_fraction=1.0, seed=seed, device="cpu")
    model.fit(source, batch="batch", progress=False)
    losses = model.history.loc[model.history["term"] == "nll", "train"]
    return np.append(losses.to_numpy(), model.reconstruction_error(test))


def curves(folder: Path) -> tuple[dict[str, np.ndarray], str]:
    """Train from each source with each seed; return means over seeds, and the digest of the counts."""
    from tenfold.data import streamed

    paths = {name: folder / f"{name}.h5ad" for name in ("all", "sorted", "shuffled")}
    digest = write_cells(paths["all"], N_CELLS + N_TEST)
    adata = ad.read_h5ad(paths["all"])
    order = np.random.default_rng(0).permutation(adata.n_obs)
    test, shuffled = adata[order[:N_TEST]].copy(), adata[order[N_TEST:]].copy()
    adata[np.sort(order[N_TEST:])].copy().write_h5ad(paths["sorted"])
    shuffled.write_h5ad(paths["shuffled"])
    streamed.LARGEST_LOADED = 0
    found: dict[str, list[np.ndarray]] = {}
    for seed in SEEDS:
        for name, mixing in (("memory", MIXED), ("shuffled", MIXED), ("sorted", MIXED), ("unmixed", UNMIXED)):
            source = "sorted" if name == "unmixed" else name
            opened = shuffled if name == "memory" else ad.read_h5ad(paths[source], backed="r")
            found.setdefault(name, []).append(train(opened, test, seed, mixing))
            print(f"seed {seed} {name:9s}", *(f"{loss:.2f}" for loss in found[name][-1]), flush=True)
    return {name: np.mean(runs, axis=0) for name, runs in found.items()}, digest


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="tenfold-") as folder:
        mean, digest = curves(Path(folder))
    metrics = [f"training NLL in epoch {epoch + 1}, nats per cell" for epoch in range(EPOCHS)]
    metrics.append(f"NLL of {N_TEST} other cells, nats per cell")
    shared: dict[str, Any] = {"digest": digest, "tolerance": TOLERANCE}
    shared["dataset"] = f"simulated, {N_CELLS} × {N_GENES}, {EPOCHS} epochs, {len(SEEDS)} seeds"
    records = [
        record("scvi", "check", f"a {name} file trains as {other}", metric=metric, value=value, reference=other,
               reference_value=reference, passed=abs(value - reference) <= TOLERANCE * reference, **shared)
        for name, other in (("sorted", "shuffled file"), ("shuffled", "memory"))
        for metric, value, reference in zip(metrics, mean[name], mean[other.split()[0]], strict=True)
    ]  # fmt: skip
    value, reference = mean["unmixed"][-1], mean["shuffled"][-1]
    records.append(
        record("scvi", "check", "control: a sorted file that is not mixed trains worse", metric=metrics[-1],
               value=value, reference="shuffled file", reference_value=reference,
               passed=value > (1 + TOLERANCE) * reference, **shared)
    )  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
