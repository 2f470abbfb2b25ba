"""Architecture surgery: a trained network learns further levels of its covariates, and nothing that it knew changes.

Every tensor with a row for each level is divided into known rows, which are fixed, and new ones, which alone are
trained: no optimiser, weight decay or running mean can reach the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tenfold.nn.mlp import Layer


class _Lengthened(nn.Module):
    """A tensor whose first rows are known, while the others are a parameter."""

    known: Tensor

    def __init__(self, known: Tensor):
        super().__init__()
        self.register_buffer("known", known)

    def forward(self, new: Tensor) -> Tensor:
        return torch.cat([self.known, new])

    def right_inverse(self, whole: Tensor) -> Tensor:
        """Start the new rows as the mean of the known ones: a new batch begins as an average one."""
        return self.known.mean(dim=0, keepdim=True).expand_as(whole[len(self.known) :]).clone()


def graft(trained: nn.Module, larger: nn.Module) -> bool:
    """Put a trained network into an untrained one that has room for more levels.

    Parameters
    ----------
    trained
        The network that is to stay as it is.
    larger
        A network of the same kind, for covariates with further levels. Afterwards its trainable parameters are the rows
        of the new levels, and nothing else.

    Returns
    -------
    Whether there is anything new.

    References
    ----------
    Lotfollahi et al. (2022), doi 10.1038/s41587-021-01001-7.
    """
    known = {name: getattr(module, own).detach() for name, module, own in _tensors(trained)}
    buffers = dict(trained.named_buffers())
    grown = False
    for name, module, own in list(_tensors(larger)):
        value = getattr(module, own)
        # Where a covariate had a single level, nothing was added for it, or the tensor had no axis of levels.
        before = known.get(name, value.new_zeros(1, *value.shape[1:])).reshape(-1, *value.shape[1:])
        if before.shape == value.shape:
            value.data.copy_(before)
            value.requires_grad_(False)
        else:
            parametrize.register_parametrization(module, own, _Lengthened(before.clone()), unsafe=True)
            grown = True
    for name, buffer in larger.named_buffers():
        if name in buffers and buffers[name].shape == buffer.shape:
            buffer.copy_(buffers[name])
    return grown


def heal(net: nn.Module) -> None:
    """Join known and new rows again: the network is an ordinary one of its size."""
    for module in list(net.modules()):
        if parametrize.is_parametrized(module):
            for own in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, own, leave_parametrized=True)
    net.requires_grad_(True)


def with_average_level(net: nn.Module) -> nn.Module:
    """Return a copy whose tables have one more row, the mean of the others: for cells of a level that is not known."""
    copy = deepcopy(net)
    for layer in copy.modules():
        if isinstance(layer, Layer):
            for number, table in enumerate(layer.tables):
                layer.tables[number] = nn.Parameter(torch.cat([table, table.mean(dim=0, keepdim=True)]))
    return copy


def _tensors(net: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield each parameter's name, its module and its name there; a table is named by the column of its covariate.

    (Its position among the tables changes when a covariate that had one level is given a second.)
    """
    columns = {f"{place}.tables": module.told for place, module in net.named_modules() if isinstance(module, Layer)}
    for place, module in net.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            yield f"{place}.{columns[place][int(own)] if place in columns else own}", module, own
