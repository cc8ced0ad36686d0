"""Checkpoints: the state of a run in one safetensors file, written atomically."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ellzero.errors import InputError
from ellzero.files import copied, read_tensors, tensors_to_bytes, write_atomically
from ellzero.pruning import Masks
from ellzero.recipe import Recipe
from ellzero.record import EpochMetrics, Evaluation, Outcome, TrainedWeights
from ellzero.training.plan import Step
from ellzero.training.state import Snapshot, State

SNAPSHOTS = ("reference", "base", "best")


def save(state: State, path: Path) -> None:
    """Write everything that a run needs to go on as if it had never been stopped."""
    groups: dict[str, dict[str, Tensor]] = {"model": copied(state.model), "start": state.start}
    document: dict[str, Any] = {
        "step": state.step and dataclasses.asdict(state.step),
        "epoch": state.epoch,
        "outcomes": [dataclasses.asdict(outcome) for outcome in state.outcomes],
        "history": [metrics.to_table() for metrics in state.history],
        "seconds": state.seconds,
        "trained": state.trained and state.trained.to_table(),
        "snapshots": {},
    }
    for name in SNAPSHOTS:
        snapshot: Snapshot | None = getattr(state, name)
        if snapshot is not None:
            groups[name] = snapshot.tensors
            document["snapshots"][name] = (snapshot.evaluation, snapshot.nonzeros, snapshot.epoch)
    if state.masks is not None:
        groups["masks"] = state.masks.state_dict()
    if state.optimizer is not None:
        groups["optimizer"], document["optimizer"] = _parts(state.optimizer.state_dict())
    if state.regularizer is not None:
        regularizer = state.regularizer.state_dict()
        groups["remainders"] = regularizer["remainders"]
        if regularizer["gates"] is not None:
            groups["gates"] = regularizer["gates"]["own"]
            parts = _parts(regularizer["gates"]["optimizer"])
            groups["gates_optimizer"], document["gates_optimizer"] = parts
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    # one tensor may stand in two snapshots, which safetensors does not write twice
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    write_atomically(path, tensors_to_bytes(tensors, document))


def load(state: State, path: Path, recipe: Recipe) -> None:
    """Put a fresh state back to where a checkpoint was written.

    Raises:
        InputError: no such file; truncated; of another network or recipe.
    """
    tensors, document = read_tensors(path)
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = tensor
    try:
        state.restore(groups["model"])
        state.start = groups.get("start", {})
        state.epoch = document["epoch"]
        state.outcomes = tuple(Outcome(**outcome) for outcome in document["outcomes"])
        state.history = [EpochMetrics(**metrics) for metrics in document["history"]]
        state.seconds = document["seconds"]
        trained = document["trained"]
        state.trained = trained and TrainedWeights.model_validate(trained)
        for name, (evaluation, nonzeros, epoch) in document["snapshots"].items():
            snapshot = Snapshot(groups[name], Evaluation(*evaluation), nonzeros, epoch)
            setattr(state, name, snapshot)
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
        if state.regularizer is not None:
            state.regularizer.load_state_dict(_regularizer_state(state, groups, document))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"checkpoint {path} does not fit this recipe or network: {error}"
        ) from None


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
    """The tensors of an optimizer's state_dict, and all the rest of it."""
    tensors = {
        f"{index}/{key}": value
        for index, values in state["state"].items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }
    rest = {
        index: {key: value for key, value in values.items() if not isinstance(value, Tensor)}
        for index, values in state["state"].items()
    }
    return tensors, {"param_groups": state["param_groups"], "state": rest}


def _optimizer_state(
    optimizer: torch.optim.Optimizer, document: dict[str, Any], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """The state_dict of an optimizer from its parts."""
    values: dict[int, dict[str, Any]] = {int(i): v for i, v in document["state"].items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in tensors.items():
        index, _, key = name.partition("/")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape and tensor.ndim:
            # in the memory format of the weight itself, as fused kernels take for granted
            like = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False)
            tensor = like.copy_(tensor)
        values[int(index)][key] = tensor
    return {"state": values, "param_groups": document["param_groups"]}
