"""Notebooks as pages: run when the site is built, so that a page shows what its code gives."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from nbclient import NotebookClient
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.util import logging
from traitlets.config import Config
from traitlets.log import get_logger

logger = logging.getLogger(__name__)

SECONDS = 300
"""The most that a cell may take; all of them together take less than a minute."""


class NotebookParser(MystParser):
    """Runs a notebook and reads it as Markdown, outputs and pictures included."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Text stays text, code and what it gave become blocks; a failing cell ends the build."""
        notebook = nbformat.reads(inputstring, as_version=4)
        folder = Path(document["source"]).parent
        with TemporaryDirectory() as sockets:  # no port is opened
            here = {"transport": "ipc", "ip": f"{sockets}/kernel"}
            NotebookClient(
                notebook,
                timeout=SECONDS,
                resources={"metadata": {"path": folder}},
                config=Config({"KernelManager": here}),
            ).execute()
        super().parse("\n\n".join(map(as_markdown, notebook.cells)), document)


def as_markdown(cell: NotebookNode) -> str:
    """A cell, and below it what it gave."""
    if cell.cell_type == "markdown":
        return cell.source
    outputs = (shown(output, cell.metadata.get("alt", "")) for output in cell.outputs)
    return "\n\n".join([f"```python\n{cell.source}\n```", *filter(None, outputs)])


def shown(output: NotebookNode, alt: str) -> str:
    """One output: a picture with the text that stands for it, or text; a warning is one of ours."""
    if output.output_type == "stream":
        if output.name == "stderr":
            logger.warning("a cell of a notebook wrote to stderr: %s", output.text)
        return f"```text\n{output.text.rstrip()}\n```"
    if "image/png" in output.data:
        if not alt:
            logger.warning("a picture of a notebook has no text; give its cell the metadata 'alt'")
        return f"![{alt}](data:image/png;base64,{output.data['image/png'].replace(chr(10), '')})"
    return f"```text\n{output.data['text/plain']}\n```"


def setup(app: Sphinx) -> dict[str, bool]:
    """Let Sphinx take .ipynb files as pages."""
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # a debugger's remark
    get_logger().setLevel("WARNING")  # not a line for each start of a kernel
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
