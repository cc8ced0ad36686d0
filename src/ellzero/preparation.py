"""What a run begins with: a copy of the network, its weights, after all that can be checked."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from ellzero import model_file, processes
from ellzero.conclusion import finite
from ellzero.data.data import Data
from ellzero.data.mixup import require_mixable
from ellzero.errors import InputError
from ellzero.pruning import ranked
from ellzero.recipe import Recipe
from ellzero.record import Evaluation, TrainedWeights, magnitudes
from ellzero.regularizers.compiled import no_compiler
from ellzero.selection import select
from ellzero.tensors import require_held
from ellzero.training.distillation import require_distillable
from ellzero.training.evaluation import validated
from ellzero.training.parallel import copied, shard
from ellzero.training.state import State


def prepare(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    reference: nn.Module | str | Path | None,
    trained: Path | None,
    device: torch.device,
) -> State:
    """A fresh state on a copy of the network, after all that can be checked beforehand.

    Args:
        model: the network.
        data: the data.
        recipe: the recipe.
        reference: a trained network, or the file of one.
        trained: the file of a network whose regularized training is done.
        device: where the copy is trained.

    Raises:
        InputError: what cannot be used, in which of these it is.
    """
    if recipe.compile:
        _require_compiler(device)
    for name, parameter in model.named_parameters():
        require_held(name, parameter)
    shards = is_sharded(recipe)
    network = copy.deepcopy(model)
    if not shards:
        network = network.to(device)
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    initial = copied(network) if recipe.train.start == "initial" else None
    if reference is not None:
        _start_from(network, reference)
    data.check_fit(network)
    if processes.world_size() > 1:
        data.train.require_alike_on_all()
    if shards:
        shard(network, device)
    weights = select(network, include=recipe.prune.include, exclude=recipe.prune.exclude)
    # says now what would fail after the training
    ranked(weights, *recipe.prune.targets(weights.values()))
    for stage in (recipe.reference, recipe.train, recipe.finetune):
        stage.make_optimizer(network)
        if stage.mixup:
            require_mixable(data)
    if any(s.distillation and s.distillation.weight for s in (recipe.train, recipe.finetune)):
        require_distillable(data)
    budget = recipe.prune.budget
    if budget and budget.max_accuracy_drop is not None and not data.scores_accuracy:
        raise InputError(
            "max_accuracy_drop needs the accuracy as the score (integer targets, no score of your "
            "own); use max_loss_increase"
        )
    state = State(network, weights, start=copied(network) if initial is None else initial)
    if reference is not None:
        state.reference = state.snapshot(_measured("reference network", network, data))
    if trained is not None:
        model_file.load(trained, network)
        state.base = state.snapshot(_measured("trained network", network, data))
        state.trained = TrainedWeights(magnitudes=magnitudes(weights))
        state.restore(state.start if state.reference is None else state.reference.tensors)
    return state


def is_sharded(recipe: Recipe) -> bool:
    """Whether the network is sharded while it is trained.

    Raises:
        InputError: the recipe asks for what does not go with it.
    """
    if recipe.parallel == "ddp" or processes.world_size() == 1:
        return False
    distils = any(s.distillation and s.distillation.weight for s in (recipe.train, recipe.finetune))
    refused = {
        "compile": recipe.compile,
        "channels_last": recipe.channels_last,
        "distillation": distils,
    }
    for key, is_asked in refused.items():
        if is_asked:
            raise InputError(f"{key} does not go with parallel = 'fsdp'; leave one of them out")
    return True


def _start_from(network: nn.Module, reference: nn.Module | str | Path) -> None:
    """Load the trained reference's weights into the network."""
    if isinstance(reference, str | Path):
        model_file.load(reference, network)
        return
    try:
        network.load_state_dict(reference.state_dict())
    except RuntimeError as error:
        raise InputError(
            f"the reference is of another network than {type(network).__name__}: "
            + " ".join(str(error).split())
        ) from None


def _measured(who: str, network: nn.Module, data: Data) -> Evaluation:
    return finite(who, "validation", validated(network, data))


def device_named(name: str) -> torch.device:
    """The device that a recipe names; `auto` is an accelerator if there is one.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if accelerator is None else accelerator
    hint = "try 'auto' or 'cpu'"
    try:
        device = torch.device(name)
    except RuntimeError:
        hint = "did you mean 'cuda'?" if "gpu" in name.lower() else hint
        raise InputError(
            f"device {name!r} cannot be used: torch knows none of that name; {hint}"
        ) from None
    try:
        torch.zeros(1, device=device).item()  # also 'meta' fails, whose tensors hold nothing
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        if isinstance(error, NotImplementedError | ImportError):
            reason = "the torch that is installed has none"
        raise InputError(f"device {name!r} cannot be used: {reason}; {hint}") from None
    return device


def _require_compiler(device: torch.device) -> None:
    """Compile something small now, rather than fail in the first epoch."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        raise InputError(f"compile = true: {no_compiler(device, error)}") from None
