"""docs/extending.md stays true: what it adds is written, registered, trained and shipped."""

import doctest
import importlib.util
import math
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import cases
import ellzero as ez
from c_programs import Builder, check_networks, needs_gcc
from ellzero import penalties
from ellzero.export.c.function import EXPRESSIONS
from ellzero.export.c.steps import EMITTERS
from ellzero.graph import Node, ops
from ellzero.penalties import PENALTIES
from small import classification, mlp, nonzero_weights, recipe

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
FILE, PROGRAM, CASE, OPERATION = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TOML, OWN_TOML = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
(RECIPE_NAME,) = re.findall(r'`"(\w+)": LogSum`', PAGE)
((PUBLIC_NAME, PUBLIC_MODULE),) = re.findall(r'`"(\w+)": "(ellzero\.[\w.]+)"`', PAGE)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The page's file as the module `log_sum`, which the page's program imports."""
    path = tmp_path / "log_sum.py"
    path.write_text(FILE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("log_sum", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "log_sum", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registered(module, monkeypatch):
    """The penalty, registered by the page's lines."""
    monkeypatch.setitem(PENALTIES, RECIPE_NAME, module.LogSum)
    monkeypatch.setattr(penalties, "LogSum", module.LogSum, raising=False)
    monkeypatch.setitem(ez._PUBLIC, PUBLIC_NAME, PUBLIC_MODULE)
    return module.LogSum


def test_the_page_adds_what_is_not_there_yet():
    assert RECIPE_NAME not in PENALTIES
    assert not hasattr(ez, PUBLIC_NAME)


@pytest.mark.usefixtures("registered")
def test_the_docstring_holds(module):
    assert doctest.testmod(module) == (0, 2)


def test_the_case_of_the_page_is_what_the_penalty_gives(registered):
    given = {"PENALTY_CASES": {}, "LogSum": registered, "math": math}
    exec(CASE, given | {"PenaltyCase": cases.PenaltyCase})
    case = given["PENALTY_CASES"]["log_sum"]
    w = torch.tensor(case.w, dtype=torch.float64)
    assert case.hand.value(w).item() == pytest.approx(case.value, rel=1e-14)
    assert case.hand.gradient(w).tolist() == pytest.approx(case.gradient, rel=1e-14)
    w = torch.tensor(case.shrink_w, dtype=torch.float64)
    case.hand.shrink_(w, cases.SHRINK_LR)
    assert w.tolist() == pytest.approx(case.shrunk, rel=1e-14)
    for options in case.bad:
        with pytest.raises(ez.InputError, match=r"^LogSum: beta is"):
            registered(1.0, **options)
    w, h = torch.tensor([0.7, -0.02, 1.5, -3.0], dtype=torch.float64), 1e-6
    for penalty in (case.hand, *case.others):
        steps = h * torch.eye(4, dtype=torch.float64)
        ends = [(penalty.value(w + step), penalty.value(w - step)) for step in steps]
        differences = torch.stack([(up - down) / (2 * h) for up, down in ends])
        torch.testing.assert_close(penalty.gradient(w), differences, rtol=1e-6, atol=1e-8)


def test_hand_numbers(registered):
    # beta = 2: 2 |w| = 1, 3, so log 2 + log 4 = 3 log 2; slopes 3 * 2 / (1 + 2 |w|)
    penalty, w = registered(3.0, beta=2.0), torch.tensor([0.5, -1.5, 0.0], dtype=torch.float64)
    assert penalty.value(w).item() == pytest.approx(9 * math.log(2))
    assert penalty.gradient(w).tolist() == pytest.approx([3, -1.5, 0])


def test_the_recipe_of_the_page_is_the_penalty(registered):
    table = {**tomllib.loads(TOML), "prune": {"sparsity": 0.5}}
    told = ez.Recipe.parse(table)
    assert told.train.penalty == ez.L2(1e-5) + registered(1e-4, beta=20)
    assert told.finetune.penalty == ez.L2(1e-5)
    assert ez.Recipe.parse(tomllib.loads(told.to_toml())) == told
    table["train"]["penalty"]["log_sum"] = {"strength": 1, "betta": 3}
    with pytest.raises(ez.InputError, match=r"'betta'; did you mean beta"):
        ez.Recipe.parse(table)


def test_the_program_of_the_page_makes_a_recipe_that_runs(module, monkeypatch):
    monkeypatch.setitem(PENALTIES, RECIPE_NAME, None)  # so that it is gone after the test
    del PENALTIES[RECIPE_NAME]
    given = {}
    exec(PROGRAM, given)
    assert given["recipe"].train.penalty == module.LogSum(0.1, form="decoupled")
    result = ez.compress(mlp(), classification(), given["recipe"])
    assert nonzero_weights(result.model) == 29  # a fifth of 144


def test_the_recipe_with_a_penalty_of_ones_own_needs_no_registration(module):
    told = ez.Recipe.parse({**tomllib.loads(OWN_TOML), "prune": {"sparsity": 0.5}})
    assert told.train.penalty == module.LogSum(1e-4, beta=20)
    assert ez.Recipe.parse(tomllib.loads(told.to_toml())) == told


@pytest.mark.parametrize(("strength", "zeros"), [(0.0, (0, 0)), (0.2, (30, 130))])
def test_training_with_it_makes_zeros(registered, strength, zeros):
    told = recipe(
        train={"penalty": {"log_sum": {"strength": strength, "form": "decoupled"}}},
        prune={"sparsity": 0.0},
        finetune={"epochs": 0},
    )
    fewest, most = zeros
    found = 144 - nonzero_weights(ez.compress(mlp(), classification(), told).model)
    assert fewest <= found <= most


@needs_gcc
def test_the_operation_of_the_page_is_compacted_and_has_its_c(tmp_path, monkeypatch):
    given: dict[str, Any] = {**vars(ops), "__name__": ops.__name__}
    exec(OPERATION, given)
    (expression,) = re.findall(r"`(lambda op, .*?)`", PAGE)
    square = given["Square"]
    monkeypatch.setitem(EXPRESSIONS, square, eval(expression))
    monkeypatch.setitem(EMITTERS, square, EMITTERS[ops.PReLU])
    b = Builder((3,))
    b.linear(4, density=1.0, kind="float32", bias=True)
    b.weights["linear.1.weight"][:2] = 0  # two constant units
    node = Node.model_construct(name="own", op=square(), inputs=(b.last,), weights={})
    b.nodes.append(node)
    b.shapes["own"], b.last = (4,), "own"
    b.linear(2, density=1.0, kind="float32", bias=True)
    network = b.network()
    small = ez.compact(network).model
    assert small.shapes["own"] == (2,)
    x = torch.randn(5, 3)
    torch.testing.assert_close(small(x), network(x))
    check_networks(tmp_path, {"net": network}, "size")
