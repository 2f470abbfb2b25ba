"""The base of methods that train a network on the graph of all cells at once."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from tenfold.data.heads import Head
from tenfold.data.inputs import Inputs
from tenfold.method import param
from tenfold.spatial_models.base import DomainMethod

if TYPE_CHECKING:
    import pandas as pd
    from torch.nn import Module


class GraphMethod(DomainMethod):
    """A `DomainMethod` whose network has ``terms()``: the loss over all cells, and its parts.

    Every epoch is one update from the whole graph. The network holds expression and graph itself, so the engine's
    minibatch only counts cells.
    """

    n_top_genes: int | None = param(3000, low=10)
    head: Head = "mclust"
    epochs: int = param(600, low=1)
    learning_rate: float = param(1e-3, low=0.0)
    weight_decay: float = param(0.0, low=0.0)
    device: str = "auto"

    def _train(
        self, net: Module, data: Inputs, held: dict[str, sparse.csr_matrix], clip: float | None = None,
        then: Sequence[dict[str, Any]] = (), **options: Any,
    ) -> None:  # fmt: skip
        """Train the network, which ends on the CPU; a checkpoint of other `held` matrices is refused.

        `then`: settings of further phases, which share the optimiser's settings and the clipping.
        """
        from tenfold.engine import Phase, fit
        from tenfold.kernels.adam import Adam

        options.setdefault("optimizer", partial(Adam, lr=self.learning_rate, weight_decay=self.weight_decay))
        prints = {name: zlib.crc32(m.indices.tobytes() + m.data.tobytes()) for name, m in held.items()}
        first = {"name": "train", "epochs": self.epochs, "loss": lambda net, batch, progress: net.terms()}
        phases = [Phase(**{"clip": clip, **options, **phase}) for phase in (first, *then)]
        history = fit(
            net, {"cell": np.arange(data.n_cells)}, phases, batch_size=None, train_fraction=1.0, seed=self.seed,
            device=self.device, run=data.run, name=self.name(), fingerprint={**self.parameters, **prints},
        )  # fmt: skip
        net.cpu()
        self.history_ = history.to_dict()

    @property
    def history(self) -> pd.DataFrame:
        """Losses, one row an epoch and term: columns phase, epoch, term, train, validation."""
        from tenfold.engine import History

        self._check_fitted()
        return History.from_dict(self.history_).terms
