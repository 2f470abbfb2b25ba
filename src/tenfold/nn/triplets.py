"""Metric learning of labels: encoder onto the unit sphere, mirrored decoder, and triplets of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.rows import SparseRows
from tenfold.kernels.sparse_linear import sparse_linear

#: Larger than any squared distance on the unit sphere, with or without a margin: marks cells that cannot be chosen.
_FAR, _STRIDE = 6.0, 8.0
#: Added to differences before the norm, as torch's own triplet loss does: its gradient exists where cells coincide.
_EPS = 1e-6


class Triplets(NamedTuple):
    """Rows of anchors, positives and negatives, each shape (n_triplets,), int64."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor


class Kinship(NamedTuple):
    """What labels are to each other in an ontology; without one, all strangers.

    Attributes
    ----------
    related
        Whether a label is the other, or an ancestor or descendant of it, shape (n_labels, n_labels), bool, symmetric.
    parents
        Whether the second label is directly above the first, shape (n_labels, n_labels), bool.
    """

    related: Tensor
    parents: Tensor


def _block(dropout: float, n_in: int, n_out: int) -> nn.Sequential:
    drop = [nn.Dropout(dropout)] if dropout >= 0 else []
    return nn.Sequential(*drop, nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.PReLU())


class UnitEncoder(nn.Module):
    """Log-expression to a point on the unit sphere: dropout, linear map, batch norm and PReLU, several times.

    Parameters
    ----------
    n_genes, n_latent
        Width of input and output.
    widths
        Of the hidden layers.
    dropout, input_dropout
        Share of units, and of genes, that are silenced in training.
    """

    def __init__(
        self, n_genes: int, n_latent: int, widths: Sequence[int], dropout: float = 0.5, input_dropout: float = 0.4
    ):
        super().__init__()
        first = _block(input_dropout, n_genes, widths[0])
        others = [_block(dropout, before, width) for before, width in pairwise(widths)]
        self.network = nn.ModuleList([first, *others, nn.Linear(widths[-1], n_latent)])

    def forward(self, x: SparseRows | Tensor) -> Tensor:
        """Return points of length 1, shape (n_cells, n_latent)."""
        first: Any = self.network[0]
        if isinstance(x, SparseRows):
            # What is zero stays so, whether it is silenced or not.
            silenced = replace(x, values=first[0](x.values))
            h = sparse_linear(silenced, first[1].weight.T.contiguous(), first[1].bias)
        else:
            h = first[1](first[0](x))
        for part in (*first[2:], *self.network[1:]):
            h = part(h)
        return F.normalize(h, dim=1)


class MirroredDecoder(nn.Module):
    """Points on the sphere back to log-expression: the layers of `UnitEncoder` in reverse, parameters as there."""

    def __init__(self, n_genes: int, n_latent: int, widths: Sequence[int], dropout: float = 0.5):
        super().__init__()
        back = list(reversed(widths))
        others = [_block(dropout, before, width) for before, width in pairwise(back)]
        self.network = nn.ModuleList([_block(-1.0, n_latent, back[0]), *others, nn.Linear(back[-1], n_genes)])

    def forward(self, z: Tensor) -> Tensor:
        """Return expected log-expression, shape (n_cells, n_genes)."""
        for part in self.network:
            z = part(z)
        return z


def coarsened(labels: Tensor, kinship: Kinship, share: float) -> Tensor:
    """Give a share of the cells, drawn at random, a label directly above theirs that other cells of the batch have.

    Of several it is one at random. Cells without one keep their label.
    """
    present = torch.zeros(len(kinship.parents), dtype=torch.bool, device=labels.device)
    present[labels] = True
    above = (kinship.parents & present)[labels]
    chosen = above.any(dim=1) & (torch.rand(len(labels), device=labels.device) < share)
    lots = torch.rand(above.shape, device=labels.device).masked_fill_(~above, -1.0)
    return torch.where(chosen, lots.argmax(dim=1), labels)


def semi_hard_triplets(
    points: Tensor, labels: Tensor, kinship: Kinship, studies: Tensor | None, margin: float, most_pairs: int
) -> Triplets:
    """Choose a negative for every pair of cells with the same label, of two studies.

    A negative is semi-hard: farther from the anchor than the positive, by less than the margin, in squared distance.
    One of these is drawn at random; pairs without one are left out. Labels that are ancestors or descendants of the
    anchor's give no negatives. Negatives of each anchor are sorted once, so that those of a pair are a stretch
    of a list.

    Parameters
    ----------
    points
        On the unit sphere, shape (n_cells, n_latent).
    labels
        Of each cell, shape (n_cells,), int64.
    kinship
        Of the labels.
    studies
        Of each cell, shape (n_cells,); ``None``: pairs may be of one study.
    margin
        Of the loss.
    most_pairs
        More pairs than this are sampled.

    Returns
    -------
    No triplets where no pair has a semi-hard negative.
    """
    with torch.no_grad():
        square = (2 - 2 * points @ points.T).clamp_(min=0)
        pairs = labels[:, None] == labels
        if studies is not None:
            pairs = pairs & (studies[:, None] != studies)
        anchor, positive = pairs.triu(1).nonzero(as_tuple=True)
        if len(anchor) > most_pairs:
            some = torch.randperm(len(anchor), device=anchor.device)[:most_pairs]
            anchor, positive = anchor[some], positive[some]
        related = kinship.related[labels][:, labels]
        far, order = square.masked_fill(related, _FAR).sort(dim=1)
        # One sorted list for all anchors: each has a stretch of the line of its own.
        offsets = _STRIDE * torch.arange(len(points), device=points.device, dtype=torch.float64)
        line = (far.double() + offsets[:, None]).ravel()
        near = square[anchor, positive].double() + offsets[anchor]
        first = torch.searchsorted(line, near, right=True)
        last = torch.searchsorted(line, near + margin)
        found = last > first
        anchor, positive, first, count = anchor[found], positive[found], first[found], (last - first)[found]
        drawn = first + (torch.rand(len(first), device=points.device, dtype=torch.float64) * count).long()
        return Triplets(anchor, positive, order.ravel()[drawn])


def triplet_loss(points: Tensor, triplets: Triplets, margin: float) -> Tensor:
    """Return the mean of max(0, |a - p| - |a - n| + margin); 0 where there are no triplets."""
    if not len(triplets.anchor):
        return points.sum() * 0
    anchor, positive, negative = (points[rows] for rows in triplets)
    near, far = ((anchor - other + _EPS).norm(dim=1) for other in (positive, negative))
    return F.relu(near - far + margin).mean()
