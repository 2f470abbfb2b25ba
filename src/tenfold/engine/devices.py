"""Devices and processes, numerical precision and random state."""

from __future__ import annotations

import os
import random
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from torch.nn import Module, Parameter

from tenfold.errors import ParameterError, ResourceError, closest
from tenfold.kernels.sparse_linear import multiplies_bfloat16

PRECISIONS = ("32-true", "bf16-mixed")


def find_device(name: str) -> torch.device:
    """Return the device that a user's word stands for; ``"auto"`` is the first CUDA GPU, or the CPU if there is none.

    Raises
    ------
    ResourceError
        The device is not in this machine; the message lists those that are.
    ParameterError
        Not the name of a device.
    """
    kind, _, number = str(name).partition(":")
    if (kind, number) not in (("auto", ""), ("cpu", "")) and (kind != "cuda" or not (number or "0").isdecimal()):
        raise ParameterError(
            f"'{name}' is not a device.{closest(str(name), ('auto', 'cpu', 'cuda'))} Give auto, cpu, cuda or cuda:1."
        )
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and n_gpus == 0):
        return torch.device("cpu")
    wanted = int(number or 0)
    if wanted >= n_gpus:
        present = ", ".join(["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(n_gpus))])
        build = "" if torch.version.cuda else " The installed PyTorch is a build without CUDA."
        raise ResourceError(
            f"device='{name}' is not in this machine, which offers: {present}.{build} Use device='auto'."
        )
    return torch.device("cuda", wanted)


def make_fabric(device: torch.device, precision: str) -> Fabric:
    """Return a launched Fabric: one device or, under torchrun, its share of all; ParameterError: no such precision."""
    if precision not in PRECISIONS:
        hint = closest(precision, PRECISIONS)
        raise ParameterError(f"precision='{precision}' is not offered.{hint} Give {' or '.join(PRECISIONS)}.")
    if precision == "bf16-mixed" and device.type == "cpu" and not multiplies_bfloat16():
        warnings.warn("This processor has no bfloat16 instructions: precision='32-true' is much faster.", stacklevel=3)
    options: dict[str, Any] = {"precision": precision, "accelerator": device.type}
    if TorchElasticEnvironment.detect() and int(os.environ["WORLD_SIZE"]) > 1:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        options |= {"strategy": "ddp", "devices": here, "num_nodes": int(os.environ["WORLD_SIZE"]) // here}
        environment: Any = TorchElasticEnvironment()
    else:
        options["devices"] = 1 if device.type == "cpu" else [device.index]
        # Named outright: Fabric would take any SLURM allocation for a request to train in many processes.
        environment = LightningEnvironment()
    fabric = Fabric(plugins=[environment], **options)
    fabric.launch()
    return fabric


def share_weights(fabric: Fabric, net: Module) -> None:
    """Give all processes the weights and buffers of the first."""
    if fabric.world_size > 1:
        for value in net.state_dict().values():
            torch.distributed.broadcast(value, src=0)


def average_gradients(fabric: Fabric, parameters: list[Parameter], n_cells: int, stop: bool) -> bool:
    """Replace gradients by means over cells of all processes, here `n_cells`; return whether any is asked to `stop`."""
    if fabric.world_size == 1:
        return stop
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    summed = torch.cat([*(grad.flatten() * n_cells for grad in grads), grads[0].new_tensor([n_cells, stop])])
    torch.distributed.all_reduce(summed)
    parts = (summed[:-2] / summed[-2]).split([grad.numel() for grad in grads])
    for grad, part in zip(grads, parts, strict=True):
        grad.copy_(part.view_as(grad))
    return bool(summed[-1])


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every global generator that a training on `device` may draw from."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    numpy_state = np.random.get_state()  # noqa: NPY002
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy_state, "python": random.getstate()}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators into a state that `random_state` gave."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])


@contextmanager
def seeded(seed: int, purpose: str = "init", device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed Python, NumPy and torch for the block, and put the caller's random state back afterwards.

    Parameters
    ----------
    seed
        Not negative.
    purpose
        Different purposes give independent streams of the same seed.
    device
        A CUDA device's generator is seeded as well.
    """
    if seed < 0:
        raise ParameterError(f"seed is {seed}; it must not be negative.")
    device = torch.device(device)
    before = random_state(device)
    set_seed(seed, purpose, device)
    try:
        yield
    finally:
        set_random_state(before, device)


def set_seed(seed: int, purpose: str, device: torch.device) -> None:
    """Seed every global generator that a training on `device` may draw from; see `seeded`."""
    mixed = int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)[0])
    torch.default_generator.manual_seed(mixed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002
    random.seed(mixed)
