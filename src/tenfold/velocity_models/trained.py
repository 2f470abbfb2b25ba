"""The base of velocity methods that train a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenfold.data.inputs import Inputs
from tenfold.method import param
from tenfold.velocity_models.base import VelocityMethod

if TYPE_CHECKING:
    import pandas as pd
    from torch.nn import Module

    from tenfold.engine import Phase


class TrainedVelocity(VelocityMethod):
    """A `VelocityMethod` whose ``_rates`` trains a network with `_train`.

    The fitted state has ``net_`` and ``history_`` beside that of the base; ``_build`` makes the network anew.
    """

    epochs: int = param(100, low=1)
    batch_size: int | None = param(None, low=2)
    learning_rate: float = param(1e-3, low=0.0)
    weight_decay: float = param(0.0, low=0.0)
    device: str = "auto"
    seed: int = param(0, low=0)

    def _train(self, net: Module, data: Inputs, cells: dict[str, Any], phases: list[Phase], **options: Any) -> None:
        """Train the network on what the losses read of each cell; keep it and the course of its training."""
        from tenfold.engine import fit

        options = {"batch_size": self.batch_size, "train_fraction": 1.0, **options}
        history = fit(
            net, cells, phases, seed=self.seed, device=self.device, run=data.run, name=self.name(),
            fingerprint=self.parameters, **options,
        )  # fmt: skip
        self.net_ = net.cpu()
        self.history_ = history.to_dict()

    @property
    def history(self) -> pd.DataFrame:
        """Losses, one row an epoch and term: columns phase, epoch, term, train, validation."""
        from tenfold.engine import History

        self._check_fitted()
        return History.from_dict(self.history_).terms
