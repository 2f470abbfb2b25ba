"""Polynomial exp, log and log1p for float32 that LLVM can vectorise inside Numba loops.

The C library's functions are scalar, five to eight times slower. Coefficients are those of the Cephes library
(Moshier 1992); relative error below 1.3e-7. NaN stays NaN, so that a broken training is noticed.

Numba's cache on disk looks at the file of the outermost function only: after a change here, delete the cached kernels
that call it (``find src -name "*.nb?" -delete``).
"""

# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"
from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

#: Safe for element-wise code: reassociation would fold log1p's correction term to zero.
EXACT = {"nsz", "arcp", "contract"}
#: For loops that sum: partial sums may be added in any order.
SUMS = EXACT | {"reassoc"}
#: NumPy's division (no check for zero) leaves no branch in the loop; without it nothing vectorises.
ELEMENT: dict[str, Any] = {"fastmath": EXACT, "error_model": "numpy", "forceinline": True, "cache": True}
LOOP: dict[str, Any] = {"fastmath": SUMS, "error_model": "numpy", "nogil": True, "cache": True}
#: For loops over a row that add nothing up.
ROW: dict[str, Any] = {**LOOP, "fastmath": EXACT}

_LOG2E = np.float32(1.44269504088896341)
_ROUNDER = np.float32(1.5 * 2**23)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_EXP_LOW, _EXP_HIGH = np.float32(-87.3), np.float32(88.0)
_E5, _E4, _E3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_E2, _E1, _E0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_L8, _L7, _L6 = np.float32(7.0376836292e-2), np.float32(-1.1514610310e-1), np.float32(1.1676998740e-1)
_L5, _L4, _L3 = np.float32(-1.2420140846e-1), np.float32(1.4249322787e-1), np.float32(-1.6668057665e-1)
_L2, _L1, _L0 = np.float32(2.0000714765e-1), np.float32(-2.4999993993e-1), np.float32(3.3333331174e-1)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_MANTISSA = np.int32(0x007FFFFF)
_SIGNLESS = np.int32(0x7FFFFFFF)
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)


@intrinsic
def _bits(typing_context, value):
    """Reinterpret a float32 as an int32."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _float(typing_context, value):
    """Reinterpret an int32 as a float32."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def wide(typing_context, x):
    """Return a float32, or the float32 of a bfloat16 whose bits are a uint16."""

    def generate(context, builder, signature, args):
        if signature.args[0] == types.float32:
            return args[0]
        bits = builder.zext(args[0], ir.IntType(32))
        return builder.bitcast(builder.shl(bits, ir.Constant(bits.type, 16)), ir.FloatType())

    return types.float32(x), generate


@intrinsic
def narrow(typing_context, x, like):
    """Return a float32 as it is, or as the bits of the nearest bfloat16, after the type of `like`."""

    def generate(context, builder, signature, args):
        if signature.args[1] == types.float32:
            return args[0]
        bits = builder.bitcast(args[0], ir.IntType(32))
        odd = builder.and_(builder.lshr(bits, ir.Constant(bits.type, 16)), ir.Constant(bits.type, 1))
        half = builder.add(odd, ir.Constant(bits.type, 0x7FFF))
        return builder.trunc(builder.lshr(builder.add(bits, half), ir.Constant(bits.type, 16)), ir.IntType(16))

    return like(types.float32, like), generate


@njit(**ELEMENT)
def exp(x):
    """e**x of a float32, x held to [-87.3, 88]."""
    if x < _EXP_LOW:
        x = _EXP_LOW
    if x > _EXP_HIGH:
        x = _EXP_HIGH
    shifted = x * _LOG2E + _ROUNDER  # rounds: the last bits of the sum are the whole number
    whole = shifted - _ROUNDER
    r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    tail = ((((_E5 * r + _E4) * r + _E3) * r + _E2) * r + _E1) * r + _E0
    return (tail * (r * r) + r + _ONE) * _float(np.int32((_bits(shifted) + np.int32(127)) << np.int32(23)))


@njit(**ELEMENT)
def log(x):
    """Natural logarithm of a positive normal float32; NaN for infinity."""
    shifted = np.int32(_bits(x) - _SQRT_HALF_BITS)
    exponent = np.float32(np.int32(shifted >> np.int32(23)))
    m = _float(np.int32((shifted & _MANTISSA) + _SQRT_HALF_BITS)) - _ONE
    square = m * m
    p = ((((((((_L8 * m + _L7) * m + _L6) * m + _L5) * m + _L4) * m + _L3) * m + _L2) * m + _L1) * m + _L0) * m * square
    nan = x - x  # 0, or NaN, whose bits the lines above took for a number
    return (m + (p + exponent * _LN2_LOW - _HALF * square)) + (exponent * _LN2_HIGH + nan)


@njit(**ELEMENT)
def log1p(u):
    """log(1 + u) of a non-negative float32, exact for tiny u."""
    w = _ONE + u
    return log(w) + (u - (w - _ONE)) / w


@njit(**ELEMENT)
def softplus(x):
    """log(1 + e**x) of a float32."""
    return (x if x > _ZERO else _ZERO) + log1p(exp(-abs(x)))


@njit(**ELEMENT)
def sigmoid(x):
    """1 / (1 + e**-x) of a float32."""
    return _ONE / (_ONE + exp(-x))


@njit(**LOOP)
def row_max(row):
    """Largest entry of a float32 row; compared as integers, since a maximum of floats does not vectorise."""
    best = np.int32(-2147483648)
    for j in range(row.shape[0]):
        bits = _bits(row[j])
        key = np.int32(bits ^ ((bits >> np.int32(31)) & _SIGNLESS))
        best = key if key > best else best
    return _float(np.int32(best ^ ((best >> np.int32(31)) & _SIGNLESS)))
