"""`ellzero schema`: every key of a recipe."""

from __future__ import annotations

import json

from ellzero.cli.options import Json
from ellzero.errors import InputError, nearest


def schema(table: str = "", /, *, json_: Json = False) -> None:
    """Show every key of a recipe: its kind, what it is where it is left out, what it means.

    With --json it is the JSON schema of a recipe, by which editors complete keys.

    Example: ellzero schema prune

    Parameters
    ----------
    table
        A table of a recipe, such as train or train.penalty.l0; by default all.
    """
    from ellzero.recipe_reference import sections
    from ellzero.recipe_schema import recipe_schema

    if json_:
        print(json.dumps(recipe_schema(), indent=1))
        return
    found = list(sections())
    shown = [s for s in found if not table or table in s.table.split(", ")]
    if not shown:
        known = tuple(dict.fromkeys(n for section in found for n in section.table.split(", ")))
        raise InputError(f"a recipe has no table {table!r}; {nearest(table, known)}")
    for section in shown:
        print(f"[{section.table}]  {section.about}")
        for row in section.rows:
            default = f" [{row.default}]" if row.default else ""
            print(f"  {row.key}: {row.kind}{default}; {row.meaning}")
        print()
