"""Labels from a model of counts: what its latent variables say of each cell, calibrated, with sets and novelty."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.annotators.calibration import Calibration
from tenfold.annotators.confidence import Confident
from tenfold.data.genes import match_genes
from tenfold.data.inputs import Inputs, digest_of
from tenfold.data.streamed import row_chunks
from tenfold.errors import DataError, closest

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

#: Fewest held-out cells with a label to calibrate probabilities on.
FEWEST_HELD_OUT = 10
#: Cells whose posterior tells data from others with the same names of cells ("cell_1", ...).
LOOKED_AT = 100


class LatentAnnotator(Confident):
    """A `CountModelMethod` that implements ``_scores``; its ``_fit`` calls `_calibrate` when it has been trained.

    The cells that training held out calibrate its probabilities; it is not trained again on them, so what
    `predict_sets` promises is strict for cells that could be exchanged for those.
    """

    @abstractmethod
    def _scores(self, mean: np.ndarray) -> np.ndarray:
        """Return uncalibrated probabilities at posterior means, shape (n_cells, n_labels)."""

    def _calibrate(self: Any, data: Inputs) -> None:
        """Fit the temperature of probabilities on labelled cells that were not trained on, and learn what is known.

        `data` are the fitted cells, in their order.
        """
        held = self._held_out(self.fitted_["label"])
        label, found = self.fitted_["label"], Calibration.none(len(self._design.labels))
        if held.sum() >= FEWEST_HELD_OUT:
            found = Calibration.of(self._scores(self.fitted_["mean"][held]), label[held], None)
        self.calibration_ = found._asdict()
        self._watch_all_but(data, label, held)

    def _held_out(self: Any, label: np.ndarray) -> np.ndarray:
        """Return a mask of the labelled cells that training held out; of labels that it has not seen there are none."""
        from tenfold.engine import split

        trained, rest = split(len(label), self.train_fraction, self.seed)
        held = np.zeros(len(label), dtype=bool)
        held[rest[np.isin(label[rest], label[trained]) & (label[rest] >= 0)]] = True
        return held

    def probabilities(self: Any, adata: AnnData | None = None) -> pd.DataFrame:
        """Return the calibrated probability of each label for each cell.

        Parameters
        ----------
        adata
            New cells, raw counts, in memory or backed by a file; ``None`` for the fitted ones. Genes are found by name;
            missing ones count as not expressed, with a warning where many are missing. Batches need not be known to
            the model, unless its encoder is told them.

        Returns
        -------
        One row a cell, one column a label, float32; rows sum to 1.

        Raises
        ------
        DataError
            Hardly any of the fitted genes are there.
        """
        import pandas as pd

        self._check_fitted()
        scores = self._scores(self.fitted_["mean"] if adata is None else self._means_of(adata))
        found = Calibration(**self.calibration_).tempered(scores)
        return pd.DataFrame(found, columns=self._design.labels, index=None if adata is None else adata.obs_names)

    def _means_of(self: Any, adata: AnnData) -> np.ndarray:
        """Return the posterior means of cells that come after the fit, shape (n_cells, n_latent)."""
        from tenfold.engine import predict

        net, told, data = self._encoder_of(adata)
        match = match_genes(adata.var_names, self.genes_)
        parts = []
        for rows, counts in row_chunks(data.counts_of(match.columns), "labelling cells"):
            cells = {"counts": match.widened(counts), **{name: value[rows] for name, value in told.items()}}
            parts.append(predict(net, cells, lambda net, batch: net.encode(batch).z.mean))
        return np.concatenate(parts)

    def _encoder_of(self: Any, adata: AnnData) -> tuple[Any, dict[str, np.ndarray], Inputs]:
        """Return a network that encodes new cells, what it is told of them beside counts, and the cells."""
        blind = not self.net_.encode_covariates
        roles = {role: key for role, key in self.roles_.items() if role not in ("key_added", "labels", "pathways")}
        data = Inputs(adata, {role: key for role, key in roles.items() if role == "layer" or not blind})
        return self.net_, {} if blind else self._design.encode(data), data

    def _knows(self: Any, adata: AnnData) -> bool:
        if digest_of(adata) != self.cells_:
            return False
        # Cells of other data may have the same names ("cell_1", ...), but not the same posterior.
        some = adata[: min(adata.n_obs, LOOKED_AT)]
        return np.allclose(self._means_of(some), self.fitted_["mean"][: some.n_obs], atol=1e-3)


def known_labels(labels: list[str], unlabeled: str, codes: np.ndarray, key: str) -> tuple[list[str], np.ndarray]:
    """Return the labels but for `unlabeled`, and the number of each cell's among them, -1 where it is not known.

    Raises
    ------
    DataError
        Fewer than two labels; `key` names their column in the message.

    Warns
    -----
    UserWarning
        Every label counts as known, and one of them looks like `unlabeled`.
    """
    known = [name for name in labels if name != unlabeled]
    if len(known) < 2:
        raise DataError(
            f"obs['{key}'] has a single label beside '{unlabeled}', and at least 2 are needed: with one there is "
            "nothing to tell apart."
        )
    if len(known) == len(labels) and closest(unlabeled, labels):
        warnings.warn(
            f"Every label counts as known, for no cell has the label '{unlabeled}'.{closest(unlabeled, labels)} If so, "
            "set unlabeled=.",
            stacklevel=3,
        )
    number = np.array([known.index(name) if name in known else -1 for name in labels], dtype=np.int64)
    return known, number[codes]
