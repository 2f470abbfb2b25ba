"""The base of methods that train an autoencoder with attention over neighbours: STAGATE and what was built on it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from scipy import sparse

from tenfold.data.inputs import Inputs
from tenfold.data.spatial import GraphKind, Positions, spatial_graph, symmetrised
from tenfold.method import param
from tenfold.spatial_models.graph_training import GraphMethod

#: Largest norm of the gradients.
CLIP = 5.0


class AttentionMethod(GraphMethod):
    """A `GraphMethod` whose network is `tenfold.nn.graph_attention.GraphAttention`."""

    n_latent: int = param(30, low=2)
    n_hidden: int = param(512, low=2)
    graph: GraphKind = "radius"
    radius: float = param(1.5, low=0.1)
    n_neighbors: int = param(6, low=1)
    weight_decay: float = param(1e-4, low=0.0)

    def _autoencoded(
        self, data: Inputs, positions: Positions, expression: sparse.csr_matrix,
        tie: Literal["clean", "double"] = "clean", then: Sequence[dict[str, Any]] = (),
    ) -> np.ndarray:  # fmt: skip
        """Train on log-expression, then in further phases, and return the latent space."""
        import torch

        from tenfold.engine import seeded
        from tenfold.kernels.adam import Adam
        from tenfold.nn.graph_attention import GraphAttention

        graph = symmetrised(spatial_graph(positions, self.graph, self.n_neighbors, self.radius))
        graph = sparse.csr_matrix(graph + sparse.identity(data.n_cells, dtype=np.float32, format="csr"))
        with seeded(self.seed):
            net = GraphAttention(expression, graph, self.n_hidden, self.n_latent, tie)
        # Two parameters in one place need an optimiser that goes through them one by one.
        kind = partial(torch.optim.Adam, foreach=False) if tie == "double" else Adam
        optimizer = partial(kind, lr=self.learning_rate, weight_decay=self.weight_decay)
        held = {"expression": expression, "graph": graph}
        self._train(net, data, held, clip=CLIP, then=then, optimizer=optimizer)
        return net.embedding()
