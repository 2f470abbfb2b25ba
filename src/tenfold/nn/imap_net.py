"""The networks of iMAP: content and style of expression, and translation of a batch to the reference by a critic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.nn.expression_decoders import dense
from tenfold.nn.mlp import MLP, Covariates

_NORM = {"momentum": 0.1, "eps": 1e-5}


def _drawn(net: nn.Module) -> None:
    """Draw weights as in the original: N(0, 0.02), and slopes of batch norm about 1."""
    for name, weight in net.named_parameters():
        if "norm.weight" in name:
            nn.init.normal_(weight, 1.0, 0.02)
        elif weight.ndim == 2:
            nn.init.normal_(weight, 0.0, 0.02)


class Translator(nn.Module):
    """x → ReLU(x + autoencoder(x)): expression as it would be in the reference batch."""

    def __init__(self, n_genes: int, n_latent: int, widths: tuple[int, int]):
        super().__init__()
        options: dict[str, Any] = {"activation": "mish", "norm": _NORM}
        self.down = MLP(n_genes, widths, **options)
        self.code = nn.Linear(widths[1], n_latent)
        self.code_norm = nn.BatchNorm1d(n_latent)
        self.up = MLP(n_latent, widths[::-1], **options)
        self.head = nn.Linear(widths[0], n_genes)
        _drawn(self)

    def forward(self, x: Tensor) -> Tensor:
        """Translate (n_cells, n_genes)."""
        return F.relu(x + self.head(self.up(self.code_norm(self.code(self.down(x))))))


class Critic(nn.Module):
    """How much expression looks like the reference's."""

    def __init__(self, n_genes: int, width: int):
        super().__init__()
        self.hidden = MLP(n_genes, (width, width), batch_norm=False, activation="mish")
        self.head = nn.Linear(width, 1)
        _drawn(self)

    def forward(self, x: Tensor) -> Tensor:
        """Score (n_cells, n_genes): shape (n_cells,)."""
        return self.head(self.hidden(x))[:, 0]


class ContentStyle(nn.Module):
    """Content code of a cell, and its expression as decoded in the style of a batch; a translator for each batch.

    Parameters
    ----------
    n_genes, n_batches, n_latent
        Sizes.
    widths
        Of the two hidden layers of the encoder.
    anchor
        Code of the reference batch.
    n_components
        Of the translated expression, for the embedding; 0: the embedding is the content code.
    """

    def __init__(
        self, n_genes: int, n_batches: int, n_latent: int, widths: tuple[int, int], anchor: int, n_components: int
    ):
        super().__init__()
        told: dict[str, Any] = {"batch_norm": False, "activation": "mish"}
        self.encoder = MLP(n_genes, widths, activation="mish", norm=_NORM)
        self.code = nn.Linear(widths[1], n_latent)
        self.decoder = MLP(n_latent, widths[::-1], categories=(n_batches,), deep_covariates=False, **told)
        self.head = nn.Linear(widths[0], n_genes)
        self.style = MLP(n_batches, widths[::-1], **told)
        self.style_head = nn.Linear(widths[0], n_genes)
        _drawn(self)
        self.anchor, self.n_batches = anchor, n_batches
        kinds = [code for code in range(n_batches) if code != anchor and n_components]
        self.translators = nn.ModuleDict({str(code): Translator(n_genes, n_latent, widths) for code in kinds})
        self.centre: Tensor
        self.loadings: Tensor
        self.register_buffer("centre", torch.zeros(n_genes))
        self.register_buffer("loadings", torch.zeros(n_genes, n_components))

    def content(self, x: Tensor) -> Tensor:
        """Return the content code, shape (n_cells, n_latent)."""
        return self.code(self.encoder(x))

    def decode(self, content: Tensor, level: Tensor) -> Tensor:
        """Return the expression of cells in the style of the given batches, shape (n_cells, n_genes)."""
        own = self.head(self.decoder(content, Covariates(level[:, None])))
        # Of the style alone there is one row a batch.
        styles = self.style_head(self.style(torch.eye(self.n_batches, device=level.device)))
        return F.relu(own + styles[level])

    def content_terms(self, x: Tensor, level: Tensor, content_weight: float) -> dict[str, Tensor]:
        """Return the loss of the first stage: reconstruction, and the content after a change of style."""
        content = self.content(x)
        changed = self.decode(content, torch.randint(self.n_batches, (len(x),), device=x.device))
        kept = (content - self.content(changed)).square().mean()
        error = (self.decode(content, level) - x).square().mean()
        return {"loss": error + content_weight * kept, "reconstruction": error, "content": kept}

    def corrected(self, batch: dict[str, Any]) -> Tensor:
        """Return expression as in the reference: translated, or decoded in its style where there are no translators."""
        x, level = dense(batch["expression"]), batch["levels"][:, 0]
        if not len(self.translators):
            return self.decode(self.content(x), torch.full_like(level, self.anchor))
        found = x.clone()
        for code, translate in self.translators.items():
            rows = level == int(code)
            if rows.any():
                found[rows] = translate(x[rows])
        return found


def mixed(x: Tensor, level: Tensor) -> Tensor:
    """Return random mixtures of each cell with another of its batch in the minibatch."""
    partner = torch.empty_like(level)
    partner[level.argsort(stable=True)] = (level + torch.rand(len(level), device=level.device)).argsort()
    share = torch.rand(len(x), 1, device=x.device)
    return share * x + (1 - share) * x[partner]


def critic_loss(critic: Critic, real: Tensor, fake: Tensor, penalty: float = 10.0) -> Tensor:
    """Return the loss of a Wasserstein critic with a penalty on its gradient between real and fake cells."""
    n = min(len(real), len(fake))
    share = torch.rand(n, 1, device=real.device)
    between = (share * real[:n] + (1 - share) * fake[:n]).detach().requires_grad_()
    slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0]
    return critic(fake).mean() - critic(real).mean() + penalty * (slope.norm(dim=1) - 1).square().mean()


def _sides(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the cells of the reference and of the query in a minibatch."""
    x, is_query = dense(batch["expression"]), batch["is_query"]
    return x[~is_query], x[is_query]


def judge(net: Any, batch: dict[str, Any], progress: Any) -> Tensor:
    """Return the loss of ``net["critic"]`` on a minibatch, in which ``is_query`` says which cells are translated."""
    real, query = _sides(batch)
    if min(len(real), len(query)) < 2:
        return 0 * net["critic"].head.weight.sum()
    with torch.no_grad():
        fake = net["generator"](query)
    return critic_loss(net["critic"], real, fake)


def persuade(net: Any, batch: dict[str, Any], progress: Any) -> Tensor:
    """Return the loss of ``net["generator"]`` on such a minibatch."""
    _, query = _sides(batch)
    if len(query) < 2:
        return 0 * net["generator"].head.weight.sum()
    return -net["critic"](net["generator"](query)).mean()
