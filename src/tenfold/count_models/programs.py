"""A model whose latent dimensions are programmes of genes: how active each is, where it differs, its genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.count_models.base import CountModelMethod
from tenfold.data import check
from tenfold.errors import DataError, ParameterError, closest

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from tenfold.nn.autoencoder import ConditionalVAE

#: Keeps the Bayes factor of a certain difference finite.
TINY = 1e-12


class ProgramReadout(CountModelMethod):
    """A count model with ``programs_`` (names), ``mask_`` (programs × genes) and a `ProgramDecoder`.

    ``active_`` says which programmes have weights other than 0.
    """

    def _keep(self, net: ConditionalVAE, history: dict[str, Any], cells: dict[str, Any]) -> None:
        super()._keep(net, history, cells)
        self.active_ = np.abs(self._weights()).sum(axis=1) > 0
        if not self.active_.any():
            raise DataError(f"The penalty has silenced all {len(self.active_):,} programmes. Lower group_lasso.")

    def embed(self, adata: AnnData | None = None) -> np.ndarray:
        """Return the posterior means of the programmes that are not silent, shape (n_cells, n_active), float32.

        Parameters
        ----------
        adata
            New cells of known batches, raw counts; ``None`` for the fitted ones.
        """
        return super().embed(adata)[:, self.active_]

    def scores(self, adata: AnnData | None = None) -> pd.DataFrame:
        """Return how active each programme is: `embed`, with the sign with which the programme raises its genes.

        Parameters
        ----------
        adata
            As in `embed`.

        Returns
        -------
        One row a cell, one column a programme that is not silent, float32.
        """
        import pandas as pd

        found = self.embed(adata) * directions(self._weights())[self.active_]
        index = None if adata is None else adata.obs_names
        return pd.DataFrame(found, index=index, columns=self.programs_[self.active_])

    def enrichment(
        self, adata: AnnData, groupby: str, group: str | None = None, other: str | None = None, n_pairs: int = 5000,
        seed: int | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """Compare the programmes of groups of cells.

        Parameters
        ----------
        adata
            Cells of known batches, raw counts.
        groupby
            Column of ``obs`` that holds the groups.
        group
            The group to compare; ``None`` for each.
        other
            The group that it is compared with; ``None`` for all cells outside it.
        n_pairs
            Pairs of cells, drawn at random.
        seed
            Of the pairs; default: the model's.

        Returns
        -------
        DataFrame, one row a group and programme that is not silent: ``group``, ``program``, ``probability`` that the
        programme is more active in a cell of the group, and ``bayes_factor``, the logarithm of its odds; the largest
        absolute factor first. Beyond ±2.3 counts as a difference.
        """
        import pandas as pd

        found, codes = self.posterior(adata), check.categories(adata, groupby, "groupby", min_levels=2)
        for name in (group, other):
            if name is not None and str(name) not in codes.names:
                raise ParameterError(f"obs['{groupby}'] has no group '{name}'.{closest(str(name), codes.names)}")
        mean = (found["mean"] * directions(self._weights()))[:, self.active_]
        variance, tables = found["variance"][:, self.active_], []
        for name in codes.names if group is None else [str(group)]:
            first = codes.values == codes.names.index(name)
            second = ~first if other is None else codes.values == codes.names.index(str(other))
            if name != other:
                table = bayes_factors(mean, variance, first, second, n_pairs, self.seed if seed is None else seed)
                table.insert(0, "program", self.programs_[self.active_])
                table.insert(0, "group", name)
                tables.append(table)
        whole = pd.concat(tables, ignore_index=True)
        return whole.sort_values("bayes_factor", key=np.abs, ascending=False, ignore_index=True)

    def genes_of(self, program: str) -> pd.DataFrame:
        """Return the genes of a programme with weights other than 0, the largest first: gene, weight, in_set."""
        import pandas as pd

        self._check_fitted()
        if program not in self.programs_:
            raise ParameterError(f"There is no programme '{program}'.{closest(program, list(self.programs_))}")
        place = list(self.programs_).index(program)
        weights = self._weights()[place]
        order = np.argsort(-np.abs(weights), kind="stable")[: np.count_nonzero(weights)]
        return pd.DataFrame({"gene": self.genes_[order], "weight": weights[order], "in_set": self.mask_[place, order]})

    def _weights(self) -> np.ndarray:
        """Return the weights of all programmes, shape (n_programs, n_genes)."""
        return self.net_.decoder.weight.detach().numpy()


def directions(weights: np.ndarray, by: str = "sum") -> np.ndarray:
    """Return 1 where a programme raises its genes as its latent variable grows, -1 where it lowers them.

    Parameters
    ----------
    weights
        Of the decoder, shape (n_programs, n_genes).
    by
        ``"sum"``: the sign of the sum of weights; ``"counts"``: whether more of them are above 0 than below.

    Returns
    -------
    Shape (n_programs,), float32; 0 where neither.
    """
    return np.sign((weights if by == "sum" else np.sign(weights)).sum(axis=1)).astype(np.float32)


def bayes_factors(
    mean: np.ndarray, variance: np.ndarray, first: np.ndarray, second: np.ndarray, n_pairs: int, seed: int
) -> pd.DataFrame:
    """Compare the latent variables of two groups of cells.

    Parameters
    ----------
    mean, variance
        Of the posterior of each cell, shape (n_cells, n_programs); the means with their directions.
    first, second
        Masks of the two groups, shape (n_cells,).
    n_pairs
        Pairs of a cell of each group, drawn at random.
    seed
        Of the pairs.

    Returns
    -------
    DataFrame, one row a programme: ``probability`` that the latent variable of a cell of the first group is larger than
    that of one of the second, averaged over the pairs (of two normal variables in closed form); ``bayes_factor``, the
    logarithm of its odds; above 2.3 or below -2.3 counts as a difference.

    References
    ----------
    Lotfollahi et al. (2023), doi 10.1038/s41556-022-01072-x.
    """
    import pandas as pd
    from scipy.special import ndtr

    rng = np.random.default_rng(seed)
    one, other = (rng.choice(np.flatnonzero(mask), n_pairs) for mask in (first, second))
    total = np.zeros(mean.shape[1])
    for start in range(0, n_pairs, 1000):
        a, b = one[start : start + 1000], other[start : start + 1000]
        total += ndtr((mean[a] - mean[b]) / np.sqrt(variance[a] + variance[b])).sum(axis=0, dtype=np.float64)
    probability = total / n_pairs
    factor = np.log(probability + TINY) - np.log(1 - probability + TINY)
    return pd.DataFrame({"probability": probability, "bayes_factor": factor})
