"""What judging an annotator takes: fitting it on some cells and labelling others that never show it their labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from tenfold.data import check
from tenfold.data.splits import Fold
from tenfold.method import Annotator, Method

#: Cells that a method is judged on; of more, as many are drawn at random.
JUDGED_CELLS, CONTROL_CELLS = 6000, 3000


@dataclass(frozen=True)
class Answer:
    """What a method said of the test cells of a fold.

    Attributes
    ----------
    cells
        Numbers of the cells, shape (n,).
    truth, told
        True and predicted label of each, shape (n,).
    probabilities
        One row a cell, one column a label that the method knows.
    fold
        Name of the fold.
    method
        The fitted method.
    """

    cells: np.ndarray
    truth: np.ndarray
    told: np.ndarray
    probabilities: pd.DataFrame
    fold: str
    method: Any

    @property
    def known(self) -> np.ndarray:
        """Cells whose label the method can know, shape (n,), bool."""
        return np.isin(self.truth, [str(name) for name in self.probabilities.columns])


@dataclass(frozen=True)
class Trial:
    """How to make a method, and the columns of its data."""

    make: Callable[[], Method]
    labels: str
    batch: str | None = None

    def ask(self, adata: AnnData, fold: Fold, labels: np.ndarray | None = None) -> Answer:
        """Fit on the training cells of a fold, with other `labels` if given, and label its test cells."""
        train, test = adata[fold.train].copy(), self.asked(adata, fold)
        if labels is not None:
            train.obs[self.labels] = pd.Categorical(labels[fold.train])
        method = self.fitted(train, test)
        found, told = method._annotated(test)
        truth = adata.obs[self.labels].astype(str).to_numpy()[fold.test]
        return Answer(fold.test, truth, np.asarray(told).astype(str), found, fold.name, method)

    def asked(self, adata: AnnData, fold: Fold) -> AnnData:
        """Return the test cells as the method sees them: counts and batch, no labels."""
        test = adata[fold.test].copy()
        test.obs = test.obs[[self.batch] if self.batch else []].copy()
        return test

    def fitted(self, train: AnnData, test: AnnData) -> Annotator:
        """Return the method fitted on training cells; one that needs to see the cells to label is shown these."""
        method = self.make()
        taken = (*method.info.needs, *method.info.accepts)
        roles: dict[str, Any] = {"labels": self.labels}
        if self.batch and "batch" in taken and train.obs[self.batch].nunique() > 1:
            roles["batch"] = self.batch
        if "reference" in method.info.needs:
            return method.fit(test, progress=False, reference=train, **roles)
        return method.fit(train, progress=False, **roles)


def again(method: Method, seed: int) -> Callable[[], Method]:
    """Return how to make unfitted methods like this one."""
    parameters = dict(method.parameters)
    if "seed" in parameters:
        parameters["seed"] = seed
    return lambda: type(method)(**parameters)


def sample_cells(adata: AnnData, labels: str, most: int, seed: int) -> AnnData:
    """Return at most `most` cells, drawn at random but for labels of fewer than ten cells, which stay whole."""
    if adata.n_obs <= most:
        return adata
    codes = check.categories(adata, labels, "labels").values
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    rare = np.bincount(codes)[codes] < 10
    chosen = np.concatenate([order[rare[order]], order[~rare[order]]])[:most]
    return adata[np.sort(chosen)].copy()
