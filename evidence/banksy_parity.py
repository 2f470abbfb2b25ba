"""BANKSY against the original: the matrix of expression and surroundings, and its components, on real sections.

The original is pybanksy. Its own entry point hands the option variance_balance on where center is expected, so that
gradients are of values that were not centred, which neither its documentation nor the R package says; here its parts
are called with ``center=True``. Name an environment that has it as ``TENFOLD_REFERENCE_PYTHON``, then run
``python evidence/banksy_parity.py``.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
from domain_slices import digest, load
from recording import record, run_apart, version, write

from tenfold.data.inputs import Inputs

SLICES = ("starmap_mpfc BZ9", "osmfish_ssp")
MIXING, N_NEIGHBORS, N_COMPONENTS = 0.8, 15, 20
TOLERANCE = 1e-4

SETUP = """
import contextlib, io, os
import anndata as ad
from sklearn.decomposition import PCA
from banksy.initialize_banksy import initialize_banksy
from banksy.embed_banksy import create_mat_list, create_nbr_matrix
from banksy.main import concatenate_all
adata = ad.AnnData(given["x"])
adata.obsm["where"] = given["where"]
adata.obs["x"], adata.obs["y"] = given["where"].T
"""
CODE = """
with contextlib.redirect_stdout(io.StringIO()):
    held = initialize_banksy(adata, ("x", "y", "where"), num_neighbours=int(given["n_neighbors"]), max_m=1,
                             plt_edge_hist=False, plt_nbr_weights=False, plt_theta=False)
    around = create_nbr_matrix(adata, held, "scaled_gaussian", 1, center=True, verbose=False)
    features = concatenate_all(create_mat_list(adata, around, 1)[0], float(given["mixing"]))
features = np.asarray(features)
values = PCA(int(given["n_components"]), svd_solver="full").fit(features).singular_values_
result = {"features": features, "values": values}
"""
OURS_SETUP = """
from scipy import sparse
from tenfold.data.spatial import Positions
from tenfold.domains.banksy import augmented, leading
from tenfold.types import Codes
n = len(given["x"])
positions = Positions(given["where"], Codes(np.zeros(n, dtype=np.int32), ["all"]), 1.0, "unknown unit")
few = Positions(given["where"][:50], Codes(np.zeros(50, np.int32), ["all"]), 1.0, "")
leading(augmented(sparse.csr_matrix(given["x"][:50]), few, 3, 0.5), 3)
"""
OURS = """
features = augmented(sparse.csr_matrix(given["x"]), positions, int(given["n_neighbors"]), float(given["mixing"]))
values = np.linalg.norm(leading(features, int(given["n_components"])), axis=0)
result = {"features": features, "values": values}
"""


def compared(name: str) -> list[dict[str, Any]]:
    """Return the records of one slice."""
    adata = load(name)
    x = Inputs(adata, {}).lognorm.toarray()
    given = {"x": x, "where": np.asarray(adata.obsm["spatial"], dtype=np.float64), "mixing": MIXING,
             "n_neighbors": N_NEIGHBORS, "n_components": N_COMPONENTS}  # fmt: skip
    theirs = run_apart(CODE, given, SETUP)
    ours = run_apart(OURS, given, OURS_SETUP, python=sys.executable)
    shown = {"dataset": name, "digest": digest(name), "reference": version("pybanksy")}
    claim = f"{N_NEIGHBORS} neighbours, mixing {MIXING}, log-expression of all genes"
    apart = float(np.abs(ours["features"] - theirs["features"]).max())
    values = float(np.abs(ours["values"] / theirs["values"] - 1).max())
    return [
        record("banksy", "parity", claim, metric="largest difference of a standardised feature", value=apart,
               reference_value=0.0, tolerance=TOLERANCE, passed=apart <= TOLERANCE, **shown),
        record("banksy", "parity", claim, metric=f"singular values of {N_COMPONENTS} components, relative difference",
               value=values, reference_value=0.0, tolerance=1e-3, passed=values <= 1e-3, **shown),
        record("banksy", "benchmark", f"{claim}, one thread", metric="CPU seconds", value=ours["_seconds"],
               reference_value=theirs["_seconds"], passed=ours["_seconds"] <= theirs["_seconds"], **shown),
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    write([row for name in SLICES for row in compared(name)])


if __name__ == "__main__":
    main()
