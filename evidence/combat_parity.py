"""ComBat equals scanpy.pp.combat on the same log-normalised matrix, also with covariates.

Scanpy adds indicators of all levels of a categorical covariate beside those of all batches and inverts the singular
matrix, so categorical covariates are given to it as indicator columns without the first level.
"""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
from recording import DATA, record, run_apart, sha256, version, write

from tenfold.integrate.combat import ComBat

SETUP = "import anndata as ad, pandas as pd, scanpy as sc"
CODE = """
obs = pd.DataFrame({"batch": pd.Categorical(given["batch"])})
for i in range(given["covariates"].shape[1]):
    obs[f"c{i}"] = given["covariates"][:, i]
obs.index = obs.index.astype(str)
names = [name for name in obs if name != "batch"]
result = {"y": sc.pp.combat(ad.AnnData(given["x"], obs=obs), key="batch", covariates=names or None, inplace=False)}
"""


def main() -> None:
    warnings.simplefilter("ignore")
    rows, claim, reference = [], "corrected values equal Scanpy's to 1e-6", version("scanpy")
    for name in ("pbmc_3chem", "cellline_3x2", "starmap_mpfc"):
        path = DATA / f"{name}.h5ad"
        adata = ad.read_h5ad(path)
        rng = np.random.default_rng(0)
        adata.obs["sex"] = rng.choice(["f", "m", "unknown"], size=adata.n_obs)
        adata.obs["age"] = rng.normal(size=adata.n_obs)
        indicators = np.stack([adata.obs["sex"] == "m", adata.obs["sex"] == "unknown"], axis=1).astype(float)
        age = adata.obs["age"].to_numpy(dtype=np.float32)[:, None]
        for what, roles, columns in (
            ("no covariate", {}, np.zeros((adata.n_obs, 0))),
            ("categorical covariate", {"categorical_covariates": "sex"}, indicators),
            ("categorical and continuous covariate", {"categorical_covariates": "sex", "continuous_covariates": "age"},
             np.hstack([indicators, age])),
        ):  # fmt: skip
            fitted = ComBat().fit(adata, batch="batch", progress=False, **roles)
            x = fitted.expression_.toarray().astype(np.float64)
            varying = x.std(axis=0) > 0
            batch = adata.obs["batch"].astype(str).to_numpy().astype("U")
            theirs = run_apart(CODE, {"x": x[:, varying], "batch": batch, "covariates": columns}, SETUP)["y"]
            difference = float(np.abs(fitted.correct()[:, varying] - theirs).max())
            rows.append(
                record("combat", "parity", claim, name, sha256(path), f"largest difference, {what}", difference,
                       reference=reference, reference_value=0.0, tolerance=1e-6, passed=difference < 1e-6)
            )  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
