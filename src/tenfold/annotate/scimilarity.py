"""SCimilarity: cells of one type and different studies brought together on a sphere, and an index to search there."""

from __future__ import annotations

import warnings
from math import cos, pi
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from tenfold.annotators.calibration import held_out
from tenfold.annotators.cell_search import CellSearch
from tenfold.annotators.ontology import read_obo
from tenfold.annotators.scimilarity_files import read_scimilarity
from tenfold.data.inputs import Inputs
from tenfold.errors import ParameterError
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from pathlib import Path

    from torch.optim import Optimizer

    from tenfold.nn.triplets import UnitEncoder

#: Cells of a label, and of a study, at which its weight in sampling begins to fall; the largest weight, over the rest.
LABEL_CELLS, STUDY_CELLS = 1e4, 1e6
#: Pairs of cells of one label looked at in a minibatch; minibatches that training lasts where epochs are not given.
MOST_PAIRS, STEPS = 50_000, 300


class SCimilarity(CellSearch):
    """Labels by the nearest labelled cells on a unit sphere that a network learns from triplets of cells.

    An encoder puts each cell on the sphere; a decoder reconstructs its log-expression. In a triplet, anchor and
    positive have one label and come from two studies (``batch="study"``), the negative is of another label, a little
    farther away than the positive; the loss pushes it beyond a margin. With ``ontology="cl.obo"`` ancestors and
    descendants of the anchor's label are never negatives. The labelled cells are then indexed; the `n_neighbors`
    nearest vote. The distance to the nearest one says how unlike all of them a cell is.

    The published trainer puts its L1 penalty on the last layer of the encoder, though it says the first; here it is on
    the first.
    Defaults are for references of thousands of cells. The published ones, for 50,000 minibatches from an atlas, learn
    the types of so few hardly at all: after 1,000 minibatches simulated cells were labelled at chance.

    **Use it** to search an atlas of many studies for cells like yours (`search`), with labels from them; and with
    encoders of the original package that you have: ``SCimilarity.from_official(folder).index(atlas, labels=...)``.

    **Do not use it** for labels alone: with a simulated batch left out it named 75 % of cells right; neighbours in
    principal components named 61 %, and logistic regression, trained in no time, 76 %. On five folds of blood cells
    of one donor it was five points below that, and 17 in macro F1: 50 neighbours outvote rare types. Nor rely on
    distance for new types: it told a type that was left out from known ones with an AUROC of 0.74; 0.8 was hoped for.
    Without ``batch=`` nothing keeps the studies apart from the types, and without several studies for a label no
    triplet pulls its cells together.

    **Cost**: minibatches × genes × hidden units, trained twice, once to calibrate; labelling is a product and a search
    of cells × labelled cells.

    **Writes** ``obs["scimilarity_label"]``, ``obs["scimilarity_confidence"]``, ``obsm["scimilarity_probabilities"]``.

    Parameters
    ----------
    n_latent
        Dimensions of the sphere's space.
    n_hidden, n_layers
        Width and number of hidden layers of encoder and decoder (published: 1,024 and 3).
    dropout, input_dropout
        Share of hidden units (published: 0.5), and of genes, silenced in training.
    triplet_weight
        Weight of the triplet loss; reconstruction has the rest of 1 (published: 0.001).
    margin
        By which negatives are to be farther than positives (published: 0.05).
    coarsen
        Share of cells whose label is replaced in a minibatch by one directly above it that other cells there have;
        0.5 in the publication's variant with an ontology.
    l1
        Weight of the sum of absolute weights of the first layer, times the learning rate.
    epochs
        ``None``: so many that there are 300 minibatches.
    batch_size
        Cells in a minibatch (published: 1,000).
    learning_rate
        At the start; it falls to 0 along a cosine (published: 0.005).
    weight_decay
        Of AdamW.
    n_neighbors
        Labelled cells that vote.
    weights
        ``"uniform"``: one vote each. ``"distance"``: the nearer weighs more, 1 / distance.
    rejection
        Share of cells of known types that may become "Unknown" for being far from all labelled cells; others as far
        do too.
    search_by
        ``"points"``: exact up to 100,000 labelled cells, approximate above. ``"quantised"``: every ten dimensions are
        replaced by the nearest of √n centres, a tenth of the memory and less exact.
    n_top_genes
        Variable genes to learn from; ``None`` takes all.
    calibration
        Share of the labelled cells held out to calibrate; 0 leaves shares of votes as they are.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``.
    seed
        Of weights, minibatches, triplets and held-out cells.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> model = tf.annotate.SCimilarity(n_hidden=64, epochs=20).fit(adata[:500].copy(), labels="cell_type")
    >>> model.search(adata[500:].copy(), n_neighbors=3).shape
    (600, 6)

    References
    ----------
    Heimberg et al. (2025), doi 10.1038/s41586-024-08411-y.
    """

    info = MethodInfo(
        title="SCimilarity",
        tasks=("annotate",),
        family="deep",
        year=2025,
        doi="10.1038/s41586-024-08411-y",
        needs=("labels",),
        accepts=("reference", "batch", "ontology"),
        gives=("labels", "probabilities", "similar cells"),
        readiness="usable",
        sees_labels=True,
        advice="To search an atlas of many studies for similar cells; for labels alone a linear model will do.",
    )

    n_latent: int = param(128, low=2)
    n_hidden: int = param(256, low=1)
    n_layers: int = param(1, low=1)
    dropout: float = param(0.2, low=0.0, high=0.99)
    input_dropout: float = param(0.4, low=0.0, high=0.99)
    triplet_weight: float = param(0.5, low=0.0, high=1.0)
    margin: float = param(0.2, low=0.0, high=1.9)
    coarsen: float = param(0.0, low=0.0, high=1.0)
    l1: float = param(1e-4, low=0.0)
    epochs: int | None = param(None, low=1)
    batch_size: int = param(500, low=2)
    learning_rate: float = param(1e-3, low=0.0)
    weight_decay: float = param(0.01, low=0.0)

    # ---- fit ---------------------------------------------------------------------------------------------------------

    def _fit(self, data: Inputs) -> None:
        self._run, self._ontology = data.run, data.roles.get("ontology")
        source = data.reference or data
        self._name(source)
        super()._fit(data)

    def _learn(self, x: sparse.csr_matrix, codes: np.ndarray, groups: np.ndarray | None) -> None:
        held = held_out(codes, groups, self.calibration, self.seed)
        if held.any():
            self._train_encoder(x[~held], codes[~held], None if groups is None else groups[~held])
            self._calibrate(self._points(x), codes, groups, held)
        else:
            self._calibrate(np.zeros((len(codes), 0)), codes, groups, held)
        self._train_encoder(x, codes, groups)
        self._index(self._points(x), codes)

    def _train(self, x: sparse.csr_matrix, codes: np.ndarray) -> None:
        self._train_encoder(x, codes, None)
        self._index(self._points(x), codes)

    def _build(self) -> UnitEncoder:
        from tenfold.nn.triplets import UnitEncoder

        return UnitEncoder(len(self.genes_), self.n_latent, self._widths(), self.dropout, self.input_dropout)

    def _widths(self) -> tuple[int, ...]:
        return (self.n_hidden,) * self.n_layers

    def _train_encoder(self, x: sparse.csr_matrix, codes: np.ndarray, studies: np.ndarray | None) -> None:
        from torch import nn
        from torch.optim import AdamW

        from tenfold.engine import Phase, fit, seeded
        from tenfold.nn.triplets import MirroredDecoder

        with seeded(self.seed):
            net = nn.ModuleDict({"encoder": self._build()})
            net["decoder"] = MirroredDecoder(len(self.genes_), self.n_latent, self._widths(), self.dropout)
        several = studies is not None and len(np.unique(studies)) > 1
        if studies is not None and several:
            self._warn_of_single(codes, studies)
        data = {"x": x, "label": codes, **({"study": studies} if several else {})}
        epochs = self.epochs or -(-STEPS // -(-x.shape[0] // self.batch_size))

        def optimizer(parameters: list) -> Optimizer:
            return AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)

        phase = Phase("train", epochs, loss=self._loss(epochs), optimizer=optimizer,
                      scheduler=lambda optimizer: _falling(optimizer, epochs))  # fmt: skip
        history = fit(
            net, data, [phase], batch_size=self.batch_size, train_fraction=1.0, weights=balanced(codes, studies),
            seed=self.seed, device=self.device, run=self._run, name=self.name(),
        )  # fmt: skip
        self.net_, self.history_ = net["encoder"].cpu().eval(), history.to_dict()

    def _warn_of_single(self, codes: np.ndarray, studies: np.ndarray) -> None:
        pairs = np.unique(np.stack([codes, studies]), axis=1)[0]
        single = self.labels_[np.bincount(pairs, minlength=len(self.labels_)) == 1]
        if len(single):
            warnings.warn(
                f"Cells of {len(single)} labels are of one study each ({', '.join(map(str, single[:5]))}); no triplet "
                "pulls them together. Merge such labels with others, or leave batch= out to allow pairs of one study.",
                stacklevel=2,
            )

    def _loss(self, epochs: int) -> Any:
        from tenfold.nn.expression_decoders import dense
        from tenfold.nn.triplets import coarsened, semi_hard_triplets, triplet_loss

        kinship = self._kinship()

        def loss(net: Any, batch: dict[str, Any], progress: Any) -> dict[str, Any]:
            points = net["encoder"](batch["x"])
            error = (net["decoder"](points) - dense(batch["x"])).square().mean()
            family = type(kinship)(*(part.to(points.device) for part in kinship))
            labels = coarsened(batch["label"], family, self.coarsen) if self.coarsen else batch["label"]
            found = semi_hard_triplets(points, labels, family, batch.get("study"), self.margin, MOST_PAIRS)
            triplet = triplet_loss(points, found, self.margin)
            first = net["encoder"].network[0][1]
            penalty = self.l1 * self.learning_rate * _cosine(progress.epoch, epochs)
            total = self.triplet_weight * triplet + (1 - self.triplet_weight) * error
            total = total + penalty * (first.weight.abs().sum() + first.bias.abs().sum())
            return {"loss": total, "triplet": triplet, "squared_error": error}

        return loss

    def _kinship(self) -> Any:
        """Return which labels are above or below each other."""
        import torch

        from tenfold.nn.triplets import Kinship

        labels = list(self.labels_)
        related, parents = np.eye(len(labels), dtype=bool), np.zeros((len(labels),) * 2, dtype=bool)
        if self._ontology is not None:
            ontology = read_obo(self._ontology)
            lines = ontology.around(labels)
            above = lines.upper[np.ix_(lines.home, lines.home)]
            related |= above | above.T
            terms = lines.terms[lines.home]
            parents |= np.array([[other in ontology.parents.get(term, ()) for other in terms] for term in terms])
        return Kinship(torch.from_numpy(related), torch.from_numpy(parents))

    # ---- labels ------------------------------------------------------------------------------------------------------

    def _points(self, x: sparse.csr_matrix) -> np.ndarray:
        from tenfold.engine import predict

        return predict(self.net_, {"x": x}, lambda net, batch: net(batch["x"]), device=self.device)

    @classmethod
    def from_official(cls, folder: str | Path, **parameters: Any) -> SCimilarity:
        """Return the encoder of a model of the SCimilarity package; `index` labelled cells before you label others.

        Nothing in the files is executed: only arrays and names are read. The package's own index is not.

        Parameters
        ----------
        folder
            With ``encoder.ckpt`` and ``gene_order.tsv``.
        **parameters
            Hyper-parameters for labelling (``n_neighbors``, ``weights``, ...).

        Raises
        ------
        FileFormatError
            The folder holds no such model.
        """
        read = read_scimilarity(folder)
        if len(set(read.widths)) > 1:
            raise ParameterError(f"The hidden layers are of different widths, {read.widths}; all must be alike.")
        shape = {"n_latent": read.n_latent, "n_hidden": read.widths[0], "n_layers": len(read.widths)}
        method = cls(**{**parameters, **shape})
        method.genes_ = read.genes
        method.net_ = method._build().eval()
        method.net_.load_state_dict(read.weights)
        return method


def balanced(codes: np.ndarray, studies: np.ndarray | None) -> np.ndarray:
    """Return the sampling weight of each cell: labels and studies with many cells weigh less a cell, (n_cells,)."""
    weights = 1 / np.log1p(np.bincount(codes)[codes] / LABEL_CELLS)
    if studies is not None:
        weights = weights / np.log1p(np.bincount(studies)[studies] / STUDY_CELLS)
    return np.minimum(weights, 2 * np.quantile(weights, 0.999))


def _cosine(epoch: int, epochs: int) -> float:
    return (1 + cos(pi * epoch / epochs)) / 2


def _falling(optimizer: Optimizer, epochs: int) -> Any:
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, lambda epoch: _cosine(epoch, epochs))
