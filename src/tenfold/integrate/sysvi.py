"""sysVI: systems that differ a lot (species, organoid and tissue, nuclei and cells), by cycle consistency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tenfold.expression_models.base import ExpressionMethod
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from tenfold.data.inputs import Inputs
    from tenfold.engine import Batch, Progress
    from tenfold.nn.cycle_vae import CycleVAE


class SysVI(ExpressionMethod):
    """Latent space of systems that differ a lot, from a conditional autoencoder with two more ideas than scVI.

    Log-expression is normal, with a variance for each gene; encoder and decoder are told the system (``batch``) and
    further covariates. The prior is a mixture of the posteriors of five learned pseudo-cells (VampPrior), which leaves
    room for cell types; and a cell that is decoded in another system and encoded again is to come back to its own place
    (latent cycle consistency). There is no adversary, which would mix types that only one system has.

    **Use it** for one strong batch effect: species, organoid and tissue, single nuclei and single cells. Raise
    `cycle_weight` (2 to 50) for more mixing.

    **Do not use it** for small effects, as between donors or runs: its authors advise scVI there; give those as
    ``categorical_covariates``. Where types came in proportions of 10 to 1 it mixed batches more than trVAE, and types
    too (neighbours of the worse type 81 % pure against 85 %; ``evidence/sysvi_acceptance.py``). Decoded expression is
    no estimate of what a cell would express in the other system; the authors advise against its use.

    **Cost**: linear in cells × genes × epochs, about twice scVI's for a network of the same size.

    **Writes** ``obsm["X_sysvi"]`` and ``layers["sysvi"]`` (decoded log-expression, averaged over systems; NaN for genes
    that are not modelled).

    Parameters
    ----------
    n_latent, n_hidden, n_layers
        Latent dimensions; width and number of hidden layers of encoder and decoder.
    dropout
        Share of hidden units silenced in training.
    prior
        ``"vamp"``, or ``"normal"`` for N(0, I).
    n_pseudo_cells
        Components of the VampPrior.
    kl_weight, cycle_weight
        Weights of the KL term and of cycle consistency beside the negative log-likelihood.
    as_reference
        Compute the loss as scvi-tools 1.4.2 does, see Notes.
    n_top_genes
        Variable genes to model, chosen batch by batch; ``None`` takes all.
    epochs
        ``None``: 200, fewer above 4,000 cells (4,000 / n_cells × 200).
    batch_size, learning_rate, weight_decay
        Of the optimiser, Adam.
    train_fraction
        Share of cells to train on; the others are for validation.
    device, precision
        As in ``tenfold.engine.fit``.
    seed
        Of weights, pseudo-cells, split and minibatches.

    Notes
    -----
    scvi-tools 1.4.2 differs from the article in three places: its mixture is taken for each latent dimension by itself,
    with the root of the standard deviation as deviation; the gene's standard deviation is used as variance; and the
    cycle is closed without translation, for what is encoded again is the reconstruction in a cell's own batch. With
    ``as_reference=True`` the loss is theirs.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc(planted_batch=True)
    >>> sysvi = tf.integrate.SysVI(epochs=10, n_top_genes=300).fit(adata, batch="batch")
    >>> sysvi.embed().shape
    (700, 15)

    References
    ----------
    Hrovatin et al. (2024), doi 10.1101/2023.11.03.565463.
    """

    info = MethodInfo(
        title="sysVI",
        tasks=("integrate",),
        family="deep",
        year=2024,
        doi="10.1101/2023.11.03.565463",
        needs=("batch",),
        accepts=("categorical_covariates", "continuous_covariates"),
        gives=("embedding", "expression"),
        readiness="usable",
        advice="For one strong effect, such as species or organoid and tissue; scVI for small ones.",
    )

    n_latent: int = param(15, low=1)
    n_hidden: int = param(256, low=1)
    n_layers: int = param(2, low=1)
    dropout: float = param(0.1, low=0.0, high=0.99)
    prior: Literal["vamp", "normal"] = "vamp"
    n_pseudo_cells: int = param(5, low=1)
    kl_weight: float = param(1.0, low=0.0)
    cycle_weight: float = param(2.0, low=0.0)
    as_reference: bool = False
    weight_decay: float = param(1e-6, low=0.0)
    train_fraction: float = param(0.9, low=0.01, high=1.0)

    _blind: ClassVar[bool] = False
    _epsilon: ClassVar[float] = 0.01

    def _build(self) -> CycleVAE:
        import torch

        from tenfold.nn.cycle_vae import CycleVAE
        from tenfold.nn.encoders import GaussianEncoder
        from tenfold.nn.expression_decoders import NormalDecoder
        from tenfold.nn.mlp import Covariates
        from tenfold.nn.vamp import VampPrior

        n_genes, size, design = len(self.columns_), (self.n_hidden, self.n_layers), self._design
        inside: dict[str, Any] = {"dropout": self.dropout, "n_continuous": design.n_continuous}
        inside["categories"] = design.categories
        prior = None
        if self.prior == "vamp":
            pseudo = {name: torch.as_tensor(value) for name, value in self.pseudo_.items()}
            told = Covariates(pseudo["levels"], pseudo.get("continuous"))
            prior = VampPrior(pseudo["expression"], told, self.as_reference)
        return CycleVAE(
            GaussianEncoder(n_genes, self.n_latent, *size, link="softplus", least_variance=0.0, **inside),
            NormalDecoder(self.n_latent, n_genes, *size, root=self.as_reference, **inside),
            prior, n_batches=len(design.batch), as_reference=self.as_reference,
        )  # fmt: skip

    def _loss(self, net: Any, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Negative log-likelihood, weighted KL term and weighted cycle consistency, mean over cells."""
        return net.cycle_terms(batch, self.kl_weight, self.cycle_weight)

    def _fit(self, data: Inputs) -> None:
        from tenfold.engine import Phase

        cells = self._take(data)
        self.pseudo_ = self._drawn(cells)
        epochs = self.epochs or max(1, min(200, round(4_000 / data.n_cells * 200)))
        self._train(data, cells, [
            Phase("train", epochs, loss=self._loss, optimizer=self._optimizer, validate_every=max(1, epochs // 20)),
        ])  # fmt: skip

    def _drawn(self, cells: dict[str, Any]) -> dict[str, np.ndarray]:
        """Draw the cells that the pseudo-cells of the prior start from."""
        from tenfold.engine import Minibatches

        n_cells = len(cells["levels"])
        chosen = np.random.default_rng([self.seed, 4]).choice(n_cells, min(self.n_pseudo_cells, n_cells), replace=False)
        batch = next(iter(Minibatches(cells, None, index=np.sort(chosen), shuffle=False)))
        told = {name: batch[name].numpy() for name in ("levels", "continuous") if name in batch}
        return {"expression": batch["expression"].dense().numpy(), **told}
