"""Model files: a network's own keys in safetensors, the zeros the masks; and loading any file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ellzero import files, processes
from ellzero.documents import brief
from ellzero.errors import InputError, nearest
from ellzero.files import (
    DIGEST,
    MODEL_FORMAT,
    PLAIN_FORMAT,
    copied,
    read_model,
    tensors_to_bytes,
)
from ellzero.graph import Network
from ellzero.graph.trace import with_code
from ellzero.modules import is_replicated, plain_name, require_network, unwrapped
from ellzero.packed.reader import is_packed, read_packed
from ellzero.pruning import Masks
from ellzero.sharding import local, part_of, require_sharding
from ellzero.tensors import is_distributed, require_held


def save(
    model: nn.Module,
    path: str | Path,
    *,
    masks: Masks | None = None,
    metadata: Mapping[str, Any] | None = None,
    digest: bool = False,
) -> None:
    """Save a network as safetensors: its state_dict's keys and nothing else.

    The zeros of a pruned network rebuild its masks (`Masks.read`). Written atomically. What torch
    wraps around a network (DDP, `torch.compile`) is left out of the keys.

    Of several processes with a network in DDP only rank 0 writes, and the others return at once.
    Those of a sharded network (FSDP2) all have to call this: its tensors are gathered one at a
    time, rank 0 writes, and the others return when it has, or raise its error.

    Args:
        model: the network; tied weights are written under each of their keys.
        path: the file; an existing one is replaced.
        masks: the network's masks, so that a kept weight that happens to be zero is noted.
        metadata: anything JSON can hold, for `read_metadata`.
        digest: write a digest (SHA-256) of tensors and metadata with them, so that a file in which
            a bit has changed is refused by whatever reads it.

    Raises:
        InputError: no network; a state_dict entry that is not a tensor; masks that were not held.
        WriteError: no space, no permission.

    Example:
        >>> import tempfile, pathlib, torch, ellzero as ez
        >>> model = torch.nn.Linear(10, 10)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> ez.save(model, path, masks=ez.prune(model, sparsity=0.9))
        >>> path.stat().st_size < 1000
        True
    """
    require_network(model)
    if masks is not None:
        _require_zeros(masks)
    is_sharded = any(is_distributed(value) for value in model.state_dict().values())
    writes = processes.is_main() or not (is_sharded or is_replicated(model))
    if not (writes or is_sharded):
        return
    tensors, document = _content(model, masks, metadata, keep=writes)

    def write() -> None:
        if digest:
            document["format"] = MODEL_FORMAT
            document[DIGEST] = files.digest(tensors, document)
        files.write_tensors(Path(path), tensors, document)

    if is_sharded:
        processes.by_main(write)
    else:
        write()


def _require_zeros(masks: Masks) -> None:
    """Refuse masks that were not held, for a file's zeros are its masks.

    Raises:
        InputError: a weight under a mask is not zero.
    """
    for name, w in masks.weights.items():
        revived = int(((local(w) != 0) & ~local(masks[name])).sum())
        if revived:
            raise InputError(
                f"{revived} weights of {name} are not zero any more under their mask; train within "
                "`with masks.hold(optimizer):`, or set them to zero again by masks.apply()"
            )


def to_bytes(
    model: nn.Module, *, masks: Masks | None = None, metadata: Mapping[str, Any] | None = None
) -> bytes:
    """The bytes that `save` writes; all processes of a sharded network have to call this."""
    return tensors_to_bytes(*_content(model, masks, metadata))


def _content(
    model: nn.Module,
    masks: Masks | None,
    metadata: Mapping[str, Any] | None,
    *,
    keep: bool = True,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of a network's file; no tensors unless they are to be kept."""
    document: dict[str, Any] = {**(metadata or {}), "format": PLAIN_FORMAT}
    if masks is not None:
        document["masks"] = {"weights": list(masks), "kept_zeros": masks.kept_zeros}
    tensors = {
        plain_name(name): tensor for name, tensor in copied(unwrapped(model), keep=keep).items()
    }
    for tensor in tensors.values():
        # zeros as +0 alone: the sign of a zero means nothing and costs bytes in a compressed file
        # (float8 has no sums)
        if tensor.is_floating_point() and tensor.itemsize > 1:
            tensor += 0
    return tensors, document


def load(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    max_bytes: int | None = None,
    max_macs: int | None = None,
) -> nn.Module:
    """Load a network from a packed file, or a network's weights from a file into it.

    What a file is, its first bytes say. Nothing in it is ever run.

    Args:
        path: a file of `ez.pack` or `ez.save`, or any safetensors file with the network's keys.
        model: a network of the same architecture, or what torch has wrapped around it; its weights
            change in place. Of a sharded one (FSDP2) each process takes its part, without the
            others. A packed file that holds its architecture needs none; of one with parts that are
            code (a compacted network with an opaque node) the network lends the code, and stays as
            it is.
        max_bytes: memory that a packed file may take; by default 64 MiB or 4096 times the file's
            bytes, whichever is more, for its weights, and 1 GiB for one example on its way.
        max_macs: multiply-adds that one example may take in a packed file's network; by default
            34,359,738,368, eight times those of ResNet-50 at 224 x 224.

    Returns:
        The model that was given; without one, or where it lent code, a `Network` in evaluation
        mode.

    Raises:
        InputError: no such file; truncated or damaged; a pickle (never unpickled); of another
            network; of a newer version; no model where the file needs one; more work or memory
            than it may ask for.

    Example:
        >>> import tempfile, pathlib, torch, ellzero as ez
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> ez.save(torch.nn.Linear(3, 2), path)
        >>> ez.load(path, torch.nn.Linear(3, 2))
        Linear(in_features=3, out_features=2, bias=True)
    """
    if not isinstance(path, str | Path):
        raise InputError(f"path is {type(path).__name__}; expected the path of a file")
    if model is not None:
        require_network(model)
    path = Path(path)
    graph = None
    if is_packed(path):
        graph, tensors = read_packed(path, max_bytes=max_bytes, max_macs=max_macs)
    else:
        tensors, _ = read_model(path)
    if model is not None and (graph is None or not graph.opaque):
        _load_into(model, tensors, path)
        return model
    if graph is None:
        raise InputError(f"{path} holds weights only; give it the network: ez.load(path, model)")
    if graph.opaque and model is None:
        raise InputError(
            f"{path} lacks the code of {graph.opaque[0].named}; give it a network of the class "
            "that it was made from: ez.load(path, model)"
        )
    try:
        if model is not None:
            sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            graph = with_code(graph, model, sizes)
        return Network(graph, tensors).requires_grad_(True).eval()
    except InputError as error:
        raise InputError(f"{path} cannot be loaded: {error}") from None


def _load_into(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    network = unwrapped(model)
    state = network.state_dict()
    own_names = {plain_name(name): name for name in state}
    expected = {name: state[own] for name, own in own_names.items()}
    for name, tensor in expected.items():
        require_sharding(name, tensor)
        require_held(name, local(tensor))
    # older files have the names of wrappers in their keys
    plain = dict(zip(model.state_dict(), map(plain_name, state), strict=True))
    tensors = {n if n in expected else plain.get(n, n): tensor for n, tensor in tensors.items()}
    problems = [f"{name} is missing" for name in expected if name not in tensors] + [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
        if name in expected
        else f"{name} is unknown ({nearest(name, list(expected))})"
        for name, tensor in tensors.items()
        if name not in expected or tensor.shape != expected[name].shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"{path} is of another network than {type(model).__name__}: "
            f"{brief('; '.join(problems[:3]))}{more}"
        )
    network.load_state_dict(
        {
            own: part_of(tensors[name], state[own]) if is_distributed(state[own]) else tensors[name]
            for name, own in own_names.items()
        }
    )


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a model file: data set, preprocessing, class names, where they are known."""
    return read_model(Path(path))[1]
