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
from torch import nn

import cases
import ellzero as ez
import operation_cases
from c_programs import check_networks, needs_gcc
from ellzero import penalties
from ellzero.operations import OPERATIONS, Operation
from ellzero.penalties import PENALTIES
from operation_cases import (
    Own,
    around,
    check_compacted,
    check_onnx,
    check_packed,
    check_trace,
    check_values,
)
from small import classification, mlp, nonzero_weights, recipe

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
FILE, PROGRAM, CASE, OPERATION, REGISTRATION, OPERATION_CASE = re.findall(
    r"```python\n(.*?)```", PAGE, re.DOTALL
)
TOML, OWN_TOML = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
(RECIPE_NAME,) = re.findall(r'`"(\w+)": LogSum`', PAGE)
((PUBLIC_NAME, PUBLIC_MODULE),) = re.findall(r'name `(\w+)` in the line `"([\w.]+)"`', PAGE)


def _imported(name, text, tmp_path, monkeypatch):
    """A file of the page as a module, which the page's programs import by its name."""
    path = tmp_path / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The page's file as the module `log_sum`, which the page's program imports."""
    return _imported("log_sum", FILE, tmp_path, monkeypatch)


@pytest.fixture
def registered(module, monkeypatch):
    """The penalty, registered by the page's lines."""
    monkeypatch.setitem(PENALTIES, RECIPE_NAME, module.LogSum)
    monkeypatch.setattr(penalties, "LogSum", module.LogSum, raising=False)
    monkeypatch.setitem(ez._PUBLIC, PUBLIC_NAME, f"ellzero.{PUBLIC_MODULE}")
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


@pytest.fixture
def operation(tmp_path, monkeypatch):
    """The page's operation, registered by the page's lines, and its case."""
    _imported("global_max", OPERATION, tmp_path, monkeypatch)
    monkeypatch.setitem(OPERATIONS, "global_max", Operation)  # and taken out again at the end
    exec(REGISTRATION)
    given: dict[str, Any] = {**vars(operation_cases), "OPERATION_CASES": {}}
    exec(OPERATION_CASE, given | {"GlobalMax": OPERATIONS["global_max"]})
    return given["OPERATION_CASES"]["global_max"]


def test_the_operation_keeps_what_every_operation_promises(operation, tmp_path):
    check_values(operation)
    check_trace(operation)
    for seed in (0, 1):
        check_compacted(operation, seed)
    check_packed(operation, tmp_path)
    check_onnx(around(operation, 0), tmp_path)


@needs_gcc
def test_the_operation_has_its_c(operation, tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.AdaptiveMaxPool2d(1), nn.ReLU(), nn.Flatten())
    networks = {
        "around": around(operation, 0),
        "traced": ez.trace(model, torch.zeros(1, 1, 6, 7)),
        "alone": ez.trace(nn.AdaptiveMaxPool1d(1), torch.zeros(1, 3, 4)),
    }
    for storage in ("smallest", "dense"):
        check_networks(tmp_path, networks, storage)
        text = (tmp_path / "traced.c").read_text()
        # the ReLU is drawn in
        assert "/* 1 (global_max): 5 x 4 x 5 -> 5 x 1 x 1; then 2 */" in text


@pytest.mark.usefixtures("operation")
def test_dead_channels_leave_around_the_operation():
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(5, 2)
    )
    weight: Any = model[3].weight
    weight.data[:, 1:4] = 0
    small = ez.compact(model, torch.zeros(1, 1, 6, 7)).model
    assert [small.shapes[name] for name in ("0", "1")] == [(2, 4, 5), (2, 1, 1)]


@pytest.mark.usefixtures("operation")
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(nn.AdaptiveMaxPool2d((1, 3)), id="more places"),
        pytest.param(nn.AdaptiveMaxPool2d(1, return_indices=True), id="indices"),
    ],
)
def test_what_the_operation_is_not_stays_opaque(model):
    first = model if not model.return_indices else Own(lambda x: model(x)[1].float())
    network = ez.trace(first, torch.zeros(1, 2, 4, 4))
    assert network.graph.opaque
    x = torch.randn(3, 2, 4, 4)
    assert torch.equal(network(x), first(x))


def test_a_file_needs_the_operation_registered(operation, tmp_path, monkeypatch):
    ez.pack(ez.trace(operation.module, torch.zeros(1, *operation.shape)), tmp_path / "net.ellz")
    monkeypatch.delitem(OPERATIONS, "global_max")
    with pytest.raises(ez.InputError, match="no operation is of the kind 'global_max'"):
        ez.load(tmp_path / "net.ellz")
