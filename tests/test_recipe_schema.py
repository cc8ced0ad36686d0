"""The schema of a recipe: it accepts what `Recipe` accepts, and refuses mistyped keys."""

import copy
import json
import runpy
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli_w

import ellzero as ez
from ellzero.projects import KINDS, start
from ellzero.recipe_schema import recipe_schema

ROOT = Path(__file__).parent.parent
RECIPES = [
    *sorted((ROOT / "recipes").glob("*.toml")),
    *sorted((ROOT / "examples").glob("*.toml")),
    ROOT / "src" / "ellzero" / "demo.toml",
]
SCHEMA = recipe_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

FULL: dict[str, Any] = {
    "model": {"name": "lenet-300-100", "dropout": 0.1},
    "data": {"name": "csv", "path": "a.csv", "target": "y", "test": 0.2},
    "reference": {"epochs": 3, "optimizer": "RMSprop"},
    "train": {
        "steps": 100,
        "optimizer": {"name": "AdamW", "betas": [0.9, 0.98]},
        "no_decay": ["bias"],
        "penalty": {
            "l0": {"strength": 1e-5, "beta": {"start": 1, "end": 9, "shape": "cosine"}},
            "l2": [{"strength": 1e-5}, {"strength": 1e-6, "form": "loss"}],
        },
        "gates": {"hard_concrete": {"strength": 1e-6, "keep": 0.8}},
        "ramp": {"until": 0.3},
        "distillation": 0.5,
    },
    "prune": {"budget": {"max_accuracy_drop": 0.5}, "rounds": 3},
    "finetune": {"distillation": {"weight": 0.5, "temperature": 3}, "dropout": False},
}


def valid(table: Any) -> bool:
    return VALIDATOR.is_valid(table)


def test_it_is_a_schema_and_the_published_files_are_current():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    made = runpy.run_path(str(ROOT / "docs" / "make_schema.py"))["texts"]()
    assert {path.name for path in made} == {"recipe.schema.json", "recipe-reference.md"}
    for path, text in made.items():
        assert path.read_text() == text, "run python docs/make_schema.py"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipes_of_the_project_are_valid_as_written_and_resolved(path):
    assert valid(tomllib.loads(path.read_text()))
    assert valid(ez.Recipe.read(path).to_table())


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_project_names_the_schema_beside_it_and_is_valid(kind, tmp_path):
    start(tmp_path, kind)
    text = (tmp_path / "recipe.toml").read_text()
    first = text.partition("\n")[0]
    assert first == "#:schema recipe.schema.json"
    assert json.loads((tmp_path / "recipe.schema.json").read_text()) == SCHEMA
    assert valid(tomllib.loads(text))


def keys(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in table.items():
        yield (*path, key)
        if isinstance(value, Mapping):
            yield from keys(value, (*path, key))


def changed(path: tuple[str, ...], key: str) -> dict[str, Any]:
    """The full recipe with another name for the key at a path."""
    table = copy.deepcopy(FULL)
    inner = table
    for part in path[:-1]:
        inner = inner[part]
    inner[key] = inner.pop(path[-1])
    return table


def test_the_full_recipe_is_right_by_both():
    assert valid(FULL)
    ez.Recipe.parse(FULL)


@pytest.mark.parametrize("path", [*keys(FULL)], ids=".".join)
def test_a_mistyped_key_is_refused(path):
    assert not valid(changed(path, f"{path[-1]}x"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("seed",), -1),
        (("device",), 3),
        (("precision",), "float16"),
        (("model", "name"), "lenet"),
        (("data", "test"), "much"),
        (("train", "batch_size"), 0),
        (("train", "batch_size"), True),
        (("train", "decay"), "cosin"),
        (("train", "optimizer"), "adm"),
        (("train", "epochs"), 3),  # beside steps
        (("train", "no_decay"), ["biases"]),
        (("train", "penalty", "l0", "form"), "prox"),
        (("train", "penalty", "l2"), {}),
        (("train", "penalty", "l2"), {"strength": 1e-5, "form": "decoupled"}),
        (("train", "gates"), {"pmmp": {"strength": 1}, "hard_concrete": {"strength": 1}}),
        (("prune", "sparsity"), 0.5),  # beside a budget
        (("prune", "budget"), {}),
        (("prune", "rounds"), "three"),
        (("finetune", "distillation"), 1.5),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_both(path, value):
    table = copy.deepcopy(FULL)
    inner = table
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    assert not valid(table)
    if path[0] not in ("model", "data"):  # which are made after the recipe is read
        with pytest.raises(ez.InputError):
            ez.Recipe.parse(table)


def test_what_is_the_users_own_takes_any_options():
    table = copy.deepcopy(FULL)
    table["model"] = {"name": "my_project:network", "anything": [1, 2]}
    table["data"] = "package.module:data"
    table["train"]["penalty"]["my_module:LogSum"] = {"strength": 1, "sharpness": 2}
    table["train"]["optimizer"] = {"name": "my_module:Lion", "nu": 0.1}
    assert valid(table)
    assert valid({**table, "model": "runs/net.ellz"})
    assert not valid({**table, "data": {"name": 3}})


def test_every_key_has_a_meaning():
    tables = [SCHEMA, *(SCHEMA["$defs"][n] for n in ("Reference", "Train", "Finetune", "Prune"))]
    for family in ("penalty", "gates"):
        for entry in SCHEMA["$defs"][family]["properties"].values():
            tables.append(entry["anyOf"][0] if "anyOf" in entry else entry)
    for table in tables:
        for key, entry in table["properties"].items():
            assert len(entry.get("description", "")) > 10, key


@pytest.mark.parametrize("table", [{"train": {"epocs": 3}}, {"prune": {"sparsity": "x"}}])
def test_a_mistake_in_a_recipe_says_where_all_keys_are(table, tmp_path):
    hint = "; every key: `ellzero schema`, docs/recipe-reference.md"
    with pytest.raises(ez.InputError) as parsed:
        ez.Recipe.parse(table)
    (tmp_path / "a.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(ez.InputError) as read:
        ez.Recipe.read(tmp_path / "a.toml")
    for error in (parsed, read):
        assert str(error.value).count(hint) == 1
        assert str(error.value).endswith(hint)
