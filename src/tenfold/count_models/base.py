"""The base of methods whose fitted state is a `ConditionalVAE`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tenfold.data import check
from tenfold.data.bar import Bar
from tenfold.data.batches import warn_of_lone_cell
from tenfold.data.covariates import Design
from tenfold.data.inputs import Inputs
from tenfold.data.streamed import cell_sums
from tenfold.errors import ParameterError, closest
from tenfold.method import Denoiser, Embedder, Generator, Method

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from tenfold.nn.autoencoder import ConditionalVAE


#: Cells decoded at a time where results are written piece by piece.
CHUNK = 4096


class CountModelMethod(Method, Embedder, Denoiser, Generator):
    """Outputs of a fitted model of counts; ``_fit`` of the method itself calls `_take` first and `_keep` last.

    The fitted state is ``genes_`` (modelled genes), ``design_`` (a `Design` as a dict), ``net_``, ``fitted_``
    (posterior and covariates of the fitted cells) and ``history_``.
    """

    _progress = True

    # ---- what the network reads --------------------------------------------------------------------------------------

    def _take(self, data: Inputs, n_top_genes: int | None) -> dict[str, Any]:
        """Choose genes and covariates from the cells of a fit; return what the network reads."""
        self._progress = data.run.progress
        self.columns_ = self._modelled(data, n_top_genes)
        self.genes_ = data.gene_names[self.columns_]
        self.n_genes_ = data.n_genes
        self.design_ = vars(Design.of(data))
        warn_of_lone_cell(data.batch_or_one)
        return self._arrays(data)

    def _modelled(self, data: Inputs, n_top_genes: int | None) -> np.ndarray:
        """Return the sorted columns of the genes to model; methods that choose in another way override this."""
        return data.variable_genes(n_top_genes)

    def _arrays(self, data: Inputs, blind: bool = False) -> dict[str, Any]:
        """Return what the network reads of each cell; a blind encoder needs counts only."""
        counts = data.counts_of(check.gene_columns(data.adata, self.genes_))
        totals = cell_sums(counts)
        if (totals == 0).any():
            warnings.warn(
                f"{(totals == 0).sum():,} cells have no counts in the {len(self.genes_):,} modelled genes; what the "
                "model says of them is its prior. Filter cells of few counts, or raise n_top_genes.",
                stacklevel=2,
            )
        cells = {"counts": counts, "log_size": np.log(np.maximum(totals, 1)).astype(np.float32)}
        return cells if blind else cells | self._design.encode(data)

    def _matched(self, adata: AnnData) -> AnnData:
        """Return cells that come after the fit, with all of the fitted genes."""
        return adata

    def _cells(self, adata: AnnData, blind: bool = False) -> dict[str, Any]:
        """Return what the network reads of cells that come after the fit."""
        self._check_fitted()
        unused = {"key_added"} if self.net_.decoder.dispersion == "gene-label" else {"key_added", "labels"}
        roles = {role: key for role, key in self.roles_.items() if role == "layer" or not (blind or role in unused)}
        return self._arrays(Inputs(self._matched(adata), roles), blind)

    def _keep(self, net: ConditionalVAE, history: dict[str, Any], cells: dict[str, Any]) -> None:
        """Keep the trained network, the course of its training, and what it infers of the fitted cells."""
        self.net_ = net.cpu()
        self.history_ = history
        self.fitted_ = self._infer(cells)

    def _infer(self, cells: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return covariates and posterior of each cell, all that decoding needs."""
        from tenfold.engine import predict

        def posterior_of(net: Any, batch: dict[str, Any]) -> Any:
            found = net.encode(batch)
            return {"mean": found.z.mean, "variance": found.z.variance, "log_size": net.size_at_mean(batch, found)}

        told = {name: value for name, value in cells.items() if name != "counts"}
        show = f"{self.info.title}: embedding" if self._progress else ""
        return {**told, **predict(self.net_, cells, posterior_of, show=show)}

    @property
    def _design(self) -> Design:
        return Design(**self.design_)

    @property
    def history(self) -> pd.DataFrame:
        """Losses in nats per cell, one row an epoch and term: columns phase, epoch, term, train, validation."""
        from tenfold.engine import History

        self._check_fitted()
        return History.from_dict(self.history_).terms

    # ---- latent variables and expression -----------------------------------------------------------------------------

    def embed(self, adata: AnnData | None = None) -> np.ndarray:
        """Return the posterior mean of z, shape (n_cells, n_latent), float32.

        Parameters
        ----------
        adata
            New cells, raw counts, with the fitted genes; ``None`` for the fitted ones.
        """
        import torch

        self._check_fitted()
        blind = not self.net_.encode_covariates
        mean = self.fitted_["mean"] if adata is None else self._infer(self._cells(adata, blind))["mean"]
        return self.net_.place(torch.from_numpy(mean)).numpy()  # type: ignore[operator]

    def posterior(self, adata: AnnData | None = None) -> dict[str, np.ndarray]:
        """Return ``mean`` and ``variance`` of z, ``log_size`` and covariates as numbers, each with one row a cell."""
        self._check_fitted()
        return self.fitted_ if adata is None else self._infer(self._cells(adata))

    def denoise(
        self, adata: AnnData | None = None, *, transform_batch: str | list[str] | None = None,
        library_size: float | Literal["observed"] = 1e4,
    ) -> np.ndarray:  # fmt: skip
        """Return normalised expression, ρ × `library_size`, at the posterior mean of z.

        Parameters
        ----------
        adata
            New cells; ``None`` for the fitted ones.
        transform_batch
            As if the cells were of this batch; of several, the average. Default: each cell's own.
        library_size
            Sum over the modelled genes, or ``"observed"``: each cell's own.

        Returns
        -------
        Shape (n_cells, n_genes), float32; genes that are not modelled are NaN.
        """
        found = self._expression(self.posterior(adata), self._batch_codes(transform_batch), library_size)
        if adata is None:
            return _spread(found, self.columns_, self.n_genes_)
        return _spread(found, adata.var_names.get_indexer(self.genes_), adata.n_vars)

    def denoised(self) -> Iterator[np.ndarray]:
        """Iterate over the rows of ``denoise()``, 4,096 cells at a time."""
        self._check_fitted()
        n_cells = len(self.fitted_["mean"])
        bar = Bar(f"{self.info.title}: denoising", n_cells, self._progress)
        try:
            for start in range(0, n_cells, CHUNK):
                cells = {name: value[start : start + CHUNK] for name, value in self.fitted_.items()}
                yield _spread(self._expression(cells, [None], 1e4), self.columns_, self.n_genes_)
                bar.show(start + len(cells["mean"]))
        finally:
            bar.close()

    def _expression(
        self, cells: dict[str, np.ndarray], codes: list[int | None], library_size: float | Literal["observed"]
    ) -> np.ndarray:
        from tenfold.engine import predict

        def expression(net: Any, batch: dict[str, Any]) -> Any:
            mean: Any = sum(net.scale(in_batch(batch, code), batch["mean"]) for code in codes)
            return (
                mean / len(codes) * (batch["log_size"].exp()[:, None] if library_size == "observed" else library_size)
            )

        return predict(self.net_, cells, expression)

    def sample(
        self,
        n: int,
        *,
        prior: bool = False,
        batch: str | None = None,
        label: str | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Return `n` synthetic cells over the modelled genes: integer counts, marked in ``obs["synthetic"]``.

        Each takes batch, covariates and library size from a fitted cell drawn at random (its row is in
        ``obs["template"]``), z from that cell's posterior and counts from the likelihood: more cells like the fitted
        ones, not new kinds of cell.

        Parameters
        ----------
        n
            Number of cells.
        prior
            Draw z from the prior instead. Poor where the KL weight stayed below 1.
        batch, label
            Take fitted cells of this batch, or label (where labels were given to `fit`), only.
        seed
            Default: the model's.
        """
        from tenfold.count_models.synthetic import synthetic_cells

        self._check_fitted()
        design, chosen = self._design, np.ones(len(self.fitted_["mean"]), dtype=bool)
        if batch is not None and _position(batch, design.batch, "batch") >= 0 and "levels" in self.fitted_:
            chosen &= self.fitted_["levels"][:, 0] == _position(batch, design.batch, "batch")
        if label is not None:
            chosen &= self.fitted_["label"] == _position(label, design.labels, "label")
        seed = getattr(self, "seed", 0) if seed is None else seed
        return synthetic_cells(self.net_, self.fitted_, np.flatnonzero(chosen), n, prior, self.genes_, design, seed)

    # ---- likelihood --------------------------------------------------------------------------------------------------

    def reconstruction_error(self, held_out: AnnData) -> float:
        """Return the mean negative log-likelihood per cell, in nats, with z (and a latent library) at its mean."""
        from tenfold.engine import predict

        cells = self._cells(held_out)
        return float(predict(self.net_, cells, _nll_at_mean).mean(dtype=np.float64))

    def elbo(self, held_out: AnnData, n_samples: int = 10) -> float:
        """Return the evidence lower bound per cell, in nats (KL weight 1), averaged over draws from the posterior."""
        return float(self._log_weights(held_out, n_samples).mean())

    def marginal_likelihood(self, held_out: AnnData, n_samples: int = 100) -> float:
        """Return log p(x) per cell, in nats, by importance sampling: a lower bound that rises with `n_samples`."""
        weights = self._log_weights(held_out, n_samples)
        highest = weights.max(axis=1)
        return float((highest + np.log(np.exp(weights - highest[:, None]).mean(axis=1))).mean())

    def _log_weights(self, held_out: AnnData, n_samples: int) -> np.ndarray:
        import torch

        from tenfold.engine import predict

        def draw(net: Any, batch: dict[str, Any]) -> Any:
            posterior = net.encode(batch)
            return torch.stack([net.log_weight(batch, posterior) for _ in range(n_samples)], dim=1)

        seed = getattr(self, "seed", 0)
        return predict(self.net_, self._cells(held_out), draw, seed=seed).astype(np.float64)

    # ---- comparison of groups ----------------------------------------------------------------------------------------

    def differential_expression(
        self, adata: AnnData, groupby: str, group: str, other: str | None = None, **options: Any
    ) -> pd.DataFrame:
        """Compare the expression of two groups of cells by draws from the posterior.

        Parameters
        ----------
        adata
            The fitted cells, or others with the same genes.
        groupby
            Column of ``obs`` that holds the groups.
        group, other
            The two groups; ``None`` for all cells outside `group`.
        **options
            ``mode``, ``delta``, ``pseudocount``, ``fdr``, ``n_samples``, ``batch_correction``, ``seed``: see
            `tenfold.count_models.differential.compare_groups`.

        Returns
        -------
        DataFrame, one row a modelled gene, the surest difference first.
        """
        from tenfold.count_models.differential import compare_groups

        cells = self._cells(adata)
        codes = check.categories(adata, groupby, "groupby", min_levels=2)
        first = codes.values == _position(group, codes.names, "group")
        second = ~first if other is None else codes.values == _position(other, codes.names, "other")
        options = {"seed": getattr(self, "seed", 0), **options}
        table = compare_groups(self.net_, cells["counts"], self._infer(cells), first, second, **options)
        return table.set_axis(self.genes_[table.index], axis=0)

    def _batch_codes(self, names: str | list[str] | None) -> list[int | None]:
        if names is None:
            return [None]
        known = self._design.batch
        return [_position(name, known, "transform_batch") for name in ([names] if isinstance(names, str) else names)]


def _spread(found: np.ndarray, columns: np.ndarray, n_genes: int) -> np.ndarray:
    """Return expression over all genes of the data, NaN where not modelled; a column of -1 is not in the data."""
    out, there = np.full((len(found), n_genes), np.nan, dtype=np.float32), columns >= 0
    out[:, columns[there]] = found if there.all() else found[:, there]
    return out


def in_batch(cells: dict[str, Any], code: int | None) -> dict[str, Any]:
    """Return a minibatch as if its cells were of the batch of this code; None for their own."""
    if code is None or "levels" not in cells:
        return cells
    levels = cells["levels"].clone()
    levels[:, 0] = code
    return {**cells, "levels": levels}


def _position(name: str, known: list[str], what: str) -> int:
    if str(name) not in known:
        raise ParameterError(
            f"{what}='{name}': there is none.{closest(name, known)} There are: {', '.join(known) or 'none'}."
        )
    return known.index(str(name))


def _nll_at_mean(net: Any, batch: dict[str, Any]) -> Any:
    return net.nll_at_mean(batch)
