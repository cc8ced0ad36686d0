"""Write docs/recipe.schema.json and docs/recipe-reference.md: `python docs/make_schema.py`."""

import json
from pathlib import Path

from ellzero.recipe_reference import page
from ellzero.recipe_schema import recipe_schema

SCHEMA = Path(__file__).with_name("recipe.schema.json")
REFERENCE = Path(__file__).with_name("recipe-reference.md")


def texts() -> dict[Path, str]:
    """What each of the two files holds."""
    return {SCHEMA: json.dumps(recipe_schema(), indent=1) + "\n", REFERENCE: page()}


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
