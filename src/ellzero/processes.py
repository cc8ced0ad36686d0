"""Processes: several that train one network together, in the group of torch.distributed.

A process without such a group is rank 0 of one. What says so imports no torch, for the command line
asks it, too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ellzero.errors import InputError, WriteError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Value = TypeVar("Value")

TIMEOUT = timedelta(hours=2)
"""So long the others wait for rank 0, which alone tests and traces at the end of a run."""

LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "socket closed")
"""What the errors of a collective say when another rank has ended, in lower case."""


_is_alone = False


def _group() -> Any:
    """The module torch.distributed where it has a group that counts, else None."""
    if _is_alone:
        return None
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed


def rank() -> int:
    """The number of this process, from 0.

    Example:
        >>> rank(), world_size(), is_main()
        (0, 1, True)
    """
    group = _group()
    return 0 if group is None else group.get_rank()


def world_size() -> int:
    """How many processes there are."""
    group = _group()
    return 1 if group is None else group.get_world_size()


def is_main() -> bool:
    """Whether this is rank 0, which alone prints and writes."""
    return rank() == 0


def agreed(value: Value) -> Value:
    """What rank 0 calls this with, on all ranks, all of which have to call it.

    Args:
        value: what JSON can hold; tuples come back as lists, but not in one process.

    Example:
        >>> agreed({"loss": 0.25})
        {'loss': 0.25}
    """
    if world_size() == 1:
        return value
    import torch

    device = communication_device()
    text = json.dumps(value).encode() if is_main() else b""
    length = torch.tensor([len(text)], device=device)
    broadcast(length)
    content = torch.empty(int(length), dtype=torch.uint8, device=device)
    if is_main():
        content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    broadcast(content)
    return json.loads(content.cpu().numpy().tobytes())


def by_main(action: Callable[[], object]) -> None:
    """Do something on rank 0, for which the others wait, all of which have to call this.

    Raises:
        EllzeroError: of rank 0; on the others it is an `InputError` or a `WriteError` that says so.
    """
    if not is_main():
        failure = agreed(None)
        if failure is not None:
            kind = InputError if failure[0] else WriteError
            raise kind(f"rank 0 failed: {failure[1]}")
        return
    try:
        action()
    except BaseException as error:
        agreed([isinstance(error, InputError), str(error) or type(error).__name__])
        raise
    agreed(None)


def total(value: Tensor) -> Tensor:
    """The sum over all ranks, all of which have to call this; on the device of `value`.

    Example:
        >>> import torch
        >>> total(torch.tensor(2.0))
        tensor(2.)
    """
    if world_size() == 1:
        return value
    summed = value.detach().clone()
    _group().all_reduce(summed)
    return summed


def extremes(value: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest over all ranks, elementwise; all of them have to call this."""
    if world_size() == 1:
        return value, value
    import torch

    both = torch.stack([-value, value])
    _group().all_reduce(both, op=_group().ReduceOp.MAX)
    return -both[0], both[1]


def broadcast(tensor: Tensor) -> None:
    """Give all ranks, all of which have to call this, the values of rank 0, in place."""
    if world_size() > 1:
        _group().broadcast(tensor, src=0)


def communication_device() -> torch.device:
    """Where a tensor has to be that the processes exchange, if nothing else says where it is."""
    import torch

    group = _group()
    only_gpus = group is not None and group.get_backend() == "nccl"
    return torch.device("cuda" if only_gpus else "cpu")


def local_device(device: torch.device) -> torch.device:
    """The device of this process where a recipe names one for all of them.

    Raises:
        InputError: it names a GPU by its number, for several processes.
    """
    if world_size() == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise InputError(
            f"device is '{device}' for {world_size()} processes; give 'cuda' or 'auto', and each "
            "of them takes a GPU of its own"
        )
    import torch

    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def alone() -> Iterator[None]:
    """This process as the only one inside the block, in which it waits for no other."""
    global _is_alone
    _is_alone = True
    try:
        yield
    finally:
        _is_alone = False


def launched_rank() -> int | None:
    """The rank that torchrun gave to this process; None where it did not, or started it alone."""
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1" or "LOCAL_RANK" not in os.environ
    return None if is_alone else int(os.environ["RANK"])


@contextmanager
def joined() -> Iterator[None]:
    """The group of processes that torchrun has started, of which this is one, inside the block.

    By gloo on CPUs and NCCL on GPUs, of which each process takes the one that its local rank
    counts. Where torchrun has not started this process, or it alone, there is no group.

    Raises:
        InputError: fewer GPUs than processes on a machine that has some.
    """
    if launched_rank() is None:
        yield
        return
    import torch
    from torch import distributed

    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if index >= count:
            raise InputError(
                f"process {index} of this machine has no GPU of its own, there are {count}; start "
                f"{count} with --nproc-per-node, or hide the GPUs (CUDA_VISIBLE_DEVICES=) from all"
            )
        torch.cuda.set_device(index)
    distributed.init_process_group(backend, timeout=TIMEOUT)
    yield
    # not after an error: it would wait for what is under way with ranks that may have ended
    distributed.destroy_process_group()


def is_loss_of_another(error: BaseException) -> bool:
    """Whether an error only says that another rank has ended, which tells why itself.

    Example:
        >>> is_loss_of_another(RuntimeError("[pair.cc:537] Connection closed by peer [::1]:2"))
        True
    """
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in LOST)
