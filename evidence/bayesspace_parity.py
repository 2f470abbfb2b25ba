"""BayesSpace against the C++ of the original on a square and a hexagonal lattice: labels, uncertainty, CPU time.

The R package does not install here, but its sampler needs RcppArmadillo only, once two draws of a package that is
missing are Armadillo's own (Wishart, Gaussian). Give the folder of the original's source
(github.com/edward130603/BayesSpace) as ``TENFOLD_BAYESSPACE_SOURCE``, then run
``python evidence/bayesspace_parity.py``.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import numpy as np
from domain_slices import SLACK, digest, load, n_domains, truth
from r_reference import r_version, run_in_r
from recording import record, run_apart, write

from tenfold import metrics
from tenfold.data.heads import clusters_of
from tenfold.data.inputs import Inputs
from tenfold.data.lattice import lattice_of
from tenfold.data.spatial import positions_of
from tenfold.domains.bayesspace import SMOOTHING
from tenfold.kernels.potts import Tally
from tenfold.spatial_models.sampling import log2_components

SLICE, SEEDS, BAR = "her2st_A1", 2, 5.0
#: Sweeps of the original, which proposes one label at a time, and ours; both keep four fifths.
THEIRS, OURS_SWEEPS = 10_000, 2_000
#: The slice that is timed, and sweeps of both there.
VISIUM, TIMED = "dlpfc_151510", (40, 400)

SETUP = """
library(Rcpp)
source <- words("source")
read <- function(name) paste(readLines(file.path(source, "src", name)), collapse="\\n")
bare <- function(text) gsub('#include "[a-z_]+[.]h"', "", gsub("#include <RcppDist.h>", "", text, fixed=TRUE))
main <- gsub('plugins("cpp11")', "plugins(cpp17)", bare(read("cluster.cpp")), fixed=TRUE)
main <- gsub("RcppArmadillo, RcppDist", "RcppArmadillo", main, fixed=TRUE)
sourceCpp(code=paste("#include <RcppArmadillo.h>",
  "inline arma::mat rwish(double df, const arma::mat& S) { return arma::wishrnd(S, df); }",
  "inline arma::mat rmvnorm(int n, const arma::vec& m, const arma::mat& S) { return arma::mvnrnd(m, S, n).t(); }",
  bare(read("utils.h")), bare(read("neighbor.h")), bare(read("double_states_vector.h")), main, sep="\\n"))
y <- as.matrix(given$y); near <- as.matrix(given$near); labels <- as.integer(as.matrix(given$labels))
neighbors <- lapply(seq_len(nrow(y)), function(i) near[near[, 1] == i, 2] - 1)
q <- max(labels); gamma <- as.matrix(given$gamma)[1, 1]
"""
CODE = """
result <- list()
sweeps <- as.matrix(given$sweeps)[1, 1]
for (seed in seq_len(as.matrix(given$seeds)[1, 1])) {
  set.seed(seed)
  out <- iterate_t(y, neighbors, sweeps, 10, nrow(y), ncol(y), gamma, q, labels, colMeans(y), diag(0.01, ncol(y)), 1,
    0.01)
  result[[paste0("z", seed)]] <- out$z
}
"""
OURS_SETUP = """
import anndata as ad
from tenfold.domains.bayesspace import BayesSpace
def fitted(seed, epochs):
    adata = ad.AnnData(np.ones((len(given["y"]), 2), np.float32), obsm={"spatial": given["xy"], "X": given["y"]})
    adata.obs["array_row"], adata.obs["array_col"] = given["array"].T
    model = BayesSpace(n_clusters=int(given["q"]), epochs=epochs, seed=seed)
    return model.fit(adata, use_rep="X", progress=False)
fitted(0, 5)
"""
OURS = """
models = [fitted(seed, int(given["sweeps"])) for seed in range(int(given["seeds"]))]
result = {"z": np.array([m.cluster() for m in models]), "p": np.array([m.probabilities().to_numpy() for m in models])}
"""


def counted(samples: np.ndarray, n_labels: int) -> Tally:
    """Count the samples after the burn-in, shape (n_samples, n_cells), labels from 1."""
    tally = Tally(samples.shape[1], n_labels)
    for sample in samples[len(samples) // 5 :].astype(np.int64) - 1:
        tally.add(sample)
    return tally


def given_of(name: str) -> tuple[dict[str, Any], int]:
    """Return components, neighbours and first labels of a slice, and the number of its domains."""
    adata = load(name)
    data, q = Inputs(adata, {}), n_domains(adata)
    y = log2_components(data, 15, 2000).astype(np.float32).astype(np.float64)
    found = lattice_of(data, positions_of(data))
    graph = found.graph.tocoo()
    near = np.column_stack([graph.row, graph.col]) + 1
    labels = clusters_of(y, q, "mclust", 0)[:, None] + 1
    return {"y": y, "near": near, "labels": labels, "gamma": np.array([[SMOOTHING[found.shape]]])}, q


def both(name: str, theirs: int, ours: int, seeds: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Run the original and ours from the same start, so many sweeps each."""
    given, q = given_of(name)
    adata = load(name)
    source = [os.environ["TENFOLD_BAYESSPACE_SOURCE"]]
    numbers = {"sweeps": np.array([[theirs]]), "seeds": np.array([[seeds]])}
    one = run_in_r(CODE, {**given, **numbers, "source": source}, ("Rcpp",), SETUP)
    two = run_apart(OURS, {"y": given["y"].astype(np.float32), "xy": adata.obsm["spatial"].astype(float), "q": q,
                           "array": adata.obs[["array_row", "array_col"]].to_numpy(), "sweeps": ours, "seeds": seeds},
                    OURS_SETUP, python=sys.executable)  # fmt: skip
    return one, two, q


def same_labels(shown: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare labels and their probabilities."""
    theirs, ours, q = both(SLICE, THEIRS, OURS_SWEEPS, SEEDS)
    tallies = [counted(theirs[f"z{seed + 1}"], q) for seed in range(SEEDS)]
    z = [tally.modes for tally in tallies]
    domain, told = truth(load(SLICE))
    claim = f"same components and start, {SEEDS} seeds, {OURS_SWEEPS:,} sweeps to the original's {THEIRS:,}"
    scores = [[metrics.ari(labels[told], domain[told]) for labels in runs] for runs in (ours["z"], z)]
    print(np.round(scores, 3), flush=True)
    value, wanted = (float(np.mean(found)) for found in scores)
    across = float(np.mean([metrics.ari(a, b) for a in ours["z"] for b in z]))
    within = metrics.ari(z[0], z[1])
    sure = [float(np.mean(p.max(axis=-1))) for p in (ours["p"], np.array([t.probabilities() for t in tallies]))]
    shown = {"dataset": SLICE, "digest": digest(SLICE), **shown}
    return [
        record("bayesspace", "parity", claim, metric="ARI with the annotation, mean", value=value, tolerance=SLACK,
               reference_value=wanted, passed=value >= wanted - SLACK, **shown),
        record("bayesspace", "parity", f"{claim}; as alike as two seeds of the original", metric="ARI with the "
               "original's labels", value=across, reference_value=within, tolerance=SLACK,
               passed=across >= within - SLACK, **shown),
        record("bayesspace", "parity", claim, metric="probability of the most frequent label, mean over cells",
               value=sure[0], reference_value=sure[1], tolerance=0.03, passed=abs(sure[0] - sure[1]) <= 0.03, **shown),
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    reference = {"reference": f"BayesSpace 3ddbd4e, {r_version('RcppArmadillo')}"}
    records = same_labels(reference)
    theirs, ours, _ = both(VISIUM, *TIMED, 1)
    each = ours["_seconds"] / TIMED[1], theirs[".seconds"] / TIMED[0]
    records.append(record("bayesspace", "benchmark", f"one thread, at least {BAR:g} times less", VISIUM, digest(VISIUM),
                          "CPU seconds of a sweep", each[0], reference_value=each[1], tolerance=BAR,
                          passed=BAR * each[0] <= each[1], **reference))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
