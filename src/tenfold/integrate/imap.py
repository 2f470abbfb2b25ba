"""iMAP: a content code that does not know the batch, then translation of expression to a reference batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.linalg import eigh

from tenfold.data.expression import StreamedExpression, grouped_means
from tenfold.data.pair_growth import grown_weights
from tenfold.errors import ParameterError
from tenfold.expression_models.base import ExpressionMethod
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor

    from tenfold.data.inputs import Inputs
    from tenfold.engine import Batch, Progress
    from tenfold.nn.imap_net import ContentStyle

#: Cells that pass through the first stage, at most; the original has 150 epochs of 10,240 from every batch.
_MOST_CELLS = 160_000
#: Cells of a batch among which pairs are sought, as in the original.
_SAMPLE = 3_000


class IMAP(ExpressionMethod):
    """Content code of cells, and expression translated to a reference batch by a generative adversarial network.

    In the first stage an encoder learns a content that is the same after a cell has been decoded in the style of
    another batch. In the second, one batch after the other is translated to the reference batch (the one of most
    variable genes): a generator changes its cells until a critic (Wasserstein, gradient penalty) cannot tell them from
    the reference's. Both are drawn near mutual nearest neighbours of the content code, so types without a partner are
    mostly left out of the comparison.

    **Use it** to compare with, and where expression in the units of one batch is wanted.

    **Do not use it** without a look at ``translate=False``, the first stage alone, which takes less than half of the
    time. On blood cells of three chemistries the second stage made neighbours purer and mixed batches half as much as
    the first, whose content code mixes types, too: there a type that one batch alone had lost neighbours to others,
    after the second it did not (``evidence/imap_acceptance.py``). Where there is nothing to correct, both lose
    neighbours. Adversarial training is unstable, and types that the reference lacks are translated all the same.

    **Cost**: linear in cells × genes × epochs for the first stage; `translation_steps` minibatches a batch for the
    second. Pairs are sparse, and sought among 3,000 cells a batch.

    **Writes** ``obsm["X_imap"]`` (principal components of translated expression; the content code with
    ``translate=False``) and ``layers["imap"]`` (translated log-expression; NaN for genes that are not modelled).

    Parameters
    ----------
    n_latent, n_hidden
        Width of the content code and of the generator's; of the first hidden layer, the second has half.
    translate
        Go through the second stage. Otherwise expression is the content decoded in the style of the reference.
    n_components
        Principal components of translated expression to embed cells in.
    content_weight
        Weight of the change of content beside the reconstruction.
    translation_steps, n_critic
        Updates of the critic for each batch, and how many of them there are for one of the generator.
    n_top_genes
        Variable genes to model, chosen batch by batch; ``None`` takes all.
    epochs
        Of the first stage. ``None``: as many as 160,000 cells make, at most 150.
    batch_size
        Cells in a minibatch.
    learning_rate, weight_decay
        Of Adam in the first stage; the second has 0.4 times the rate.
    train_fraction
        Share of cells to train on in the first stage; the others are for validation.
    device, precision
        As in ``tenfold.engine.fit``.
    seed
        Of weights, minibatches and mixtures.

    Attributes
    ----------
    reference_
        Name of the batch that the others are translated to.

    Notes
    -----
    The defaults fit a processor: the first stage sees about a fiftieth of the original's cells, the generator has as
    many updates (150) and the critic a fifth. The original's critic has 100 updates to one of the generator by name;
    since it starts to count anew in every epoch of 10 minibatches, there are 10. Its random walks from pairs are
    replaced by their expected numbers of visits.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate(200, 60, n_types=3, n_batches=2)
    >>> imap = tf.integrate.IMAP(epochs=5, n_hidden=32, n_latent=8, translation_steps=5).fit(adata, batch="batch")
    >>> imap.embed().shape
    (200, 30)

    References
    ----------
    Wang et al. (2021), doi 10.1186/s13059-021-02280-8.
    """

    info = MethodInfo(
        title="iMAP",
        tasks=("integrate",),
        family="deep",
        year=2021,
        doi="10.1186/s13059-021-02280-8",
        needs=("batch",),
        gives=("embedding", "expression"),
        readiness="caution",
        advice="To compare with; look at translate=False beside it.",
    )

    n_latent: int = param(256, low=1)
    n_hidden: int = param(1024, low=2)
    translate: bool = True
    n_components: int = param(30, low=2)
    content_weight: float = param(3.0, low=0.0)
    translation_steps: int = param(300, low=1)
    n_critic: int = param(2, low=1)
    batch_size: int = param(512, low=8)
    learning_rate: float = param(5e-4, low=0.0)

    _blind: ClassVar[bool] = False

    def _build(self) -> ContentStyle:
        from tenfold.nn.imap_net import ContentStyle

        names, n_genes = self._design.batch, len(self.columns_)
        widths = (self.n_hidden, max(1, self.n_hidden // 2))
        n_components = min(self.n_components, n_genes) if self.translate else 0
        return ContentStyle(n_genes, len(names), self.n_latent, widths, names.index(self.reference_), n_components)

    def _optimizer(self, parameters: list[Any], share: float = 1.0) -> Any:
        from torch.optim import Adam

        rate = share * self.learning_rate
        return Adam(parameters, lr=rate, betas=(0.5, 0.999), weight_decay=self.weight_decay, fused=True)

    # ---- content -----------------------------------------------------------------------------------------------------

    def _fit(self, data: Inputs) -> None:
        from tenfold.engine import Phase, fit, seeded

        cells = self._take(data)
        x, level = cells["expression"], cells["levels"][:, 0]
        if isinstance(x, StreamedExpression):
            x = cells["expression"] = x.rows(np.arange(data.n_cells))
        means, squares = (
            grouped_means(part, np.zeros_like(level), level, (1, level.max() + 1))[0] for part in (x, x.power(2))
        )
        spread = np.sqrt(np.maximum(squares - means**2, 0)).sum(axis=1)
        self.reference_ = self._design.batch[int(spread.argmax())]
        epochs = self.epochs or max(1, min(150, round(_MOST_CELLS / data.n_cells)))
        with seeded(self.seed):
            net = self._build()
        phase = Phase("content", epochs, loss=self._content_loss, optimizer=self._optimizer,
                      parameters=lambda net: [p for n, p in net.named_parameters() if not n.startswith("translators")],
                      validate_every=max(1, epochs // 20))  # fmt: skip
        shared = {"seed": self.seed, "device": self.device, "precision": self.precision, "run": data.run,
                  "fingerprint": self.parameters}  # fmt: skip
        history = fit(
            net, cells, [phase], batch_size=self.batch_size, weights=1 / np.bincount(level)[level],
            train_fraction=self.train_fraction, name=self.name(), **shared,
        )  # fmt: skip
        if self.translate:
            self._translate(net, cells, shared)
        self._keep(net, history, cells)

    def _content_loss(self, net: Any, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Errors of reconstruction and content, of mixtures of cells of one batch."""
        from tenfold.nn.expression_decoders import dense
        from tenfold.nn.imap_net import mixed

        level = batch["levels"][:, 0]
        return net.content_terms(mixed(dense(batch["expression"]), level), level, self.content_weight)

    # ---- translation -------------------------------------------------------------------------------------------------

    def _translate(self, net: Any, cells: dict[str, Any], shared: dict[str, Any]) -> None:
        """Train the translator of every batch, then take the principal components of what they give."""
        import torch
        from torch import nn

        from tenfold.engine import Phase, Step, fit, predict, seeded
        from tenfold.nn.expression_decoders import dense
        from tenfold.nn.imap_net import Critic, judge, persuade

        level = cells["levels"][:, 0]
        content = predict(net, cells, lambda net, batch: net.content(dense(batch["expression"])))
        for code, translator in net.translators.items():
            weights = self._pair_weights(content, level, net.anchor, int(code))
            with seeded(self.seed, f"critic {code}"):
                both = nn.ModuleDict(
                    {"generator": translator, "critic": Critic(len(self.columns_), translator.code.in_features)}
                )
            epochs = max(1, round(self.translation_steps / max(1, len(level) / self.batch_size)))
            steps = [
                Step("critic", lambda net: net["critic"].parameters(), judge, lambda p: self._optimizer(p, 0.4)),
                Step("generator", lambda net: net["generator"].parameters(), persuade,
                     lambda p: self._optimizer(p, 0.4), every=self.n_critic),
            ]  # fmt: skip
            told = {"expression": cells["expression"], "is_query": level == int(code)}
            fit(both, told, [Phase("translation", epochs, steps=steps)], batch_size=self.batch_size, weights=weights,
                train_fraction=1.0, name=f"{self.name()}_{code}", **shared)  # fmt: skip
        found = predict(net, cells, lambda net, batch: net.corrected(batch))
        centre = found.mean(axis=0)
        last, n_components = found.shape[1] - 1, net.loadings.shape[1]
        _, loadings = eigh(np.cov(found, rowvar=False), subset_by_index=(last - n_components + 1, last))
        net.centre.copy_(torch.from_numpy(centre))
        net.loadings.copy_(torch.from_numpy(loadings[:, ::-1].astype(np.float32)))

    def _pair_weights(self, content: np.ndarray, level: np.ndarray, anchor: int, query: int) -> np.ndarray:
        """Return how often cells of reference and query are drawn."""
        rng = np.random.default_rng([self.seed, 8, query])
        rows = [rng.permutation(np.flatnonzero(level == code))[:_SAMPLE] for code in (anchor, query)]
        within = max(1, min(map(len, rows)) // 100)
        found = grown_weights(*(content[own] for own in rows), max(1, within // 2), within)
        weights = np.zeros(len(level))
        for own, share in zip(rows, found, strict=True):
            weights[own] = share
        return weights

    # ---- how the network is asked ------------------------------------------------------------------------------------

    @staticmethod
    def _latent(net: Any, batch: Batch) -> Tensor:
        from tenfold.nn.expression_decoders import dense

        if not len(net.translators):
            return net.content(dense(batch["expression"]))
        return (net.corrected(batch) - net.centre) @ net.loadings

    def _keep(self, net: Any, history: Any, cells: dict[str, Any]) -> None:
        super()._keep(net, history, cells)
        self.fitted_["expression"] = cells["expression"]  # the translators ask for it

    def _placed(self, adata: AnnData | None, decoding: bool = False) -> dict[str, Any]:
        if adata is None:
            return super()._placed(None)
        cells = self._cells(adata)
        return {**cells, "z": self._infer(cells)}

    def _expand(self, cells: dict[str, Any], columns: np.ndarray, batches: list[int]) -> np.ndarray:
        from tenfold.engine import predict

        place = np.searchsorted(self.columns_, columns).clip(max=len(self.columns_) - 1)
        modelled = self.columns_[place] == columns
        out = np.full((len(cells["z"]), len(columns)), np.nan, dtype=np.float32)
        wanted = place[modelled]
        out[:, modelled] = predict(self.net_, cells, lambda net, batch: net.corrected(batch)[:, wanted])
        return out

    def _batches(self, names: str | list[str] | None) -> list[int]:
        if names is not None:
            raise ParameterError(f"All batches are translated to {self.reference_}: leave transform_batch= out.")
        return [0]
