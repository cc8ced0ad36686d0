"""The pages as text: each block of Python is run by a test, each command can be given."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from cyclopts import CycloptsError, MissingArgumentError
from markdown_it import MarkdownIt
from markdown_it.token import Token
from torch import nn

import ellzero as ez
from ellzero.cli.app import app
from small import blobs, mlp, nonzero_weights

ROOT = Path(__file__).parents[2]
PAGES = {page.name: page for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

RUN_BY = {
    "data.md": "data/test_page.py",
    "distributed.md": "distributed/test_docs.py",
    "extending.md": "test_extending.py",
    "frameworks.md": "frameworks/test_page.py",
    "index.md": "docs/test_code.py",
    "penalties.md": "docs/test_code.py",
    **dict.fromkeys(
        [
            "README.md", "recipes.md", "shipping.md",
            "start.md", "how-it-works.md", "your-network.md", "migrate.md",
        ],
        "test_docs.py",
    ),
}  # fmt: skip
"""The test that runs a page's Python; most need something around it, which that test gives."""

NOT_RUN = {"quantization.md": "makes a table from a run of five minutes; the page gives its result"}


def tokens(page: Path) -> list[Token]:
    """The page's blocks, and what is within its paragraphs."""
    blocks = MarkdownIt().enable("table").parse(page.read_text("utf-8"))
    return [token for block in blocks for token in (block, *(block.children or []))]


def python_of(page: str) -> list[str]:
    return [t.content for t in tokens(PAGES[page]) if t.type == "fence" and t.info == "python"]


IN_BLOCKS = {
    (name, line.strip())
    for name, page in PAGES.items()
    for token in tokens(page)
    if token.type == "code_block" or token.info in ("sh", "bash")
    for line in token.content.replace("\\\n", "").splitlines()
}
IN_SENTENCES = {
    (name, token.content)
    for name, page in PAGES.items()
    for token in tokens(page)
    if token.type == "code_inline"
}
"""Lines that may be commands, by page."""


def test_every_page_with_python_is_run_or_says_why_not():
    with_python = {name for name in PAGES if python_of(name)}
    assert with_python == {*RUN_BY, *NOT_RUN}
    for page, test in RUN_BY.items():
        assert Path(page).stem in (ROOT / "tests" / test).read_text(), f"{test} knows {page}"


def test_the_three_lines_of_the_first_page_run():
    model = mlp(seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = blobs(20, 1)
    nn.functional.cross_entropy(model(x), y).backward()
    given: dict[str, Any] = {"ez": ez, "model": model}
    exec(python_of("index.md")[0], given)
    assert given["masks"].nonzeros == nonzero_weights(model) == 3  # 2 % of 144
    with given["masks"].hold(optimizer):
        optimizer.step()
    assert nonzero_weights(model) == 3


def test_the_loop_with_gates_runs():
    model = mlp(seed=1)
    weight = model.get_parameter("0.weight")
    before, gated = weight.detach().clone(), []
    given: dict[str, Any] = {
        "ez": ez,
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters()),
        "batches": [blobs(20, seed) for seed in range(3)],
        "loss": nn.functional.cross_entropy,
        "validate": lambda model: gated.append(weight.detach().clone()),
    }
    exec(python_of("penalties.md")[0], given)
    assert torch.equal(gated[0], weight), "finalized() shows what finalize() makes"
    assert not torch.equal(before, weight)


def test_every_page_is_in_a_list_of_contents():
    blocks = tokens(PAGES["index.md"])
    lists = [block.content for block in blocks if block.info == "{toctree}"]
    listed = set(re.findall(r"^(?:.*<)?([\w/-]+)>?$", "\n".join(lists), re.MULTILINE))
    pages = {page.removesuffix(".md") for page in PAGES} - {"README", "index"}
    assert pages <= listed, "add it to docs/index.md"


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_rows_of_tables_have_as_many_cells_as_the_head(page):
    """A bar within a cell begins another one, and what is too much at the end is not shown."""
    columns = None
    for line in re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL).splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        columns = cells if columns is None else columns
        assert cells == columns, line


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    """The build of the site runs them, so that what it shows is what the code gives."""
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 3
    assert [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"]] == []


OF_ELLZERO = sorted(
    (page, line)
    for page, line in IN_BLOCKS | IN_SENTENCES
    # cli.md is made of --help; three dots stand for what does not matter there
    if line.startswith("ellzero ") and page != "cli.md" and "..." not in line
)


@pytest.mark.parametrize(("page", "line"), OF_ELLZERO)
def test_commands_can_be_given(page, line):
    words = shlex.split(re.sub(r"\$\w+", "1", line), comments=True)[1:]  # $seed
    try:
        app.parse_args(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        # a sentence may name a command without the file that it works on
        if not (isinstance(error, MissingArgumentError) and (page, line) in IN_SENTENCES):
            pytest.fail(f"{page}: {line}: {error}")
    for word in words:
        if re.fullmatch(r"(recipes|studies|examples)/[\w./-]+\.toml", word):
            assert (ROOT / word).is_file()


def test_other_commands_name_what_exists():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    seen = 0
    for page, line in IN_BLOCKS:
        match shlex.split(line, comments=True) if line.startswith(("make ", "python ")) else []:
            case ["make", target]:
                assert target in targets, f"{page}: {line}"
                seen += 1
            case ["python", script, *_] if "/" in script:
                assert (ROOT / script).is_file(), f"{page}: {line}"
                seen += 1
    assert seen > 10
