import copy
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import ellzero as ez
from cases import LN2, anatomy, fill, small_network
from ellzero import chunks as blocks_module
from ellzero.penalties import Term

pytestmark = pytest.mark.filterwarnings("ignore:add_gradient")  # there is no loss here


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (6,), generator=generator)


def task_loss(model: nn.Module, seed: int = 0) -> torch.Tensor:
    x, y = batch(seed)
    return nn.functional.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)


def line(values, *, lr: float = 0.1) -> tuple[Any, torch.optim.SGD]:
    """One row of weights, and a plain optimizer for it."""
    model = nn.Linear(len(values), 1).double()
    fill(model.weight, values)
    return model, torch.optim.SGD(model.parameters(), lr=lr)


def penalties_of_form(form):
    return [
        ez.L0(0.02, beta=7, form=form),
        ez.L1(0.03, form=form),
        ez.L2(0.05, form=form),
        ez.L0(0.02, beta=7, form=form) + ez.L1(0.03, form=form) + ez.L2(0.05, form=form),
    ]


class TestForms:
    @pytest.mark.parametrize(
        ("by_gradient", "by_loss"),
        list(zip(penalties_of_form("gradient"), penalties_of_form("loss"), strict=True)),
        ids=["l0", "l1", "l2", "sum"],
    )
    def test_gradient_and_loss_are_the_same_mathematics(self, by_gradient, by_loss):
        ends = []
        for penalty in (by_gradient, by_loss):
            model = small_network()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            regularizer = ez.Regularizer(model, penalty, layer_scale="paper")
            (task_loss(model) + regularizer.loss()).backward()
            regularizer.add_gradient()
            optimizer.step()
            regularizer.step(optimizer)
            ends.append(model.state_dict())
        for key, end in ends[0].items():
            torch.testing.assert_close(end, ends[1][key], rtol=1e-12, atol=1e-15)
        # and the penalty did act
        model = small_network()
        task_loss(model).backward()
        torch.optim.SGD(model.parameters(), lr=0.5).step()
        assert not torch.allclose(model[4].weight, ends[0]["4.weight"], rtol=1e-6)

    def test_each_method_takes_only_the_terms_of_its_form(self):
        model, optimizer = line([1.0, -2.0], lr=0.5)
        penalty = ez.L1(0.25, form="decoupled") + ez.L1(0.5, form="loss") + ez.L2(2.0)
        regularizer = ez.Regularizer(model, penalty)
        assert regularizer.loss().item() == 0.5 * 3
        regularizer.add_gradient()
        assert model.weight.grad.tolist() == [[4.0, -8.0]]  # 2 * 2 w
        model.weight.grad = None
        regularizer.step(optimizer)
        assert model.weight.tolist() == [[1 - 0.125, -2 + 0.125]]  # lr * 0.25
        assert model.weight.grad is None

    @pytest.mark.parametrize("form", ["gradient", "loss", "decoupled"])
    def test_methods_of_other_forms_do_nothing(self, form):
        model, optimizer = line([1.0, -2.0])
        regularizer = ez.Regularizer(model, ez.L1(1.0, form=form))
        if form != "loss":
            assert regularizer.loss().item() == 0
        if form != "gradient":
            regularizer.add_gradient()
            assert model.weight.grad is None
        if form != "decoupled":
            regularizer.step(optimizer)
            assert model.weight.tolist() == [[1.0, -2.0]]
            regularizer.step(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0))

    @pytest.mark.parametrize("penalty", [ez.L1(1.0), ez.L0(1.0, form="decoupled")])
    def test_loss_without_terms_can_be_added_to_any_loss(self, penalty):
        model, _ = line([1.0, -2.0])
        loss = ez.Regularizer(model, penalty).loss()
        assert loss.shape == ()
        (model(torch.ones(1, 2, dtype=torch.float64)).sum() + loss).backward()

    def test_add_gradient_adds_to_what_is_there(self):
        model, _ = line([1.0, -2.0, 0.0])
        gradient = torch.tensor([[10.0, 20.0, 30.0]], dtype=torch.float64)
        model.weight.grad = gradient
        ez.Regularizer(model, ez.L1(0.5)).add_gradient()
        assert gradient.tolist() == [[10.5, 19.5, 30.0]], "in place"

    def test_add_gradient_makes_a_gradient_where_there_is_none(self):
        model, _ = line([1.0, -2.0, 0.0])
        regularizer = ez.Regularizer(model, ez.L1(0.5) + ez.L1(0.25))
        regularizer.add_gradient()
        assert model.weight.grad is not None
        assert model.weight.grad.tolist() == [[0.75, -0.75, 0.0]]
        assert not model.weight.grad.requires_grad
        assert model.bias.grad is None

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("block", [1, 5, 1 << 15])
    def test_add_gradient_in_blocks_is_the_gradient_of_the_whole(
        self, block, memory_format, monkeypatch
    ):
        monkeypatch.setattr(blocks_module, "CACHED", block)
        model = small_network().to(memory_format=memory_format)
        penalty = ez.L0(0.1, beta=7) + ez.L2(0.5)
        regularizer = ez.Regularizer(model, penalty)
        task_loss(model).backward()
        before = {name: model.get_parameter(name).grad.clone() for name in regularizer.weights}
        regularizer.add_gradient()
        for name, w in regularizer.weights.items():
            expected = before[name] + penalty.gradient(w.detach())
            torch.testing.assert_close(w.grad, expected, rtol=1e-14, atol=1e-15)

    def test_a_penalty_that_is_not_elementwise_sees_the_whole_weight(self, monkeypatch):
        @dataclass(frozen=True)
        class SquareOfSum(Term):
            elementwise: ClassVar[bool] = False

            def value(self, w):
                return self.strength * w.sum().square()

            def gradient(self, w):
                return torch.full_like(w, 2 * self.strength * w.sum().item())

        monkeypatch.setattr(blocks_module, "CACHED", 2)
        model, _ = line([1.0, 2.0, 3.0])
        ez.Regularizer(model, SquareOfSum(0.5)).add_gradient()
        assert model.weight.grad.tolist() == [[6.0, 6.0, 6.0]]

    def test_value_is_the_whole_penalty_without_a_graph(self):
        model, _ = line([0.0, 1.0, -2.0, 3.0])
        penalty = (
            ez.L0(2.0, beta=LN2, form="decoupled")  # 17/4, see cases.py
            + ez.L1(2.0, form="loss")  # 12
            + ez.L2(0.5)  # 7
        )
        value = ez.Regularizer(model, penalty).value()
        assert value.item() == pytest.approx(4.25 + 12 + 7, rel=1e-14)
        assert value.shape == ()
        assert not value.requires_grad

    def test_bias_and_normalization_are_untouched(self):
        model = small_network()
        before = copy.deepcopy(model.state_dict())
        penalty = ez.L0(0.1) + ez.L1(0.1, form="decoupled")
        regularizer = ez.Regularizer(model, penalty)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        regularizer.add_gradient()
        optimizer.step()
        regularizer.step(optimizer)
        changed = {
            key for key, tensor in model.state_dict().items() if not tensor.equal(before[key])
        }
        assert changed == {"0.weight", "4.weight", "6.weight"}

    def test_acts_on_the_weights_given(self):
        model = small_network()
        weights = ez.select(model, include=["4.weight", "6.bias"])
        ez.Regularizer(model, ez.L1(1.0), weights=weights).add_gradient()
        got = [name for name, p in model.named_parameters() if p.grad is not None]
        assert got == ["4.weight", "6.bias"]

    @pytest.mark.parametrize("penalty", [None, 1e-5, "l0", ez.L0, [ez.L0(1.0)]])
    def test_a_penalty_that_is_none(self, penalty):
        with pytest.raises(ez.EllzeroError, match="expected a penalty such as"):
            ez.Regularizer(nn.Linear(2, 2), penalty)

    def test_nothing_to_act_on(self):
        with pytest.raises(ez.EllzeroError, match="no weights selected"):
            ez.Regularizer(nn.BatchNorm1d(2), ez.L0(1.0))


class TestDecoupledStep:
    @pytest.mark.parametrize("rates", [(0.5, 0.125), (torch.tensor(0.5), torch.tensor(0.125))])
    def test_uses_each_groups_learning_rate(self, rates):
        model: Any = nn.Sequential(nn.Linear(3, 1), nn.Linear(3, 1)).double()
        for layer in model:
            fill(layer.weight, [1.0, -0.25, 0.0])
        groups = [
            {"params": layer.parameters(), "lr": lr} for layer, lr in zip(model, rates, strict=True)
        ]
        optimizer = torch.optim.Adam(groups)
        ez.Regularizer(model, ez.L1(1.0, form="decoupled")).step(optimizer)
        assert model[0].weight.tolist() == [[0.5, 0.0, 0.0]]
        assert model[1].weight.tolist() == [[0.875, -0.125, 0.0]]

    def test_follows_a_scheduler(self):
        model, optimizer = line([1.0], lr=0.5)
        regularizer = ez.Regularizer(model, ez.L1(1.0, form="decoupled"))
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        regularizer.step(optimizer)
        optimizer.step()
        scheduler.step()
        regularizer.step(optimizer)
        assert model.weight.item() == 1 - 0.5 - 0.25

    def test_is_not_rescaled_by_adam(self):
        model, _ = line([1.0, -1.0])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
        regularizer = ez.Regularizer(model, ez.L1(0.25, form="decoupled"))
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        regularizer.step(optimizer)
        assert model.weight.tolist() == [[0.875, -0.875]]

    def test_a_weight_that_no_group_owns_is_named(self):
        model: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
        regularizer = ez.Regularizer(model, ez.L1(1.0, form="decoupled"))
        with pytest.raises(ez.EllzeroError, match=r"1\.weight is in no parameter group"):
            regularizer.step(optimizer)
        only_owned = ez.select(model, exclude=["1.*"])
        ez.Regularizer(model, ez.L1(1.0, form="decoupled"), weights=only_owned).step(optimizer)

    def test_makes_exact_zeros_and_pruned_weights_stay(self):
        model = small_network()
        masks = ez.prune(model, sparsity=0.5)
        zeros = {name: w == 0 for name, w in masks.weights.items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        regularizer = ez.Regularizer(model, ez.L0(0.1, beta=5, form="decoupled"))
        before = masks.nonzeros
        for _ in range(3):
            regularizer.step(optimizer)
        assert all((w[zeros[name]] == 0).all() for name, w in masks.weights.items())
        after = sum(int(w.count_nonzero()) for w in masks.weights.values())
        assert 0 < after < before


class TestFrozenWeights:
    @pytest.mark.parametrize("form", ["gradient", "loss", "decoupled"])
    def test_a_weight_frozen_later_is_left_alone(self, form):
        model: Any = nn.Sequential(
            nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        ).double()
        for layer in model:
            fill(layer.weight, [1.0, 1.0])
        regularizer = ez.Regularizer(model, ez.L1(1.0, form=form))
        model[0].weight.requires_grad_(False)
        assert regularizer.value().item() == 2
        assert regularizer.loss().item() == (2 if form == "loss" else 0)
        regularizer.add_gradient()
        assert model[0].weight.grad is None
        regularizer.step(torch.optim.SGD(model.parameters(), lr=0.5))
        assert model[0].weight.tolist() == [[1.0, 1.0]]
        assert model[1].weight.tolist() == [[0.5, 0.5] if form == "decoupled" else [1.0, 1.0]]

    def test_a_frozen_weight_in_no_group_is_no_error(self):
        model: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        regularizer = ez.Regularizer(model, ez.L1(1.0, form="decoupled"))
        model[1].weight.requires_grad_(False)
        before = [layer.weight.detach().clone() for layer in model]
        regularizer.step(torch.optim.SGD(model[0].parameters(), lr=0.1))
        assert not model[0].weight.equal(before[0])
        assert model[1].weight.equal(before[1])


class TestRamp:
    def test_all_strengths_rise_with_progress(self):
        model, optimizer = line([1.0, -1.0], lr=0.5)
        penalty = ez.L1(1.0) + ez.L1(2.0, form="loss") + ez.L1(0.5, form="decoupled") + ez.L2(4.0)
        regularizer = ez.Regularizer(model, penalty, ramp=ez.Schedule(0, 1, "linear", until=0.5))
        # progress 0.125 of 0.5: a quarter of each strength
        for progress, factor in ((0.0, 0.0), (0.125, 0.25), (0.5, 1.0), (1.0, 1.0)):
            fill(model.weight, [1.0, -1.0])
            optimizer.zero_grad()
            regularizer.progress = progress
            assert regularizer.value().item() == factor * (2 + 4 + 1 + 8)
            assert regularizer.loss().item() == factor * 4
            regularizer.add_gradient()
            assert model.weight.grad.tolist() == [[factor * 9, factor * -9]]
            regularizer.step(optimizer)
            assert model.weight.tolist() == [[1 - factor / 4, -1 + factor / 4]]

    @pytest.mark.parametrize("ramp", [0.5, ez.Schedule(0, -1), ez.Schedule(-1, 1)])
    def test_what_is_no_ramp_is_refused(self, ramp):
        with pytest.raises(ez.InputError, match=r"ramp is .*; expected a schedule of factors >= 0"):
            ez.Regularizer(nn.Linear(2, 2), ez.L1(0.1), ramp=ramp)

    def test_without_one_progress_is_of_no_account(self):
        model, _ = line([1.0, -1.0])
        regularizer = ez.Regularizer(model, ez.L1(1.0))
        assert regularizer.progress is None
        assert regularizer.value().item() == 2

    def test_with_one_progress_must_be_said(self):
        model, _ = line([1.0, -1.0])
        regularizer = ez.Regularizer(model, ez.L1(1.0), ramp=ez.Schedule(0, 1, "linear"))
        with pytest.raises(ez.InputError, match="set progress"):
            regularizer.add_gradient()


def test_half_precision_does_not_overflow_in_the_sum():
    model = nn.Linear(400, 400, bias=False, dtype=torch.float16)
    nn.init.ones_(model.weight)
    # 160,000 weights, beyond float16's largest number 65,504
    assert ez.Regularizer(model, ez.L1(1.0)).value().item() == 160_000


def test_works_after_a_gradient_scaler_unscaled():
    def train(scale: float | None) -> nn.Module:
        model = small_network(dtype=torch.float32)
        penalty = ez.L0(0.02, beta=7) + ez.L1(0.01, form="loss") + ez.L1(0.01, form="decoupled")
        regularizer = ez.Regularizer(model, penalty)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for seed in range(3):
            optimizer.zero_grad()
            scaler.scale(task_loss(model, seed) + regularizer.loss()).backward()
            scaler.unscale_(optimizer)
            regularizer.add_gradient()
            scaler.step(optimizer)
            regularizer.step(optimizer)
            scaler.update()
        return model

    scaled, plain = train(2.0**12), train(None)
    for got, expected in zip(scaled.parameters(), plain.parameters(), strict=True):
        assert got.equal(expected), "a power of two scales float32 without rounding"


def test_works_under_autocast():
    model = small_network(dtype=torch.float32)
    regularizer = ez.Regularizer(model, ez.L0(0.1, form="loss") + ez.L2(0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task_loss(model).float() + regularizer.loss()
    loss.backward()
    regularizer.add_gradient()
    w = model[4].weight
    assert w.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_half_precision(dtype):
    model: Any = nn.Linear(2, 1, bias=False).to(dtype)
    fill(model.weight, [1.0, -2.0])
    penalty = ez.L1(0.5) + ez.L1(0.5, form="loss") + ez.L1(0.5, form="decoupled")
    regularizer = ez.Regularizer(model, penalty)
    assert regularizer.loss().dtype == torch.float32
    regularizer.loss().backward()
    regularizer.add_gradient()
    assert model.weight.grad.tolist() == [[1.0, -1.0]]
    regularizer.step(torch.optim.SGD(model.parameters(), lr=0.5))
    assert model.weight.dtype == dtype
    assert model.weight.tolist() == [[0.75, -1.75]]


def test_tied_weights_count_once():
    model: Any = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    model[1].weight = model[0].weight
    fill(model[0].weight, [[1.0, -2.0], [0.0, 3.0]])
    regularizer = ez.Regularizer(model, ez.L1(1.0) + ez.L1(1.0, form="decoupled"))
    assert regularizer.value().item() == 12  # 6 for each of the two terms
    regularizer.add_gradient()
    assert model[0].weight.grad.tolist() == [[1.0, -1.0], [0.0, 1.0]]
    regularizer.step(torch.optim.SGD(model.parameters(), lr=0.5))
    assert model[1].weight.tolist() == [[0.5, -1.5], [0.0, 2.5]]


def test_nothing_of_the_network_changes():
    model, (x, _) = small_network().eval(), batch()
    before, output = anatomy(model), model(x)
    regularizer = ez.Regularizer(model, ez.L0(0.1) + ez.L0(0.1, form="decoupled"))
    assert anatomy(model) == before
    assert model(x).equal(output)
    regularizer.add_gradient()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step()
    regularizer.step(optimizer)
    assert anatomy(model) == before


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_the_network_can_be_copied_and_pickled(twin_of):
    model, (x, _) = small_network().eval(), batch()
    regularizer = ez.Regularizer(model, ez.L0(0.1, form="decoupled"))
    regularizer.add_gradient()
    twin = twin_of(model)
    assert twin(x).equal(model(x))
    before = copy.deepcopy(twin.state_dict())
    regularizer.step(torch.optim.SGD(model.parameters(), lr=0.5))
    assert not twin[4].weight.equal(model[4].weight), "the copy is not regularized"
    assert all(tensor.equal(before[key]) for key, tensor in twin.state_dict().items())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_add_gradient_before_backward_is_noticed_once(set_to_none):
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loop(regularizer: ez.Regularizer, *, backward_first: bool) -> None:
        for _ in range(3):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss = model(torch.ones(2, 2, 5, 5, dtype=torch.float64)).square().sum()
            if backward_first:
                loss.backward()
            regularizer.add_gradient()
            if not backward_first:
                loss.backward()
            optimizer.step()

    with pytest.warns(
        ez.EllzeroWarning, match=r"no gradient of the loss.*after loss\.backward"
    ) as w:
        loop(ez.Regularizer(model, ez.L0(0.1)), backward_first=False)
    assert [Path(warned.filename).name for warned in w] == ["test_regularizer.py"]
    model.zero_grad(set_to_none=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(ez.Regularizer(model, ez.L0(0.1)), backward_first=True)
        loop(ez.Regularizer(model, ez.L0(0.1, form="loss")), backward_first=False)


def test_a_sparse_gradient_is_refused_and_left_to_the_decoupled_form():
    embedding = nn.Embedding(9, 4, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    weights = ez.select(embedding, include=["weight"])
    embedding(torch.tensor([1, 3])).sum().backward()
    regularizer = ez.Regularizer(embedding, ez.L1(0.1), weights=weights)
    with pytest.raises(ez.InputError, match=r"^weight has a sparse gradient.*'decoupled'"):
        regularizer.add_gradient()
    decoupled = ez.Regularizer(embedding, ez.L1(0.1, form="decoupled"), weights=weights)
    before = embedding.weight.detach().clone()
    decoupled.add_gradient()
    decoupled.step(optimizer)
    expected = before.sign() * (before.abs() - 0.01).relu()
    torch.testing.assert_close(embedding.weight.detach(), expected)


def test_the_state_of_something_else_is_refused():
    regularizer = ez.Regularizer(small_network(), ez.L0(0.1))
    for state in ({}, small_network().state_dict()):
        with pytest.raises(ez.InputError, match=r"the state has the keys .*remainders, gates"):
            regularizer.load_state_dict(state)


def test_frozen_weights_do_not_use_up_the_look_for_gradients():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    regularizer = ez.Regularizer(model, ez.L0(0.1), weights=ez.select(model, include=["0.weight"]))
    model[0].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.ones(1, 3)).sum().backward()
        regularizer.add_gradient()
    model[0].requires_grad_(True)
    with pytest.warns(ez.EllzeroWarning, match="no gradient"):
        regularizer.add_gradient()
