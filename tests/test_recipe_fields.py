"""Penalties and gates of the user's own in a recipe, and numbers that follow a schedule."""

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import ellzero as ez
from ellzero.errors import InputError, UserCodeError
from ellzero.penalties import PENALTIES, Term
from ellzero.regularizers import GATES
from ellzero.schedules import Schedule
from small import classification, mlp, nonzero_weights

MODULE = """
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass

import torch
from ellzero.schedules import Schedule
from ellzero.errors import InputError
from ellzero.penalties import L1, Term
from ellzero.regularizers import HardConcrete

@dataclass(frozen=True)
class Pull(Term):
    forms = ("gradient", "decoupled")
    _: KW_ONLY
    beta: float | Schedule = 1.0

    def value(self, w):
        return self.strength * w.abs().sum()

    def gradient(self, w):
        return self.strength * w.sign()

    def shrink_(self, w, step):
        amount = step * self.strength
        w.copy_(w.sign() * (w.abs() - amount).clamp(min=0))

@dataclass(frozen=True)
class OwnGates(HardConcrete):
    pass

class Unfinished(Term):
    def value(self, w):
        return w.sum()

class Broken(L1):
    def __post_init__(self):
        {}["nothing"]

class Picky(L1):
    def __post_init__(self):
        if self.strength == 7:
            raise ValueError("no sevens")
        super().__post_init__()

def pull():
    pass
"""
PULL, GATES_OF_ONE_S_OWN = "own_penalties:Pull", "own_penalties:OwnGates"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the user's module in it, which nobody has imported yet."""
    (tmp_path / "own_penalties.py").write_text(MODULE)
    (tmp_path / "broken_penalties.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield tmp_path
    for name in ("own_penalties", "broken_penalties"):
        sys.modules.pop(name, None)


def own_module() -> ModuleType:
    return sys.modules["own_penalties"]


def told(penalty: Any = None, gates: Any = None, **stages: Any) -> ez.Recipe:
    train = {"epochs": 3, "batch_size": 20, "learning_rate": 0.02}
    train |= {} if penalty is None else {"penalty": penalty}
    train |= {} if gates is None else {"gates": gates}
    return ez.Recipe.parse({"train": train, "prune": {"sparsity": 0.0}, **stages})


def test_a_penalty_of_one_s_own_acts_like_any_other(own):
    recipe = told({PULL: {"strength": 3, "form": "decoupled"}}, finetune={"epochs": 0})
    assert type(recipe.train.penalty) is own_module().Pull
    found = ez.compress(mlp(), classification(), recipe).model
    assert nonzero_weights(found) < 120  # of 144; without it all of them are left
    with_none = told({PULL: {"strength": 0.0, "form": "decoupled"}}, finetune={"epochs": 0})
    assert nonzero_weights(ez.compress(mlp(), classification(), with_none).model) == 144


def test_gates_of_one_s_own(own):
    recipe = told(gates={GATES_OF_ONE_S_OWN: {"strength": 1e-3, "keep": 0.6}})
    assert recipe.train.gates == own_module().OwnGates(1e-3, keep=0.6)
    assert recipe.to_table()["train"]["gates"] == {
        GATES_OF_ONE_S_OWN: {"strength": 1e-3, "rate": 10.0, "keep": 0.6}
    }
    assert ez.compress(mlp(), classification(), recipe).record.nonzeros == 144


def test_it_is_written_by_its_module_whatever_it_was_called(own, monkeypatch):
    told({PULL: {"strength": 1}})
    monkeypatch.setitem(PENALTIES, "pull", own_module().Pull)
    monkeypatch.setattr(own_module(), "Again", own_module().Pull, raising=False)
    for name in ("pull", PULL, "own_penalties:Again"):
        recipe = told({name: {"strength": 2, "beta": 3}, "l2": {"strength": 1}})
        assert set(recipe.to_table()["train"]["penalty"]) == {PULL, "l2"}
    # so that a process that knows of no registration reads it
    Path("told.toml").write_text(recipe.to_toml())
    monkeypatch.delitem(PENALTIES, "pull")
    monkeypatch.delitem(sys.modules, "own_penalties")
    assert str(ez.Recipe.read("told.toml").train.penalty) == str(recipe.train.penalty)


def test_those_of_the_package_keep_their_names(own):
    recipe = told({"ellzero.penalties:L0": {"strength": 1}})
    assert recipe.train.penalty == ez.L0(1)
    assert set(recipe.to_table()["train"]["penalty"]) == {"l0"}


def test_the_order_of_a_sum_does_not_hang_on_the_names(own, monkeypatch):
    # another order of a sum gives other bits
    told({PULL: {"strength": 1}})
    monkeypatch.setitem(PENALTIES, "a_pull", own_module().Pull)
    tables = {"l2": {"strength": 1}, "l0": {"strength": 2}}
    for name in ("a_pull", PULL):
        for order in ({name: {"strength": 3}, **tables}, {**tables, name: {"strength": 3}}):
            assert told(order).train.penalty == ez.L0(2) + ez.L2(1) + own_module().Pull(3)


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        ({"nowhere:Pull": {"strength": 1}},
         r"train\.penalty: penalty 'nowhere:Pull': there is no module 'nowhere' in this folder"),
        ({"own_penalties:Pul": {"strength": 1}},
         r"own_penalties has no class 'Pul'; did you mean Pull"),
        ({"own_penalties:pull": {"strength": 1}},
         r"penalty 'own_penalties:pull' is <function .*; expected a dataclass derived from .*Term"),
        ({"own_penalties:OwnGates": {"strength": 1}}, r"OwnGates.*; expected a dataclass derived"),
        ({"own_penalties:Schedule": {"strength": 1}}, r"Schedule.*; expected a dataclass derived"),
        ({"own_penalties:Unfinished": {"strength": 1}}, "Unfinished.*without abstract methods"),
        ({1: {"strength": 1}}, r"train\.penalty: a name in penalty is 1; expected text"),
        ({":X": {"strength": 1}}, r"penalty ':X': ':X' is no name of a class; expected package"),
        ({"..a:b": {"strength": 1}}, r"'\.\.a:b' is no name of a class"),
        ({"own_penalties:": {"strength": 1}}, "own_penalties has no class ''"),
        ({"own_penalties:Picky": {"strength": 7}}, "Picky: no sevens"),
        ({PULL: {"strength": -1}}, "Pull: strength is -1"),
        ({PULL: {"strength": 1, "betta": 1}}, "unknown key 'betta'; did you mean beta"),
        ({PULL: {"beta": 1}}, "own_penalties:Pull has no strength"),
        ({PULL: 3}, "own_penalties:Pull is 3; expected a table"),
        ({"Pull": {"strength": 1}}, r"unknown key 'Pull'; .*your own is written package\.module:C"),
    ],
)  # fmt: skip
def test_a_penalty_that_cannot_be_had(own, penalty, expected):
    with pytest.raises(InputError, match=expected):
        told(penalty)


def test_gates_that_cannot_be_had(own):
    with pytest.raises(InputError, match=r"gates 'own_penalties:Pull' is .*derived from .*Gates"):
        told(gates={PULL: {"strength": 1}})
    with pytest.raises(InputError, match="there is no module 'nowhere'"):
        told(gates={"nowhere:G": {"strength": 1}})
    assert set(GATES) == {"hard_concrete", "pmmp"}


def test_a_class_that_fails_keeps_its_own_error_as_the_cause(own):
    with pytest.raises(UserCodeError, match="own_penalties:Broken failed: KeyError") as caught:
        told({"own_penalties:Broken": {"strength": 7}})
    assert type(caught.value.__cause__) is KeyError


def test_a_module_that_fails_keeps_its_own_error_as_the_cause(own):
    with pytest.raises(UserCodeError, match="'broken_penalties:P': importing it failed") as caught:
        told({"broken_penalties:P": {"strength": 1}})
    assert type(caught.value.__cause__) is ZeroDivisionError


@pytest.mark.parametrize("value", ["0.25", "2.5e-1"])
def test_an_override_with_a_quoted_key(own, value):
    path = own / "told.toml"
    path.write_text('train.penalty."own_penalties:Pull".strength = 1\nprune.sparsity = 0.9')
    override = f'train.penalty."own_penalties:Pull".strength={value}'
    assert ez.Recipe.read(path, [override]).train.penalty == own_module().Pull(0.25)
    with pytest.raises(InputError, match="a key with a colon or a dot in it stands in quotes"):
        ez.Recipe.read(path, [override.replace('"', "")])


# schedules


@dataclass(frozen=True)
class Sharpening(Term):
    """A penalty whose number may follow a schedule."""

    _: KW_ONLY
    beta: float | Schedule = 1.0

    def value(self, w: torch.Tensor) -> torch.Tensor:
        return w.sum()

    def gradient(self, w: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(w)


SHARPENING = f"{__name__}:Sharpening"


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        ({"start": 1, "end": 10, "shape": "cosine"}, Schedule(1, 10, "cosine")),
        ({"start": 1, "end": 10}, Schedule(1, 10, "linear")),
        (3, 3),
    ],
)
def test_a_number_that_follows_a_schedule_is_a_table(beta, expected):
    one = told({SHARPENING: {"strength": 1, "beta": beta}})
    assert one.train.penalty == Sharpening(1, beta=expected)
    assert ez.Recipe.parse(tomllib.loads(one.to_toml())) == one
    several = told({SHARPENING: [{"strength": 1, "beta": beta}, {"strength": 2}]})
    assert several.train.penalty == Sharpening(1, beta=expected) + Sharpening(2)
    assert ez.Recipe.parse(tomllib.loads(several.to_toml())) == several


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        ({"strat": 1, "end": 2}, ".*beta: unknown key 'strat'; did you mean start"),
        ({"start": 1}, "Schedule: .*'end'"),
        ({"start": 1, "end": 2, "shape": "sqare"}, "schedule shape is 'sqare'; expected one of"),
        ({"start": "x", "end": 2}, "schedule start is 'x'; expected a finite number"),
    ],
)
def test_a_schedule_that_does_not_fit(beta, expected):
    with pytest.raises(InputError, match=f"train.penalty: {expected}"):
        told({SHARPENING: {"strength": 1, "beta": beta}})


def test_a_number_that_cannot_follow_a_schedule():
    schedule = {"start": 1, "end": 2}
    for penalty in ({"l1": {"strength": schedule}}, {SHARPENING: {"strength": schedule}}):
        with pytest.raises(InputError, match=r"strength is Schedule\(start=1, .* finite number"):
            told(penalty)
    with pytest.raises(InputError, match=r"rate is Schedule\(.* expected a finite number"):
        told(gates={"pmmp": {"strength": 1, "rate": schedule}})


@pytest.mark.parametrize("stage", ["train", "prune"])
def test_the_bounds_of_a_rise_under_their_former_names(stage):
    name = "ramp" if stage == "train" else "gradual"

    def parsed(**bounds: float) -> ez.Recipe:
        table: dict[str, Any] = {"train": {}, "prune": {"sparsity": 0.5}}
        table[stage][name] = {"shape": "cosine", **bounds}
        return ez.Recipe.parse(table)

    former = parsed(start=0.1, end=0.6)
    assert former == parsed(after=0.1, until=0.6)
    assert parsed(end=0.6) == parsed(until=0.6)
    assert former.to_table()[stage][name] == {"shape": "cosine", "after": 0.1, "until": 0.6}
    with pytest.raises(InputError, match=r"has end and until, which are one; give until"):
        parsed(end=0.6, until=0.6)
