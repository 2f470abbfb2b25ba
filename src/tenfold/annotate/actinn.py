"""ACTINN: a small fully connected network on the log-expression of all genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from tenfold.annotators.base import AnnotatorMethod
from tenfold.data.inputs import Inputs
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from torch import nn
    from torch.nn import Parameter
    from torch.optim import Optimizer

#: Genes between these percentiles of total expression, and then of the coefficient of variation, are read.
LOWEST, HIGHEST = 1, 99
#: The learning rate falls to this share after so many minibatches.
FALL, EVERY = 0.95, 1000
#: Epochs as published, and the minibatches that there are at least, which 50 epochs of few cells would not reach.
EPOCHS, FEWEST_STEPS = 50, 4000


class ACTINN(AnnotatorMethod):
    """Labels by a network with hidden layers of 100, 50 and 25 units.

    It reads log2(1 + counts per 10,000) of the genes that are neither hardly ever nor always expressed, nor hardly
    vary, by percentiles in the labelled cells. (The publication takes these from labelled and other cells together.)
    Cross-entropy with an L2 penalty, Adam.

    **Use it** as the plainest deep annotator, to see whether a hidden layer gains anything over a linear model.

    **Do not use it** instead of a linear model without such a gain: none was found in benchmarks.

    **Cost**: cells × genes × epochs, trained twice, once to calibrate.

    **Writes** ``obs["actinn_label"]``, ``obs["actinn_confidence"]``, ``obsm["actinn_probabilities"]``.

    Parameters
    ----------
    widths
        Of the hidden layers.
    epochs
        ``None``: 50 as published, and more where that would be fewer than 4,000 minibatches.
    batch_size
        Cells in a minibatch.
    learning_rate
        At the start; it falls by 5 % every 1,000 minibatches.
    weight_decay
        Weight of the L2 penalty.
    n_top_genes
        Variable genes to learn from; ``None`` takes all.
    calibration
        Share of the labelled cells held out to calibrate; 0 leaves probabilities as they are.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``.
    seed
        Of weights, order of cells and held-out cells.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> model = tf.annotate.ACTINN(epochs=20).fit(adata[:500].copy(), labels="cell_type")
    >>> model.predict(adata[500:].copy()).shape
    (200,)

    References
    ----------
    Ma & Pellegrini (2020), doi 10.1093/bioinformatics/btz592.
    """

    info = MethodInfo(
        title="ACTINN",
        tasks=("annotate",),
        family="deep",
        year=2020,
        doi="10.1093/bioinformatics/btz592",
        needs=("labels",),
        accepts=("reference", "batch"),
        gives=("labels", "probabilities"),
        readiness="usable",
        sees_labels=True,
        advice="The plainest deep annotator; check that it gains anything over a linear model.",
    )

    widths: tuple[int, ...] = (100, 50, 25)
    epochs: int | None = param(None, low=1)
    batch_size: int = param(128, low=1)
    learning_rate: float = param(1e-4, low=0.0)
    weight_decay: float = param(0.005, low=0.0)
    device: str = "auto"
    seed: int = param(0, low=0)

    def _fit(self, data: Inputs) -> None:
        self._run = data.run
        super()._fit(data)

    def _build(self) -> nn.Module:
        from torch import nn

        from tenfold.nn.mlp import MLP

        hidden = MLP(len(self.read_), self.widths, batch_norm=False)
        net = nn.Sequential(hidden, nn.Linear(hidden.n_out, len(self.labels_)))
        for weights in net.parameters():
            if weights.ndim > 1:
                nn.init.xavier_uniform_(weights)
            else:
                nn.init.zeros_(weights)
        return net

    def _train(self, x: sparse.csr_matrix, codes: np.ndarray) -> None:
        import torch

        from tenfold.engine import Phase, fit, seeded

        self.read_ = informative(x)
        with seeded(self.seed):
            net = self._build()
        steps = -(-x.shape[0] // self.batch_size)
        epochs = self.epochs or max(EPOCHS, -(-FEWEST_STEPS // steps))

        def loss(net: Any, batch: dict[str, Any], progress: Any) -> Any:
            return torch.nn.functional.cross_entropy(net(batch["x"]).float(), batch["label"])

        def falling(optimizer: Optimizer) -> Any:
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: FALL ** (epoch * steps // EVERY))

        phase = Phase("train", epochs, loss=loss, optimizer=self._optimizer, scheduler=falling)
        history = fit(
            net, {"x": self._read(x), "label": codes}, [phase], batch_size=self.batch_size, train_fraction=1.0,
            seed=self.seed, device=self.device, run=self._run, name=self.name(),
        )  # fmt: skip
        self.net_, self.history_ = net.cpu().eval(), history.to_dict()

    def _optimizer(self, parameters: list[Parameter]) -> Optimizer:
        from torch.optim import Adam

        weights = {"params": [one for one in parameters if one.ndim > 1], "weight_decay": self.weight_decay}
        return Adam([weights, {"params": [one for one in parameters if one.ndim == 1]}], lr=self.learning_rate)

    def _read(self, x: sparse.csr_matrix) -> sparse.csr_matrix:
        return sparse.csr_matrix(x[:, self.read_] / np.float32(np.log(2)))

    def _score(self, x: sparse.csr_matrix) -> np.ndarray:
        from tenfold.engine import predict

        return predict(
            self.net_, {"x": self._read(x)}, lambda net, batch: net(batch["x"]).softmax(dim=1), batch_size=1024,
            device=self.device,
        )  # fmt: skip


def informative(x: sparse.csr_matrix) -> np.ndarray:
    """Return the columns of genes between percentiles of total expression, then of the coefficient of variation."""
    total = np.asarray(x.sum(axis=0, dtype=np.float64)).ravel()
    kept = _between(total, np.arange(x.shape[1]))
    mean = total[kept] / x.shape[0]
    square = np.asarray(x.multiply(x).sum(axis=0, dtype=np.float64)).ravel()[kept] / x.shape[0]
    spread = np.sqrt(np.maximum(square - mean**2, 0)) / np.maximum(mean, np.finfo(float).tiny)
    return _between(spread, kept)


def _between(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, [LOWEST, HIGHEST])
    return columns[(values >= low) & (values <= high)]
