"""CPU time of a likelihood with its gradient: tenfold against dense PyTorch, and of the sparse first layer.

The dense formulas are those that scvi-tools evaluates: log-gamma at every entry. Its distributions also expand a theta
per gene to every entry before they take logarithms and log-gamma of it ("expanded"); the leaner form that does not is
shown beside it. All sides start from the same logits, use one thread and must give the same value. Run
``python benchmarks/likelihoods.py``; it prints the tables and writes evidence/results/likelihood_speed.json.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from tenfold.kernels.rows import SparseRows, all_rows
from tenfold.kernels.sparse_linear import sparse_linear
from tenfold.nn.likelihoods import count_nll

N_CELLS, N_GENES, N_HIDDEN = 128, 2000, 128
DENSITIES = (0.02, 0.05, 0.1, 0.175, 0.3)
BARS = {"nb": 20.0, "zinb": 15.0}  # least ratio of CPU time at 10 % non-zeros
EPS = 1e-8
RESULTS = Path(__file__).resolve().parents[1] / "evidence" / "results" / "likelihood_speed.json"


def dense_nb(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    log_total = torch.log(theta + mean + EPS)
    return (
        theta * (torch.log(theta + EPS) - log_total)
        + x * (torch.log(mean + EPS) - log_total)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )


def dense_zinb(x: Tensor, mean: Tensor, theta: Tensor, dropout: Tensor) -> Tensor:
    kept = F.softplus(-dropout)
    log_total = torch.log(theta + mean + EPS)
    at_zero = theta * (torch.log(theta + EPS) - log_total) - dropout
    zero = F.softplus(at_zero) - kept
    other = (
        at_zero
        - kept
        + x * (torch.log(mean + EPS) - log_total)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )
    return (x < EPS) * zero + (x > EPS) * other


def simulated(density: float) -> sparse.csr_matrix:
    """Counts of 128 cells and 2,000 genes; about 70 % of the non-zeros are 1."""
    rng = np.random.default_rng(0)
    counts = sparse.random(N_CELLS, N_GENES, density, format="csr", random_state=0, dtype=np.float32)
    counts.data = 1 + rng.negative_binomial(0.3, 0.3, counts.nnz).astype(np.float32)
    return counts


def milliseconds(*steps: Callable[[], object], turns: int = 4, repeats: int = 25) -> list[float]:
    """Median CPU time of each step; steps take turns in runs of `repeats`, so that other load strikes them alike."""
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(turns):
        for step, taken in zip(steps, seconds, strict=True):
            for repeat in range(-3, repeats):
                start = time.process_time()
                step()
                if repeat >= 0:
                    taken.append(time.process_time() - start)
    return [1e3 * float(np.median(taken)) for taken in seconds]


def likelihood(name: str, density: float) -> dict[str, float]:
    counts = all_rows(simulated(density))
    x = counts.dense()
    torch.manual_seed(0)
    logits = torch.randn(N_CELLS, N_GENES, requires_grad=True)
    log_theta = torch.randn(N_GENES, requires_grad=True)
    dropout = (torch.randn(N_CELLS, N_GENES) - 1).requires_grad_() if name == "zinb" else None
    log_size = counts.sum().log()
    leaves = [logits, log_theta] if dropout is None else [logits, log_theta, dropout]

    def ours() -> list[Tensor]:
        loss = count_nll(name, counts, logits, log_size, log_theta=log_theta, dropout_logits=dropout).mean()
        return [loss, *torch.autograd.grad(loss, leaves)]

    def dense(expand: bool) -> list[Tensor]:
        mean, theta = log_size.exp()[:, None] * torch.softmax(logits, -1), log_theta.exp()
        theta = theta.expand_as(mean) if expand else theta
        log_p = dense_nb(x, mean, theta) if dropout is None else dense_zinb(x, mean, theta, dropout)
        loss = -log_p.sum(-1).mean()
        return [loss, *torch.autograd.grad(loss, leaves)]

    different = [
        float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in zip(ours(), dense(True), strict=True)
    ]
    fast, expanded, lean = milliseconds(ours, lambda: dense(True), lambda: dense(False))
    return {
        "ours": fast,
        "expanded": expanded,
        "lean": lean,
        "value": different[0],
        "gradient": max(different[1:]),
    }


def first_layer(density: float) -> dict[str, float]:
    rows = all_rows(simulated(density))
    rows = rows.with_values(rows.values.log1p())
    torch.manual_seed(0)
    weight = torch.randn(N_GENES, N_HIDDEN, requires_grad=True)
    upstream = torch.randn(N_CELLS, N_HIDDEN)

    def step(forward: Callable[[SparseRows, Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(forward(rows, weight), weight, upstream)[0]

    def dense(rows: SparseRows, weight: Tensor) -> Tensor:
        return rows.dense() @ weight

    difference = float((step(sparse_linear) - step(dense)).abs().max() / step(dense).abs().max())
    fast, slow = milliseconds(lambda: step(sparse_linear), lambda: step(dense))
    return {"ours": fast, "dense": slow, "ratio": slow / fast, "gradient": difference}


def record(name: str, figures: dict[str, float]) -> dict[str, object]:
    ratio = figures["expanded"] / figures["ours"]
    return {
        "method": "scvi",
        "kind": "benchmark",
        "claim": f"{name} likelihood with gradient: CPU time of dense PyTorch over tenfold's, one thread",
        "dataset": f"simulated, {N_CELLS} cells x {N_GENES} genes, 10 % non-zeros",
        "sha256": hashlib.sha256(simulated(0.1).data.tobytes()).hexdigest(),
        "metric": "ratio of median CPU times",
        "value": ratio,
        "reference": f"dense formula as in scvi-tools, theta expanded to every entry, PyTorch {torch.__version__}",
        "reference_value": 1.0,
        "tolerance": f"at least {BARS[name]}",
        "passed": ratio >= BARS[name] and figures["value"] < 1e-5 and figures["gradient"] < 1e-3,
        "milliseconds": {key: figures[key] for key in ("ours", "expanded", "lean")},
        "relative_difference": {"value": figures["value"], "gradient": figures["gradient"]},
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/likelihoods.py",
    }


def main() -> None:
    torch.set_num_threads(1)
    records = []
    print(f"{N_CELLS} cells x {N_GENES} genes, forward and backward, CPU ms on one thread\n")
    print("            non-zeros  tenfold  expanded   ratio    lean   ratio  relative difference: value, gradient")
    for name in BARS:
        for density in DENSITIES:
            found = likelihood(name, density)
            ours, expanded, lean = found["ours"], found["expanded"], found["lean"]
            print(
                f"{name:10}  {density:9.1%}  {ours:7.3f}  {expanded:8.2f}  {expanded / ours:6.1f}  {lean:6.2f}  "
                f"{lean / ours:6.1f}  {found['value']:.1e} {found['gradient']:.1e}"
            )
            if density == 0.1:
                records.append(record(name, found))
    print(f"\nfirst layer, {N_GENES} x {N_HIDDEN} weights: product and weight gradient against densify and multiply\n")
    print("            non-zeros  tenfold     dense   ratio  relative difference of the gradient")
    for density in DENSITIES:
        found = first_layer(density)
        print(
            f"{'layer':10}  {density:9.1%}  {found['ours']:7.3f}  {found['dense']:8.2f}  {found['ratio']:6.1f}  "
            f"{found['gradient']:.1e}"
        )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
