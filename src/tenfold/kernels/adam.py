"""Adam on the CPU, all parameters in one call of a compiled loop.

PyTorch's own takes as long again to get to the work as the work takes, with the small networks that are trained here.
"""

# mypy: disable-error-code="no-untyped-def, call-arg, arg-type, override"
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from tenfold.kernels.vectormath import ROW

_ONE = np.float32(1.0)


class Adam(torch.optim.Adam):
    """`torch.optim.Adam` with the same options, state and results to rounding; what it cannot do faster is left to it.

    References
    ----------
    Kingma and Ba (2015), arXiv 1412.6980.
    """

    def __init__(self, params: Any, **options: Any):
        super().__init__(params, **{"fused": True, **options})
        #: For each group, addresses (parameter, gradient, moments) and length, a row a parameter; and the steps taken,
        #: which go into the state when that is asked for.
        self._tables: dict[int, np.ndarray] = {}
        self._taken: dict[int, int] = {}

    def step(self, closure: Any = None) -> Any:
        """Take a step; see `torch.optim.Adam.step`."""
        grads = [[parameter.grad for parameter in group["params"]] for group in self.param_groups]
        if closure is not None or not all(map(self._is_simple, range(len(grads)), self.param_groups, grads)):
            self._forget()
            return super().step(closure)
        for number, group in enumerate(self.param_groups):
            parameters = group["params"]
            if number not in self._tables:
                self._enter(number, parameters)
            table = self._tables[number]
            table[:, 0] = [parameter.data_ptr() for parameter in parameters]
            table[:, 1] = [grad.data_ptr() for grad in grads[number]]
            self._taken[number] = t = self._taken[number] + 1
            beta, beta_2 = group["betas"]
            settings = (group["lr"] / (1 - beta**t), beta, beta_2, (1 - beta_2**t) ** 0.5, group["eps"])
            _step_all(table, *map(np.float32, (*settings, group["weight_decay"])))
        return None

    # Else PyTorch wraps it for its profiler and hooks, at half of the time that the small networks here need for it.
    step.hooked = True  # type: ignore[attr-defined]

    def _is_simple(self, number: int, group: dict[str, Any], grads: list[Tensor | None]) -> bool:
        """Whether the loop below does what a group needs."""
        parameters = group["params"]
        if group["amsgrad"] or group["maximize"] or isinstance(group["lr"], Tensor):
            return False
        if number not in self._tables and len({float(self.state.get(p, {}).get("step", 0)) for p in parameters}) > 1:
            return False
        return all(
            grad is not None and grad.dtype == torch.float32 and grad.is_cpu
            and p.is_contiguous() and grad.is_contiguous()
            for p, grad in zip(parameters, grads, strict=True)
        )  # fmt: skip

    def _enter(self, number: int, parameters: list[Tensor]) -> None:
        rows = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(parameter))
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            rows.append([0, 0, state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr(), parameter.numel()])
        self._tables[number] = np.array(rows, np.int64)
        self._taken[number] = int(self.state[parameters[0]]["step"])

    def _note_steps(self) -> None:
        for number, taken in self._taken.items():
            for parameter in self.param_groups[number]["params"]:
                self.state[parameter]["step"].fill_(taken)

    def _forget(self) -> None:
        """Leave the state as PyTorch would have it."""
        self._note_steps()
        self._tables, self._taken = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state; see `torch.optim.Adam.state_dict`."""
        self._note_steps()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._tables, self._taken = {}, {}
        super().load_state_dict(state_dict)


@intrinsic
def _at(typing_context, address):
    """Float32 numbers at an address."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.int64), generate


@njit(**ROW)
def _step_all(table, rate, beta, beta_2, correction, eps, decay):
    """Update the parameters of each row of the table, and their moments."""
    for i in range(table.shape[0]):
        _step(_at(table[i, 0]), _at(table[i, 1]), _at(table[i, 2]), _at(table[i, 3]), table[i, 4], rate, beta, beta_2,
              correction, eps, decay)  # fmt: skip


@njit(**ROW)
def _step(parameter, gradient, moment, moment_2, n, rate, beta, beta_2, correction, eps, decay):
    for k in range(n):
        grad = gradient[k] + decay * parameter[k]
        m = beta * moment[k] + (_ONE - beta) * grad
        v = beta_2 * moment_2[k] + (_ONE - beta_2) * grad * grad
        moment[k] = m
        moment_2[k] = v
        parameter[k] -= rate * m / (np.sqrt(v) / correction + eps)
