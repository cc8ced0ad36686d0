"""What axe-core finds wrong for people who cannot see a page well, or use no mouse."""

from importlib import resources
from typing import Any

import pytest

RUN = """
const done = arguments[arguments.length - 1];
// no preload: it would fetch style sheets, and a page of ours has all it needs
axe.run(document, {resultTypes: ["violations"], preload: false}).then(
    found => done(found.violations.flatMap(rule => rule.nodes.map(
        node => `${rule.id}: ${node.target.join(" ")}: ${node.failureSummary}`
    ))),
    error => done([`axe-core failed: ${error}`])
)
"""


def violations(browser: Any) -> list[str]:
    """All violations of axe-core's rules on the page that is shown: WCAG's and good practice.

    Source: https://github.com/dequelabs/axe-core, as the package axe-core-python brings it.
    """
    package = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    browser.execute_script(resources.files(package).joinpath("axe.min.js").read_text("utf-8"))
    found = browser.execute_async_script(RUN)
    return [" ".join(text.split()) for text in found]
