"""What a network can be made of, one operation a file: what it computes, declares, and is in C."""

from ellzero.operations.activation import Activation
from ellzero.operations.add import Add
from ellzero.operations.affine import Affine
from ellzero.operations.attention import Attention
from ellzero.operations.cast import Cast
from ellzero.operations.compare import Compare
from ellzero.operations.concat import Concat
from ellzero.operations.constant import Constant
from ellzero.operations.conv import Conv
from ellzero.operations.conv_transposed import ConvTransposed
from ellzero.operations.divide import Divide
from ellzero.operations.embedding import Embedding
from ellzero.operations.expand import Expand
from ellzero.operations.flatten import Flatten
from ellzero.operations.input import Input
from ellzero.operations.integer import INTEGER_OPERATIONS
from ellzero.operations.linear import Linear
from ellzero.operations.matmul import MatMul
from ellzero.operations.multiply import Multiply
from ellzero.operations.norm import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from ellzero.operations.opaque import Opaque as Opaque
from ellzero.operations.operation import Operation
from ellzero.operations.pad import Pad
from ellzero.operations.permute import Permute
from ellzero.operations.pixel_shuffle import PixelShuffle, PixelUnshuffle
from ellzero.operations.pool import Pool
from ellzero.operations.prelu import PReLU
from ellzero.operations.recurrent import Recurrent
from ellzero.operations.reduce import Reduce
from ellzero.operations.reshape import Reshape
from ellzero.operations.select import Select
from ellzero.operations.slice import Slice
from ellzero.operations.softmax import Softmax
from ellzero.operations.subtract import Subtract
from ellzero.operations.upsample import Upsample
from ellzero.operations.where import Where

OPERATIONS: dict[str, type[Operation]] = {
    "input": Input,
    "constant": Constant,
    "select": Select,
    "affine": Affine,
    "matmul": MatMul,
    "linear": Linear,
    "embedding": Embedding,
    "conv": Conv,
    "conv_transposed": ConvTransposed,
    "recurrent": Recurrent,
    "attention": Attention,
    "activation": Activation,
    "prelu": PReLU,
    "reduce": Reduce,
    "pool": Pool,
    "upsample": Upsample,
    "pixel_shuffle": PixelShuffle,
    "pixel_unshuffle": PixelUnshuffle,
    "layer_norm": LayerNorm,
    "rms_norm": RMSNorm,
    "group_norm": GroupNorm,
    "instance_norm": InstanceNorm,
    "flatten": Flatten,
    "reshape": Reshape,
    "permute": Permute,
    "expand": Expand,
    "pad": Pad,
    "slice": Slice,
    "concat": Concat,
    "add": Add,
    "subtract": Subtract,
    "multiply": Multiply,
    "divide": Divide,
    "compare": Compare,
    "where": Where,
    "cast": Cast,
    "softmax": Softmax,
}
"""Every operation that is data, by its kind: what tracing recognizes, files hold and C may know.

One of your own joins them in a line: `OPERATIONS["global_max"] = GlobalMax`.
"""


def operation_of_kind(kind: str) -> type[Operation] | None:
    """The operation that is data by its kind, of integer networks or of others."""
    return OPERATIONS.get(kind) or INTEGER_OPERATIONS.get(kind)


def is_registered(operation: Operation) -> bool:
    """Whether its kind stands for its class, so that files and C mean what it is."""
    return operation_of_kind(operation.kind) is type(operation)


def how_to_register(operation: Operation) -> str:
    """What an operation lacks to be known, as the end of a sentence; empty where that is no way."""
    kind = operation.kind
    if isinstance(operation, Opaque) or kind in OPERATIONS:
        return ""
    return f", as long as it is not registered: OPERATIONS[{kind!r}] = {type(operation).__name__}"
