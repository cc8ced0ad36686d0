"""The documents stay true: the command line's page, the links, the docstrings, the recipes."""

import inspect
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import ellzero as ez
from ellzero.cli.app import COMMANDS
from small import blobs, classification, mlp, nonzero_weights, recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted([*(ROOT / "recipes").glob("*.toml"), *(ROOT / "examples").glob("*.toml")])


def test_the_command_line_page_is_what_the_help_says():
    make = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))
    page = (ROOT / "docs" / "cli.md").read_text()
    assert page == make["text"](), "run python docs/make_cli.py"
    assert all(f"## ellzero {command.__name__}\n" in page for command in COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", ez.__all__)
def test_public_names_have_docstrings_with_examples(name):
    documented = getattr(ez, name)
    text = inspect.getdoc(documented) or ""
    assert len(text.splitlines()[0]) > 10
    assert ">>>" in text, f"{name} has no example"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_can_be_read_and_say_what_they_are_for(path):
    text = path.read_text()
    assert text.startswith("#")
    assert ez.Recipe.read(path).model is not None


def test_the_recipe_page_shows_a_recipe_that_can_be_read(tmp_path):
    block = re.search(r"```toml\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text(), re.DOTALL)
    assert block is not None
    table = tomllib.loads(block[1])
    told = ez.Recipe.parse(table)
    assert told.prune.gradual == ez.Schedule(0, 1, "cubic", after=0.1, until=0.6)


def trained_on(x: torch.Tensor, y: torch.Tensor, model: nn.Module) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    three_lines, one_call = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    model, trained = mlp(seed=1), mlp(seed=1)
    weight = model.get_parameter("0.weight")
    before, gradient = weight.detach().clone(), torch.zeros_like(weight)
    weight.grad = gradient
    given: dict[str, Any] = {"model": model}
    exec(three_lines, given)
    pull = ez.L0(1.5e-5, beta=5).gradient(before) + ez.L2(1e-5).gradient(before)
    assert torch.allclose(gradient, pull)
    # 144 weights, of which 2 % stay
    assert given["masks"].nonzeros == nonzero_weights(model) == 3

    parts = {"train": blobs(60, 1), "val": blobs(200, 2), "test": blobs(30, 3)}
    for name, (x, y) in parts.items():
        given |= {f"x_{name}": x, f"y_{name}": y}
    given |= {"trained": trained_on(*parts["train"], trained)}
    exec(one_call, given)
    assert (tmp_path / "runs/mine/record.json").is_file()
    packed = ez.load("net.ellz")
    assert torch.equal(packed(given["x_test"]), given["small"](given["x_test"]))


def test_the_code_of_the_shipping_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, in_one_call = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "shipping.md").read_text(), re.DOTALL
    )
    x = blobs(5, 4)[0]
    data, half = classification(classes=tuple("abc")), recipe(prune={"sparsity": 0.5})
    given = {"ez": ez, "result": ez.compress(mlp(), data, half), "data": data}
    exec(code, given)
    expected = given["small"](x)
    assert torch.allclose(given["fast"](x), expected, atol=1e-4)
    assert torch.equal(ez.load("net.ellz")(x), expected)

    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    a_run(Path("runs/lenet"))
    exec(in_one_call, given)
    shipped = given["shipped"]
    assert shipped.ellz.size_bytes == Path("net.ellz").stat().st_size
    assert shipped.after.score >= shipped.before.score - 0.001


def a_run(folder: Path) -> ez.Result:
    """A run whose recipe names its network and its data."""
    told = recipe(model="small:mlp", data="small:classification", prune={"sparsity": 0.5})
    return ez.compress(mlp(), classification(), told, folder=folder)


def test_the_code_that_opens_a_run_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "recipes.md").read_text()
    (code,) = re.findall(r"```python\n(run = .*?)```", page, re.DOTALL)
    result = a_run(Path("runs/demo-1"))
    given: dict[str, Any] = {"ez": ez}
    exec(code, given)
    assert given["run"].record == result.record
    x = blobs(5, 4)[0]
    assert torch.allclose(given["small"](x), result.model(x), atol=1e-5)


GUIDES = ["start", "how-it-works", "choose", "your-network", "migrate"]
"""Pages whose code is whole: each block goes on from the one before it."""


@pytest.mark.parametrize("name", GUIDES)
def test_the_code_of_the_guides_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / f"{name}.md").read_text()
    given: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, given)
    for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL):
        if "[methods]" in text:
            Path("study.toml").write_text(text)
            assert ez.Study.read("study.toml").methods
        else:
            assert ez.Recipe.parse(tomllib.loads(text)).model is not None


def test_the_citation_is_of_this_version_and_names_the_paper():
    """The keys that the format 1.2.0 asks for; its whole schema was checked when this was written.

    Source: https://github.com/citation-file-format/citation-file-format, schema.json
    """
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= told.keys()
    assert told["version"] == ez.__version__
    (paper,) = told["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert paper["doi"] == "10.1016/j.neunet.2023.12.019"
