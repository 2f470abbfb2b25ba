"""SIMS: TabNet on log-expression, whose masks say which genes it looked at in each cell."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from tenfold.annotators.base import AnnotatorMethod
from tenfold.data.genes import match_genes
from tenfold.data.inputs import Inputs
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from tenfold.nn.tabnet import TabNet

#: Minibatches that there are at least, and epochs at most, where the number of epochs is not given.
FEWEST_STEPS, MOST_EPOCHS = 1000, 400
#: Where the training loss has not fallen for so many epochs the learning rate falls to this share.
LR_PATIENCE, LR_FACTOR = 10, 0.75


class SIMS(AnnotatorMethod):
    """Labels by a network that looks at a few genes of each cell in a few steps, and which genes these were.

    Log-expression is scaled to length 1 in each cell and standardised gene by gene. In each step a mask (sparsemax:
    most of it exactly 0) chooses genes, gated layers transform them, and their result goes to the label and to the next
    mask; a gene that has been looked at is less likely to be so again. The loss is the cross-entropy and the entropy of
    the masks, so that few genes are looked at.

    **Use it** to see, cell by cell, on which genes a label rests (`explain`, `importance`).

    **Do not use it** for labels alone: on 700 blood cells it was nine to ten points of accuracy below the linear
    methods (``evidence/sims_acceptance.py``), and these are faster. It needs many cells and minibatches. Masks differ
    from seed to seed, for one of several genes that say the same will do; they say what the network looked at, not
    what is needed.

    **Cost**: cells × genes × steps × epochs, trained twice, once to calibrate.

    **Writes** ``obs["sims_label"]``, ``obs["sims_confidence"]``, ``obsm["sims_probabilities"]``.

    Parameters
    ----------
    n_decision, n_attention
        Units of a step for the label, and for the next mask. Published: 8; 32 to 128 for more labels.
    n_steps
        Number of steps.
    relaxation
        1: a gene is looked at fully in one step at most; above it, again in later ones.
    n_shared, n_own
        Gated layers that all steps share, and those of each step.
    virtual_batch_size, momentum
        Cells of a minibatch that are normalised together, and the momentum of the running statistics.
    sparsity
        Weight of the entropy of the masks.
    balance_labels
        Weigh labels in inverse proportion to their number of cells.
    epochs
        At most; ``None``: 50, and up to 400 where that would be fewer than 1,000 minibatches.
    batch_size, learning_rate, weight_decay
        Of Adam; the rate falls by a quarter when the training loss has not fallen for 10 epochs. Published: 32 cells.
    validation, patience
        Share of the cells on which the loss is watched, and epochs without improvement after which training ends, with
        the weights of the best one; 0 trains on all cells to the end. Published: 0.2, which needs many cells.
    n_top_genes
        Variable genes to learn from; ``None`` takes all, as published, which is slow.
    calibration
        Share of the labelled cells held out to calibrate; 0 leaves probabilities as they are.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``.
    seed
        Of weights, order of cells and held-out cells.

    Notes
    -----
    The published temperature is 1.5 until it is calibrated, which flattens probabilities; here it is fitted on held-out
    cells. Its pretraining on unlabelled cells is not here.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> model = tf.annotate.SIMS(epochs=3, n_top_genes=200).fit(adata, labels="cell_type")
    >>> model.explain(adata).shape
    (700, 200)

    References
    ----------
    Gonzalez-Ferrer et al. (2024), doi 10.1016/j.xgen.2024.100581. TabNet: Arik & Pfister (2021), doi
    10.1609/aaai.v35i8.16826.
    """

    info = MethodInfo(
        title="SIMS",
        tasks=("annotate",),
        family="deep",
        year=2024,
        doi="10.1016/j.xgen.2024.100581",
        needs=("labels",),
        accepts=("reference", "batch"),
        gives=("labels", "probabilities", "genes looked at in each cell"),
        readiness="caution",
        sees_labels=True,
        advice="To see on which genes the label of each cell rests; for labels alone a linear method is better.",
    )

    n_decision: int = param(8, low=1)
    n_attention: int = param(8, low=1)
    n_steps: int = param(3, low=1)
    relaxation: float = param(1.3, low=1.0)
    n_shared: int = param(2, low=0)
    n_own: int = param(2, low=1)
    virtual_batch_size: int = param(128, low=2)
    momentum: float = param(0.02, low=0.0, high=1.0)
    sparsity: float = param(1e-3, low=0.0)
    balance_labels: bool = False
    epochs: int | None = param(None, low=1)
    batch_size: int = param(64, low=3)
    learning_rate: float = param(0.01, low=0.0)
    weight_decay: float = param(0.01, low=0.0)
    validation: float = param(0.0, low=0.0, high=0.9)
    patience: int = param(40, low=1)
    n_top_genes: int | None = param(4000, low=10)
    device: str = "auto"
    seed: int = param(0, low=0)

    # ---- network -----------------------------------------------------------------------------------------------------

    def _fit(self, data: Inputs) -> None:
        self._run = data.run
        super()._fit(data)

    def _build(self) -> TabNet:
        from tenfold.nn.tabnet import TabNet

        return TabNet(
            len(self.genes_), len(self.labels_), n_decision=self.n_decision, n_attention=self.n_attention,
            n_steps=self.n_steps, relaxation=self.relaxation, n_shared=self.n_shared, n_own=self.n_own,
            size=self.virtual_batch_size, momentum=self.momentum,
        )  # fmt: skip

    def _train(self, x: sparse.csr_matrix, codes: np.ndarray) -> None:
        import torch
        from torch.optim.lr_scheduler import ReduceLROnPlateau

        from tenfold.engine import EarlyStopping, Phase, fit, seeded

        with seeded(self.seed):
            net = self._build()
        sizes = np.bincount(codes, minlength=len(self.labels_))
        weights = len(codes) / (len(sizes) * np.maximum(sizes, 1)) if self.balance_labels else np.ones(len(sizes))
        of_labels = torch.as_tensor(weights, dtype=torch.float32)

        def loss(net: Any, batch: dict[str, Any], progress: Any) -> dict[str, Any]:
            found = net(batch["x"].dense())
            of_labels_there = of_labels.to(found.logits.device)
            entropy = torch.nn.functional.cross_entropy(found.logits.float(), batch["label"], of_labels_there)
            return {"loss": entropy - self.sparsity * found.entropy, "cross_entropy": entropy, "masks": found.entropy}

        # Where too few cells are left to watch, all are trained on.
        watched = self.validation if self.validation * len(codes) >= len(self.labels_) else 0.0
        steps = -(-round(len(codes) * (1 - watched)) // self.batch_size)
        phase = Phase(
            "train", self.epochs or min(MOST_EPOCHS, max(50, -(-FEWEST_STEPS // steps))), loss=loss,
            optimizer=self._optimizer, monitor="cross_entropy",
            scheduler=partial(ReduceLROnPlateau, factor=LR_FACTOR, patience=LR_PATIENCE),
            early_stopping=EarlyStopping(self.patience, restore_best=True) if watched else None,
        )  # fmt: skip
        history = fit(
            net, {"x": _of_length_one(x), "label": codes}, [phase], batch_size=self.batch_size,
            train_fraction=1.0 - watched, seed=self.seed, device=self.device, run=self._run, name=self.name(),
        )  # fmt: skip
        self.net_, self.history_ = net.cpu().eval(), history.to_dict()

    def _optimizer(self, parameters: list[Parameter]) -> Optimizer:
        from tenfold.kernels.adam import Adam

        return Adam(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)

    # ---- labels ------------------------------------------------------------------------------------------------------

    def _score(self, x: sparse.csr_matrix) -> np.ndarray:
        return self._looked(x, lambda found: found.logits.softmax(dim=1))

    def _looked(self, x: sparse.csr_matrix, part: Callable[[Any], Any]) -> np.ndarray:
        from tenfold.engine import predict

        cells = {"x": _of_length_one(x)}
        return predict(
            self.net_, cells, lambda net, batch: part(net(batch["x"].dense())), batch_size=1024, device=self.device
        )

    # ---- genes that were looked at -----------------------------------------------------------------------------------

    def masks(self, adata: AnnData) -> list[sparse.csr_matrix]:
        """Return the mask of each step: how much of its look each cell gave to each gene.

        Parameters
        ----------
        adata
            Cells, raw counts.

        Returns
        -------
        One matrix a step, (n_cells, n_genes), float32, columns as in ``genes_``; rows sum to 1.
        """
        return [self._sparse(adata, lambda found, step=step: found.masks[step]) for step in range(self.n_steps)]

    def explain(self, adata: AnnData) -> sparse.csr_matrix:
        """Return how much of the answer rests on each gene: masks weighed by what their steps add to it.

        Parameters
        ----------
        adata
            Cells, raw counts.

        Returns
        -------
        Shape (n_cells, n_genes), float32, columns as in ``genes_``; rows sum to 1, or are empty where no step adds
        anything.
        """

        def weighed(found: Any) -> Any:
            total = sum(mask * share[:, None] for mask, share in zip(found.masks, found.shares.unbind(1), strict=True))
            return total / found.shares.sum(dim=1, keepdim=True).clamp(min=1e-12)

        return self._sparse(adata, weighed)

    def importance(self, adata: AnnData) -> pd.DataFrame:
        """Return the mean of `explain` over the cells of each label told: one row a gene, one column a label."""
        import pandas as pd

        explained, told = self.explain(adata), self.predict(adata)
        found = {
            label: np.asarray(explained[told == label].mean(axis=0)).ravel() if (told == label).any() else 0.0
            for label in self.labels_
        }
        return pd.DataFrame(found, index=self.genes_)

    def _sparse(self, adata: AnnData, part: Callable[[Any], Any]) -> sparse.csr_matrix:
        self._check_fitted()
        data = self._inputs(adata)
        match = match_genes(adata.var_names, self.genes_)
        parts = [sparse.csr_matrix(self._looked(x, part)) for x in self._chunks(data, match)]
        return sparse.vstack(parts, format="csr")


def _of_length_one(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return rows divided by their length; empty ones stay."""
    length = np.sqrt(np.asarray(x.multiply(x).sum(axis=1)).ravel())
    scaled = x.data / np.repeat(np.maximum(length, 1e-12), np.diff(x.indptr)).astype(np.float32)
    return sparse.csr_matrix((scaled.astype(np.float32), x.indices, x.indptr), x.shape)
