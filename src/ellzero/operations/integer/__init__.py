"""Operations of integer networks: values of 8 bits, sums of 32, no floating point in between.

`ez.quantize(..., activations=8)` makes them of the others. A real value `x` is held as the int8
`q` with `x = scale * (q - zero)`; which scale a value has is known where it becomes a float again.
"""

from ellzero.operations.integer.add import IntegerAdd
from ellzero.operations.integer.layer import IntegerConv, IntegerLinear
from ellzero.operations.integer.lookup import Lookup
from ellzero.operations.integer.pool import IntegerPool
from ellzero.operations.integer.scale import Dequantize, Quantize
from ellzero.operations.operation import Operation

INTEGER_OPERATIONS: dict[str, type[Operation]] = {
    "quantize": Quantize,
    "integer_linear": IntegerLinear,
    "integer_conv": IntegerConv,
    "integer_pool": IntegerPool,
    "integer_add": IntegerAdd,
    "lookup": Lookup,
    "dequantize": Dequantize,
}
"""Every operation of integer networks, by its kind; tracing recognizes none of them."""


def is_integer(operation: Operation) -> bool:
    """Whether it is one of integer networks alone."""
    return operation.kind in INTEGER_OPERATIONS
