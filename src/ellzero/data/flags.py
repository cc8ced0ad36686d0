"""Flags of data: a sentence for each way in which results on them mean less than they seem to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ellzero.data.data import Data

FEW = 100
LISTED = 10

CHANCE = "what they say of a network is largely chance"


def flags(data: Data) -> list[str]:
    """What is doubtful about the data, as far as it is known yet, a sentence each.

    Parts of fewer than 100 examples, classes that do not occur in the training or validation data
    (where an example has one label, or classes have names), and targets of 0 and 1 that are taken
    for regression. What a `Dataset` or an iterable holds is known after the first pass over it, or
    after the second if each pass leaves an example out.

    Example:
        >>> import torch, ellzero as ez
        >>> x, y = torch.randn(200, 4), torch.arange(200) % 3
        >>> flags(ez.Data((x, y), (x, y.clamp(max=1))))
        ['validation data has no example of class 2']
    """
    return [*_few(data), *_absent_classes(data), *([data.doubt] if data.doubt else [])]


def _few(data: Data) -> Iterator[str]:
    for part in data.parts:
        count = part.examples
        if count is not None and count < FEW:
            yield (
                f"{part.name} data has {count} example{'s' * (count > 1)}, "
                f"fewer than {FEW}: {CHANCE}"
            )


def are_few(warnings: Sequence[str], part: str) -> bool:
    """Whether one of these sentences, of a run's record, says that a part has few examples."""
    return any(text.startswith(f"{part} data") and text.endswith(CHANCE) for text in warnings)


def _are_tokens(data: Data) -> bool:
    return data.task is not None and data.task.name == "tokens"


def _absent_classes(data: Data) -> Iterator[str]:
    if not data.is_classification or _are_tokens(data):
        return
    if data.train.example[1].ndim > 1 and not data.classes:
        return  # of several labels an example many need not occur
    tallies = {part.name: part.tally for part in data.parts}
    labels = {name: tally.labels for name, tally in tallies.items() if tally and tally.labels}
    classes = range(data.class_count) if data.class_count else sorted(set().union(*labels.values()))
    for name in ("train", "validation"):
        absent = [c for c in classes if c not in labels[name]] if name in labels else []
        if absent:
            shown = [data.classes[c] if data.classes else str(c) for c in absent[:LISTED]]
            more = len(absent) - len(shown)
            yield (
                f"{name} data has no example of class{'es' * (len(absent) > 1)} {', '.join(shown)}"
                + (f" and {more} more" if more else "")
            )
