"""A beta that follows a schedule: at each progress the penalty of that beta."""

import math
import shutil
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from cases import fill
from small import classification, metrics_of, mlp, recipe, tensors_equal

pytestmark = pytest.mark.filterwarnings("ignore:add_gradient")  # there is no loss here
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler for torch.compile"
)
BETA = ez.Schedule(start=1.0, end=9.0)  # 1, 3, 9 at 0, 1/4, 1


def layer() -> nn.Linear:
    made = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    fill(made.weight, [0.0, 0.5, -1.0, 2.0])
    return made


@pytest.mark.parametrize(("progress", "beta"), [(0.0, 1), (0.25, 3), (1.0, 9)])
def test_the_gradient_by_hand(progress, beta):
    model = layer()
    regularizer = ez.Regularizer(model, ez.L0(2.0, beta=BETA))
    regularizer.progress = progress
    regularizer.add_gradient()
    # 2 beta sign(w) exp(-beta |w|)
    expected = [0, *(2 * beta * s * math.exp(-beta * abs(w)) for w, s in
                     ((0.5, 1), (-1.0, -1), (2.0, 1)))]  # fmt: skip
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [pytest.approx(expected)]
    value = sum(2 * (1 - math.exp(-beta * abs(w))) for w in (0, 0.5, -1, 2))
    assert regularizer.value().item() == pytest.approx(value)


@pytest.mark.parametrize("form", ["gradient", "loss", "decoupled"])
@pytest.mark.parametrize("progress", [0.0, 0.25, 0.9])
def test_every_form_is_that_of_the_beta_at_the_time(form, progress):
    moved = []
    for beta in (BETA, BETA(progress)):
        model = layer()
        penalty = ez.L0(0.3, beta=beta, form=form) + ez.L2(0.1)
        regularizer = ez.Regularizer(model, penalty, ramp=ez.Schedule(0, 1, "linear"))
        regularizer.progress = progress
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        (model(torch.ones(1, 4, dtype=torch.float64)).sum() + regularizer.loss()).backward()
        regularizer.add_gradient()
        optimizer.step()
        regularizer.step(optimizer)
        moved.append(model.weight.detach())
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-15, atol=0)


def test_where_the_training_is_has_to_be_said():
    model = layer()
    regularizer = ez.Regularizer(model, ez.L0(1.0, beta=BETA))
    for call in (regularizer.add_gradient, regularizer.value):
        with pytest.raises(ez.InputError, match=r"the schedule needs to know where.*set progress"):
            call()
    regularizer.progress = math.nan
    with pytest.raises(ez.InputError, match="progress is nan"):
        regularizer.add_gradient()
    regularizer = ez.Regularizer(model, ez.L1(1.0), ramp=ez.Schedule(0, 1, "linear"))
    regularizer.progress = math.nan
    with pytest.raises(ez.InputError, match="progress is nan"):
        regularizer.add_gradient()
    w = torch.ones(3)
    for call in (ez.L0(1.0, beta=BETA).value, ez.L0(1.0, beta=BETA).gradient):
        with pytest.raises(
            ez.InputError, match=r"L0: beta follows Schedule.*penalty\.at\(progress"
        ):
            call(w)


@pytest.mark.parametrize("bad", [ez.Schedule(-1.0, 5.0), ez.Schedule(5.0, -1.0)])
def test_beta_is_never_negative_and_strengths_have_no_schedule(bad):
    with pytest.raises(ez.InputError, match=r"L0: beta is Schedule.*expected a finite number >= 0"):
        ez.L0(1.0, beta=bad)
    with pytest.raises(ez.InputError, match=r"L0: strength is Schedule"):
        ez.L0(BETA)  # pyright: ignore[reportArgumentType]


def test_a_sum_is_resolved_as_a_whole():
    penalty: Any = ez.L0(1.0, beta=BETA) + ez.L1(0.5)
    assert penalty.at(0.25) == ez.L0(1.0, beta=3.0) + ez.L1(0.5)


def scheduled(beta: Any) -> ez.Recipe:
    return recipe(
        train={"penalty": {"l0": {"strength": 1e-4, "beta": beta}, "l2": {"strength": 0}}},
        prune={"sparsity": 0.5},
    )


def test_a_run_follows_it(tmp_path):
    results = {}
    for name, beta in {
        "schedule": {"start": 1.0, "end": 20.0},
        "constant": 5.0,
    }.items():
        told = scheduled(beta)
        results[name] = ez.compress(mlp(), classification(), told, folder=tmp_path / name).model
        assert ez.Recipe.read(tmp_path / name / "recipe.toml") == told
    assert not tensors_equal(results["schedule"], results["constant"])
    # 1 - exp(-beta |w|) grows with beta, and so does the penalty that the metrics show
    grown = {}
    for name in results:
        rows = [row for row in metrics_of(tmp_path / name) if row["stage"] == "train"]
        grown[name] = rows[-1]["penalty"] / rows[0]["penalty"]
    assert grown["schedule"] > 1.2 * grown["constant"]


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_a_compiled_gradient_follows_it_with_one_kernel():
    model, plain = layer(), layer()
    penalty = ez.L0(2.0, beta=BETA) + ez.L2(0.1)
    regularizers = {
        True: ez.Regularizer(model, penalty, compile=True, ramp=ez.Schedule(0, 1, "linear")),
        False: ez.Regularizer(plain, penalty, ramp=ez.Schedule(0, 1, "linear")),
    }
    for progress in (0.1, 0.5, 0.9):
        for regularizer in regularizers.values():
            regularizer.progress = progress
            regularizer.weights["weight"].grad = None
            regularizer.add_gradient()
        torch.testing.assert_close(model.weight.grad, plain.weight.grad, rtol=1e-12, atol=0)
    compiled = regularizers[True]._compiled
    assert compiled is not None
    assert len(compiled._kernels) == 1
