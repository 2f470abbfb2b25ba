"""What the evidence scripts and benchmarks share: run a reference in its own environment, and write records."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
REFERENCE_PYTHON = os.environ.get("TENFOLD_REFERENCE_PYTHON", sys.executable)
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)  # a fair race, and CPU seconds that mean something on a shared machine

_FRAME = """
import sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np
with np.load(sys.argv[1], allow_pickle=False) as stored:
    given = dict(stored)
{setup}
start = time.process_time()
{code}
seconds = time.process_time() - start
with open("/proc/self/status") as status:  # ru_maxrss would start from the parent's memory
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
np.savez(sys.argv[2], _seconds=seconds, _peak_mb=peak, **result)
"""


def run_apart(code: str, given: dict[str, Any], setup: str = "", python: str = REFERENCE_PYTHON) -> dict[str, Any]:
    """Run `code` in a process of its own, on one thread.

    Parameters
    ----------
    code
        Reads the dict ``given``, sets the dict ``result``; both hold arrays or numbers. Its CPU seconds are measured.
    given
        Arrays or numbers.
    setup
        Runs before the clock starts: imports, conversions, warming up of compiled code.
    python
        Interpreter; the reference environment's unless told otherwise.

    Returns
    -------
    ``result``, and ``_seconds`` (CPU) and ``_peak_mb`` (peak memory of the whole process).
    """
    with tempfile.TemporaryDirectory() as folder:
        before, after, script = (Path(folder) / name for name in ("given.npz", "result.npz", "script.py"))
        np.savez(before, **given)
        script.write_text(_FRAME.format(setup=setup, code=code))
        done = subprocess.run(
            [python, str(script), str(before), str(after)],
            env={**os.environ, **_ONE_THREAD}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{python} failed:\n{done.stderr[-2000:]}")
        with np.load(after, allow_pickle=False) as stored:
            return {name: value.item() if value.ndim == 0 else value for name, value in stored.items()}


def version(package: str, python: str = REFERENCE_PYTHON) -> str:
    """Return ``"<package> <version>"`` as installed in the environment of `python`."""
    code = f"from importlib.metadata import version; print(version('{package}'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return f"{package} {done.stdout.strip()}"


def sha256(source: Path | np.ndarray) -> str:
    """Return the digest of a file, or of the bytes of an array."""
    data = source.read_bytes() if isinstance(source, Path) else np.ascontiguousarray(source).tobytes()
    return hashlib.sha256(data).hexdigest()


def record(
    method: str, kind: str, claim: str, dataset: str, digest: str, metric: str, value: float, *, passed: bool,
    reference: str | None = None, reference_value: float | None = None, tolerance: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return one record of evidence, and print it."""
    row = {
        "method": method, "kind": kind, "claim": claim, "dataset": dataset, "sha256": digest, "metric": metric,
        "value": float(value), "reference": reference,
        "reference_value": None if reference_value is None else float(reference_value), "tolerance": tolerance,
        "passed": bool(passed), "date": datetime.date.today().isoformat(),
        "command": f"python {Path(sys.argv[0]).resolve().relative_to(ROOT)}",
    }  # fmt: skip
    mark = "pass" if passed else "FAIL"
    beside = "" if reference_value is None else f"  ({reference}: {reference_value:.6g})"
    print(f"[{mark}] {method} · {dataset} · {metric}: {value:.6g}{beside}", flush=True)
    return row


def write(records: list[dict[str, Any]]) -> None:
    """Write the records of the running script to ``evidence/results/<script>.json``."""
    script = Path(sys.argv[0])
    prefix = "benchmark_" if script.resolve().parent.name == "benchmarks" else ""
    path = ROOT / "evidence" / "results" / f"{prefix}{script.stem}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(records, indent=1) + "\n")
