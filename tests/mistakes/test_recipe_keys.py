"""Every key of a recipe and of a study, mistyped, and with values of a wrong kind."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from ellzero.penalties import PENALTIES
from ellzero.pruning.budget import Budget
from ellzero.recipe import Prune, Recipe
from ellzero.recipe_stages import Distillation, Finetune, Reference, Train
from ellzero.regularizers import GATES
from ellzero.schedules import Schedule
from ellzero.study.study import Method, Study

WHOLE, NUMBER, FLAG, TEXT, CHOICE, LIST, TABLE, NAMED = (
    "whole number", "number", "flag", "text", "choice", "list", "table", "named"
)  # fmt: skip

STAGE = {
    "batch_size": WHOLE,
    "gradient_accumulation_steps": WHOLE,
    "optimizer": NAMED,
    "learning_rate": NUMBER,
    "warmup": NUMBER,
    "decay": CHOICE,
    "floor": NUMBER,
    "momentum": NUMBER,
    "weight_decay": NUMBER,
    "no_decay": LIST,
    "clip_grad_norm": NUMBER,
    "clip_grad_value": NUMBER,
    "ema_decay": NUMBER,
    "mixup": NUMBER,
    "penalty": TABLE,
    "epochs": WHOLE,
    "steps": WHOLE,
}
PENALTY = {"strength": NUMBER, "form": CHOICE}
RISE = {"shape": CHOICE, "after": NUMBER, "until": NUMBER}

RECIPE: dict[str, dict[str, str]] = {
    "": {
        "name": TEXT,
        "model": NAMED,
        "data": NAMED,
        "seed": WHOLE,
        "device": TEXT,
        "threads": WHOLE,
        "precision": CHOICE,
        "parallel": CHOICE,
        "channels_last": FLAG,
        "compile": FLAG,
        "checkpoint_seconds": NUMBER,
        "on_divergence": CHOICE,
        "tensorboard": FLAG,
        "reference": TABLE,
        "train": TABLE,
        "finetune": TABLE,
        "prune": TABLE,
    },
    "reference": {**STAGE, "file": TEXT},
    "train": {
        **STAGE,
        "distillation": TABLE,
        "start": CHOICE,
        "file": TEXT,
        "gates": TABLE,
        "layer_scale": CHOICE,
        "ramp": TABLE,
    },
    "finetune": {**STAGE, "distillation": TABLE, "dropout": FLAG},
    "prune": {
        "sparsity": NUMBER,
        "nonzeros": WHOLE,
        "budget": TABLE,
        "rounds": WHOLE,
        "gradual": TABLE,
        "scope": CHOICE,
        "keep_per_layer": WHOLE,
        "include": LIST,
        "exclude": LIST,
    },
    "train.distillation": {"weight": NUMBER, "temperature": NUMBER},
    "train.ramp": RISE,
    "prune.gradual": RISE,
    "prune.budget": {"max_accuracy_drop": NUMBER, "max_loss_increase": NUMBER},
    "train.penalty.l0": {**PENALTY, "beta": NUMBER},
    "train.penalty.l1": PENALTY,
    "train.penalty.l2": PENALTY,
    "train.penalty.hoyer_square": PENALTY,
    "train.penalty.group_lasso": PENALTY,
    "train.gates.hard_concrete": {"strength": NUMBER, "rate": NUMBER, "keep": NUMBER},
    "train.gates.pmmp": {"strength": NUMBER, "rate": NUMBER, "multiplier": NUMBER},
}
"""The keys of each table, and of what kind their values are; by hand, from docs/recipes.md."""

STUDY: dict[str, dict[str, str]] = {
    "": {
        "name": TEXT,
        "seeds": LIST,
        "sparsities": LIST,
        "nonzeros": LIST,
        "budgets": LIST,
        "stalled_minutes": NUMBER,
        "recipe": TABLE,
        "methods": TABLE,
    },
    "methods.l1": {
        "label": TEXT,
        "strengths": LIST,
        "train": TABLE,
        "finetune": TABLE,
        "prune": TABLE,
    },
}
"""The same of a study, from docs/studies.md."""

MODELS: dict[str, Any] = {
    "": Recipe,
    "reference": Reference,
    "train": Train,
    "finetune": Finetune,
    "prune": Prune,
    "train.distillation": Distillation,
    "train.ramp": Schedule,
    "prune.gradual": Schedule,
    "prune.budget": Budget,
    **{f"train.penalty.{name}": cls for name, cls in PENALTIES.items()},
    **{f"train.gates.{name}": cls for name, cls in GATES.items()},
}

NO_NUMBERS = (True, "5", [5], {"deep": 5})
NO_TEXT = (True, 5, ["text"], {"deep": "text"})
WRONG: dict[str, tuple[Any, ...]] = {
    WHOLE: (*NO_NUMBERS, 5.5),
    NUMBER: NO_NUMBERS,
    FLAG: (1, "yes", [True], {"deep": True}),
    TEXT: NO_TEXT,
    CHOICE: (*NO_TEXT, "no such choice"),
    NAMED: (True, 5, ["adam"], {"deep": "adam"}, {"name": 5}),
    LIST: (True, 5, "text", {"deep": 5}, [[5]]),
    TABLE: (True, 5, "text", [5]),
}

KEYS = [(table, key) for table, keys in RECIPE.items() for key in keys]


def fields(model: Any) -> list[str]:
    if dataclasses.is_dataclass(model):
        return [field.name for field in dataclasses.fields(model)]
    return list(model.model_fields)


def test_the_tables_here_have_every_key_of_every_table():
    always = {"train.ramp": {"start", "end"}, "prune.gradual": {"start", "end"}}  # 0 and 1
    assert {table: set(keys) for table, keys in RECIPE.items()} == {
        table: set(fields(model)) - always.get(table, set()) for table, model in MODELS.items()
    }
    assert set(STUDY[""]) == set(fields(Study))
    assert set(STUDY["methods.l1"]) == set(fields(Method))


def with_value(table: str, key: str, value: Any) -> dict[str, Any]:
    """A recipe that is right, but for this value."""
    recipe: dict[str, Any] = {"prune": {} if table.startswith("prune.b") else {"sparsity": 0.5}}
    if (table, key) in (("prune", "nonzeros"), ("prune", "budget"), ("", "prune")):
        recipe["prune"] = {}
    place = recipe
    for part in filter(None, table.split(".")):
        place = place.setdefault(part, {})
    needed = {"strength": 1e-5} if table.startswith(("train.penalty.", "train.gates.")) else {}
    place.update({**needed, key: value})
    return recipe


def typos(key: str) -> Iterator[str]:
    """Edits that a hand makes: a letter left out, twice, or after its neighbour."""
    middle = len(key) // 2
    yield key[:middle] + key[middle + 1 :]
    yield key[:middle] + key[middle] + key[middle:]
    yield key[:middle] + key[middle : middle + 2][::-1] + key[middle + 2 :]


@pytest.fixture
def told(ellzero, project: Path):
    """The one line that a command says of a file, which must leave nothing behind."""

    def told(command: str, tables: Mapping[str, Any] | str) -> str:
        text = tables if isinstance(tables, str) else tomli_w.dumps(tables)
        Path("wrong.toml").write_text(text)
        line = ellzero(command, "wrong.toml").says()
        assert not list(Path().glob("runs/*"))
        return line

    return told


def suggested(line: str, typo: str) -> list[str]:
    assert f"unknown key {typo!r}; did you mean " in line
    return line.split("did you mean ")[1].split("?")[0].split(" or ")


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_a_mistyped_key_is_named_with_its_table_and_the_nearest_key(table, key, told):
    for typo in typos(key):
        if typo in RECIPE[table]:
            continue
        line = told("run", with_value(table, typo, 1))
        assert key in suggested(line, typo)
        assert table.rpartition(".")[2] in line.partition("unknown key")[0]


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_a_value_of_a_wrong_kind_is_named_with_its_key_and_what_is_expected(table, key, told):
    for value in WRONG[RECIPE[table][key]]:
        if isinstance(value, dict) and table.startswith(("train.penalty", "train.gates")):
            continue  # which is a schedule there, whose keys are tried elsewhere
        line = told("run", with_value(table, key, value))
        assert key in line
        shown = value[0] if isinstance(value, list) and f"{key}.0" in line else value
        assert repr(shown) in line
        # once, also of what the other stages take over from train
        assert line.count("expected") == 1, line


def study_with(table: str, key: str, value: Any) -> dict[str, Any]:
    """A study that is right, but for this value."""
    target = {} if key in ("nonzeros", "budgets") else {"sparsities": [0.5]}
    method = {"strengths": [1e-5], "train": {"penalty": {"l1": {}}}}
    study: dict[str, Any] = {**target, "methods": {"l1": method}}
    (study if not table else method)[key] = value
    return study


@pytest.mark.parametrize(("table", "key"), [(t, k) for t, keys in STUDY.items() for k in keys])
def test_the_same_of_a_study(table, key, told):
    for typo in typos(key):
        assert key in suggested(told("compare", study_with(table, typo, 1)), typo)
    for value in WRONG[STUDY[table][key]]:
        line = told("compare", study_with(table, key, value))
        assert key in line
        assert "expected" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prune.sparsity = 98", "is 98; expected a number in [0, 1); did you mean 0.98?"),
        ("prune.sparsity = 1.5", "prune.sparsity is 1.5; expected a number in [0, 1)"),
        ("prune = {sparsity = 0.5, rounds = 0}", "prune.rounds is 0; expected a number >= 1"),
        ("prune = {sparsity = 0.5, nonzeros = 9}", "got sparsity and nonzeros; expected exactly"),
        ("prune.budget = {max_accuracy_drop = 1, max_loss_increase = 1}", "exactly one of them"),
        ("train.epochs = 5", "prune is missing"),
        ("train.optimizer = {betas = [0.9, 0.9]}", "train.optimizer: got {'betas'"),
        ("train.penalty.l0.strength = -1", "train.penalty: L0: strength is -1"),
        ("train.penalty.l0 = 1e-5", "l0 is 1e-05; expected a table such as {strength = 1e-5}"),
        (
            "train.penalty.l0 = {strength = 1, beta = {start = 1, ned = 5}}",
            "train.penalty: l0.beta: unknown key 'ned'; did you mean end",
        ),
        ("prune = {sparsity = 0.5, gradual = true}", "prune.gradual: got True; expected a table"),
    ],
)  # fmt: skip
def test_a_value_that_newcomers_write(text, expected, told):
    rest = "" if "prune" in text or text == "train.epochs = 5" else "\nprune.sparsity = 0.5"
    assert expected in told("run", text + rest)
