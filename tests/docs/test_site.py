"""The documentation as a site, built as `make docs` builds it: complete, alone, for everybody."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

import ellzero as ez
from accessibility import violations
from browser import DESK, PHONE, requests, show

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHOWN = [
    "index", "api/regularization", "penalties", "cli", "comparison",
    "notebooks/what_a_penalty_does", "search",
]  # fmt: skip
"""A page of each kind: a landing page, docstrings, formulas, console output, pictures and tables,
a notebook, the search."""


def build(docs: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site with no network: a proxy that nobody answers at."""
    nobody = "http://127.0.0.1:9"
    alone = {"PYTHONPATH": str(ROOT / "src"), "http_proxy": nobody, "https_proxy": nobody}
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(docs), str(site)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | alone)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site; its notebooks run, for about a minute."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "docs", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def few_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of the site, and no page but one, to make mistakes in."""
    docs = tmp_path_factory.mktemp("docs")
    for name in ("conf.py", "extensions", "_static"):
        copy = shutil.copytree if (ROOT / "docs" / name).is_dir() else shutil.copy
        copy(ROOT / "docs" / name, docs / name)
    return docs


def test_every_public_name_is_documented_and_no_other(site):
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    kinds = ("py:class", "py:exception", "py:function")
    names = {name for kind in kinds for name in inventory.data.get(kind, {})}
    assert {name for name in names if name.count(".") == 1} == {f"ellzero.{n}" for n in ez.__all__}


def test_every_page_lies_in_the_site(site):
    docs = ROOT / "docs"
    sources = [path for ending in ("md", "rst", "ipynb") for path in docs.rglob(f"*.{ending}")]
    assert len(sources) > 30
    pages = [site / path.relative_to(docs).with_suffix(".html") for path in sources]
    assert [page for page in pages if not page.is_file()] == []


def test_no_page_names_anything_to_fetch(site):
    """Links lead anywhere; scripts, styles, pictures and fonts lie in the site."""
    fetched = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\"' >]*"
        r"|<link\b[^>]*\bhref=[\"']?(?:https?:)?//[^\"' >]*",
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    assert {
        page.name: found for page in pages if (found := fetched.findall(page.read_text()))
    } == {}
    imported = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^\"')]*")
    styles = list(site.rglob("*.css"))
    assert [found for style in styles for found in imported.findall(style.read_text())] == []


def test_formulas_are_mathml(site):
    page = (site / "api/regularization.html").read_text()
    l0 = page.split('id="ellzero.L0"')[1].split('id="ellzero.L1"')[0]
    assert l0.count("<math ") == 2
    assert "<mi>β</mi>" in l0
    raw = re.compile(r"\\(?:frac|sum|lambda|beta|left)\b")
    for path in site.rglob("*.html"):
        without_code = re.sub(r"<code\b.*?</code>", "", path.read_text(), flags=re.DOTALL)
        assert raw.search(without_code) is None, path.name


def test_examples_are_code(site):
    for page in (site / "api").glob("*.html"):
        without_code = re.sub(r"<pre\b.*?</pre>", "", page.read_text(), flags=re.DOTALL)
        assert "&gt;&gt;&gt;" not in without_code, page.name


def test_options_keep_their_two_dashes(site):
    text = "".join(re.sub(r"<[^>]*>", "", page.read_text()) for page in site.glob("*.html"))
    options = set(re.findall(r"(?<![\w-])--([a-z]+)", text))
    assert {"ray", "set", "workers", "output"} <= options
    assert re.findall(rf"–(?:{'|'.join(options)})\b", text) == []


def test_notebooks_show_what_they_gave(site):
    page = (site / "notebooks/compress_your_network.html").read_text()
    kept = re.search(r"weights left: ([\d,]+) of 20,424", re.sub(r"<[^>]*>", "", page))
    assert kept is not None
    assert kept[1] == "1,021"  # a twentieth
    pictures = re.findall(r'<img alt="([^"]*)"[^>]*src="data:image/png', page)
    assert len(pictures) == 1
    assert "filters" in pictures[0]


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("[away](nowhere.md)", "nowhere.md"),
        ("$\\nonsense{x}$", "no MathML for"),
        ("[a part](#of-nothing)", "of-nothing"),
        ("```{eval-rst}\n.. autofunction:: ellzero.nothing\n```", "failed to import 'nothing'"),
        ("```{eval-rst}\n`ez.prune`\n```", "ellzero.prune"),  # which no page documents here
    ],
)
def test_what_is_wrong_in_a_page_fails_the_build(page, complaint, few_pages, tmp_path):
    (few_pages / "index.md").write_text(f"# A page\n\n{page}\n")
    done = build(few_pages, tmp_path)
    assert done.returncode == 1
    assert complaint in done.stderr


def test_a_cell_that_fails_or_warns_fails_the_build(few_pages, tmp_path):
    cell = '{"cells": [{"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], '
    cell += '"execution_count": null, "source": "%s"}], '
    notebook = cell + '"metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    (few_pages / "index.md").unlink(missing_ok=True)
    for code, complaint in [
        ("1 / 0", "ZeroDivisionError"),
        ("import warnings; warnings.warn('too small')", "too small"),
    ]:
        (few_pages / "index.ipynb").write_text(notebook % code)
        done = build(few_pages, tmp_path)
        assert done.returncode != 0
        assert complaint in done.stderr
    (few_pages / "index.ipynb").unlink()


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("name", SHOWN)
def test_a_page_fits_its_screen_and_asks_for_nothing(name, width, site, browser):
    show(browser, site / f"{name}.html", width=width)
    overhang = "return document.documentElement.scrollWidth - window.innerWidth"
    assert browser.execute_script(overhang) <= 0
    assert browser.get_log("browser") == []
    assert [url for url in requests(browser) if not url.startswith(site.as_uri())] == []


@pytest.mark.parametrize(("width", "dark"), [(PHONE, False), (DESK, True)])
@pytest.mark.parametrize("name", SHOWN)
def test_a_page_can_be_read_and_used_by_everybody(name, width, dark, site, browser):
    show(browser, site / f"{name}.html", width=width, dark=dark)
    assert violations(browser) == []


def test_the_search_finds_pages_without_a_server(site, browser):
    show(browser, site / "index.html")
    browser.get(f"{(site / 'search.html').as_uri()}?q=HoyerSquare")
    links = "return [...document.querySelectorAll('#search-results li a')].map(a => a.pathname)"
    expected = {str(site / page) for page in ("api/regularization.html", "penalties.html")}
    until = time.monotonic() + 20
    while not expected <= set(browser.execute_script(links)) and time.monotonic() < until:
        time.sleep(0.1)
    assert expected <= set(browser.execute_script(links))
