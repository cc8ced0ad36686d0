"""Checkpoints: the state of a run at one moment, in memory and in one safetensors file."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ellzero import processes
from ellzero.errors import InputError, WriteError, warn
from ellzero.files import digest, read_tensors, rename, tensor_parts, write_tensors
from ellzero.pruning import Masks
from ellzero.recipe import Recipe
from ellzero.record import EpochMetrics, Evaluation, Outcome, Retry, TrainedWeights
from ellzero.run_folder import CHECKPOINT, PREVIOUS
from ellzero.sharding import local, part_of, whole
from ellzero.training.identity import require_same, settings_of, with_newer_keys
from ellzero.training.parallel import copied, shared
from ellzero.training.plan import Step
from ellzero.training.state import Snapshot, State

SNAPSHOTS = ("reference", "base", "best")
OF_RANK_0 = ("model", "start", *SNAPSHOTS)
"""Groups of tensors that rank 0 alone keeps, and the others are sent when they are used."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never been stopped; training leaves it."""

    tensors: dict[str, Tensor]
    document: dict[str, Any]


def take(state: State) -> Checkpoint:
    """The state as it stands; what training changes in place is copied, to the CPU.

    All processes of a sharded network have to call this; rank 0 alone gets the tensors, whole.
    """
    document: dict[str, Any] = {
        "step": state.step and dataclasses.asdict(state.step),
        "epoch": state.epoch,
        "outcomes": [dataclasses.asdict(outcome) for outcome in state.outcomes],
        "history": [metrics.to_table() for metrics in state.history],
        "started": state.started,
        "seconds": state.seconds,
        "retries": [retry.to_table() for retry in state.retries],
        "trained": state.trained and state.trained.to_table(),
        "snapshots": {},
    }
    moved: dict[str, dict[str, Tensor]] = {}
    fixed: dict[str, dict[str, Tensor]] = {"start": state.start}
    for name in SNAPSHOTS:
        snapshot: Snapshot | None = getattr(state, name)
        if snapshot is not None:
            fixed[name] = snapshot.tensors
            document["snapshots"][name] = (snapshot.evaluation, snapshot.nonzeros, snapshot.epoch)
    if state.masks is not None:
        fixed["masks"] = state.masks.state_dict()
    if state.optimizer is not None:
        moved["optimizer"], document["optimizer"] = _parts(state.optimizer.state_dict())
    if state.average is not None:
        moved["average"] = state.average.tensors
    if state.regularizer is not None:
        regularizer = state.regularizer.state_dict()
        moved["remainders"] = regularizer["remainders"]
        if regularizer["gates"] is not None:
            moved["gates"] = regularizer["gates"]["own"]
            parts = _parts(regularizer["gates"]["optimizer"])
            moved["gates_optimizer"], document["gates_optimizer"] = parts
    tensors = {f"model/{name}": tensor for name, tensor in copied(state.model).items()}
    for groups, copy in ((fixed, False), (moved, True)):
        for group, members in groups.items():
            for name, tensor in members.items():
                gathered = whole(tensor.detach())
                if processes.is_main():
                    tensors[f"{group}/{name}"] = gathered.to(
                        "cpu", copy=copy, memory_format=torch.contiguous_format
                    )
    return Checkpoint(tensors, document)


def put_back(checkpoint: Checkpoint, state: State, recipe: Recipe) -> None:
    """Put a state of the same network and recipe back to where the checkpoint was taken.

    On ranks other than 0 the checkpoint has no tensors of `OF_RANK_0`.
    """
    document = checkpoint.document
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = tensor
    if not processes.is_main():
        groups |= {group: {} for group in OF_RANK_0}
    state.restore(groups["model"])
    state.start = groups.get("start", {})
    state.epoch = document["epoch"]
    state.outcomes = tuple(Outcome(**outcome) for outcome in document["outcomes"])
    state.history = [EpochMetrics(**metrics) for metrics in document["history"]]
    state.started = document.get("started", state.started)
    # a clock that was moved left negative ones in older files
    state.seconds = document["seconds"] if 0 <= document["seconds"] < math.inf else 0.0
    state.retries = tuple(Retry(**retry) for retry in document.get("retries", ()))
    trained = document["trained"]
    state.trained = trained and TrainedWeights.model_validate(trained)
    for name in SNAPSHOTS:
        noted = document["snapshots"].get(name)
        snapshot = noted and Snapshot(groups[name], Evaluation(*noted[0]), *noted[1:])
        setattr(state, name, snapshot)
    state.step = state.optimizer = state.regularizer = state.masks = None
    state.average = state.teacher = None
    if document["step"] is not None:
        step = document["step"]
        state.step = Step(**{**step, "search": step["search"] and tuple(step["search"])})
        state.equip(recipe)
    if "masks" in groups:
        state.masks = Masks(state.weights, groups["masks"])
    if "optimizer" in document and state.optimizer is not None:
        moments = groups.get("optimizer", {})
        state.optimizer.load_state_dict(
            _optimizer_state(state.optimizer, document["optimizer"], moments)
        )
    if state.average is not None:
        state.average.load(groups["average"])
    if state.regularizer is not None:
        state.regularizer.load_state_dict(_regularizer_state(state, groups, document))


def write(checkpoint: Checkpoint, folder: Path, recipe: Recipe) -> None:
    """Write a checkpoint into a run's folder; the one before stays beside it as the previous one.

    It says which run it is of, and its digest covers all that it holds.

    Raises:
        WriteError: it cannot be written; the one before is in its place again, or beside it.
    """
    path, previous = folder / CHECKPOINT, folder / PREVIOUS
    settings = settings_of(recipe.to_table())
    threads = torch.get_num_threads()
    document = {**checkpoint.document, "recipe": settings, "threads": threads}
    document["processes"] = processes.world_size()
    document["digest"] = digest(checkpoint.tensors, document)
    if path.exists():
        rename(path, PREVIOUS)
    try:
        write_tensors(path, checkpoint.tensors, document)
    except BaseException:
        if previous.exists() and not path.exists():
            with suppress(WriteError):  # a resume finds it all the same; the first error counts
                rename(previous, CHECKPOINT)
        raise


def load(state: State, folder: Path | None, recipe: Recipe) -> None:
    """Put a fresh state back to where a run's last checkpoint was written.

    Where that one is damaged or missing, the previous one takes its place, with a warning.

    Args:
        state: changed in place.
        folder: the run's; of several processes rank 0 reads it, and the others give None.
        recipe: the recipe.

    Raises:
        InputError: neither of them is whole; the checkpoint is of another network or recipe.
    """
    if folder is None:
        put_back(_shared(Checkpoint({}, {})), state, recipe)
        return
    path, previous = folder / CHECKPOINT, folder / PREVIOUS
    try:
        checkpoint = _read(path)
    except InputError as error:
        if not previous.is_file():
            raise
        try:
            checkpoint = _read(previous)
        except InputError as other:
            raise InputError(f"{error}; {other}") from None
        warn(f"{error}; the run goes on from the checkpoint before it, {previous.name}")
        used = previous
    else:
        used = path
    document = checkpoint.document
    if "recipe" in document:
        now = settings_of(recipe.to_table())
        remedy = "resume with the recipe that the run began with, or begin in a new folder"
        require_same(with_newer_keys(document["recipe"], now), now, used, remedy)
        _compare_threads(used, document["threads"])
        _compare_processes(used, document.get("processes", 1))
    else:
        warn(
            f"{used} is of an older ellzero and has no digest, so nothing says whether it is whole"
        )
    try:
        put_back(_shared(checkpoint), state, recipe)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"checkpoint {used} does not fit this recipe or network: {error}"
        ) from None
    if used == previous:
        rename(previous, CHECKPOINT)  # lest the next one pushes it out in favor of the damaged one


def _shared(checkpoint: Checkpoint) -> Checkpoint:
    """Rank 0's checkpoint on all ranks; the tensors that it alone keeps are not sent."""
    kept = {n: x for n, x in checkpoint.tensors.items() if n.partition("/")[0] in OF_RANK_0}
    sent = {n: x for n, x in checkpoint.tensors.items() if n not in kept}
    return Checkpoint({**kept, **shared(sent)}, processes.agreed(checkpoint.document))


def _read(path: Path) -> Checkpoint:
    """What a file holds, bit for bit what was written; one without a digest is of an older version.

    Raises:
        InputError: no such file; truncated; no safetensors; any bit of it has changed.
    """
    tensors, document = read_tensors(path)
    if "step" not in document:
        raise InputError(f"{path} is no checkpoint of a run")
    if "digest" in document or "recipe" in document:
        unsigned = {key: value for key, value in document.items() if key != "digest"}
        try:
            header = next(tensor_parts(tensors, document))  # the digest is of what it says alone
            with path.open("rb") as file:
                is_whole = file.read(len(header)) == header
            is_whole = is_whole and document.get("digest") == digest(tensors, unsigned)
        except (ValueError, RecursionError):  # what is no JSON
            is_whole = False
        if not is_whole:
            raise InputError(f"{path} is damaged: it is not what its digest was made of")
    return Checkpoint(tensors, document)


def _compare_threads(path: Path, before: int) -> None:
    now = torch.get_num_threads()
    if now != before:
        warn(
            f"{path} was written by {before} CPU threads and the run goes on with {now}, which may "
            f"change the last bits of its weights; threads = {before} in the recipe avoids that"
        )


def _compare_processes(path: Path, before: int) -> None:
    now = processes.world_size()
    if now != before:
        warn(
            f"{path} was written by {before} processes and the run goes on with {now}, which "
            "changes the last bits of its weights, and what dropout, augmentation and mixup draw"
        )


def _regularizer_state(
    state: State, groups: dict[str, dict[str, Tensor]], document: dict[str, Any]
) -> dict[str, Any]:
    """What the regularizer's `load_state_dict` takes."""
    gates, gates_state = state.gates, None
    if gates is not None:
        moments = groups.get("gates_optimizer", {})
        moved = _optimizer_state(gates.optimizer, document["gates_optimizer"], moments)
        gates_state = {"own": groups["gates"], "optimizer": moved, "is_finalized": False}
    return {"remainders": groups.get("remainders", {}), "gates": gates_state}


def _parts(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of an optimizer's state_dict, and all the rest of it, which has to be JSON.

    Raises:
        InputError: it is not, in an optimizer of the user's own.
    """
    tensors = {
        f"{index}/{key}": value
        for index, values in state["state"].items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }
    others = {
        index: {key: value for key, value in values.items() if not isinstance(value, Tensor)}
        for index, values in state["state"].items()
    }
    rest = {"param_groups": state["param_groups"], "state": others}
    try:
        json.dumps(rest)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the optimizer's state cannot be kept in a checkpoint: {error}; expected tensors, "
            "numbers and texts in it"
        ) from None
    return tensors, rest


def _optimizer_state(
    optimizer: torch.optim.Optimizer, document: dict[str, Any], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """The state_dict of an optimizer from its parts."""
    values: dict[int, dict[str, Any]] = {int(i): {**v} for i, v in document["state"].items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in tensors.items():
        index, _, key = name.partition("/")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape and tensor.ndim:
            # in the memory format of the weight itself, as fused kernels take for granted
            like = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False)
            local(like).copy_(local(part_of(tensor, like)))
            tensor = like
        else:
            tensor = tensor.clone()  # the optimizer counts in it
        values[int(index)][key] = tensor
    return {"state": values, "param_groups": document["param_groups"]}
