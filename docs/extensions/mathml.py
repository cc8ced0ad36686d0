"""Mathematics as MathML, which browsers show themselves: no script, no font, no network."""

import html

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def mathml(node: nodes.Element, *, as_block: bool) -> str:
    """The LaTeX of a node as MathML; what cannot be translated is a warning, and shown as it is."""
    latex = node.astext()
    try:
        return tex2mathml(latex, as_block=as_block)
    except Exception as error:  # MathError, or whatever its parser stumbles over
        logger.warning("no MathML for %r: %s", latex, error, location=node)
        return f"<code>{html.escape(latex)}</code>"


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    """A formula within a sentence."""
    translator.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """A formula on a line of its own; a wide one can be scrolled, by keyboard too."""
    formula = mathml(node, as_block=True)
    translator.body.append(f'<div class="formula" tabindex="0">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Make it the way that mathematics is rendered."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
