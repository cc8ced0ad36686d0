"""What generated C keeps to, read off its text: braces on every branch, no ternary in another."""

from __future__ import annotations

import re

_NO_CODE = re.compile(
    r"""/\*.*?\*/ | //[^\n]* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | ^\s*\#(?:\\\n|[^\n])*""",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
_BRANCH = re.compile(r"\b(if|for|while|switch|else|do)\b\s*")


def lapses(text: str) -> list[str]:
    """What a C source or header does that generated C does not; nothing where all is well.

    Example:
        >>> lapses("if (a) { b = c ? d : e; } else { f(); }")
        []
        >>> lapses("for (;;) g(); h = a ? b : c ? d : e;")
        ['no brace after: for (;;) g()', 'several ?: in: h = a ? b : c ? d : e']
    """
    code = _NO_CODE.sub(" ", text)
    return [*_without_brace(code), *_nested_ternaries(code)]


def _without_brace(code: str) -> list[str]:
    found = []
    for match in _BRANCH.finditer(code):
        at = match.end()
        if match[1] not in ("else", "do"):
            at = _behind_parentheses(code, at)
        rest = code[at:].lstrip()
        if not rest.startswith("{") and not (match[1] == "else" and re.match(r"if\b", rest)):
            found.append(f"no brace after: {_line(code[match.start() :], at - match.start())}")
    return found


def _behind_parentheses(code: str, begin: int) -> int:
    depth = 0
    for at in range(begin, len(code)):
        depth += (code[at] == "(") - (code[at] == ")")
        if depth == 0:
            return at + 1
    raise AssertionError(f"no end of: {code[begin : begin + 60]}")


def _nested_ternaries(code: str) -> list[str]:
    statements = re.split(r"[;{}]", code)
    return [f"several ?: in: {_line(s.strip(), 0)}" for s in statements if s.count("?") > 1]


def _line(code: str, least: int) -> str:
    """The code up to a statement's end, on one line."""
    end = code.find(";", least)
    return " ".join(code[: None if end < 0 else end].split())
