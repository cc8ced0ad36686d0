"""C99 source of a network: one .c, one .h, and a test with the outputs that PyTorch gave."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from torch import nn

import ellzero
from ellzero.c.arrays import Array, floats
from ellzero.c.kernel import Function, written
from ellzero.c.storage import StorageChoice
from ellzero.c.text import block, comment, dimensions, indented
from ellzero.compaction.compact import compacted_of
from ellzero.compaction.folding import folded
from ellzero.compaction.living import warn_if_dead
from ellzero.errors import InputError
from ellzero.export.c.blob import Blob, WeightsIn
from ellzero.export.c.check import EXAMPLES, examples_of, program
from ellzero.export.c.plan import Plan, plan
from ellzero.export.c.stream import Stream, declared, defined
from ellzero.export.c.tokens import checks, has_tokens
from ellzero.export.integer_c.source import integer_c
from ellzero.export.package import Facts, Package, check_package, packaged
from ellzero.files import write_atomically
from ellzero.graph import Network, trace
from ellzero.graph.graph import free_name
from ellzero.graph.trace import Example, batches_of
from ellzero.operations.integer import is_integer
from ellzero.tensors import Shape


@dataclass(frozen=True)
class CLayer:
    """One weight of a layer in the generated C.

    Args:
        name: the node; of one with several weights with the weight's role, `gru.weight_ih`.
        weights: entries of the weight.
        nonzeros: those that are not zero.
        layout: gaps, indices, bitmap, dense or sliced.
        values: float32, codebook or int8.
        size_bytes: bytes of its constant arrays, bias included.

    Example:
        >>> import tempfile, torch, ellzero as ez
        >>> layer = torch.nn.Linear(3, 2)
        >>> source = ez.export_c(layer, tempfile.mkdtemp(), example=torch.zeros(1, 3))
        >>> source.layers[0].weights, source.layers[0].values
        (6, 'float32')
    """

    name: str
    weights: int
    nonzeros: int
    layout: str
    values: str
    size_bytes: int


@dataclass(frozen=True)
class CSource:
    """What `export_c` wrote.

    Args:
        folder: where NAME.c is.
        name: of the files and functions.
        layers: how each weight is stored.
        constant_bytes: bytes of all constant arrays.
        scratch_bytes: bytes of working memory, beside input and output.
        kept: what could not be compacted, and why.

    Example:
        >>> import tempfile, torch, ellzero as ez
        >>> model = torch.nn.Linear(8, 4)
        >>> source = ez.export_c(model, tempfile.mkdtemp(), torch.zeros(1, 8))
        >>> source.name, source.layers[0].nonzeros, source.kept
        ('net', 32, ())
    """

    folder: Path
    name: str
    layers: tuple[CLayer, ...]
    constant_bytes: int
    scratch_bytes: int
    kept: tuple[str, ...]


def export_c(
    model: nn.Module,
    folder: str | Path,
    example: Example | None = None,
    *,
    name: str = "net",
    storage: StorageChoice = "smallest",
    weights: WeightsIn = "arrays",
    package: Package = "source",
    remark: str = "",
) -> CSource:
    """Write a network as C99 that needs nothing but `math.h`: NAME.c, NAME.h and NAME_test.c.

    `int NAME_predict(const float *input, float *output)` takes one raw example (the network's
    preprocessing is compiled in) and returns the index of the largest output. Several inputs lie
    one behind the other in memory, and so do several outputs; tokens are whole numbers. No memory
    is allocated: working memory is static, or with `NAME_predict_in` the caller's. What is removed
    beforehand is what `ez.compact` removes; a warning names layers without a weight and outputs
    that are constant.

    Args:
        model: a network, or what `ez.trace`, `ez.compact` or `ez.load` gave.
        folder: where the files go; made if it is missing, files of these names are replaced.
        example: a batch (N, ...) of inputs, as the network takes them; up to eight of them become
            the test. Without it (a traced network) the test has random inputs.
        name: a C identifier, of files and functions.
        storage: how weights lie: "smallest", in the fewest bytes; "fastest", for a processor with
            vector registers; "dense", every weight zero or not, which is what the others are
            measured against.
        weights: in "arrays" of the C itself, or a "blob": a file NAME_weights.bin beside it, whose
            bytes the program hands over by `NAME_set_weights`; a compiler takes seconds then, where
            it would take minutes for the arrays of a large network. Integers lie in arrays.
        package: "source", these files alone; "project", with a README.md, a Makefile and a
            CMakeLists.txt; "arduino", a library: the C lies in `src`, the test in `extras`, and a
            sketch in `examples`.
        remark: what the header says besides, such as on which data it was measured.

    Returns:
        What was written, layer by layer.

    Raises:
        InputError: a layer there is no C for, by its name; weights or examples with NaN; a name
            that is no C identifier; no such folder's parent; a blob in an Arduino library.

    Example:
        >>> import tempfile, torch, ellzero as ez
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())
        >>> masks = ez.prune(model, sparsity=0.75)
        >>> folder = tempfile.mkdtemp()
        >>> source = ez.export_c(model, folder, example=torch.zeros(1, 8))
        >>> source.layers[0].nonzeros
        8
    """
    check_name(name)
    check_storage(storage)
    check_weights(weights)
    check_package(package)
    network, kept = trace(model, example), ()
    if any(is_integer(node.op) for node in network.graph.nodes):
        if weights != "arrays":
            raise InputError(f"weights is {weights!r}; C of integers has them in 'arrays'")
        return _of_integers(network, _made(folder), example, name, storage, package, remark)
    changed = folded(network)
    warn_if_dead(changed)
    if storage != "dense" and not network.graph.opaque:
        compacted = compacted_of(changed)
        network, kept = compacted.model, compacted.kept
    planned = plan(network)
    functions = _functions(planned, name, storage)
    inputs, outputs = examples_of(network, example)
    blob = Blob.of(_arrays(planned, functions, name)) if weights == "blob" else None

    folder = _made(folder)
    files = {
        f"{name}.h": _header(network, planned, name, blob, remark),
        f"{name}.c": _source(network, planned, functions, name, blob),
        f"{name}_test.c": program(
            inputs,
            outputs,
            name,
            first=math.prod(network.shapes[network.graph.results[0]]),
            streams=isinstance(planned.stream, Stream),
            reads=blob is not None,
        ),
    }
    constants = sum(array.size_bytes for array in _arrays(planned, functions, name))
    facts = Facts(name, False, constants, 4 * planned.scratch, remark, blob is not None)
    place = _written(folder, files, facts, package)
    if blob is not None:
        write_atomically(place / f"{name}_weights.bin", blob.content)
    return CSource(place, name, tuple(_layers(functions)), constants, 4 * planned.scratch, kept)


def _written(folder: Path, files: Mapping[str, str], facts: Facts, package: Package) -> Path:
    """Write a package; the folder of its C."""
    for path, text in packaged(files, facts, package).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / path, text.encode())
    return folder / "src" if package == "arduino" else folder


def _made(folder: str | Path) -> Path:
    """The folder, made if it is missing."""
    folder = Path(folder)
    if not folder.parent.is_dir():
        raise InputError(f"cannot write {folder}: there is no folder {folder.parent}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cannot write into {folder}: it is a file; expected a folder")
    folder.mkdir(exist_ok=True)
    return folder


def _of_integers(
    network: Network,
    folder: Path,
    example: Example | None,
    name: str,
    storage: StorageChoice,
    package: Package,
    remark: str,
) -> CSource:
    """Write a network of integers, for tests with the integers that PyTorch gives."""
    batches = batches_of(network.examples(2) if example is None else example)
    source = integer_c(network.cpu(), name, storage, batches[0][:EXAMPLES].detach().cpu(), remark)
    constants, scratch = source.constant_bytes, source.scratch_bytes
    facts = Facts(name, True, constants, scratch, remark)
    place = _written(folder, source.files, facts, package)
    layers = (
        CLayer(n.name, n.weights, n.nonzeros, n.layout, "int8", n.size_bytes) for n in source.layers
    )
    return CSource(place, name, tuple(layers), constants, scratch, ())


_KEYWORDS = """
auto break case char const continue default do double else enum extern float for goto if inline int
long main register restrict return short signed sizeof static struct switch typedef union unsigned
void volatile while
"""


def check_storage(storage: str) -> None:
    """Make sure that weights can lie in C so.

    Raises:
        InputError: they cannot.
    """
    if storage not in get_args(StorageChoice):
        raise InputError(f"storage is {storage!r}; expected 'smallest', 'fastest' or 'dense'")


def check_weights(weights: str) -> None:
    """Make sure that weights can be handed to C so.

    Raises:
        InputError: they cannot.
    """
    if weights not in get_args(WeightsIn):
        raise InputError(f"weights is {weights!r}; expected 'arrays' or 'blob'")


def check_name(name: str) -> None:
    """Refuse what cannot be the name of C files and functions.

    Raises:
        InputError: no identifier, or a keyword.
    """
    is_identifier = isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,30}", name)
    if not is_identifier or name in _KEYWORDS.split():
        raise InputError(
            f"name is {name!r}; expected a C identifier: letters, digits and _, a letter first, at "
            "most 31, no keyword"
        )


def _functions(planned: Plan, prefix: str, choice: StorageChoice) -> list[Function]:
    names: set[str] = set()
    functions = []
    for kernel in planned.kernels:
        name = re.sub(r"[^A-Za-z0-9]+", "_", kernel.name).strip("_") or "node"
        name = free_name(f"{prefix}_{name}", names)
        names.add(name)
        functions.append(written(kernel, name, choice))
    return functions


def _constants(planned: Plan, name: str) -> dict[str, Array]:
    """The arrays of values that no input changes, by their nodes."""
    return {
        node: floats(f"{name}_constant_{number}", value.float().numpy())
        for number, (node, value) in enumerate(planned.constants.items())
    }


def _arrays(planned: Plan, functions: Sequence[Function], name: str) -> list[Array]:
    """All constant arrays of the C."""
    of_functions = [array for function in functions for array in function.arrays]
    return [*_constants(planned, name).values(), *of_functions]


def _layers(functions: Sequence[Function]) -> Iterator[CLayer]:
    for function in functions:
        # what else the function has, such as its biases, is counted with the first weight
        others = sum(array.size_bytes for array in function.arrays) - sum(
            storage.size_bytes for _, storage in function.stored.values()
        )
        for role, (matrix, storage) in function.stored.items():
            yield CLayer(
                function.kernel.name + ("" if role == "weight" else f".{role}"),
                function.kernel.weights[role].numel(),
                matrix.nonzeros,
                storage.layout,
                storage.values.kind,
                storage.size_bytes + others,
            )
            others = 0


def _header(network: Network, planned: Plan, name: str, blob: Blob | None, remark: str) -> str:
    upper = name.upper()
    sizes = {name: op.size for name, op in network.graph.inputs.items()}
    results = [network.shapes[node] for node in network.graph.results]
    names = [output.name or output.node for output in network.graph.outputs]
    inputs, outputs = (sum(map(math.prod, shapes)) for shapes in (sizes.values(), results))
    classes = network.graph.classes
    include = "" if blob is None else "\n#include <stddef.h>\n"
    named = ""
    if classes is not None:
        listed = ", ".join(comment(c) for c in classes)
        named = f"\n/* Classes in order: {listed} */\n"
    said = f"\n   {comment(remark)}" if remark else ""
    return f"""/* {name}: a network, written by ellzero {ellzero.__version__}.{said} */
#ifndef {upper}_H
#define {upper}_H
{include}
#define {upper}_INPUTS {inputs} /* {_described(list(sizes.values()), list(sizes))} */
#define {upper}_OUTPUTS {outputs} /* {_described(results, names)} */
#define {upper}_SCRATCH {max(planned.scratch, 1)} /* floats of working memory */
{named}
#ifdef __cplusplus
extern "C" {{
#endif

/* Outputs of one raw example, its last index fastest; returns the index of the largest
   output{_several(network)}.
   Its working memory is static: one call at a time. Left out if {upper}_NO_STATIC is defined. */
int {name}_predict(const float *input, float *output);

/* The same in working memory of the caller's, {upper}_SCRATCH floats. */
int {name}_predict_in(const float *input, float *output, float *scratch);
{declared(planned.stream, name)}{"" if blob is None else blob.declared(name)}
#ifdef __cplusplus
}}
#endif
#endif
"""


def _described(shapes: Sequence[Shape], names: Sequence[str]) -> str:
    """The shapes of values that lie one behind the other, with their names if they are several."""
    if len(shapes) == 1:
        return dimensions(shapes[0])
    pairs = zip(names, shapes, strict=True)
    return ", then ".join(f"{comment(name)} {dimensions(shape)}" for name, shape in pairs)


def _several(network: Network) -> str:
    """What a header says of the index that is returned, where there is more to say."""
    text = " of the first" if len(network.graph.results) > 1 else ""
    if has_tokens(network):
        text += ", or -1 where a token is none that the network\n   knows; tokens are whole numbers"
    return text


def _predict(calls: Iterable[str], planned: Plan, name: str, first: str, checks: str) -> str:
    """The function that goes through all kernels.

    Args:
        first: C expression of how many values the first output has.
        checks: C that goes before all else.
    """
    unused = "" if planned.scratch else "    (void)scratch;\n"
    return f"""int {name}_predict_in(const float *input, float *output, float *scratch)
{{
    int best = 0;
{unused}{indented(chr(10).join([*[checks] * bool(checks), *calls]))}
    for (int i = 1; i < {first}; ++i) {{
        if (output[i] > output[best]) {{
            best = i;
        }}
    }}
    return best;
}}
"""


def _source(
    network: Network, planned: Plan, functions: Sequence[Function], name: str, blob: Blob | None
) -> str:
    upper = name.upper()
    calls: dict[str, str] = {}
    constants = _constants(planned, name)
    where = {**planned.places, **{node: array.name for node, array in constants.items()}}
    for function in functions:
        kernel = function.kernel
        values = [*(value for value, _ in kernel.inputs), kernel.result]
        places = [*(where[value] for value in values), *planned.memory[kernel.result]]
        calls[kernel.name] = f"{function.name}({', '.join(places)});"
    definition = Array.source if blob is None else partial(blob.definition, name=name)
    kernels = "" if blob is None else f"{blob.defined(name)}\n"
    kernels += "".join(map(definition, constants.values()))
    kernels += "\n".join(function.source(definition) for function in functions)
    ready = "" if blob is None else block(f"if (!{name}_weights)", "return -1;")
    if isinstance(planned.stream, Stream):
        predict = defined(planned.stream, calls, planned.state, name, ready)
    else:
        outputs = [math.prod(network.shapes[node]) for node in network.graph.results]
        first = f"{upper}_OUTPUTS" if len(outputs) == 1 else str(outputs[0])
        refused = "\n".join(filter(None, [ready, checks(network, where)]))
        predict = _predict(calls.values(), planned, name, first, refused)
    return f"""/* {name}: a network, written by ellzero {ellzero.__version__}. */
#include "{name}.h"

#include <math.h>
#include <stdint.h>

{kernels}
{predict}
#ifndef {upper}_NO_STATIC
int {name}_predict(const float *input, float *output)
{{
    static float scratch[{upper}_SCRATCH];
    return {name}_predict_in(input, output, scratch);
}}
#endif
"""
