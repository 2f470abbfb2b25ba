"""scVI from disk against scVI from memory: cells a second, peak memory and cost as the number of cells grows.

Both train one epoch on the same file of simulated cells × 2,000 genes, sorted by batch and cell type, each in a process
of its own on one thread, with the file not in the system's cache at first; from disk also with the file compressed. A
rate is that of training alone, in CPU seconds of the whole process, the reading thread's included: what one core does,
whatever else runs on the machine. Run ``python benchmarks/out_of_core.py [n_cells ...]``; records of other sizes are
kept. Files take about 1.7 GB a million cells, in the folder for temporary files.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))
from large_store import N_GENES, forget, write_cells  # noqa: E402
from recording import record, run_apart  # noqa: E402

SIZES = (10_000, 100_000, 1_000_000)
#: Bars: share of the rate in memory, resident memory in GB, and cost of a cell against that at a tenth of the cells.
RATE, MEMORY_GB, LINEAR = 0.75, 3.0, 1.25

SETUP = """
import anndata, torch
torch.set_num_threads(1)
import tenfold as tf
from tenfold import engine
from tenfold.data import streamed
from tenfold.embed import SCVI
on_disk = bool(given["on_disk"])
warm = tf.data.simulate(300, 50)
SCVI(n_top_genes=None, epochs=1).fit(warm, progress=False)  # compiles what is compiled at first use
train, clock = engine.fit, {}
def timed(*args, **options):
    start = time.process_time(), time.perf_counter()
    history = train(*args, **options)
    clock.update(cpu=time.process_time() - start[0], wall=time.perf_counter() - start[1])
    return history
engine.fit = timed
if on_disk:
    streamed.LARGEST_LOADED = 0  # small files as well
"""
CODE = """
adata = anndata.read_h5ad(str(given["path"]), backed="r" if on_disk else None)
m = SCVI(n_top_genes=None, epochs=1, seed=0, device="cpu")
m.fit(adata, batch="batch", progress=False)
embedded = m.embed()
loss = m.history.set_index("term").loc["nll"]
result = {"train_cpu": clock["cpu"], "train_wall": clock["wall"], "loss": loss["train"],
          "validation": loss["validation"]}
"""


def measure(n_cells: int) -> list[dict[str, Any]]:
    """Train from disk and from memory on `n_cells`, and return the records."""
    with tempfile.TemporaryDirectory(prefix="tenfold-") as folder:
        plain, gzip = Path(folder) / "cells.h5ad", Path(folder) / "gzip.h5ad"
        digest = write_cells(plain, n_cells)
        write_cells(gzip, n_cells, compression="gzip")
        sizes = [path.stat().st_size / 2**20 for path in (plain, gzip)]
        print(f"{n_cells:,} cells: {sizes[0]:,.0f} MiB on disk, {sizes[1]:,.0f} with gzip", flush=True)
        runs = {}
        for name, path in (("disk", plain), ("gzip", gzip), ("memory", plain)):
            forget(path)
            given = {"path": str(path), "on_disk": name != "memory"}
            runs[name] = run = run_apart(CODE, given, SETUP, python=sys.executable)
            print(f"  {name:6s} {n_cells / run['train_cpu']:8,.0f} cells per CPU s "
                  f"({n_cells / run['train_wall']:,.0f} per s on the clock)  CPU {run['train_cpu']:7.1f} s of "
                  f"{run['_seconds']:7.1f} s  {run['_peak_mb']:6,.0f} MB  loss {run['loss']:.3f} / "
                  f"{run['validation']:.3f}", flush=True)  # fmt: skip
    disk, memory = runs["disk"], runs["memory"]
    shared = {"claim": f"one epoch of scVI, {n_cells:,} cells, one thread", "digest": digest,
              "dataset": f"simulated, {n_cells} × {N_GENES}, sorted", "reference": "tenfold, in memory"}  # fmt: skip
    rates = [n_cells / run["train_cpu"] for run in (disk, memory, runs["gzip"])]
    losses = [run["validation"] for run in (disk, memory)]
    return [
        record("scvi", "benchmark", metric="cells per CPU second of training from disk", value=rates[0],
               reference_value=rates[1], tolerance=1 - RATE, passed=rates[0] >= RATE * rates[1], **shared),
        record("scvi", "benchmark", metric="cells per CPU second of training from disk, gzip", value=rates[2],
               reference_value=rates[1], tolerance=1 - RATE, passed=rates[2] >= RATE * rates[1], **shared),
        record("scvi", "benchmark", metric="cells per second on the clock, training from disk",
               value=n_cells / disk["train_wall"], reference_value=n_cells / memory["train_wall"], tolerance=1 - RATE,
               passed=disk["train_wall"] <= memory["train_wall"] / RATE, **shared),
        record("scvi", "benchmark", metric="peak resident memory, GB, fit from disk and embedding",
               value=disk["_peak_mb"] / 1024, reference_value=memory["_peak_mb"] / 1024,
               passed=disk["_peak_mb"] / 1024 < MEMORY_GB, **shared),
        record("scvi", "benchmark", metric="CPU seconds, all: reading, checks, training, embedding",
               value=disk["_seconds"], reference_value=memory["_seconds"], passed=True, **shared),
        record("scvi", "benchmark", metric="validation NLL after one epoch, nats per cell", value=losses[0],
               reference_value=losses[1], tolerance=0.01, passed=losses[0] <= 1.01 * losses[1], **shared),
    ]  # fmt: skip


def linearity(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the cost of a cell at each size with that at the size before."""
    seconds = {int(row["dataset"].split()[1]): row for row in rows if row["metric"].startswith("CPU seconds, all")}
    sizes = sorted(seconds)
    return [
        record("scvi", "benchmark", "the cost is linear in cells", seconds[large]["dataset"], seconds[large]["sha256"],
               "CPU microseconds per cell, all", 1e6 * seconds[large]["value"] / large,
               reference=f"at {small} cells", reference_value=1e6 * seconds[small]["value"] / small,
               tolerance=LINEAR - 1,
               passed=seconds[large]["value"] / large <= LINEAR * seconds[small]["value"] / small)
        for small, large in pairwise(sizes)
    ]  # fmt: skip


def main() -> None:
    path = ROOT / "evidence" / "results" / "benchmark_out_of_core.json"
    path.parent.mkdir(exist_ok=True)
    for n_cells in [int(size) for size in sys.argv[1:]] or SIZES:
        fresh = measure(n_cells)
        kept = json.loads(path.read_text()) if path.exists() else []
        kept = [row for row in kept if row["dataset"] != fresh[0]["dataset"] and "linear" not in row["claim"]]
        path.write_text(json.dumps([*kept, *fresh, *linearity(kept + fresh)], indent=1) + "\n")


if __name__ == "__main__":
    main()
