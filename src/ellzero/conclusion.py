"""The conclusion of a run: the chosen network written, measured, and told of in the record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ellzero import flags, model_file
from ellzero.compaction.folding import folded
from ellzero.compaction.living import Living, living, sentences
from ellzero.data.constant import best_constant
from ellzero.data.data import Data
from ellzero.data.flags import flags as data_flags
from ellzero.data.outputs import find
from ellzero.errors import InputError
from ellzero.files import write_tensors
from ellzero.graph import Network, trace
from ellzero.modules import device_of, unwrapped
from ellzero.pruning import Masks
from ellzero.record import Evaluation, FinishedRecord, Layer, Record, layer_table, sizes
from ellzero.run_folder import ANSWERS, MODEL, write_metrics, write_model
from ellzero.selection import Selection
from ellzero.training.evaluation import BATCH, evaluate_each
from ellzero.training.run import RunContext
from ellzero.training.state import Snapshot, State


def traced(model: nn.Module, data: Data) -> Network:
    """A network as layers, with the preprocessing and the classes of the data it was made on.

    Raises:
        InputError: a network that cannot be traced.
    """
    return trace(model, data.example, preprocess=data.preprocess, classes=data.classes)


def conclude(run: RunContext, state: State, record: Record) -> FinishedRecord:
    """Write the chosen network, measure it and the reference on test data; the record with it all.

    The chosen network is in the state's model afterwards.

    Raises:
        InputError: a network that gives NaN or inf on test data.
    """
    chosen = state.best if run.recipe.prune.budget is None else state.base
    reference = state.reference
    assert chosen is not None
    assert reference is not None
    network, weights = state.model, state.weights
    network.eval()

    state.restore(chosen.tensors)
    file_bytes = _written(run, state)  # before anything of the test data can go wrong
    tests = _tested(run, state, {"reference": reference, "compressed": chosen})
    dense_test, test = tests.get("reference"), tests.get("compressed")
    layers, size = layer_table(weights), sizes(network, weights)
    living_entries, living_sentences = _living_part(network, weights, layers, run.data)
    said = [*record.warnings, *data_flags(run.data), *living_sentences]
    said += [retry.sentence for retry in state.retries]
    said += _of_both(run, state, reference.evaluation, chosen.evaluation)
    entries: dict[str, Any] = {
        **record.to_table(),
        **size.to_table(),
        "status": "done",
        "warnings": tuple(dict.fromkeys(said)),
        "reference": _evaluations(reference.evaluation, dense_test),
        "compressed": {**_evaluations(chosen.evaluation, test), "epoch": chosen.epoch},
        "validation_score": chosen.evaluation.score,
        "trained": state.trained,
        "outcomes": state.outcomes,
        "retries": state.retries,
        "layers": layers,
        "seconds": round(state.seconds, 1),
        **living_entries,
        "scores_accuracy": run.data.scores_accuracy,
        "reference_error_percent": _error_percent(run.data, dense_test),
        "test_error_percent": _error_percent(run.data, test),
    }
    asked = sum(run.recipe.prune.targets(weights.values()))
    if asked and chosen.nonzeros != asked:
        entries["note"] = f"{asked} weights were to be kept; {chosen.nonzeros} of them are nonzero"
    if file_bytes is not None:
        entries["file"] = f"gzip of {MODEL}"
        entries["file_bytes"] = file_bytes
        entries["file_ratio"] = size.float32_bytes / file_bytes
    return FinishedRecord.model_validate(entries)


def finite(who: str, part: str, evaluation: Evaluation) -> Evaluation:
    """The evaluation itself.

    Raises:
        InputError: it is NaN or inf.
    """
    if not all(map(math.isfinite, evaluation)):
        raise InputError(
            f"the {who} gives NaN or inf on {part} data: score {evaluation.score}, "
            f"loss {evaluation.loss}"
        )
    return evaluation


def _written(run: RunContext, state: State) -> int | None:
    """Write the network that stands in the state; the bytes of its gzipped file."""
    if run.folder is None:
        return None
    masks = Masks.of(state.weights)
    content = model_file.to_bytes(state.model, masks=masks, metadata=run.about)
    packed = write_model(run.folder, content)
    write_metrics(run.folder, state.history)
    return packed


def _tested(run: RunContext, state: State, snapshots: dict[str, Snapshot]) -> dict[str, Evaluation]:
    """What each of these networks, put into the state in turn, reaches on the test part."""
    tests: dict[str, Evaluation] = {}
    answers: dict[str, Tensor] = {}
    if run.data.test is not None:
        for who, snapshot in snapshots.items():
            state.restore(snapshot.tensors)
            evaluation, right = evaluate_each(state.model, run.data, "test")
            tests[who] = finite(f"{who} network", "test", evaluation)
            if right is not None:
                answers[who] = right
    if answers and run.folder is not None:
        write_tensors(run.folder / ANSWERS, answers, {})
    return tests


def _living_part(
    network: nn.Module, weights: Selection, layers: Sequence[Layer], data: Data
) -> tuple[dict[str, Any], list[str]]:
    """Which nonzeros and inputs can matter, for the record; and what is to be said of the rest."""
    empty = {x.name: x.weights for x in layers if x.weights and not x.nonzeros}
    try:
        graph = traced(network, data)
        alive = living(folded(graph))
    except Exception as error:  # of whatever kind: a trained network is not lost to its tracing
        note = f"which nonzeros are living is not known: {error}"
        unknown = dict.fromkeys(("living_nonzeros", "inputs", "inputs_left"))
        outputs = _constant_outputs(network, data)
        return {**unknown, "living_note": note}, sentences(empty, range(outputs), outputs)
    outputs = next(iter(graph.shapes[graph.graph.nodes[-1].name]), 1)
    entries = {
        "living_nonzeros": _living_nonzeros(network, weights, alive),
        "inputs": alive.inputs,
        "inputs_left": alive.inputs_left,
    }
    return entries, sentences(empty, alive.constant_outputs, outputs)


def _living_nonzeros(network: nn.Module, weights: Selection, alive: Living) -> int:
    """How many of the selected weights' nonzeros are living.

    A matrix or kernel that the traced network does not have is not used; vectors all live.
    """
    # by identity, as what is wrapped around a network changes its parameters' names
    held = dict(unwrapped(network).named_parameters(remove_duplicate=False))
    counts = {id(held[name]): count for name, count in alive.nonzeros.items() if name in held}
    return sum(
        int(w.count_nonzero()) if w.ndim < 2 else counts.get(id(w), 0) for w in weights.values()
    )


@torch.no_grad()
def _constant_outputs(network: nn.Module, data: Data) -> int:
    """For a network that cannot be traced: how many outputs it has if all are the same.

    Judged by a batch of validation data; 0 where they are not.
    """
    batch = next(iter(data.validation.batches(BATCH, device_of(network))))
    outputs = data.outputs(network, batch)
    logits = outputs if isinstance(outputs, Tensor) else find(outputs, "logits")
    if not isinstance(logits, Tensor) or len(logits) < 2 or (logits != logits[:1]).any():
        return 0
    return logits[0].numel()


def _of_both(
    run: RunContext, state: State, reference: Evaluation, compressed: Evaluation
) -> list[str]:
    """What the figures of both networks give cause for."""
    said: list[str] = []
    found = best_constant(run.data, BATCH)
    constant = found and flags.Constant(*found, accuracy=run.data.scores_accuracy)
    if constant is not None:
        said += flags.weak_networks(reference, compressed, constant)
    budget = run.recipe.prune.budget
    if budget is not None:
        targets = 1 if constant is None else constant.targets  # a loss needs no count
        said += flags.worse_reference(budget, reference, compressed, targets)
        epochs = [metrics for metrics in state.history if metrics.stage == "reference"]
        said += flags.short_reference([metrics.validation_loss for metrics in epochs])
    return said


def _evaluations(validation: Evaluation, test: Evaluation | None) -> dict[str, Evaluation]:
    return {"validation": validation, **({} if test is None else {"test": test})}


def _error_percent(data: Data, test: Evaluation | None) -> float | None:
    return test.error_percent if test is not None and data.scores_accuracy else None
