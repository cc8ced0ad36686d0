"""The conclusion of a run: the chosen network written, measured, and told of in the record."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ellzero import flags, model_file
from ellzero.compaction.folding import folded
from ellzero.compaction.living import Living, living, sentences
from ellzero.data.data import Data, negative_mse
from ellzero.data.flags import flags as data_flags
from ellzero.data.tally import NOTHING, Tally
from ellzero.errors import InputError
from ellzero.files import tensors_to_bytes, write_atomically
from ellzero.graph import Network, trace
from ellzero.graph.trace import unwrapped
from ellzero.modules import device_of
from ellzero.pruning import Masks, kept_count
from ellzero.recipe import Recipe
from ellzero.record import ANSWERS, layer_table, sizes, write_metrics, write_model
from ellzero.selection import Selection
from ellzero.training.evaluation import BATCH, Evaluation, evaluate_each
from ellzero.training.run import Run
from ellzero.training.state import Snapshot, State


def traced(model: nn.Module, data: Data) -> Network:
    """A network as layers, with the preprocessing and the classes of the data it was made on.

    Raises:
        InputError: a network that cannot be traced.
    """
    inputs = data.train.example[0]
    if data.preprocess is not None:
        inputs = data.preprocess(inputs)
    return trace(model, inputs, preprocess=data.preprocess, classes=data.classes)


def conclude(run: Run, state: State) -> dict[str, Any]:
    """Write the chosen network, measure it and the reference on test data; for the record.

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
    packed = _written(run, state)  # before anything of the test data can go wrong
    tests = _tested(run, state, {"reference": reference, "compressed": chosen})
    layers = layer_table(weights)
    alive, outputs_said = _alive(network, weights, layers, run.data)
    gain: dict[str, Any] = {
        **sizes(network, weights),
        "reference": _figures(reference.evaluation, tests.get("reference")),
        "compressed": {
            **_figures(chosen.evaluation, tests.get("compressed")),
            "epoch": chosen.epoch,
        },
        "validation_score": chosen.evaluation.score,
        "trained": state.trained,
        "outcomes": [asdict(outcome) for outcome in state.outcomes],
        "layers": layers,
        "seconds": round(state.seconds, 1),
        **alive,
    }
    for name, who in (("reference", "reference"), ("test", "compressed")):
        found = tests.get(who)
        wrong = found.error_percent if found is not None and run.data.scores_accuracy else None
        gain[f"{name}_error_percent"] = wrong
    asked = _asked(run.recipe, weights)
    if asked is not None and chosen.nonzeros != asked:
        gain["note"] = f"{asked} weights were to be kept; {chosen.nonzeros} of them are nonzero"
    if packed is not None:
        gain["file"] = "gzip of model.safetensors"
        gain["file_bytes"] = packed
        gain["file_ratio"] = gain["float32_bytes"] / packed
    said = [*run.warnings, *data_flags(run.data), *outputs_said]
    said += [*_of_reference(run, state, reference.evaluation, chosen.evaluation)]
    gain["warnings"] = list(dict.fromkeys(said))
    return gain


def finite(who: str, part: str, found: Evaluation) -> Evaluation:
    """The evaluation itself.

    Raises:
        InputError: it is NaN or inf.
    """
    if not all(map(math.isfinite, found)):
        raise InputError(
            f"the {who} gives NaN or inf on {part} data: score {found.score}, loss {found.loss}"
        )
    return found


def _written(run: Run, state: State) -> int | None:
    """Write the network that stands in the state; the bytes of its gzipped file."""
    if run.folder is None:
        return None
    masks = Masks.of(state.weights)
    content = model_file.to_bytes(state.model, masks=masks, metadata=run.about)
    packed = write_model(run.folder, content)
    write_metrics(run.folder, state.history)
    return packed


def _tested(run: Run, state: State, snapshots: dict[str, Snapshot]) -> dict[str, Evaluation]:
    """What each of these networks, put into the state in turn, reaches on the test part."""
    tests: dict[str, Evaluation] = {}
    answers: dict[str, Tensor] = {}
    if run.data.test is not None:
        for who, snapshot in snapshots.items():
            state.restore(snapshot.tensors)
            found, right = evaluate_each(state.model, run.data, "test")
            tests[who] = finite(f"{who} network", "test", found)
            if right is not None:
                answers[who] = right
    if answers and run.folder is not None:
        write_atomically(run.folder / ANSWERS, tensors_to_bytes(answers, {}))
    return tests


def _alive(
    network: nn.Module, weights: Selection, layers: list[dict[str, Any]], data: Data
) -> tuple[dict[str, Any], list[str]]:
    """Which nonzeros and inputs can matter, for the record; and what is to be said of the rest."""
    empty = {x["name"]: x["weights"] for x in layers if x["weights"] and not x["nonzeros"]}
    try:
        graph = traced(network, data)
        found = living(folded(graph))
    except Exception as error:  # of whatever kind: a trained network is not lost to its tracing
        note = f"which nonzeros are living is not known: {error}"
        unknown = dict.fromkeys(("living_nonzeros", "inputs", "inputs_left"))
        outputs = _constant_outputs(network, data)
        return {**unknown, "living_note": note}, sentences(empty, range(outputs), outputs)
    outputs = next(iter(graph.shapes[graph.graph.nodes[-1].name]), 1)
    alive = {
        "living_nonzeros": _living_nonzeros(network, weights, found),
        "inputs": found.inputs,
        "inputs_left": list(found.inputs_left),
    }
    return alive, sentences(empty, found.constant_outputs, outputs)


def _living_nonzeros(network: nn.Module, weights: Selection, found: Living) -> int:
    """How many of the selected weights' nonzeros are living.

    A matrix or kernel that the traced network does not have is not used; vectors all live.
    """
    # by identity, as what is wrapped around a network changes its parameters' names
    held = dict(unwrapped(network).named_parameters(remove_duplicate=False))
    counts = {id(held[name]): count for name, count in found.nonzeros.items() if name in held}
    return sum(
        int(w.count_nonzero()) if w.ndim < 2 else counts.get(id(w), 0) for w in weights.values()
    )


@torch.no_grad()
def _constant_outputs(network: nn.Module, data: Data) -> int:
    """For a network that cannot be traced: how many outputs it has if all are the same.

    Judged by a batch of validation data; 0 where they are not.
    """
    inputs, _ = next(iter(data.validation.batches(BATCH, device_of(network))))
    outputs = network(inputs)
    if not isinstance(outputs, Tensor) or len(outputs) < 2 or (outputs != outputs[:1]).any():
        return 0
    return outputs[0].numel()


def _of_reference(
    run: Run, state: State, reference: Evaluation, compressed: Evaluation
) -> list[str]:
    """What the reference gives cause for."""
    said = []
    constant = _best_constant(run.data, device_of(state.model))
    if constant is not None:
        said += flags.weak_reference(reference, constant)
    budget = run.recipe.prune.budget
    if budget is not None:
        targets = 1 if constant is None else constant.targets  # a loss needs no count
        said += flags.worse_reference(budget, reference, compressed, targets)
        epochs = [row for row in state.history if row["stage"] == "reference"]
        said += flags.short_reference([row["validation_loss"] for row in epochs])
    return said


def _best_constant(data: Data, device: torch.device) -> flags.Constant | None:
    """What one answer to everything scores on validation data; None for a score of one's own."""
    batches = (targets.cpu() for targets in data.validation.targets(BATCH, device))
    if data.scores_accuracy:
        tally = data.validation.tally or sum(map(Tally.of, batches), NOTHING)
        if not tally.counts:
            return None
        share = max(tally.counts.values()) / tally.targets
        return flags.Constant(share, tally.targets, accuracy=True)
    if data.score is not negative_mse:
        return None
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for targets in batches:
        exact = targets.double()
        if count and exact.shape[1:] != total.shape:
            return None  # examples of many shapes have no common answer
        count, total = count + len(exact), total + exact.sum(0)
        squares = squares + exact.square().sum(0)
    variance = squares / count - (total / count) ** 2
    return flags.Constant(-float(variance.mean()), count, accuracy=False)


def _figures(validation: Evaluation, test: Evaluation | None) -> dict[str, Any]:
    figures: dict[str, Any] = {"validation": validation._asdict()}
    if test is not None:
        figures["test"] = test._asdict()
    return figures


def _asked(recipe: Recipe, weights: Selection) -> int | None:
    sparsity = recipe.prune.sparsity
    if recipe.prune.scope == "layer" and sparsity is not None:
        return sum(kept_count(w.numel(), sparsity) for w in weights.values())
    return recipe.prune.target(weights.numel)
