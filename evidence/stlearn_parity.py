"""stLearn's smoothing against the original's own code: expression after SME on equal components, CPU time and memory.

The package asks for Python 3.12; the file with its weighting needs scikit-learn and anndata only. Give the folder of
its source (github.com/BiomedicalMachineLearning/stLearn) as ``TENFOLD_STLEARN_SOURCE``, an environment with these and
tqdm as ``TENFOLD_REFERENCE_PYTHON``, and run ``python evidence/stlearn_parity.py``.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import numpy as np
from domain_slices import digest, load
from recording import record, run_apart, sha256, version, write

import tenfold as tf
from tenfold.data.image_features import morphology
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import positions_of

TOLERANCE, BAR = 1e-5, 5.0
#: Size of a Visium slice.
N_SPOTS, N_GENES = 3_500, 3_000

SETUP = """
import importlib.util, types
import anndata as ad, pandas as pd
package = types.ModuleType("sme")
package.__path__ = [str(given["source"])]
sys.modules["sme"] = package
def module(name):
    spec = importlib.util.spec_from_file_location("sme." + name, f"{given['source']}/{name}.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules["sme." + name] = found
    spec.loader.exec_module(found)
    return found
module("_weighting_matrix")
normalize = module("sme_normalize").sme_normalize
column, row = given["array"].T
adata = ad.AnnData(given["x"], obs=pd.DataFrame({"imagecol": given["where"][:, 0], "imagerow": given["where"][:, 1]},
                   index=[f"{c}x{r}" for c, r in zip(column, row)]),
                   obsm={"X_pca": given["pca"], "X_morphology": given["picture"]})
adata.obs["array_row"], adata.obs["array_col"] = row, column
"""
CODE = """
normalize(adata, platform="Visium")
seconds = time.process_time() - start
regression = sys.modules["sme._weighting_matrix"].row_col_by_platform(adata, "Visium")
unit = float(np.hypot(regression[0].coef_[0], regression[1].coef_[0]))
result = {"smooth": adata.obsm["raw_SME_normalized"], "reach": 3 * unit, "seconds": seconds}
"""
OURS_SETUP = """
from scipy import sparse
from tenfold.data.spatial import Positions, spatial_graph
from tenfold.domains.stlearn import smoother
from tenfold.types import Codes
x, where, n = sparse.csr_matrix(given["x"]), given["where"].astype(float), len(given["where"])
positions = Positions(where, Codes(np.zeros(n, np.int32), ["all"]), 1.0, "pixel")
"""
OURS = """
near = spatial_graph(positions, "radius", radius=float(given["reach"]))
smooth = smoother(near, where, given["picture"], given["pca"], 3) @ x
seconds = time.process_time() - start
result = {"smooth": smooth.toarray(), "seconds": seconds}
"""


def compared(given: dict[str, Any], shown: dict[str, Any], timed: bool) -> list[dict[str, Any]]:
    """Compare smoothed expression, and time where asked."""
    source = os.path.join(os.environ["TENFOLD_STLEARN_SOURCE"], "stlearn", "spatial", "sme")
    theirs = run_apart(CODE, {**given, "source": source}, SETUP)
    # Nothing at the border of the reach: theirs leaves out what lies at it.
    ours = run_apart(OURS, {**given, "reach": theirs["reach"] * (1 - 1e-9)}, OURS_SETUP, python=sys.executable)
    apart = float(np.abs(ours["smooth"] - theirs["smooth"]).max() / np.abs(theirs["smooth"]).max())
    records = [record("stlearn", "parity", "on equal components and reach", metric="smoothed expression, largest "
                      "relative difference", value=apart, reference_value=0.0, tolerance=TOLERANCE,
                      passed=apart <= TOLERANCE, **shown)]  # fmt: skip
    if timed:
        records += [
            record("stlearn", "benchmark", f"smoothing, one thread, at least {BAR:g} times less", metric="CPU seconds",
                   value=ours["seconds"], reference_value=theirs["seconds"], tolerance=BAR,
                   passed=BAR * ours["seconds"] <= theirs["seconds"], **shown),
            record("stlearn", "benchmark", "smoothing, with dense input and output for both", metric="peak memory, MB",
                   value=ours["_peak_mb"], reference_value=theirs["_peak_mb"],
                   passed=ours["_peak_mb"] <= theirs["_peak_mb"], **shown),
        ]  # fmt: skip
    return records


def main() -> None:
    warnings.simplefilter("ignore")
    reference = f"stLearn 4dd71bc, sme/*.py, {version('scikit-learn')}"
    adata = load("her2st_A1")
    data = Inputs(adata, {})
    given = {"x": data.lognorm[:, data.variable_genes(2000)].toarray(), "where": adata.obsm["spatial"],
             "pca": data.pca(50, 2000).embedding, "picture": morphology(data, positions_of(data)),
             "array": adata.obs[["array_col", "array_row"]].to_numpy().astype(int)}  # fmt: skip
    records = compared(given, {"dataset": "her2st_A1", "digest": digest("her2st_A1"), "reference": reference}, False)
    simulated = tf.data.simulate(N_SPOTS, N_GENES, n_types=7, depth=2_000.0, seed=0)
    row, column = np.divmod(np.arange(N_SPOTS), 60)
    where = np.column_stack([column, row]) * 100.0
    simulated.obsm["spatial"] = where
    data, rng = Inputs(simulated, {}), np.random.default_rng(0)
    given = {"x": data.lognorm.toarray(), "where": where, "pca": data.pca(50, None).embedding,
             "picture": rng.normal(size=(N_SPOTS, 50)), "array": np.column_stack([column, row])}  # fmt: skip
    shown = {"dataset": f"simulated, {N_SPOTS:,} x {N_GENES:,}", "digest": sha256(data.lognorm.data)}
    write(records + compared(given, {**shown, "reference": reference}, True))


if __name__ == "__main__":
    main()
