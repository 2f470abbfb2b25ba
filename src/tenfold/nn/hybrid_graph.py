"""Graph convolution on a graph that stays as it is: its symmetric normalisation, and two layers without biases."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from tenfold.nn.graph_layers import Fixed


def normalised(rows: np.ndarray, columns: np.ndarray, n_cells: int) -> sparse.csr_matrix:
    """Return D^-½ (A + I) D^-½ of undirected edges, each 1 however often it is given, (n_cells, n_cells), float32.

    Parameters
    ----------
    rows, columns
        Ends of the edges, in any order, shape (n_edges,).
    n_cells
        Number of nodes.

    References
    ----------
    Kipf & Welling (2017), doi 10.48550/arXiv.1609.02907.
    """
    itself = np.arange(n_cells)
    ends = np.concatenate([rows, columns, itself]), np.concatenate([columns, rows, itself])
    graph = sparse.csr_matrix((np.ones(len(ends[0])), ends), (n_cells, n_cells))
    graph.data[:] = 1.0  # repeated edges have been summed
    root = sparse.diags(1 / np.sqrt(np.asarray(graph.sum(axis=1)).ravel()))
    return sparse.csr_matrix(root @ graph @ root, dtype=np.float32)


class GraphNet(nn.Module):
    """Â ReLU(Â X W) V: two graph convolutions without biases.

    Parameters
    ----------
    n_features, n_hidden, n_labels
        Widths.
    """

    def __init__(self, n_features: int, n_hidden: int, n_labels: int):
        super().__init__()
        self.first = nn.Parameter(torch.empty(n_features, n_hidden))
        self.second = nn.Parameter(torch.empty(n_hidden, n_labels))
        for weight in (self.first, self.second):
            nn.init.xavier_uniform_(weight)

    def forward(self, spread: Fixed, graph: Fixed, dropout: float = 0.0) -> Tensor:
        """Return logits, shape (n_cells, n_labels).

        Parameters
        ----------
        spread
            Â X, features averaged over neighbours: the same in every epoch, so it is made once.
        graph
            Â.
        dropout
            Share of hidden units that are silenced in training.
        """
        hidden = torch.relu(spread(self.first))
        return graph(nn.functional.dropout(hidden, dropout, self.training) @ self.second)
