"""Arguments of a wrong kind, given to the functions that newcomers call first."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import ellzero as ez
from small import blobs, classification, mlp, recipe

X, Y = blobs(60, 1)
LOADER = DataLoader(TensorDataset(X, Y), 16)
UNTYPED: Any = ez
"""For what a type checker would find."""

TAKES = "expected ez.Data(train, validation, test), each part (inputs, targets), a Dataset or"


@pytest.mark.parametrize(
    "given", [(X, Y), [X, Y], {"train": (X, Y)}, LOADER, TensorDataset(X, Y), X]
)
def test_data_that_are_no_data_say_what_data_take(given):
    kind = type(given).__name__
    for call in (
        lambda: ez.compress(mlp(), given, recipe()),
        lambda: ez.evaluate(mlp(), given),
    ):
        with pytest.raises(ez.InputError) as caught:
            call()
        assert str(caught.value).startswith(f"data is {kind}; {TAKES}")


@pytest.mark.parametrize(
    "given", [{"prune": {"sparsity": 0.5}}, "recipe.toml", Path("r.toml"), None]
)
def test_a_recipe_that_is_none_says_how_to_make_one(given):
    with pytest.raises(ez.InputError) as caught:
        ez.compress(mlp(), classification(), given)
    expected = f"recipe is {type(given).__name__}; expected an ez.Recipe: ez.Recipe.parse(tables)"
    assert str(caught.value).startswith(expected)


NO_NETWORKS: list[tuple[Any, str]] = [
    (torch.nn.Linear, "is the class Linear; expected an object of it"),
    (mlp, "is function; expected torch.nn.Module"),
    (mlp().state_dict(), "is OrderedDict; expected torch.nn.Module"),
    ("model.safetensors", "is str; expected torch.nn.Module"),
]


@pytest.mark.parametrize(("given", "expected"), NO_NETWORKS)
def test_a_network_that_is_none_is_named_by_its_kind(given, expected, tmp_path):
    for call in (
        lambda: ez.compress(given, classification(), recipe()),
        lambda: ez.evaluate(given, classification()),
        lambda: ez.prune(given, sparsity=0.5),
        lambda: ez.Regularizer(given, ez.L1(1e-4)),
        lambda: ez.save(given, tmp_path / "a.safetensors"),
        lambda: ez.quantize(given, bits=4),
        lambda: ez.trace(given, torch.zeros(1, 6)),
        lambda: ez.select(given),
    ):
        with pytest.raises(ez.InputError) as caught:
            call()
        assert str(caught.value) == f"the network {expected}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "expected"),
    NO_NETWORKS[:-1],  # a text is the path of its file
)
def test_a_reference_that_is_no_network(given, expected):
    with pytest.raises(ez.InputError, match=f"the reference {expected}"):
        ez.compress(mlp(), classification(), recipe(), reference=given)


def test_a_reference_of_another_network_is_one_line():
    with pytest.raises(ez.InputError, match="the reference is of another network") as caught:
        ez.compress(mlp(), classification(), recipe(), reference=mlp(4))
    assert "2.weight" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (1e-5, "float"),
        ({"l0": {"strength": 1}}, "dict"),
        ("l0", "str"),
        (mlp(), "Sequential"),
        (None, "None"),
    ],
)
def test_what_is_no_penalty_says_what_one_is(given, named):
    with pytest.raises(ez.InputError) as caught:
        ez.Regularizer(mlp(), given)
    expected = f"penalty is {named}; expected a penalty such as ez.L0(1e-5)"
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: UNTYPED.prune(mlp()), "expected exactly one of sparsity, threshold, nonzeros"),
        (lambda: UNTYPED.prune(mlp(), sparsity=98), "sparsity is 98; .*did you mean 0.98?"),
        (lambda: UNTYPED.prune(mlp(), sparsity="0.5"), "sparsity is '0.5'; expected a number"),
        (lambda: UNTYPED.prune(mlp(), sparsity=True), "sparsity is True; expected a number"),
        (lambda: UNTYPED.prune(mlp(), nonzeros=0.5), "nonzeros is 0.5"),
        (lambda: UNTYPED.prune(mlp(), nonzeros=1000), "144"),
        (lambda: UNTYPED.prune(mlp(), threshold=-1), "threshold is -1"),
        (lambda: UNTYPED.select(mlp(), include=["fc*"]), "'fc.' matches no parameter"),
        (lambda: UNTYPED.L0("strong"), "strength is 'strong'"),
        (lambda: UNTYPED.L0(1e-5, beta=-1), "beta is -1"),
        (lambda: UNTYPED.L0(1e-5, form="los"), "form is 'los'; expected gradient or loss"),
        (lambda: UNTYPED.Budget(max_accuracy_drop="1"), "max_accuracy_drop='1'"),
        (lambda: UNTYPED.quantize(mlp(), bits=9), "bits is 9; expected a whole number from 2 to 8"),
        (
            lambda: UNTYPED.evaluate(mlp(), classification(), "tset"),
            "it has train, validation, test",
        ),
        (lambda: UNTYPED.trace(mlp()), "Sequential needs an example, a batch of its inputs"),
        (lambda: UNTYPED.trace(mlp(), torch.zeros(1, 5)), r"cannot be traced with inputs \(1, 5\)"),
        (lambda: UNTYPED.compact(mlp()), "Sequential needs an example"),
        (lambda: UNTYPED.load("none.safetensors"), "no model file at none.safetensors"),
        (lambda: UNTYPED.compress(mlp(), classification(), recipe(), resume=True), "give folder="),
    ],
)
def test_a_value_that_cannot_be(call, expected):
    with pytest.raises(ez.InputError, match=expected):
        call()


def test_a_network_that_does_not_fit_is_told_by_evaluate_too():
    data = ez.Data((X[:, :5], Y), (X[:, :5], Y))
    with pytest.raises(ez.InputError, match=r"cannot take the data, train inputs of .* \(1, 5\)"):
        ez.evaluate(mlp(), data)
