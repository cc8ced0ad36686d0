"""A section of a page, as the template takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ellzero.report.style import Picture
from ellzero.report.tables import Text


@dataclass(frozen=True)
class Group:
    """Pictures under one heading."""

    title: str
    caption: str
    pictures: Sequence[Picture]
    needs_key: bool = False
    """Whether its pictures tell methods by colour and marker alone."""


@dataclass(frozen=True)
class Key:
    """A method in the key of the pictures."""

    label: str
    marker: str
    strong: bool


@dataclass
class Section:
    """A study or a run on the page."""

    kind: str
    title: str
    status: str
    summary: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    key: list[Key] = field(default_factory=list)
    first: list[Picture] = field(default_factory=list)
    tables: list[Text] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    panels: list[str] = field(default_factory=list)
    panels_caption: str = ""
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    source: tuple[str, str] | None = None


def there(*pictures: Picture | None) -> list[Picture]:
    """Those pictures that there is something to show in."""
    return [picture for picture in pictures if picture is not None]
