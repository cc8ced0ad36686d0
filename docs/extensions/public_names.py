"""Names in docstrings become links: `ez.prune` in text, ellzero.pruning.masks.Masks in a signature.

Every public name is documented as `ellzero.NAME`, whatever module it is defined in.
"""

from typing import Any

from docutils import nodes
from pydantic import BaseModel
from pydantic.dataclasses import is_pydantic_dataclass
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import ellzero


def documented(name: str) -> str | None:
    """Under which name something public is documented; None for what is not public."""
    parts = name.removesuffix("()").split(".")
    for at, part in enumerate(parts):
        if part in ellzero.__all__ and (parts[0] in ("ez", "ellzero") or at == 0):
            return ".".join(["ellzero", *parts[at:]])
    return None


def name_role(
    role: str, rawtext: str, text: str, line: int, inliner: Any, *_: Any
) -> tuple[list[nodes.Node], list[nodes.Node]]:
    """Single backticks: code, and a link where the code is a public name."""
    literal = nodes.literal(rawtext, text, classes=["code"])
    target = documented(text)
    if target is None:
        return [literal], []
    return [pending_xref("", literal, refdomain="py", reftype="obj", reftarget=target)], []


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Where a name leads that a signature gives by the module it is defined in."""
    target = documented(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or target is None:
        return None
    docname = node.get("refdoc", env.docname)
    python = env.domains["py"]
    return python.resolve_xref(env, docname, app.builder, "obj", target, node, content)


def shorten(
    app: Sphinx, what: str, name: str, documented: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Leave out the signature of what pydantic checks: it is bounds of fields, told by `Args`."""
    is_checked = isinstance(documented, type) and (
        issubclass(documented, BaseModel) or is_pydantic_dataclass(documented)
    )
    return ("", "") if is_checked else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the role of single backticks, and the look-up."""
    app.add_role("name", name_role)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
