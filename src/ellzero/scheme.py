"""The whole scheme in one call: reference, regularized training, rounds of prune and fine-tune."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ellzero import processes
from ellzero.conclusion import conclude, traced
from ellzero.data.data import Data, require_data
from ellzero.data.flags import flags
from ellzero.errors import EllzeroError, EllzeroWarning, InputError, warn
from ellzero.files import write_atomically
from ellzero.graph import Network
from ellzero.modules import require_network
from ellzero.operations import Input
from ellzero.preparation import device_named, is_sharded, prepare
from ellzero.pruning import Masks
from ellzero.recipe import Recipe
from ellzero.record import (
    FORMAT,
    FinishedRecord,
    Record,
    versions,
)
from ellzero.run_folder import (
    CHECKPOINT,
    CHECKPOINTS,
    RECIPE,
    RunFolder,
    has_checkpoint,
    locked,
    remove_half_written,
    require_resumable,
    take_folder,
    write_record,
)
from ellzero.selection import select
from ellzero.training import checkpoint
from ellzero.training.identity import require_same, settings_of
from ellzero.training.parallel import copied
from ellzero.training.precision import costs, settled
from ellzero.training.progress import Bar
from ellzero.training.run import Callback, RunContext, go, save_reference
from ellzero.training.seeds import settings
from ellzero.training.state import State
from ellzero.training.tensorboard import Board, require_board
from ellzero.trust import remember
from ellzero.user_code import importing


@dataclass(frozen=True)
class Result:
    """What `compress` made: the network, its masks, the record, where all lies, and the data.

    Example:
        >>> import torch, ellzero as ez
        >>> x, y = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
        >>> data = ez.Data((x, y), (x, y), preprocess=ez.Preprocess(scale=2.0))
        >>> recipe = ez.Recipe.parse({"train": {"epochs": 1}, "prune": {"sparsity": 0.5}})
        >>> result = ez.compress(torch.nn.Linear(4, 4), data, recipe)
        >>> result.trace().graph.preprocess
        Preprocess(scale=2.0, shift=0.0)
    """

    model: nn.Module
    masks: Masks
    record: FinishedRecord
    folder: Path | None
    data: Data

    def trace(self) -> Network:
        """The network as layers, with the preprocessing and the classes of the data it was made on.

        This is what `compact`, `pack` and the exports take, so that files and C expect raw inputs.

        Raises:
            InputError: a network that cannot be traced.
        """
        return traced(self.model, self.data)


def compress(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    reference: nn.Module | str | Path | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    callback: Callback | None = None,
) -> Result:
    """Make a network small: train with a penalty, prune, fine-tune, by a recipe.

    Every choice is made on the validation part of the data; the test part is touched once, at the
    end. Your network itself does not change: the result is a copy.

    Where torch.distributed has a group of processes, all of them call this with the same arguments,
    and train one network together. Rank 0 writes, shows, warns and calls the callback; the result
    is the same on all ranks.

    Args:
        model: the network, untrained; training starts from its weights.
        data: what it is trained, validated and tested on.
        recipe: how; its `model` and `data` only matter to the command line.
        reference: a trained network of the same architecture, or the safetensors file of one.
            Drops are measured against it and training starts from its weights; without it a dense
            reference is trained from the same initial weights as the compressed network.
        folder: where recipe, record, metrics, networks and checkpoints are written, new or empty;
            None writes nothing.
        resume: go on with what `folder` holds, by the same recipe (but for its name, device,
            threads and `checkpoint_seconds`), to bit-identical weights (on the same CPU, with the
            same number of threads, not compiled). A run that was stopped before its first
            checkpoint begins anew.
        progress: show on standard error how far it is: a bar on a terminal, elsewhere a line
            every 30 seconds.
        callback: called after each epoch with its metrics, as they stand in metrics.jsonl (epoch 0
            of a fine-tuning is the network as the pruning left it). It returns None to go on, or
            `"next stage"` to end the stage there: of a reference or a fine-tuning the best epoch so
            far counts, as always, of a training the last. The pruning goes as far as the recipe
            says all the same, and what is left of a gradual one is done at once. What the callback
            raises stops the run after that epoch, and `resume` goes on with the next; that comes to
            the same weights if the callback decides by the metrics alone, for it is not called
            again for the epochs before.

    Returns:
        The compressed network (in evaluation mode), its masks, the record, the folder and the data.

    Raises:
        InputError: data, recipe, reference or folder that cannot be used; a recipe other than that
            of the run that is resumed; a callback that returns something else, or is none.
        DivergenceError: a loss became NaN; the folder holds the last good checkpoint.
        BudgetError: no round stayed within the budget.

    Example:
        >>> import torch, ellzero as ez
        >>> x = torch.randn(60, 8)
        >>> y = (x[:, 0] > 0).long()
        >>> data = ez.Data((x[:40], y[:40]), (x[40:50], y[40:50]), (x[50:], y[50:]))
        >>> recipe = ez.Recipe.parse(
        ...     {
        ...         "reference": {"epochs": 1},
        ...         "train": {"epochs": 2, "penalty": {"l0": {"strength": 1e-4}}},
        ...         "prune": {"sparsity": 0.75},
        ...         "finetune": {"epochs": 1},
        ...     }
        ... )
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 2))
        >>> ez.compress(model, data, recipe).masks.nonzeros
        40
    """
    require_network(model)
    require_data(data)
    if not isinstance(recipe, Recipe):
        raise InputError(
            f"recipe is {type(recipe).__name__}; expected an ez.Recipe: ez.Recipe.parse(tables), "
            "or ez.Recipe.read(file)"
        )
    if reference is not None and not isinstance(reference, str | Path):
        require_network(reference, "the reference")
    if callback is not None and not callable(callback):
        raise InputError(f"callback is {callback!r}; expected a function of an epoch's metrics")
    if resume and folder is None:
        raise InputError("resume needs the folder of a run that was stopped; give folder=")
    device = processes.local_device(device_named(recipe.device))
    path = None if folder is None else Path(folder)
    if not processes.is_main():  # rank 0 alone writes, shows and warns
        path, progress = None, False
    if path is not None and resume:
        require_resumable(path)
    if recipe.tensorboard and processes.is_main():
        require_board(path)
    recipe = settled(recipe, device, path / RECIPE if path and resume else None)
    if processes.world_size() > 1:
        recipe = Recipe.parse(processes.agreed(recipe.to_table()))
    if path is not None and resume:
        _require_recipe(recipe, path / RECIPE)
    goes_on = processes.agreed(path is not None and resume and has_checkpoint(path))
    if goes_on:  # the checkpoint has it, as it has a trained network that was given
        reference = None
    elif reference is None:
        reference = recipe.reference.file
    with settings(recipe.threads, device), _warnings_once():
        trained = None if goes_on else recipe.train.file
        state = prepare(model, data, recipe, reference, trained, device)
        of_data = flags(data)
        for text in (*costs(recipe, device), *of_data):
            if text != data.doubt:  # of which `Data` has warned
                warn(text)
        known = (*state.weights.left_out, *of_data)
        if path is not None and not resume:
            take_folder(path)
        with locked(path):
            if path is not None:
                remove_half_written(path)
            if goes_on:
                _go_on(state, path, recipe)
            elif path is not None:
                _begin(path, recipe, resume)
            has_reference = state.reference is not None
            begun = Record(
                format=FORMAT,
                status="running",
                started=state.started,
                folder=path,
                versions=versions(),
                recipe=recipe.to_table(),
                warnings=known,
                threads=torch.get_num_threads(),
            )
            if processes.world_size() > 1:
                begun = begun.changed(processes=processes.world_size())
            with (
                _recorded(path, begun, state),
                Bar(recipe, data, has_reference=has_reference, progress=progress) as bar,
                Board(path if recipe.tensorboard else None) as board,
            ):
                about = _about(recipe, data)
                helps = is_sharded(recipe) and processes.agreed(path is not None)
                run = RunContext(
                    recipe, data, path, bar, board, has_reference, about, callback, helps
                )
                if has_reference:  # also where the run that is resumed has lost it
                    save_reference(run, state)
                go(run, state)
                if is_sharded(recipe):
                    _gather(state, model, recipe)
                record = _concluded(run, state, begun)
                if path is not None:
                    write_record(path, record)
            if path is not None:
                for name in CHECKPOINTS:
                    (path / name).unlink(missing_ok=True)
        known = (*known, *(retry.sentence for retry in state.retries))  # as each has been told
        for text in record.warnings:
            if text not in known:
                warn(text)
        return Result(state.model, Masks.of(state.weights), record, record.folder, data)


@contextmanager
def _warnings_once() -> Iterator[None]:
    """Let rank 0 alone warn inside the block."""
    with warnings.catch_warnings() if not processes.is_main() else nullcontext():
        if not processes.is_main():
            warnings.simplefilter("ignore", EllzeroWarning)
        yield


def _gather(state: State, model: nn.Module, recipe: Recipe) -> None:
    """A whole network on the CPU in the place of the sharded one, for the conclusion."""
    state.model = copy.deepcopy(model)
    state.weights = select(state.model, include=recipe.prune.include, exclude=recipe.prune.exclude)


def _concluded(run: RunContext, state: State, begun: Record) -> FinishedRecord:
    """The conclusion, which rank 0 draws by itself; all ranks have the network and the record."""
    if processes.world_size() == 1:
        return conclude(run, state, begun)
    record = None
    if processes.is_main():
        with processes.alone():
            record = conclude(run, state, begun)
    table = processes.agreed(record and record.to_table())
    state.restore(copied(state.model))
    state.model.eval()
    return record or FinishedRecord.model_validate(table)


def _require_recipe(recipe: Recipe, file: Path) -> None:
    """Refuse to resume a run by another recipe than the one in its folder.

    Raises:
        InputError: it is another.
    """
    with importing(False):  # it may name what no import finds, or anything else
        table = Recipe.read(file).to_table()
    before, now = settings_of(table), settings_of(recipe.to_table())
    require_same(before, now, file, "give the same recipe, or a new folder")


def _begin(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Write the recipe of a run that begins, unless it begins anew by the one in its folder."""
    if resume:
        warn(f"{folder} has no {CHECKPOINT} yet, so the run begins anew by the {RECIPE} in it")
    else:
        write_atomically(folder / RECIPE, recipe.to_toml().encode())
        remember(folder, recipe)


def _go_on(state: State, folder: Path | None, recipe: Recipe) -> None:
    """Put the state back to where the folder's run was stopped."""
    record = None if folder is None else RunFolder.at(folder).record
    if record is not None and record.started is not None:
        state.started = record.started  # checkpoints of older versions do not say it
    checkpoint.load(state, folder, recipe)


@contextmanager
def _recorded(folder: Path | None, record: Record, state: State) -> Iterator[None]:
    """Write the record at once, and again if what is done here does not come to its end."""

    def write(**entries: Any) -> None:
        if folder is not None:
            write_record(folder, record.changed(retries=state.retries, **entries))

    try:
        write()
        yield
    except BaseException as error:
        with suppress(EllzeroError):  # a full disk takes no record either; the first error counts
            if isinstance(error, Exception):
                write(status="failed", error=str(error) or type(error).__name__)
            else:  # Ctrl-C, or sys.exit in the user's code
                write(status="interrupted")
        raise


def _about(recipe: Recipe, data: Data) -> dict[str, Any]:
    inputs = data.train.example[0]
    noted: dict[str, Any] = {}  # of several inputs the data tell, which make an example
    if isinstance(inputs, Tensor):
        dtype = "float" if data.preprocess is not None else Input.dtype_of(inputs.dtype)
        noted = {"input_shape": list(inputs.shape[1:])}
        noted |= {} if dtype == "float" else {"input_dtype": dtype}
    return {
        "network": recipe.model and recipe.model.model_dump(),
        "data": recipe.data and recipe.data.model_dump(),
        "preprocess": data.preprocess and asdict(data.preprocess),
        "classes": data.classes and list(data.classes),
        **noted,
    }
