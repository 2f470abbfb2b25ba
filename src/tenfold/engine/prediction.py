"""Apply a trained network to all cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import Module

from tenfold.data.bar import Bar
from tenfold.data.minibatches import Batch, Minibatches
from tenfold.engine.devices import find_device, seeded


def predict(
    net: Module,
    data: dict[str, Any],
    function: Callable[[Module, Batch], Any],
    *,
    batch_size: int = 1024,
    index: np.ndarray | None = None,
    device: str | None = None,
    seed: int = 0,
    show: str = "",
) -> Any:
    """Apply a function to all cells, in evaluation mode and without gradients.

    Parameters
    ----------
    net
        The network; its training mode is as before afterwards.
    data
        As for `Minibatches`.
    function
        ``function(net, batch)`` returns a tensor with one row a cell, or a dict of such.
    batch_size
        Cells at a time.
    index
        Rows to predict for; default all.
    device
        Where to compute; default where the network is.
    seed
        For functions that draw random numbers. The caller's random state is left alone.
    show
        Name of a progress bar; default none.

    Returns
    -------
    NumPy array, or dict of arrays, with rows in the order of `index`.
    """
    here = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    target = here if device is None else find_device(device)
    batches = Minibatches(data, batch_size, index=index, shuffle=False, device=target)
    parts: dict[str, np.ndarray] = {}
    bar = Bar(show, len(batches.index), bool(show))
    modes = [(module, module.training) for module in net.modules()]
    net.to(target).eval()
    try:
        with torch.no_grad(), seeded(seed, "predict", target):
            done = 0
            for batch in batches.epoch():
                result = function(net, batch)
                rows = slice(done, done + len(batch["index"]))
                done = rows.stop
                bar.show(done)
                for name, value in (result if isinstance(result, dict) else {"": result}).items():
                    if name not in parts:
                        parts[name] = np.empty((len(batches.index), *value.shape[1:]), _numpy_type(value))
                    parts[name][rows] = value.float().cpu() if value.is_floating_point() else value.cpu()
    finally:
        bar.close()
        for module, mode in modes:
            module.training = mode
    return parts if isinstance(result, dict) else parts[""]


def _numpy_type(value: torch.Tensor) -> np.dtype:
    return np.dtype("float32") if value.is_floating_point() else value.new_empty(0, device="cpu").numpy().dtype
