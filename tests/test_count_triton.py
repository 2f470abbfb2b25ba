"""The GPU kernel of the count likelihoods: in Triton's interpreter everywhere, on the device where there is one."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

_COMPARE = """
import sys
import torch
from tenfold.kernels.count_reference import reference_nll
from tenfold.kernels.count_triton import triton_nll
from tenfold.kernels.rows import SparseRows

device, likelihood = sys.argv[1:]
torch.manual_seed(0)
n_cells, n_genes = 4, 600
x = torch.poisson(0.5 * torch.rand(n_cells, n_genes))
x[0, 3], x[1, 5], x[2] = 1e6, 300.0, 0.0  # a huge count, a large one, no counts at all
row, column = x.nonzero(as_tuple=True)
indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(row, minlength=n_cells).cumsum(0)])
level, weight = torch.tensor([0, 2, 1, 2]), torch.rand(n_cells)
kinds = {"gene": (n_genes,), "level": (3, n_genes), "cell": (n_cells, n_genes)}
for link in ("softmax", "exp", "softplus"):
    for kind in kinds if likelihood != "poisson" else ("none",):
        given = [2 * torch.randn(n_cells, n_genes), torch.randn(n_cells) + 3]
        given.append(torch.empty(kinds[kind]).uniform_(-9.2, 9.2) if kind in kinds else None)
        given.append(3 * torch.randn(n_cells, n_genes) if likelihood == "zinb" else None)
        found = []
        for compute, dtype, where in ((triton_nll, torch.float32, device), (reference_nll, torch.float64, "cpu")):
            parts = [None if g is None else g.to(where, dtype, copy=True).requires_grad_() for g in given]
            counts = SparseRows(indptr, column, x[row, column].to(dtype), n_genes).to(where)
            of = level.to(where) if kind == "level" else None
            nll = compute(likelihood, counts, parts[0], parts[1], link, parts[2], of, parts[3])
            (nll * weight.to(where, dtype)).sum().backward()
            found.append([nll.detach().cpu(), *(part.grad.cpu() for part in parts if part is not None)])
        for number, (ours, exact) in enumerate(zip(*found, strict=True)):
            assert ours.shape == exact.shape
            allowed = 2e-5 * exact.abs() + 2e-6 * exact.abs().mean() + 2e-6
            assert bool(((ours - exact).abs() <= allowed).all()), (link, kind, number)
"""


@pytest.mark.parametrize("device", ["interpreter", "cuda"])
@pytest.mark.parametrize("likelihood", ["poisson", "nb", "zinb"])
def test_values_and_gradients_are_those_of_plain_pytorch_in_float64(likelihood, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    # The interpreter is chosen before Triton is imported, so it needs a process of its own.
    environment = {**os.environ, **({"TRITON_INTERPRET": "1"} if device == "interpreter" else {})}
    where = "cpu" if device == "interpreter" else device
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _COMPARE, where, likelihood],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
