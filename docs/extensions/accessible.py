"""What the theme leaves out for those who listen to a page, or have no mouse, put into its HTML.

axe-core finds each of these; tests/docs/test_site.py asks it.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

MENDED = {
    # captions of the navigation are headings, without a level
    'role="heading">': 'role="heading" aria-level="2">',
    # two landmarks of a kind need names
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="On this page">',
    # the page of the search has no heading until it has found something
    '<article role="main" id="furo-main-content">\n          \n<noscript>': (
        '<article role="main" id="furo-main-content">\n<h1>Search</h1>\n<noscript>'
    ),
    # code and tables that are wider than the page are scrolled by keys, too
    "<pre>": '<pre tabindex="0">',
    ' docutils container">\n<table': ' docutils container" tabindex="0">\n<table',
}
SIGNATURE = re.compile(r'<dt class="sig .*?</dt>', re.DOTALL)
IN_SIGNATURE = {
    # parameters, one a line, are written as a list of definitions without terms
    "<dl>": '<div class="parameters">',
    "</dl>": "</div>",
    "<dd>": "<div>",
    "</dd>": "</div>",
}


def mend(page: str) -> str:
    """A page's HTML with what it lacked; a page that lacks nothing stays as it is."""
    for was, becomes in MENDED.items():
        page = page.replace(was, becomes)
    return SIGNATURE.sub(mend_signature, page)


def mend_signature(signature: re.Match[str]) -> str:
    """A signature whose lines are plain blocks."""
    mended = signature[0]
    for was, becomes in IN_SIGNATURE.items():
        mended = mended.replace(was, becomes)
    return mended


def mend_all(app: Sphinx, error: Exception | None) -> None:
    """Mend the pages of a site that was built."""
    if error is None and app.builder.format == "html":
        for path in Path(app.outdir).rglob("*.html"):
            path.write_text(mend(path.read_text("utf-8")), "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Do so when all pages are written."""
    app.connect("build-finished", mend_all)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
