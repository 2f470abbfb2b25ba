"""A row of numbers in vector registers, for loops that add many rows of a matrix up.

Left to itself, LLVM reads and writes the sum at every row that it adds. With the sum held in registers a sparse product
takes two thirds of the time.
"""

# mypy: disable-error-code="no-untyped-def, call-arg, arg-type"
from __future__ import annotations

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

#: Numbers held: half of the registers that the processor has.
WIDTH = 128 if binding.get_host_cpu_features().get("avx512f") else 64

_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_FLAGS = ("contract",)  # a product and a sum become one operation


class _Lanes(types.Type):
    """`WIDTH` numbers of float32."""

    def __init__(self):
        super().__init__(f"Lanes({WIDTH})")


_LANES = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _VECTOR)


@intrinsic
def zeros(typing_context):
    """Return zeros."""

    def generate(context, builder, signature, args):
        return ir.Constant(_VECTOR, None)

    return _LANES(), generate


@intrinsic
def add(typing_context, lanes, factor, matrix, row, column):
    """Return `lanes` plus `factor` times the entries of a matrix from this row and column on."""

    def generate(context, builder, signature, args):
        lanes, factor, matrix, row, column = args
        entries = builder.load(_place(context, builder, signature.args[2], matrix, row, column), align=4)
        none = ir.Constant(_VECTOR, ir.Undefined)
        first = builder.insert_element(none, factor, ir.Constant(ir.IntType(32), 0))
        factors = builder.shuffle_vector(first, none, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), None))
        return builder.fadd(lanes, builder.fmul(factors, entries, flags=_FLAGS), flags=_FLAGS)

    return _LANES(_LANES, types.float32, matrix, types.int64, types.int64), generate


@intrinsic
def store(typing_context, lanes, matrix, row, column):
    """Write `lanes` into a matrix, from this row and column on."""

    def generate(context, builder, signature, args):
        lanes, matrix, row, column = args
        builder.store(lanes, _place(context, builder, signature.args[1], matrix, row, column), align=4)
        return context.get_dummy_value()

    return types.void(_LANES, matrix, types.int64, types.int64), generate


def _place(context, builder, kind, matrix, row, column):
    """Address of an entry of a matrix whose rows are contiguous."""
    array = context.make_array(kind)(context, builder, matrix)
    stride = cgutils.unpack_tuple(builder, array.strides, 2)[0]
    offset = builder.add(builder.mul(row, stride), builder.mul(column, ir.Constant(column.type, 4)))
    start = builder.ptrtoint(array.data, offset.type)
    return builder.inttoptr(builder.add(start, offset), _VECTOR.as_pointer())
