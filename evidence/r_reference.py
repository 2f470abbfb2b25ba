"""Run a reference implementation in R on one thread, and read what it found.

The interpreter is the one that TENFOLD_REFERENCE_RSCRIPT names, or ``Rscript``; packages outside its library are found
through R_LIBS, as ever.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import io, sparse

RSCRIPT = os.environ.get("TENFOLD_REFERENCE_RSCRIPT", "Rscript")

_FRAME = """
suppressPackageStartupMessages({{library(Matrix); {libraries}}})
folder <- commandArgs(TRUE)[1]
given <- list()
for (path in list.files(folder, "[.]mtx$", full.names=TRUE))
  given[[sub("[.]mtx$", "", basename(path))]] <- readMM(path)
words <- function(name) readLines(file.path(folder, paste0(name, ".words")))
{setup}
start <- proc.time()
{code}
seconds <- sum((proc.time() - start)[1:2])
result$.seconds <- seconds
for (name in names(result)) {{
  value <- as.matrix(result[[name]])
  writeBin(c(dim(value), as.double(value)), file.path(folder, paste0(name, ".found")))
}}
"""


def run_in_r(code: str, given: dict[str, Any], libraries: tuple[str, ...], setup: str = "") -> dict[str, Any]:
    """Run R code on matrices and lists of words.

    Parameters
    ----------
    code
        Reads the list ``given`` of matrices and ``words(name)``; sets the list ``result`` of numbers or matrices.
    given
        Matrices (handed on as sparse ones) and lists of words.
    libraries
        Packages to load.
    setup
        Runs before the clock starts.

    Returns
    -------
    Arrays of two axes, and ``.seconds``, the CPU time of `code`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key, value in given.items():
            if isinstance(value, list):
                (folder / f"{key}.words").write_text("\n".join(map(str, value)) + "\n")
            else:
                io.mmwrite(folder / f"{key}.mtx", sparse.coo_matrix(value, dtype=np.float64))
        loads = "; ".join(f"library({library})" for library in libraries)
        script = folder / "script.R"
        script.write_text(_FRAME.format(libraries=loads, setup=setup, code=code))
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        done = subprocess.run(
            [RSCRIPT, str(script), name], env={**os.environ, **one_thread}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{RSCRIPT} failed:\n{done.stderr[-2000:]}")
        found = {}
        for path in folder.glob("*.found"):
            numbers = np.fromfile(path)
            rows, columns = numbers[:2].astype(int)
            found[path.stem] = numbers[2:].reshape(columns, rows).T
        found[".seconds"] = float(found[".seconds"][0, 0])
        return found


def r_version(package: str) -> str:
    """Return ``"<package> <version>"`` as installed in R."""
    code = f"cat(as.character(packageVersion('{package}')))"
    done = subprocess.run([RSCRIPT, "-e", code], capture_output=True, text=True, check=True)
    return f"{package} {done.stdout.strip()} (R)"
