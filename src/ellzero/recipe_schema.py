"""The JSON schema of a recipe, made from its models, penalties, gates and functions."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from ellzero.data import DATA_SETS
from ellzero.errors import InputError
from ellzero.networks import NETWORKS
from ellzero.optimizers import KEYS, OPTIMIZERS, optimizer_class
from ellzero.penalties import PENALTIES
from ellzero.pruning.budget import Budget
from ellzero.recipe import Recipe
from ellzero.recipe_fields import IN_SCHEMA
from ellzero.recipe_tables import LENGTHS, TARGETS
from ellzero.regularizers import GATES
from ellzero.schedules import Schedule, ScheduleShape

OWN = "^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$"
"""Your own code, package.module:name."""

PACKED = r"\.ellz$"

Json = dict[str, Any]


def recipe_schema() -> Json:
    """The JSON schema (draft 2020-12) that recipes in TOML are valid against.

    It knows names, keys, kinds and bounds; what goes with what is said by `Recipe.parse`.

    Example:
        >>> schema = recipe_schema()
        >>> sorted(schema["$defs"]["penalty"]["properties"])
        ['group_lasso', 'hoyer_square', 'l0', 'l1', 'l2']
    """
    made = _tidied(Recipe.model_json_schema())
    tables = made.pop("$defs")
    del tables["Factory"]
    for table in tables.values():
        table["description"] = table["description"].partition("\n")[0]
    distillation = tables["Distillation"]
    tables["Distillation"] = {"anyOf": [distillation["properties"]["weight"], distillation]}
    tables["Prune"]["oneOf"] = [{"required": [key]} for key in TARGETS]
    for stage in ("Reference", "Train", "Finetune"):
        tables[stage]["not"] = {"required": list(LENGTHS)}
        _refer(tables[stage]["properties"]["optimizer"], "optimizer")
    for key in ("model", "data"):
        _refer(made["properties"][key], key)
    networks = _named(_options(NETWORKS))
    networks["anyOf"].append({"type": "string", "pattern": PACKED})
    tables |= {
        "model": networks,
        "data": _named(_options(DATA_SETS)),
        "optimizer": _named(_optimizers()),
        "penalty": _family(PENALTIES, several=True),
        "gates": {**_family(GATES, several=False), "maxProperties": 1},
        "ramp": _rise("linear"),
        "gradual": _rise("cubic"),
        "budget": {**_fields(Budget), "minProperties": 1, "maxProperties": 1},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of ellzero",
        "description": "Everything that a run is told; `ellzero run recipe.toml` follows it.",
        **{key: value for key, value in made.items() if key not in ("title", "description")},
        "$defs": tables,
    }


def _refer(entry: Json, table: str) -> None:
    """Let a key refer to a table of its own."""
    entry.pop("anyOf", None)
    entry["$ref"] = f"#/$defs/{table}"


def _rise(shape: ScheduleShape) -> Json:
    """A rise from 0 to 1, which says only how and when."""
    table = _fields(Schedule, without=("start", "end"))
    table["properties"]["shape"]["default"] = shape
    table["properties"]["after"]["description"] = "progress in [0, 1) until which it is 0."
    table["properties"]["until"]["description"] = "progress in (after, 1] from which it is 1."
    about = "A rise from 0 to 1 while the progress of the training goes on."
    return {**table, "description": about, "required": []}


def _tidied(value: Any) -> Any:
    """Without titles and nulls, which TOML does not have, and with references to other tables."""
    if isinstance(value, list):
        return [_tidied(item) for item in value if item != {"type": "null"}]
    if not isinstance(value, Mapping):
        return value
    bounds = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    tidy = {bounds.get(key, key): _tidied(inner) for key, inner in value.items()}
    if isinstance(value.get("title"), str):
        del tidy["title"]
    if tidy.get("default", 0) is None:
        del tidy["default"]
    if IN_SCHEMA in tidy:
        tidy["$ref"] = f"#/$defs/{tidy.pop(IN_SCHEMA)}"
    for group in ("anyOf", "allOf"):
        if len(tidy.get(group, ())) == 1:
            tidy |= tidy.pop(group)[0]
    return tidy


def _named(tables: Mapping[str, Json]) -> Json:
    """A name, or a table of a name and options; those of the user's own are open."""
    name = {"type": "string", "pattern": OWN}
    of_own = {"type": "object", "properties": {"name": name}, "required": ["name"]}
    built_in = [
        {
            "type": "object",
            "properties": {"name": {"const": key}, **table["properties"]},
            "required": ["name", *table.get("required", ())],
            "additionalProperties": False,
        }
        for key, table in tables.items()
    ]
    short = [key for key, table in tables.items() if not table.get("required")]
    return {"anyOf": [{"enum": short}, name, *built_in, of_own]}


def _options(built_in: Mapping[str, str]) -> dict[str, Json]:
    """The options of each network or data set: the arguments of its function."""
    tables = {}
    for name, place in built_in.items():
        module, _, attribute = place.partition(":")
        tables[name] = _arguments(getattr(import_module(module), attribute))
    return tables


def _optimizers() -> dict[str, Json]:
    """The arguments of each optimizer that a recipe may name, under both ways to write it."""
    tables = {}
    for name, cls in OPTIMIZERS.items():
        try:
            optimizer_class(name)
        except InputError:  # refused by name
            continue
        arguments = list(inspect.signature(cls).parameters)[1:]
        table = {"properties": {key: {} for key in arguments if key not in KEYS}}
        tables |= {name: table, cls.__name__: table}
    return tables


def _arguments(function: Callable[..., Any]) -> Json:
    """The keyword arguments of a function, described by its docstring."""
    hints, said = typing.get_type_hints(function), described(function)
    properties, required = {}, []
    for name, parameter in inspect.signature(function).parameters.items():
        properties[name] = _kind(hints.get(name, Any), parameter.default, said.get(name))
        if parameter.default is parameter.empty:
            required.append(name)
    return {"properties": properties, "required": required}


def _family(members: Mapping[str, type[Any]], *, several: bool) -> Json:
    """Tables under their names; those of the user's own classes are open, but for a strength."""
    tables: Json = {}
    for name, cls in members.items():
        table = _fields(cls)
        tables[name] = _one_or_more(table, name) if several else table
    return {
        "type": "object",
        "properties": tables,
        "patternProperties": {OWN: {"type": ["object", "array"]}},
        "additionalProperties": False,
    }


def _one_or_more(table: Json, name: str) -> Json:
    one = {"$ref": f"#/$defs/penalty/properties/{name}/anyOf/0"}
    return {"anyOf": [table, {"type": "array", "items": one}]}


def _fields(cls: type[Any], without: tuple[str, ...] = ()) -> Json:
    """The keys of a frozen dataclass, described by its docstring."""
    hints, said = typing.get_type_hints(cls), described(cls)
    properties, required = {}, []
    for field in dataclasses.fields(cls):
        if field.name in without:
            continue
        is_required = field.default is dataclasses.MISSING
        default = inspect.Parameter.empty if is_required else field.default
        kind = _kind(hints[field.name], default, said.get(field.name))
        if field.name == "form":
            kind["enum"] = list(cls.forms)
        properties[field.name] = kind
        if is_required:
            required.append(field.name)
    return {
        "type": "object",
        "description": (inspect.getdoc(cls) or "").partition("\n")[0],
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _kind(hint: Any, default: Any, meaning: str | None) -> Json:
    """The schema of a value by its type; of one that JSON has no kind for, anything."""
    try:
        kind = _tidied(TypeAdapter(hint).json_schema()) if hint is not Any else {}
    except PydanticUserError:
        kind = {}
    if "$defs" in kind:  # of a schedule, or an augmentation
        kind = _inlined(kind, kind.pop("$defs"))
        # beside a table that is known, another that may hold anything would let mistakes pass
        is_open = {"additionalProperties": True, "type": "object"}
        kind["anyOf"] = [one for one in kind["anyOf"] if one != is_open]
    if isinstance(default, str | int | float | bool):
        kind["default"] = default
    return {**kind, **({"description": meaning} if meaning else {})}


def _inlined(value: Any, tables: Json) -> Any:
    if isinstance(value, list):
        return [_inlined(item, tables) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "$ref" in value:
        table = tables[value["$ref"].rpartition("/")[2]]
        about = table.get("description", "").partition("\n")[0]
        return {**_inlined(table, tables), "description": about, "additionalProperties": False}
    return {key: _inlined(inner, tables) for key, inner in value.items()}


def described(documented: object) -> dict[str, str]:
    """What a docstring says of each argument, under `Args:`.

    Example:
        >>> described(Budget)["max_loss_increase"]
        "relative increase of the loss, >= 0: 0.1 allows 1.1 times the reference's."
    """
    text = inspect.getdoc(documented) or ""
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", text, re.MULTILINE)
    entries = re.findall(
        r"^ {4}(\w+): ((?:.*\n?)(?: {8}.*\n?)*)", section[1] if section else "", re.M
    )
    return {name: " ".join(words.split()) for name, words in entries}
