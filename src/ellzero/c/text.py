"""Pieces of C as text: lines, blocks, loops, comments."""

from __future__ import annotations

from textwrap import indent

from ellzero.tensors import Shape


def indented(text: str, levels: int = 1) -> str:
    """Lines further to the right."""
    return indent(text.strip("\n"), "    " * levels)


def block(head: str, body: str) -> str:
    """Statements in braces behind a loop's or a function's head."""
    return f"{head} {{\n{indented(body)}\n}}"


def loop(index: str, count: int, body: str) -> str:
    """Statements for each value of an index, from 0 on."""
    return block(f"for (int {index} = 0; {index} < {count}; ++{index})", body)


def scope(text: str) -> str:
    """Statements in a block of their own, where they define something."""
    return f"{{\n{indented(text)}\n}}" if "\n" in text else text


def comment(text: str) -> str:
    """A name inside a comment: printable ASCII that cannot end it."""
    plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return plain.replace("*/", "* /").replace("/*", "/ *")


def dimensions(shape: Shape) -> str:
    """A shape as one reads it: 3 x 224 x 224."""
    return " x ".join(map(str, shape))
