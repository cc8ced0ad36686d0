"""Optimizers by name: which ones there are, what is refused, and the groups of parameters."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.errors import InputError
from ellzero.optimizers import made
from ellzero.user_code import importing
from small import classification, mlp, recipe


class Plain(torch.optim.Optimizer):
    """Gradient descent as a user writes it: `w <- w - factor lr g`."""

    def __init__(self, params: Any, lr: float, factor: float = 1.0) -> None:
        if factor <= 0:
            raise ValueError(f"factor is {factor}")
        super().__init__(params, {"lr": lr, "factor": factor})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    w -= group["factor"] * group["lr"] * w.grad


class WithObjects(Plain):
    """One that keeps what no file can hold."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().step()
        for w in self.param_groups[0]["params"]:
            self.state[w]["seen"] = {object()}


class WithoutRate(Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params, 1.0)


def no_optimizer(params: Any, lr: float) -> None: ...


def parsed(optimizer: Any, **train: Any) -> ez.Recipe:
    return recipe(train={"optimizer": optimizer, **train})


def test_muon_moves_a_network_of_matrices_alone():
    matrices = nn.Sequential(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 3, bias=False))
    told = parsed("Muon")
    assert told.train.momentum == 0.95
    assert ez.compress(matrices, classification(), told).record.status == "done"
    with pytest.raises(InputError, match=r"'muon' does not take this network.*only supports 2D"):
        ez.compress(mlp(), classification(), told)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adm", r"no optimizer 'adm' in torch\.optim; did you mean adam"),
        ("Optimizer", r"no optimizer 'Optimizer'"),
        ("LBFGS", r"'LBFGS' computes the loss again and again.*closure"),
        ("SparseAdam", r"'SparseAdam' takes sparse gradients alone"),
        ({"name": "AdamW", "beta": [0.9, 0.98]}, r"no argument 'beta'; did you mean betas\?"),
        ({"name": "AdamW", "lr": 0.1}, r"lr of optimizer 'AdamW' is a key.*learning_rate"),
        ({"name": "SGD", "momentum": 0.1}, r"momentum of optimizer 'SGD' is a key"),
        ({"name": "SGD", "weight_decay": 0.1}, r"weight_decay of optimizer 'SGD' is a key"),
        ({"eps": 0.1}, r"name"),
        (3, r"train\.optimizer"),
        ("test_optimizers:Nothing", r"has no class 'Nothing'"),
        ("test_optimizers:no_optimizer", r"expected a class derived from torch\.optim\.Optimizer"),
        ("test_optimizers:WithoutRate", r"has no argument lr"),
    ],
)
def test_what_cannot_work_is_refused_by_name(optimizer, expected):
    with pytest.raises(InputError, match=expected) as caught:
        parsed(optimizer)
    assert "train.optimizer" in str(caught.value)


@pytest.mark.parametrize(
    ("optimizer", "keys", "expected"),
    [
        ("adam", {"weight_decay": 0.1}, "weight_decay does not go with optimizer 'adam'"),
        ("rprop", {"weight_decay": 0.1}, "weight_decay does not go with optimizer 'rprop'"),
        ("adamw", {"momentum": 0.5}, "momentum does not go with optimizer 'adamw'"),
        ("test_optimizers:Plain", {"momentum": 0.5}, "momentum does not go with"),
    ],
)
def test_a_key_that_the_class_has_no_use_for_is_refused(optimizer, keys, expected):
    with pytest.raises(InputError, match=expected):
        parsed(optimizer, **keys)


@pytest.mark.parametrize(
    ("optimizer", "momentum"), [("SGD", 0.9), ("RMSprop", 0), ("adam", 0.9), ("Muon", 0.95)]
)
def test_momentum_is_the_class_s_own_unless_it_is_said(optimizer, momentum):
    told = parsed(optimizer)
    assert told.train.momentum == told.finetune.momentum == momentum
    assert ez.Recipe.parse(told.to_table()) == told


def test_what_belongs_to_an_optimizer_is_not_taken_over_to_another():
    told = recipe(
        train={"optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.1},
        finetune={"optimizer": "adam"},
        reference={"optimizer": "SGD"},
    )
    assert (told.finetune.momentum, told.finetune.weight_decay) == (0.9, 0.0)
    assert (told.reference.momentum, told.reference.weight_decay) == (0.5, 0.1)


def test_options_are_the_class_s_arguments():
    told = parsed({"name": "AdamW", "betas": [0.8, 0.98], "eps": 1e-6}, learning_rate=0.5)
    optimizer = told.train.make_optimizer(mlp())
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.98), 1e-6, 0.5)
    assert group["weight_decay"] == 0.0  # as the recipe says, and not torch's 0.01
    assert group["fused"] is True


def test_an_option_on_the_kernels_is_left_alone():
    (group,) = parsed({"name": "adam", "foreach": True}).train.make_optimizer(mlp()).param_groups
    assert (group["foreach"], group["fused"]) == (True, None)


@pytest.mark.parametrize(
    "options", [{"betas": [2.0, 0.9]}, {"betas": [0.9]}, {"eps": "x"}], ids=str
)
def test_a_value_that_the_class_refuses_is_an_error_before_anything_is_trained(options, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(InputError, match="'adamw' does not take this network or its options"):
        ez.compress(mlp(), classification(), parsed({"name": "adamw", **options}), folder=folder)
    assert not folder.exists()


def test_a_class_of_the_user_s_own():
    told = parsed({"name": "test_optimizers:Plain", "factor": 2.0}, learning_rate=0.05)
    assert ez.Recipe.parse(told.to_table()) == told
    assert ez.compress(mlp(), classification(), told).record.status == "done"
    with pytest.raises(ez.UserCodeError, match="factor is -1"):
        ez.compress(
            mlp(), classification(), parsed({"name": "test_optimizers:Plain", "factor": -1.0})
        )
    with importing(False):
        table = {"train": {"optimizer": "nowhere:Class", "momentum": 0.1}, "prune": {"nonzeros": 9}}
        assert ez.Recipe.parse(table).train.optimizer == "nowhere:Class"


def test_a_state_that_no_checkpoint_can_hold_is_named(tmp_path):
    told = parsed("test_optimizers:WithObjects", learning_rate=0.05)
    assert ez.compress(mlp(), classification(), told).record.status == "done"
    with pytest.raises(InputError, match=r"state cannot be kept in a checkpoint: .* type set"):
        ez.compress(mlp(), classification(), told, folder=tmp_path)


def test_an_option_can_be_set_where_the_optimizer_is_a_plain_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('train.optimizer = "adamw"\nprune.sparsity = 0.9')
    told = ez.Recipe.read(path, ["train.optimizer.eps=1e-3"])
    (group,) = told.train.make_optimizer(mlp()).param_groups
    assert group["eps"] == 1e-3


# groups of parameters


class OwnNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))


def decays(model: nn.Module, no_decay: Any) -> dict[str, float]:
    """The weight decay of each parameter, by name."""
    optimizer = made(model, "adamw", {}, lr=0.1, momentum=0.9, weight_decay=0.5, no_decay=no_decay)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }


def everything() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "linear": nn.Linear(4, 4),
            "batch": nn.BatchNorm1d(4),
            "layer": nn.LayerNorm(4, bias=False),
            "own": OwnNorm(),
            "attention": nn.MultiheadAttention(4, 1),
            "gru": nn.GRU(4, 4),
        }
    )


def test_biases_and_normalizations_are_left_out_of_the_decay():
    found = decays(everything(), ["bias", "norm"])
    kept = {name for name, decay in found.items() if decay}
    assert kept == {
        "linear.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "gru.weight_ih_l0",
        "gru.weight_hh_l0",
    }
    assert found.keys() == dict(everything().named_parameters()).keys()


@pytest.mark.parametrize(
    ("no_decay", "name", "decay"),
    [
        (["norm"], "linear.bias", 0.5),
        (["norm"], "batch.bias", 0.0),
        (["bias"], "batch.weight", 0.5),
        (["bias"], "batch.bias", 0.0),
        ([], "batch.bias", 0.5),
    ],
)
def test_each_of_them_alone(no_decay, name, decay):
    assert decays(everything(), no_decay)[name] == decay


def test_frozen_parameters_are_in_no_group():
    model = everything()
    model["linear"].requires_grad_(False)
    assert {"linear.weight", "linear.bias"}.isdisjoint(decays(model, ["bias"]))


def test_decay_without_a_gradient_shrinks_the_weights_of_its_group_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = made(
        model, "adamw", {}, lr=0.1, momentum=0.9, weight_decay=0.5, no_decay=["bias", "norm"]
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if name == "0.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name])
    assert math.isclose(optimizer.param_groups[1]["weight_decay"], 0.0)
