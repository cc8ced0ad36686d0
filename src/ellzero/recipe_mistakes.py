"""Mistakes in recipes and studies: what pydantic finds, told in one line."""

from __future__ import annotations

import reprlib
from typing import Any

from pydantic import ValidationError

KINDS = {
    "bool_type": "true or false",
    "dataclass_type": "a table",
    "dict_type": "a table",
    "float_type": "a number",
    "int_type": "a whole number",
    "model_type": "a table",
    "path_type": "the path of a file",
    "string_pattern_mismatch": "a name without / and \\",
    "string_type": "text",
    "tuple_type": "a list",
}
"""What was expected, by pydantic's name of the mistake; its own words serve for all others."""

BOUNDS = {
    "greater_than": ">",
    "greater_than_equal": ">=",
    "less_than": "<",
    "less_than_equal": "<=",
}
"""How a number relates to the bound that it passed, by pydantic's name of the mistake."""

OWN_WORDS = "value_error"
"""An error that was raised here, whose message says all."""


def explain(error: ValidationError) -> str:
    """All that is wrong, in one line.

    A key of `train` that the other stages take over is told once.

    Example:
        >>> from pydantic import TypeAdapter
        >>> try:
        ...     TypeAdapter(dict[str, float]).validate_python({"epochs": "five"}, strict=True)
        ... except ValidationError as error:
        ...     print(explain(error))
        epochs is 'five'; expected a number
    """
    places: dict[tuple[str, ...], list[str]] = {}
    for item in error.errors():
        stage, *path = [str(part) for part in item["loc"]] or [""]
        places.setdefault((*path, _wrong(item)), []).append(stage)
    mistakes = []
    for (*path, wrong), stages in places.items():
        for stage in ["train"] if "train" in stages else stages:
            where = ".".join([stage, *path])
            mistakes.append(wrong.format(where).removeprefix(": "))
    return "; ".join(mistakes)


def _wrong(item: Any) -> str:
    """What is wrong, with {} in the place of the key."""
    kind, message = item["type"], item["msg"]
    if kind == OWN_WORDS:
        message = message.removeprefix("Value error, ")
        key = str(item["loc"][-1]) if item["loc"] else ""
        names_key = message.startswith(f"{key} is ")
        return "{}" + _literal(message.removeprefix(key) if names_key else f": {message}")
    if kind == "missing":
        return "{} is missing"
    expected = KINDS.get(kind) or message.removeprefix("Input should be ")
    if kind in BOUNDS:
        (bound,) = item["ctx"].values()
        expected = f"a number {BOUNDS[kind]} {bound:g}"
    return "{} is " + _literal(f"{reprlib.repr(item['input'])}; expected {expected}")


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
