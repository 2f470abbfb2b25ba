"""What methods share whose domains are sampled: the run of a chain, counted labels, and whether it settled."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tenfold.data.bar import Bar
from tenfold.data.inputs import Inputs
from tenfold.data.preprocess import normalize_log1p, pca
from tenfold.kernels.potts import Tally
from tenfold.method import param
from tenfold.spatial_models.base import DomainFinder, SoftDomains, largest_first

if TYPE_CHECKING:
    import pandas as pd

#: Below this agreement between half of the samples and all of them the chain is called unsettled.
AGREE = 0.9


class Chain(Protocol):
    """What `SampledDomains` runs."""

    #: Kinds of labels, ``"domains"`` among them: number of labels, and their present values, shape (n_cells,).
    sizes: dict[str, int]
    labels: dict[str, np.ndarray]
    #: What `sweep` returns.
    course: tuple[str, ...]

    def sweep(self, burning_in: bool) -> tuple[float, ...]:
        """Draw everything once; return numbers to follow the chain by."""


class SampledDomains(SoftDomains, DomainFinder):
    """A method whose domains are sampled: the most frequent labels, and how frequent they were.

    The fitted state has ``course_`` (numbers of every sweep), ``n_burn_in_`` and ``agreement_``.
    """

    epochs: int = param(5000, low=1)
    burn_in: float = param(0.2, low=0.0, high=0.95)

    def _sample(self, chain: Chain, data: Inputs) -> dict[str, Tally]:
        """Run the chain and count the labels after the burn-in; a sweep at a time, so that it can be interrupted."""
        n_burn_in = int(self.epochs * self.burn_in)
        tallies = {name: Tally(data.n_cells, size) for name, size in chain.sizes.items()}
        half = np.zeros(data.n_cells, np.int64)
        course = np.empty((self.epochs, len(chain.course)))
        bar = Bar(self.info.title, self.epochs, data.run.progress)
        try:
            for step in range(self.epochs):
                course[step] = chain.sweep(step < n_burn_in)
                if step >= n_burn_in:
                    for name, tally in tallies.items():
                        tally.add(chain.labels[name])
                if step == (n_burn_in + self.epochs) // 2:
                    half[:] = tallies["domains"].modes
                bar.show(step + 1, now="burning in" if step < n_burn_in else "sampling")
        finally:
            bar.close()
        self.course_ = dict(zip(chain.course, course.T.copy(), strict=True))
        self.n_burn_in_, self.agreement_ = n_burn_in, float((half == tallies["domains"].modes).mean())
        if self.agreement_ < AGREE:
            warnings.warn(
                f"Half of the samples puts {100 * (1 - self.agreement_):.0f} % of the cells into another domain than "
                "all of them: the chain has not settled. Raise epochs, and compare seeds.",
                stacklevel=5,
            )
        return tallies

    def _most_frequent(self, tallies: dict[str, Tally]) -> np.ndarray:
        labels, self.probabilities_ = largest_first(tallies["domains"].modes, tallies["domains"].probabilities())
        return labels

    @property
    def history(self) -> pd.DataFrame:
        """Numbers to follow the chain by, one row a sweep."""
        import pandas as pd

        self._check_fitted()
        return pd.DataFrame(self.course_)


def log2_components(
    data: Inputs, n_components: int, n_top_genes: int | None, scale: bool = False, seed: int = 0
) -> np.ndarray:
    """Return principal components of log2(1 + counts per mean depth), or those of ``use_rep``, float64.

    Parameters
    ----------
    data
        Checked inputs.
    n_components
        Components; those of ``use_rep`` are taken as they are.
    n_top_genes
        Variable genes; None for all.
    scale
        Whether genes get a variance of 1.
    seed
        Of the decomposition.
    """
    if "use_rep" in data.roles:
        return data.embedding(n_components, n_top_genes).astype(np.float64)
    depth = float(data.counts.sum(dtype=np.float64)) / data.n_cells
    x = normalize_log1p(data.counts, depth)[:, data.variable_genes(n_top_genes)]
    x.data /= np.float32(np.log(2))
    if scale:
        mean = np.asarray(x.mean(axis=0)).ravel()
        squares = np.bincount(x.indices, weights=x.data.astype(np.float64) ** 2, minlength=x.shape[1])
        deviation = np.sqrt(np.maximum(squares - data.n_cells * mean**2, 0) / max(data.n_cells - 1, 1))
        x.data /= np.where(deviation > 1e-6, deviation, 1)[x.indices].astype(np.float32)
    return pca(x, n_components, seed).embedding.astype(np.float64)
