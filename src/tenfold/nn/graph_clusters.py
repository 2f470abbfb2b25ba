"""The network of SpaGCN: one linear layer on smoothed features, and clusters in its output."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.nn.soft_clusters import divergence, sharpened, student_membership

#: Scale of distances in the kernel, and its power. The original's code raises to 1.2 and halves afterwards, where half
#: of 1.2 was meant; the halving cancels.
WIDTH, POWER = 0.2, 1.2
#: Epochs from one target to the next.
REFRESH = 3


class GraphClusters(nn.Module):
    """Output A X W + b, clusters around centres in it, and the target that their membership is trained towards.

    A X is given, since neither A nor X is trained: no product with the graph is left in training.

    Parameters
    ----------
    smoothed
        A X, shape (n_cells, n_features).
    n_clusters
        Number of centres, which `start` places.

    References
    ----------
    Hu et al. (2021), doi 10.1038/s41592-021-01255-8.
    """

    def __init__(self, smoothed: np.ndarray, n_clusters: int = 1):
        super().__init__()
        n_cells, width = smoothed.shape
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(width, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))
        self.centres = nn.Parameter(torch.zeros(n_clusters, width))
        self.register_buffer("smoothed", torch.from_numpy(smoothed), persistent=False)
        self.register_buffer("target", torch.zeros(n_cells, n_clusters))
        self.register_buffer("labels", torch.zeros(n_cells, dtype=torch.int64))

    def output(self) -> Tensor:
        """Return A X W + b, shape (n_cells, n_features)."""
        return self.get_buffer("smoothed") @ self.weight + self.bias

    def start(self, labels: np.ndarray) -> None:
        """Put centres at the means of given clusters."""
        found = torch.from_numpy(labels.astype(np.int64))
        belongs = nn.functional.one_hot(found, len(self.centres)).to(self.weight.dtype)
        with torch.no_grad():
            self.centres.copy_(belongs.T @ self.output() / belongs.sum(dim=0)[:, None])
            self.get_buffer("labels").copy_(found)

    def membership(self) -> Tensor:
        """Return the soft membership of cells in clusters, shape (n_cells, n_clusters)."""
        return student_membership(self.output(), self.centres, WIDTH, POWER)

    @torch.no_grad()
    def refresh(self, epoch: int) -> None:
        """Take the sharpened membership as target, every third epoch."""
        if epoch % REFRESH == 0:
            self.get_buffer("target").copy_(sharpened(self.membership()))

    def terms(self) -> dict[str, Tensor]:
        """Return the loss, and the share of cells whose cluster is another than an epoch ago."""
        membership = self.membership()
        labels, before = membership.detach().argmax(dim=1), self.get_buffer("labels")
        changed = (labels != before).float().mean()
        before.copy_(labels)
        return {"loss": divergence(self.get_buffer("target"), membership), "changed": changed}
