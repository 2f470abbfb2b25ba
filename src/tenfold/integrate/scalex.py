"""SCALEX: an encoder that is not told the batch, and a decoder whose norm is the batch's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tenfold.data.inputs import Inputs
from tenfold.expression_models.base import ExpressionMethod
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from torch import Tensor

    from tenfold.engine import Batch, Progress
    from tenfold.nn.expression_vae import ExpressionVAE

#: Minibatches to train for at most; the original has 30,000.
_MOST_STEPS = 20_000


class SCALEX(ExpressionMethod):
    """Latent space of many batches into which new batches are projected without training again.

    A variational autoencoder. Its encoder is not told the batch, so it places any cell. Its decoder, one linear layer,
    has a batch norm for every batch (domain-specific), which takes up what differs between them. Log-expression, scaled
    to [0, 1] gene by gene, is fitted by cross-entropy. There is no adversary (no GAN) and there are no links between
    features, whatever reviews say of it.

    **Use it** where batches keep coming: ``embed(new)`` places them among the fitted cells, also of batches that the
    model has not seen; and for expression as if all cells were of one batch (`expression`).

    **Do not use it** where batches hold different cell types and ``inference`` is ``"domain"`` or ``"reference"``: both
    standardise the units of the encoder within a batch, which mixes batches whatever is in them. In our checks on 1,200
    blood cells (80 epochs; ``evidence/scalex_acceptance.py``) a type that one batch alone had lost neighbours to other
    types, in all three ways, and a batch that was projected was labelled 6 to 9 points worse than one that was fitted
    with the others. Cross-entropy of log values is not a likelihood: losses of different data are not to be compared.

    **Cost**: linear in cells × genes × epochs; at most 20,000 minibatches by default, whatever the number of cells.

    **Writes** ``obsm["X_scalex"]`` and ``layers["scalex"]`` (decoded log-expression, averaged over batches; NaN for
    genes that are not modelled).

    Parameters
    ----------
    n_latent, n_hidden
        Latent dimensions; width of the encoder's hidden layer.
    inference
        Statistics of the encoder's batch norm when cells are placed. ``"eval"``: those of training, so that a cell's
        place depends on the cell alone. ``"domain"``: those of the cells of the same batch. ``"reference"``: those of
        random minibatches of the same batch, as the original does; places then change with the seed.
    scaling
        Each gene by its largest value in all cells (``"all"``, as in the code of the original) or in each batch
        (``"batch"``, as its article says).
    kl_weight
        Weight of the KL term beside the cross-entropy summed over genes.
    n_top_genes
        Variable genes to model, chosen batch by batch; ``None`` takes all.
    epochs
        ``None``: as many as 20,000 minibatches make, at most 400 (30,000 in the original).
    early_stopping, patience
        Stop when the training loss (the validation loss, where cells are held out) has not fallen for so many epochs.
    batch_size, learning_rate, weight_decay
        Of the optimiser, Adam.
    train_fraction
        Share of cells to train on; the others are for validation.
    device, precision
        As in ``tenfold.engine.fit``.
    seed
        Of weights and minibatches; of the places with ``inference="reference"``.

    Notes
    -----
    A cell that is alone of its batch in a minibatch is decoded with that batch's running statistics; the original
    leaves it unnormalised.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc(planted_batch=True)
    >>> first, second = (adata[adata.obs["batch"] == name].copy() for name in adata.obs["batch"].cat.categories)
    >>> scalex = tf.integrate.SCALEX(epochs=10).fit(first)
    >>> scalex.embed(second).shape[1]
    10

    References
    ----------
    Xiong et al. (2022), doi 10.1038/s41467-022-33758-z.
    """

    info = MethodInfo(
        title="SCALEX",
        tasks=("integrate",),
        family="deep",
        year=2022,
        doi="10.1038/s41467-022-33758-z",
        accepts=("batch",),
        gives=("embedding", "expression", "places of new batches"),
        readiness="usable",
        advice="Where new batches are to be projected onto fitted ones without training again.",
    )

    n_latent: int = param(10, low=1)
    n_hidden: int = param(1024, low=1)
    inference: Literal["eval", "domain", "reference"] = "eval"
    scaling: Literal["all", "batch"] = "all"
    kl_weight: float = param(0.5, low=0.0)
    early_stopping: bool = True
    patience: int = param(10, low=1)
    batch_size: int = param(64, low=3)
    learning_rate: float = param(2e-4, low=0.0)
    weight_decay: float = param(5e-4, low=0.0)

    def _build(self) -> ExpressionVAE:
        from tenfold.nn.domain_norm import DomainDecoder
        from tenfold.nn.encoders import GaussianEncoder
        from tenfold.nn.expression_vae import ExpressionVAE

        n_genes = len(self.columns_)
        norm = {"momentum": 0.1, "eps": 1e-5}
        encoder = GaussianEncoder(n_genes, self.n_latent, self.n_hidden, norm=norm, least_variance=0.0)
        return ExpressionVAE(encoder, DomainDecoder(self.n_latent, n_genes, len(self._design.batch)))

    def _loss(self, net: Any, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Cross-entropy and the weighted KL term, mean over cells."""
        return net.terms(batch, self.kl_weight)

    def _fit(self, data: Inputs) -> None:
        from tenfold.engine import EarlyStopping, Phase

        cells = self._take(data, "max" if self.scaling == "all" else "batch max")
        steps = max(1, round(data.n_cells * self.train_fraction / self.batch_size))
        epochs = self.epochs or max(1, min(400, -(-_MOST_STEPS // steps)))
        self._train(data, cells, [
            Phase("train", epochs, loss=self._loss, optimizer=self._optimizer,
                  early_stopping=EarlyStopping(self.patience) if self.early_stopping else None),
        ])  # fmt: skip

    # ---- where cells are placed --------------------------------------------------------------------------------------

    @property
    def _uses_batch(self) -> bool:
        return super()._uses_batch or self.inference != "eval"

    def _read(self, data: Inputs, expression: Any) -> dict[str, Any]:
        cells = super()._read(data, expression)
        return cells if self.inference == "eval" else {**cells, "domain": data.batch_or_one.values.astype(np.int64)}

    def _infer(self, cells: dict[str, Any]) -> np.ndarray:
        if self.inference == "eval":
            return super()._infer(cells)
        out = np.empty((len(cells["domain"]), self.n_latent), dtype=np.float32)
        rng = np.random.default_rng([self.seed, 3])
        for code in np.unique(cells["domain"]):
            rows = rng.permutation(np.flatnonzero(cells["domain"] == code))
            out[rows] = self._placed_by_domain({"expression": cells["expression"]}, rows)
        return out

    def _placed_by_domain(self, cells: dict[str, Any], rows: np.ndarray) -> np.ndarray:
        """Place the cells of one batch, with the statistics of the whole of it or of its minibatches."""
        from torch.nn import functional as F

        from tenfold.engine import predict
        from tenfold.nn.mlp import NOTHING

        layer: Any = self.net_.encoder.hidden.layers[0]
        norm = layer.batch_norm
        mean, variance, own = norm.running_mean, norm.running_var, False
        if self.inference == "domain" and len(rows) > 1:
            mean, variance = _moments(self.net_, cells, rows)
        elif len(rows) > 1:
            mean, variance, own = None, None, True

        def placed(net: Any, batch: Batch) -> Tensor:
            h = layer.linear(batch["expression"], NOTHING)
            h = F.batch_norm(h, mean, variance, norm.weight, norm.bias, training=own, eps=norm.eps)
            return net.encoder.of_hidden(layer.activate(h)).mean

        return predict(self.net_, cells, placed, index=rows, batch_size=self.batch_size if own else 1024)


def _moments(net: Any, cells: dict[str, Any], rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the units of the hidden layer before its norm, over some cells."""
    from tenfold.engine import predict
    from tenfold.nn.mlp import NOTHING

    sums: Any = [0.0, 0.0]

    def add(net: Any, batch: Batch) -> Tensor:
        h = net.encoder.hidden.layers[0].linear(batch["expression"], NOTHING).double()
        sums[0], sums[1] = sums[0] + h.sum(0), sums[1] + h.square().sum(0)
        return batch["index"]

    predict(net, cells, add, index=rows)
    mean = sums[0] / len(rows)
    return mean.float(), (sums[1] / len(rows) - mean.square()).float()
