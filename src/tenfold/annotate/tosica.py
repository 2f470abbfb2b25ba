"""TOSICA: a transformer whose tokens are pathways."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from tenfold.annotators.base import AnnotatorMethod
from tenfold.data.gene_sets import Memberships, memberships, read_gene_sets
from tenfold.data.genes import match_genes
from tenfold.data.inputs import Inputs
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from tenfold.kernels.rows import SparseRows
    from tenfold.nn.set_tokens import SetTransformer

#: The token of genes beside those of the user's pathways.
UNANNOTATED = "unannotated"
#: Standard deviation of initial weights.
PUBLISHED_START = 0.01
#: The learning rate ends at this share of where it begins.
LAST_RATE = 0.01


class TOSICA(AnnotatorMethod):
    """Labels by a transformer whose tokens are pathways, and how much each pathway weighs in each cell.

    The log-expression of the genes of a pathway is mapped linearly to its token, at first such that the token of mean
    expression is zero (what blocks see of a token is its direction, not its length); one more token stands for genes
    outside all pathways, and one for the cell. After a few transformer blocks the token of the cell tells the label.
    All labels are equally frequent in training: cells are drawn again and again, after the cells to calibrate on have
    been held out.

    Pathways come from ``fit(adata, labels=..., pathways="sets.gmt")``, or from a dict of gene lists. Without them sets
    of genes are drawn at random: cells are labelled as well, but what `attention` and `attribution` name then means
    nothing.

    **Use it** with pathways of your own choice, to see which of them tell cell types apart.

    **Do not use it** for the labels alone: a linear method is as good and much faster. Do not read attention as
    importance: a token may be looked at and say nothing, or what other pathways say as well; compare `attribution`.
    Neither has a null distribution.

    **Cost**: grows with cells × epochs × pathways² and with pairs of gene and pathway. It is trained twice, once to
    calibrate.

    **Writes** ``obs["tosica_label"]``, ``obs["tosica_confidence"]``, ``obsm["tosica_probabilities"]``.

    Parameters
    ----------
    max_set_size
        Pathways of more genes are left out; those with fewer than 5 genes in the data are, too.
    n_sets
        Pathways to keep, those with most genes in the data; without pathways, the number of random sets.
    density
        Chance that a gene belongs to a random set.
    unannotated
        Genes of the last token: ``"rest"``, those in no pathway; ``"none"``: there is no such token; ``"all"``, as
        published: then the network can read all that it needs from this token, and pathways say little of the label.
    n_hidden
        Width of the tokens; a multiple of `n_heads`.
    n_heads, n_layers
        Attention heads and transformer blocks.
    dropout
        Of attention and networks. Published: 0.5, which costs accuracy where cells are few.
    stochastic_depth
        Share of cells that skip half of the last block; from 0 in the first it rises linearly. Published: 0.5.
    legacy
        Token values in the published order. The published network means a token to hold what its pathway's genes give,
        but reads the values in another order, so that each token mixes many pathways. For comparisons only.
    optimizer
        ``"adam"``, or ``"sgd"`` (momentum 0.9) as published, which needs minibatches of 8 and many cells.
    epochs
        Of training. ``None``: 40, fewer above 5,000 cells (200,000 / n_cells), at least 5.
    batch_size, learning_rate, weight_decay
        Of training; the learning rate falls to a hundredth along a cosine. Published: 10 epochs, 8, 0.001, 0.00005
        with ``optimizer="sgd"``, from weights of a hundredth, with which a few hundred cells teach nothing.
    rejection
        Cells whose highest probability is below this are "Unknown"; 0 rejects none. Published: 0.1, which with ten
        labels or fewer rejects none, either.
    n_top_genes
        Variable genes to learn from; ``None`` takes all.
    calibration
        Share of the labelled cells held out to calibrate; 0 leaves probabilities as they are.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    seed
        Of random sets, weights and training.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> genes = adata.var_names.tolist()
    >>> sets = {"one": genes[:40], "two": genes[40:100]}  # or the path of a .gmt file
    >>> model = tf.annotate.TOSICA(epochs=1).fit(adata, labels="cell_type", pathways=sets)
    >>> model.attribution(adata).columns.tolist()
    ['one', 'two']

    References
    ----------
    Chen et al. (2023), doi 10.1038/s41467-023-35923-4.
    """

    info = MethodInfo(
        title="TOSICA",
        tasks=("annotate",),
        family="deep",
        year=2023,
        doi="10.1038/s41467-023-35923-4",
        needs=("labels",),
        accepts=("reference", "batch", "pathways"),
        gives=("labels", "probabilities", "pathway attention", "pathway attribution"),
        readiness="usable",
        sees_labels=True,
        advice="To see which of your pathways tell cell types apart; for labels alone a linear method will do.",
    )

    max_set_size: int = param(300, low=5)
    n_sets: int = param(300, low=1)
    density: float = param(0.015, low=0.0, high=1.0)
    unannotated: Literal["rest", "all", "none"] = "rest"
    n_hidden: int = param(48, low=1)
    n_heads: int = param(4, low=1)
    n_layers: int = param(2, low=1)
    dropout: float = param(0.1, low=0.0, high=0.99)
    stochastic_depth: float = param(0.1, low=0.0, high=0.99)
    legacy: bool = False
    optimizer: Literal["adam", "sgd"] = "adam"
    epochs: int | None = param(None, low=1)
    batch_size: int = param(32, low=1)
    learning_rate: float = param(1e-3, low=0.0)
    weight_decay: float = param(5e-5, low=0.0)
    rejection: float = param(0.0, low=0.0, high=1.0)
    n_top_genes: int | None = param(3000, low=10)
    device: str = "auto"
    seed: int = param(0, low=0)

    # ---- pathways ----------------------------------------------------------------------------------------------------

    def _fit(self, data: Inputs) -> None:
        given = data.roles.get("pathways")
        self._given = None if given is None else read_gene_sets(given)
        self._run = data.run
        super()._fit(data)

    def _sets(self) -> Memberships:
        """Return the pathways over the genes that the method reads, that of other genes last; or random sets."""
        n_genes = len(self.genes_)
        if self._given is None:
            mask = np.random.default_rng(self.seed).random((n_genes, self.n_sets)) < self.density
            mask = mask[:, mask.any(axis=0)] if mask.any() else np.ones((n_genes, 1), dtype=bool)
            return Memberships.of_mask(mask, [f"random set {number + 1}" for number in range(mask.shape[1])])
        found = memberships(self._given, self.genes_, self.max_set_size, self.n_sets)
        mask = np.zeros((n_genes, len(found.names)), dtype=bool)
        mask[np.repeat(np.arange(n_genes), np.diff(found.starts)), found.sets] = True
        others = {"rest": ~mask.any(axis=1), "all": np.ones(n_genes, dtype=bool), "none": np.zeros(n_genes, dtype=bool)}
        more = others[self.unannotated]
        if not more.any():
            return Memberships.of_mask(mask, found.names)
        return Memberships.of_mask(np.column_stack([mask, more]), [*found.names, UNANNOTATED])

    # ---- network -----------------------------------------------------------------------------------------------------

    def _build(self) -> SetTransformer:
        from tenfold.nn.set_tokens import SetTokens, SetTransformer

        tokens = SetTokens(self.starts_, self.sets_, len(self.pathways_), self.n_hidden)
        return SetTransformer(
            tokens, len(self.labels_), n_heads=self.n_heads, n_blocks=self.n_layers, dropout=self.dropout,
            stochastic_depth=self.stochastic_depth, mixed=self.legacy,
            start=PUBLISHED_START if self.optimizer == "sgd" else None,
        )  # fmt: skip

    def _train(self, x: sparse.csr_matrix, codes: np.ndarray) -> None:
        import torch

        from tenfold.engine import Phase, fit, seeded

        self.pathways_, self.starts_, self.sets_ = self._sets()
        self.mean_ = np.asarray(x.mean(axis=0), dtype=np.float32).ravel()
        with seeded(self.seed):
            net = self._build()
        if not self.legacy:
            net.tokens.centre(self._baseline())

        def loss(net: Any, batch: dict[str, Any], progress: Any) -> Any:
            return torch.nn.functional.cross_entropy(net(batch["x"]).float(), batch["label"])

        epochs = self.epochs or max(5, min(40, round(200_000 / x.shape[0])))

        def rate(epoch: int) -> float:
            return (1 + cos(pi * epoch / epochs)) / 2 * (1 - LAST_RATE) + LAST_RATE

        def falling(optimizer: Optimizer) -> Any:
            return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

        phase = Phase("train", epochs, loss=loss, optimizer=self._optimizer, scheduler=falling)
        history = fit(
            net, {"x": x, "label": codes}, [phase], batch_size=self.batch_size, train_fraction=1.0,
            weights=1 / np.bincount(codes)[codes], seed=self.seed, device=self.device, run=self._run, name=self.name(),
        )  # fmt: skip
        self.net_, self.history_ = net.cpu(), history.to_dict()

    def _baseline(self) -> SparseRows:
        """Return the mean expression of the labelled cells as one row."""
        from tenfold.kernels.rows import take_rows

        return take_rows(sparse.csr_matrix(self.mean_[None]), np.zeros(1, dtype=np.int64))

    def _optimizer(self, parameters: list[Parameter]) -> Optimizer:
        from torch.optim import SGD, AdamW

        options: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.optimizer == "sgd":
            return SGD(parameters, momentum=0.9, **options)
        return AdamW(parameters, fused=True, **options)

    # ---- labels ------------------------------------------------------------------------------------------------------

    def _score(self, x: sparse.csr_matrix) -> np.ndarray:
        return self._applied(x, lambda net, batch: net(batch["x"]).softmax(dim=1))

    def _decide(self, probabilities: pd.DataFrame) -> np.ndarray:
        sure = probabilities.to_numpy().max(axis=1) >= self.rejection
        return np.where(sure, super()._decide(probabilities), self.UNKNOWN)

    def _applied(self, x: sparse.csr_matrix, function: Callable[[Any, dict[str, Any]], Any]) -> np.ndarray:
        from tenfold.engine import predict

        return predict(self.net_, {"x": x}, function, batch_size=128, device=self.device)

    # ---- pathways in cells -------------------------------------------------------------------------------------------

    def attention(self, adata: AnnData) -> pd.DataFrame:
        """Return how much the token of each cell draws on each pathway, through all blocks (attention rollout).

        Parameters
        ----------
        adata
            Cells, raw counts.

        Returns
        -------
        One row a cell, one column a pathway, float32; parts of 1, of which the rest is what the cell's own token keeps
        and the share of the token of unannotated genes.
        """
        return self._of_pathways(adata, lambda net, batch: net.attention(batch["x"]))

    def attribution(self, adata: AnnData, n_steps: int = 16) -> pd.DataFrame:
        """Return how much each pathway speaks for each cell's most probable label: integrated gradients × input.

        The input is how the genes of the pathway differ from their mean over the labelled cells. The gradient is that
        of the label's logit less the mean logit, averaged on the way from the mean to the cell: at the cell itself it
        often vanishes, for the network looks at directions of tokens rather than at their size. Over all pathways, that
        of unannotated genes included, attributions sum to what the cell's logit gains on that of the mean.

        Parameters
        ----------
        adata
            Cells, raw counts.
        n_steps
            Points on the way; 1 for gradient × input at the cell.

        Returns
        -------
        One row a cell, one column a pathway, float32; negative where the genes speak against the label.
        """
        self._check_fitted()
        baseline = self._baseline()

        def attribution(net: Any, batch: dict[str, Any]) -> Any:
            return net.attribution(batch["x"], baseline.to(batch["x"].device), n_steps)

        return self._of_pathways(adata, attribution)

    def _of_pathways(self, adata: AnnData, function: Callable[[Any, dict[str, Any]], Any]) -> pd.DataFrame:
        import pandas as pd

        self._check_fitted()
        data = self._inputs(adata)
        match = match_genes(adata.var_names, self.genes_)
        found = np.concatenate([self._applied(x, function) for x in self._chunks(data, match)])
        table = pd.DataFrame(found, index=adata.obs_names, columns=self.pathways_)
        return table.drop(columns=UNANNOTATED, errors="ignore")
