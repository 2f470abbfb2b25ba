"""SAUCIE, batch correction: autoencoders of a reference and another batch, whose codes are drawn together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tenfold.errors import ParameterError, closest
from tenfold.expression_models.base import ExpressionMethod
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from torch import Tensor

    from tenfold.data.inputs import Inputs
    from tenfold.engine import Batch, Phase, Progress
    from tenfold.nn.saucie_net import SaucieNet

#: Minibatches of each network, and epochs, at most.
_MOST_STEPS, _MOST_EPOCHS = 1_000, 400


class SAUCIE(ExpressionMethod):
    """Two-dimensional code and reconstructed expression, corrected batch by batch towards a reference.

    For every batch but the reference an autoencoder is trained on the two, with a penalty on the maximum mean
    discrepancy of their codes. The reference is to be reconstructed exactly, the other batch only up to shift and scale
    of each gene. With more than two batches, codes of different networks cannot be compared, and a last autoencoder,
    without penalty, is trained on what the others reconstruct, as the original does to cluster. SAUCIE's clustering is
    not part of this.

    **Use it** to compare with, and for a picture of two batches of about the same composition.

    **Do not use it** for neighbours or clusters: two dimensions have no room for more than a few types, and in the
    benchmark of Luecken et al. (2022) it was among the weakest. The penalty compares whole batches, so types whose
    proportions differ are moved onto each other; gene means and scales of a batch are not held by the loss. On blood
    cells of three chemistries its two dimensions kept 76 % of neighbours in their type (principal components without
    correction 86 %), twenty kept 84 % (``evidence/saucie_acceptance.py``).

    **Cost**: linear in cells × genes × epochs × batches; at most 1,000 minibatches a network by default.

    **Writes** ``obsm["X_saucie"]`` and ``layers["saucie"]`` (reconstructed log-expression; NaN for genes that are not
    modelled).

    Parameters
    ----------
    n_latent
        Width of the code; 2 in the original. 20 serve neighbours better.
    n_hidden
        Width of the encoder's hidden layers; the decoder has them in reverse. One number: of a single layer.
    reference_batch
        Batch that the others are moved to; ``None``: the largest.
    mmd_weight
        Weight of the discrepancy. The class of the original has 0, its script 0.1.
    n_top_genes
        Variable genes to model, chosen batch by batch; ``None`` takes all.
    epochs
        Of each network. ``None``: as many as 1,000 minibatches make, at most 400.
    batch_size
        Cells of reference and other batch in a minibatch, together and on average.
    learning_rate, weight_decay
        Of Adam.
    train_fraction
        Share of cells to train on; the others are for validation.
    device, precision
        As in ``tenfold.engine.fit``.
    seed
        Of weights and minibatches.

    Notes
    -----
    The original divides codes by their mean before distances are divided by the largest of them. A scale, be it the
    mean or the standard deviation, cancels there; a mean near 0 makes it explode. Here it is left out.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate(300, 100, n_types=3, n_batches=2)
    >>> tf.integrate.SAUCIE(epochs=5).fit(adata, batch="batch").embed().shape
    (300, 2)

    References
    ----------
    Amodio et al. (2019), doi 10.1038/s41592-019-0576-7.
    """

    info = MethodInfo(
        title="SAUCIE",
        tasks=("integrate",),
        family="deep",
        year=2019,
        doi="10.1038/s41592-019-0576-7",
        needs=("batch",),
        gives=("embedding", "expression"),
        readiness="caution",
        advice="To compare with; its two dimensions are too few for neighbours.",
    )

    n_latent: int = param(2, low=1)
    n_hidden: int | tuple[int, ...] = (512, 256, 128)
    reference_batch: str | None = None
    mmd_weight: float = param(0.1, low=0.0)
    batch_size: int = param(256, low=3)

    _blind: ClassVar[bool] = False

    def _build(self) -> SaucieNet:
        from tenfold.nn.saucie_net import SaucieNet

        widths = (self.n_hidden,) if isinstance(self.n_hidden, int) else tuple(self.n_hidden)
        sizes = (len(self.columns_), self.n_latent, widths)
        names = self._design.batch
        return SaucieNet(
            len(names), names.index(self.reference_), sizes, {"activation": "leaky_relu", "slope": 0.2}
        )  # fmt: skip

    def _fit(self, data: Inputs) -> None:
        cells = self._take(data)
        names, level = self._design.batch, cells["levels"][:, 0]
        if self.reference_batch is not None and self.reference_batch not in names:
            raise ParameterError(
                f"reference_batch='{self.reference_batch}': there is none.{closest(self.reference_batch, names)}"
            )
        self.reference_ = self.reference_batch or names[int(np.bincount(level).argmax())]
        # A minibatch holds all batches, of which a network sees two.
        size = round(self.batch_size * len(names) / 2)
        steps = max(1, round(data.n_cells * self.train_fraction / size))
        epochs = self.epochs or max(1, min(_MOST_EPOCHS, round(_MOST_STEPS / steps)))
        phases = [self._pair_phase(place, epochs) for place in range(len(names) - 1)]
        if len(names) > 2:
            phases.append(self._joint_phase(epochs))
        self._train(data, cells, phases, batch_size=size)

    def _pair_phase(self, place: int, epochs: int) -> Phase:
        """Train the autoencoder of the reference and the batch in this place among the others."""
        from tenfold.engine import Phase
        from tenfold.nn.expression_decoders import dense
        from tenfold.nn.saucie_net import pair_terms

        def loss(net: Any, batch: Batch, progress: Progress) -> dict[str, Tensor]:
            level = batch["levels"][:, 0]
            skipped = [code for code in net.others if code != net.others[place]]
            rows = ~level.new_tensor(skipped).eq(level[:, None]).any(1)
            if not rows.any():  # none of the two batches is in the minibatch
                rows = rows.logical_not()
            x, is_second = dense(batch["expression"])[rows], level[rows] == net.others[place]
            return pair_terms(net.pairs[place], x, is_second, self.mmd_weight)

        return Phase(
            f"batch {place + 1}", epochs, loss=loss, optimizer=self._optimizer,
            parameters=lambda net: net.pairs[place].parameters(), validate_every=max(1, epochs // 20),
        )  # fmt: skip

    def _joint_phase(self, epochs: int) -> Phase:
        """Train the last autoencoder on what the others reconstruct."""
        from tenfold.engine import Phase

        def loss(net: Any, batch: Batch, progress: Progress) -> Tensor:
            recon = net.own(batch)[1].detach()
            return (net.joint.decode(net.joint.encode(recon)) - recon).square().mean()

        return Phase(
            "all", epochs, loss=loss, optimizer=self._optimizer, parameters=lambda net: net.joint.parameters(),
            validate_every=max(1, epochs // 20),
        )  # fmt: skip

    @staticmethod
    def _latent(net: Any, batch: Batch) -> Tensor:
        return net.encode(batch)

    @staticmethod
    def _decoded(net: Any, batch: Batch) -> Tensor:
        return net.decode(batch["z"])

    def _batches(self, names: str | list[str] | None) -> list[int]:
        if names is not None:
            raise ParameterError("All batches are reconstructed as the reference: leave transform_batch= out.")
        return [0]
