"""How far two samples are apart, or how dependent two variables, as one number that can be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, lgamma

import torch
from torch import Tensor

#: Variances of the kernels of trVAE. The publication has 1e-6 to 1e-3 and 1e4 to 1e6 besides: between points that are
#: some units apart these are 0 or 1 whatever the distance, so that they have no gradient and cost time only.
SCALES = (1e-2, 1e-1, 1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 100.0, 1e3)


def rbf_mixture(x: Tensor, y: Tensor, scales: Sequence[float]) -> Tensor:
    """Return Σ exp(-d² / 2a) over the scales a, for every pair of a row of `x` and one of `y`, shape (..., n, m)."""
    # By differences: products would leave rounding where the distance is 0, which narrow kernels do not forgive.
    squared = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
    return sum((torch.exp(squared * (-0.5 / scale)) for scale in scales), start=torch.zeros_like(squared))


def mmd(x: Tensor, y: Tensor, scales: Sequence[float] = (1.0,)) -> Tensor:
    """Return the squared maximum mean discrepancy of two samples (biased V-statistic, 0 where they are the same).

    Parameters
    ----------
    x, y
        Samples, shapes (n, n_dimensions) and (m, n_dimensions).
    scales
        Variances a of the kernels exp(-d² / 2a), which are summed.

    References
    ----------
    Gretton et al. (2012), JMLR 13, 723-773.
    """
    within = rbf_mixture(x, x, scales).mean() + rbf_mixture(y, y, scales).mean()
    return within - 2 * rbf_mixture(x, y, scales).mean()


def mmd_of_groups(x: Tensor, group: Tensor, n_groups: int, scales: Sequence[float] = (1.0,)) -> Tensor:
    """Return `mmd` of every pair of groups, from one matrix of kernel values, whatever their number.

    Parameters
    ----------
    x
        Samples of all groups, shape (n, n_dimensions).
    group
        Group of each, shape (n,), int64.
    n_groups
        Number of groups.
    scales
        As in `mmd`.

    Returns
    -------
    Shape (n_groups, n_groups), symmetric; 0 for pairs of which a group has no sample.
    """
    member = torch.nn.functional.one_hot(group, n_groups).to(x.dtype)
    size = member.sum(0)
    share = member / size.clamp(min=1)
    means = share.t() @ rbf_mixture(x, x, scales) @ share
    own = means.diagonal()
    there = (size > 0).to(x.dtype)
    return (own[:, None] + own - 2 * means) * there[:, None] * there


def mmd_of_pairs(
    x: Tensor, group: Tensor, pairs: Tensor, n_groups: int, scales: Sequence[float] = (1.0,)
) -> Tensor:  # fmt: skip
    """Return `mmd` of some pairs of many groups: kernels are computed within groups and between those of a pair only.

    Parameters
    ----------
    x, group, n_groups, scales
        As in `mmd_of_groups`.
    pairs
        Shape (n_pairs, 2), int64.

    Returns
    -------
    Shape (n_pairs,); 0 where a group has no sample.
    """
    sizes = torch.bincount(group, minlength=n_groups)
    order = group.argsort(stable=True)
    place = torch.arange(len(x), device=x.device) - (sizes.cumsum(0) - sizes)[group[order]]
    width = int(sizes.max())
    # One row of cells a group, filled up with zeros that count for nothing.
    cells = x.new_zeros(n_groups, width, x.shape[1]).index_put((group[order], place), x[order])
    share = (torch.arange(width, device=x.device) < sizes[:, None]).to(x.dtype) / sizes.clamp(min=1)[:, None]

    def mean_kernel(first: Tensor, second: Tensor) -> Tensor:
        values = rbf_mixture(cells[first], cells[second], scales)
        return torch.einsum("gnm,gn,gm->g", values, share[first], share[second])

    known, place_of = pairs.unique(return_inverse=True)
    own = mean_kernel(known, known)[place_of].sum(1)
    there = (sizes[pairs] > 0).all(1).to(x.dtype)
    return (own - 2 * mean_kernel(pairs[:, 0], pairs[:, 1])) * there


def hsic(x: Tensor, y: Tensor) -> Tensor:
    """Return the root of the Hilbert-Schmidt independence criterion of two variables, 0 where they are independent.

    The kernels are exp(-d² / 2g²), where g is the root of 2 times the expected length of a standard normal vector.

    Parameters
    ----------
    x, y
        The two variables of the same cells, shapes (n_cells, n_x) and (n_cells, n_y).

    References
    ----------
    Gretton et al. (2005), doi 10.1007/11564089_7; Lopez et al. (2018), arXiv 1805.08672.
    """
    of_x, of_y = (rbf_mixture(part, part, (_usual_length(part.shape[1]) ** 2,)) for part in (x, y))
    squared = (of_x * of_y).mean() + of_x.mean() * of_y.mean() - 2 * (of_x.mean(1) * of_y.mean(1)).mean()
    return squared.clamp(min=torch.finfo(x.dtype).tiny).sqrt()


def _usual_length(n_dimensions: int) -> float:
    """Return the root of 2 times the expected length of a standard normal vector."""
    return 2 * exp(lgamma(0.5 * (n_dimensions + 1)) - lgamma(0.5 * n_dimensions))
