"""Encoder and decoder whose latent dimensions are gene programmes: a linear decoder with a mask of genes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.kernels.rows import SparseRows
from tenfold.nn.autoencoder import Batch, ConditionalVAE
from tenfold.nn.decoders import CountDecoder
from tenfold.nn.discrepancy import hsic
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.likelihoods import Likelihood, Link
from tenfold.nn.mlp import NOTHING, Covariates, Layer
from tenfold.nn.priors import Gaussian
from tenfold.nn.proximal import shrink_entries, shrink_rows


class Penalties(NamedTuple):
    """How much weights are shrunk at a learning rate of 1.

    Attributes
    ----------
    rows
        Group lasso of each programme, shape (n_programs,).
    entries
        L1 of each weight, shape (n_programs, n_genes).
    """

    rows: np.ndarray
    entries: np.ndarray


class ProgramEncoder(GaussianEncoder):
    """A `GaussianEncoder` whose latent dimensions come in blocks: those of a reference, and those added to it.

    Parameters
    ----------
    n_in
        Width of the input.
    sizes
        Latent dimensions of each block.
    **options
        As in `GaussianEncoder`.
    """

    def __init__(self, n_in: int, sizes: Sequence[int], **options: Any):
        super().__init__(n_in, sizes[0], **options)
        self.more = nn.ModuleList()
        for size in sizes[1:]:
            self.add(size)

    def add(self, size: int) -> None:
        """Add a block of latent dimensions."""
        self.more.append(nn.Linear(self.hidden.n_out, 2 * size))
        self.n_latent += size

    def of_hidden(self, h: Tensor) -> Gaussian:
        """Return the distribution of z given the last hidden layer, (n_cells, n_hidden)."""
        parts = [head(h).chunk(2, dim=1) for head in (self.heads, *self.more)]
        mean, raw = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return Gaussian(mean, raw.exp() + self.least_variance)


class ProgramDecoder(CountDecoder):
    """p(x | z, l, s) whose link is of a linear map of z and s without a constant: one row of weights a programme.

    Parameters
    ----------
    mask
        Which genes each programme may use, shape (n_programs, n_genes), bool.
    sizes
        Programmes of each block; they add up to n_programs.
    penalties
        What `shrink` does.
    soft
        Weights outside the mask are shrunk by the penalties only, not held at 0.
    categories
        Number of levels of each categorical covariate.
    likelihood, dispersion, n_levels, link
        As in `CountDecoder`.

    References
    ----------
    Lotfollahi et al. (2023), doi 10.1038/s41556-022-01072-x.
    """

    mask: Tensor
    rows: Tensor
    entries: Tensor

    def __init__(
        self, mask: np.ndarray, sizes: Sequence[int], penalties: Penalties, *, soft: bool = False,
        categories: tuple[int, ...] = (), likelihood: Likelihood = "nb",
        dispersion: Literal["gene", "gene-batch"] = "gene-batch", n_levels: int = 1, link: Link = "softmax",
    ):  # fmt: skip
        nn.Module.__init__(self)  # no hidden layers and no heads: what follows stands for them
        self.likelihood, self.dispersion, self.link, self.soft = likelihood, dispersion, link, soft
        n_genes = mask.shape[1]
        self.linear = Layer(sizes[0], n_genes, categories=categories, batch_norm=False)
        self.linear.bias = None
        self.more = nn.ParameterList()
        self.mean_head = nn.Identity()  # type: ignore[assignment]
        self.dropout_head = self.theta_head = None
        counted = likelihood == "nb"
        self.by_level = counted and dispersion == "gene-batch" and n_levels > 1
        shape = (n_levels, n_genes) if self.by_level else (n_genes,)
        self.log_theta = nn.Parameter(torch.randn(shape)) if counted else None
        self._know(mask, penalties)
        self._silence(self.linear.weight, slice(0, sizes[0]))
        for end, size in zip(np.cumsum(sizes)[1:], sizes[1:], strict=True):
            self._append(slice(int(end) - size, int(end)))

    def add(self, mask: np.ndarray, penalties: Penalties) -> None:
        """Add a block; `mask` and `penalties` are those of all programmes, with the new ones last."""
        first = len(self.mask)
        self._know(mask, penalties)
        self._append(slice(first, len(mask)))

    def _know(self, mask: np.ndarray, penalties: Penalties) -> None:
        like = self.linear.weight
        parts = {"mask": mask, "rows": penalties.rows, "entries": penalties.entries}
        for name, value in parts.items():
            self.register_buffer(name, torch.as_tensor(value).to(like), persistent=False)

    def _append(self, part: slice) -> None:
        like = self.linear.weight
        new = like.new_empty(part.stop - part.start, like.shape[1])
        bound = new.shape[0] ** -0.5
        self.more.append(nn.Parameter(new.uniform_(-bound, bound)))
        self._silence(self.more[-1], part)

    def _silence(self, weight: Tensor, part: slice) -> None:
        if not self.soft:
            weight.data.mul_(self.mask[part])

    def blocks(self) -> Iterator[tuple[Tensor, slice]]:
        """Yield the weights of each block, (n_programs, n_genes), and the place of its programmes among all."""
        first = 0
        for weight in (self.linear.weight, *self.more):
            yield weight, slice(first, first + len(weight))
            first += len(weight)

    @property
    def weight(self) -> Tensor:
        """Weights of all programmes, shape (n_programs, n_genes)."""
        whole = torch.cat([self.linear.weight, *self.more]) if len(self.more) else self.linear.weight
        return whole if self.soft else whole * self.mask

    def hidden(self, z: Tensor, covariates: Covariates = NOTHING) -> Tensor:  # type: ignore[override]
        """Return the linear map, what the link is applied to, shape (n_cells, n_genes)."""
        logits, told = z @ self.weight, self.linear.of_covariates(covariates)
        return logits if told is None else logits + told

    def nll(
        self, counts: SparseRows, z: Tensor, log_size: Tensor, covariates: Covariates = NOTHING,
        level: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the negative log-likelihood of each cell's counts; see `CountDecoder.nll`."""
        return self.nll_of_hidden(counts, self.hidden(z, covariates), log_size, level)[0]

    def shrink(self, rate: float) -> None:
        """Apply the penalties to the weights that are being trained, at a learning rate."""
        for weight, part in self.blocks():
            if weight.requires_grad:
                if self.entries[part].any():
                    shrink_entries(weight, rate * self.entries[part])
                if self.rows[part].any():
                    shrink_rows(weight, rate * self.rows[part])


class ProgramVAE(ConditionalVAE):
    """A `ConditionalVAE` of `ProgramEncoder` and `ProgramDecoder`, both of which are told the batch."""

    def __init__(self, encoder: ProgramEncoder, decoder: ProgramDecoder):
        super().__init__(encoder, decoder, encode_covariates=True)

    def program_terms(self, batch: Batch, kl_weight: float, apart: Sequence[int], independence: float) -> Any:
        """Return the loss of a minibatch and its parts, means over its cells, in nats.

        Parameters
        ----------
        batch
            The minibatch.
        kl_weight, independence
            Weights of ``kl`` and ``dependence``.
        apart
            Programmes whose dependence (HSIC) on all others is summed; none: there is no such term.

        Returns
        -------
        ``loss`` = ``nll`` + ``kl_weight`` · ``kl`` (+ ``independence`` · ``dependence``), and ``unweighted``, the same
        with weights of 1.
        """
        posterior = self.encode(batch).z
        z = posterior.sample()
        terms = {"nll": self.nll(batch, z, batch["log_size"]).mean(), "kl": posterior.kl_from_standard().mean()}
        loss, unweighted = terms["nll"] + kl_weight * terms["kl"], terms["nll"] + terms["kl"]
        if len(apart):
            of_each = [hsic(z[:, [place]].float(), without(z, place).float()) for place in apart]
            terms["dependence"] = sum(of_each, start=z.new_zeros(()))
            loss, unweighted = loss + independence * terms["dependence"], unweighted + terms["dependence"]
        return {"loss": loss, **terms, "unweighted": unweighted.detach()}


def without(z: Tensor, place: int) -> Tensor:
    """Return all columns but one, shape (n_cells, n_columns - 1)."""
    return torch.cat([z[:, :place], z[:, place + 1 :]], dim=1)
