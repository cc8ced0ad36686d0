"""What every kind of gates in `GATES` must satisfy; a new one needs a case in `cases.py`."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import ellzero as ez
from cases import GATES_CASES, anatomy, fill, small_network
from ellzero.regularizers import GATES, BoundGates, Gates
from small import (
    classification,
    convnet,
    dropout_mlp,
    images,
    metrics_of,
    mlp,
    nonzero_weights,
    recipe,
    tensors_equal,
)

pytestmark = pytest.mark.filterwarnings("ignore:add_gradient")  # there is no loss here

each_kind = pytest.mark.parametrize("name", GATES_CASES)
each_gates = pytest.mark.parametrize("gates", [c.gates for c in GATES_CASES.values()], ids=str)


def bound(regularizer: ez.Regularizer) -> BoundGates:
    assert regularizer.gates is not None
    return regularizer.gates


def image_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (6,), generator=generator)


def task_loss(model: nn.Module, seed: int = 0) -> Tensor:
    x, y = image_batch(seed)
    return nn.functional.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)


def train(
    model: nn.Module,
    regularizer: ez.Regularizer,
    loss: Callable[[nn.Module], Tensor] = task_loss,
    *,
    steps: int = 3,
    lr: float = 0.05,
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        regularizer.before_forward()
        loss(model).backward()
        regularizer.add_gradient()
        optimizer.step()
        regularizer.step(optimizer)


def test_every_kind_has_a_case():
    assert GATES_CASES.keys() == GATES.keys()
    for name, case in GATES_CASES.items():
        assert type(case.gates) is GATES[name]
        assert case.gates.strength > 0


# any network


@each_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_networks_of_any_precision_and_format(name, dtype, memory_format):
    case = GATES_CASES[name]
    model: Any = small_network(dtype=dtype).to(memory_format=memory_format)
    regularizer = ez.Regularizer(model, gates=case.gates)
    count = 72 + 288 + 24
    assert regularizer.value().item() == pytest.approx(count * case.beginning, rel=1e-5)
    own = bound(regularizer).own
    before = {key: tensor.clone() for key, tensor in own.items()}
    weights = copy.deepcopy(model.state_dict())
    train(model, regularizer)
    assert all(tensor.isfinite().all() for tensor in own.values())
    # Adam's epsilon would be 0 in half precision
    least = torch.float64 if dtype == torch.float64 else torch.float32
    assert {tensor.dtype for tensor in own.values()} == {least}
    assert not all(tensor.equal(before[key]) for key, tensor in own.items())
    assert not any(model.get_parameter(n).equal(weights[n]) for n in regularizer.weights)
    with regularizer.finalized():
        finalized = copy.deepcopy(model.state_dict())
    assert not any(model.get_parameter(n).equal(finalized[n]) for n in regularizer.weights)
    regularizer.finalize()
    for key, tensor in model.state_dict().items():
        assert tensor.equal(finalized[key])
        assert tensor.isfinite().all()
        assert tensor.dtype == weights[key].dtype
        assert tensor.stride() == weights[key].stride()
    assert model[0].weight.is_contiguous(memory_format=memory_format)


@each_gates
def test_the_memory_format_makes_no_difference_without_noise(gates):
    ends = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = small_network().to(memory_format=memory_format)
        regularizer = ez.Regularizer(model, gates=gates)
        for key, tensor in bound(regularizer).own.items():
            generator = torch.Generator().manual_seed(len(key))
            fill(tensor, torch.rand(tensor.numel(), generator=generator, dtype=torch.float64))
        value = regularizer.value()
        regularizer.finalize()
        ends.append((value, model.state_dict()))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-12, atol=0)
    for key, tensor in ends[0][1].items():
        torch.testing.assert_close(tensor, ends[1][1][key], rtol=1e-12, atol=0)


@each_kind
def test_half_precision_does_not_overflow_in_the_sum(name):
    case = GATES_CASES[name]
    model = nn.Linear(1000, 1000, bias=False, dtype=torch.float16)
    value = ez.Regularizer(model, gates=case.gates).value().item()
    # beyond float16's largest number 65,504
    assert value == pytest.approx(1_000_000 * case.beginning, rel=1e-4)


@each_kind
def test_tied_weights_have_one_set_of_gates(name):
    model: Any = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    alone = ez.Regularizer(nn.Linear(3, 3, bias=False), gates=GATES_CASES[name].gates)
    regularizer = ez.Regularizer(model, gates=GATES_CASES[name].gates)
    assert len(bound(regularizer).own) == len(bound(alone).own)
    assert regularizer.value().item() == pytest.approx(9 * GATES_CASES[name].beginning)
    train(model, regularizer, lambda m: m(torch.ones(1, 3)).square().sum())
    regularizer.finalize()
    assert model[2].weight is model[0].weight


@each_gates
def test_frozen_weights_have_no_gates(gates):
    model: Any = small_network()
    model[4].weight.requires_grad_(False)
    before = model[4].weight.clone()
    regularizer = ez.Regularizer(model, gates=gates)
    assert not any("4.weight" in key for key in bound(regularizer).own)
    train(model, regularizer)
    regularizer.finalize()
    assert model[4].weight.equal(before)
    assert model[4].weight.grad is None


@each_kind
def test_a_weight_frozen_later_is_left_alone(name):
    case, model = GATES_CASES[name], small_network()
    regularizer = ez.Regularizer(model, gates=case.gates)
    train(model, regularizer)
    with regularizer.finalized():
        assert not model[4].weight.equal(copy.deepcopy(small_network())[4].weight)
    model[4].weight.requires_grad_(False)
    model[4].weight.grad = None
    before = model[4].weight.clone()
    own = {k: t.clone() for k, t in bound(regularizer).own.items() if "4.weight" in k}
    fresh = ez.Regularizer(small_network(), gates=case.gates)
    for parameter in (p for n, p in fresh.weights.items() if n == "4.weight"):
        parameter.requires_grad_(False)
    assert fresh.value().item() == pytest.approx((72 + 24) * case.beginning)
    regularizer.before_forward()
    assert model[4].weight.equal(before)
    regularizer.add_gradient()
    train(model, regularizer)
    with regularizer.finalized():
        assert model[4].weight.equal(before)
    regularizer.finalize()
    assert model[4].weight.equal(before)
    assert model[4].weight.grad is None
    assert own
    assert all(bound(regularizer).own[key].equal(tensor) for key, tensor in own.items())


@each_gates
def test_it_acts_on_the_weights_given(gates):
    model = small_network()
    before = copy.deepcopy(model.state_dict())
    weights = ez.select(model, include=["6.weight"])
    regularizer = ez.Regularizer(model, gates=gates, weights=weights)
    torch.manual_seed(0)
    regularizer.before_forward()
    regularizer.add_gradient()
    regularizer.step(torch.optim.SGD(model.parameters(), lr=0.1))
    regularizer.finalize()
    changed = [name for name, w in model.state_dict().items() if not w.equal(before[name])]
    assert changed == ["6.weight"]


# what is left alone


@each_gates
def test_the_users_network_stays_what_it_is(gates):
    model, (x, _) = small_network(), image_batch()
    before, keys, kind = anatomy(model), list(model.state_dict()), type(model)
    regularizer = ez.Regularizer(model, gates=gates)
    assert anatomy(model) == before
    regularizer.before_forward()
    assert anatomy(model) == before
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.eval()(x).equal(model.eval()(x))
    regularizer.add_gradient()
    train(model, regularizer)
    with regularizer.finalized():
        assert anatomy(model) == before
    regularizer.finalize()
    assert anatomy(model) == before
    assert (type(model), list(model.state_dict())) == (kind, keys)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert tensors_equal(twin, model)
        assert twin.eval()(x).equal(model.eval()(x))


# beside a penalty


@each_kind
def test_a_penalty_beside_it_acts_on_the_weights_themselves(name):
    case, found = GATES_CASES[name], []
    for penalty in (None, ez.L2(0.5)):
        model = small_network()
        before = {n: w.detach().clone() for n, w in ez.select(model).items()}
        regularizer = ez.Regularizer(model, penalty, gates=case.gates)
        torch.manual_seed(2)
        regularizer.before_forward()
        task_loss(model).backward()
        regularizer.add_gradient()
        gradients = {n: w.grad for n, w in regularizer.weights.items()}
        found.append((regularizer.value().item(), gradients, before))
    (value, plain, w), (both, more, _) = found
    squares = sum(float(t.square().sum()) for t in w.values())
    assert both == pytest.approx(value + 0.5 * squares, rel=1e-12)
    for key, tensor in w.items():
        # the derivative of w^2 / 2 is w, whatever the forward pass saw
        torch.testing.assert_close(more[key] - plain[key], tensor, rtol=1e-9, atol=1e-12)


@each_gates
def test_a_decoupled_penalty_beside_it_takes_its_step(gates):
    ends = []
    for penalty in (None, ez.L1(0.1, form="decoupled")):
        model: Any = nn.Linear(3, 1, bias=False)
        fill(model.weight, [1.0, -2.0, 0.01])
        regularizer = ez.Regularizer(model, penalty, gates=gates)
        train(model, regularizer, lambda m: 0 * m(torch.ones(1, 3)).sum(), steps=1, lr=0.5)
        ends.append(model.weight[0].tolist())
    assert ends[0] == pytest.approx([1.0, -2.0, 0.01])
    assert ends[1] == pytest.approx([0.95, -1.95, 0.0])


def test_without_gates_its_methods_do_nothing():
    model = small_network()
    before = copy.deepcopy(model.state_dict())
    regularizer = ez.Regularizer(model, ez.L0(0.1))
    assert regularizer.gates is None
    regularizer.before_forward()
    regularizer.before_forward()
    with regularizer.finalized():
        pass
    regularizer.finalize()
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_neither_penalty_nor_gates():
    with pytest.raises(ez.InputError, match="penalty is None; expected a penalty such as"):
        ez.Regularizer(nn.Linear(2, 2))


@pytest.mark.parametrize("nonsense", [1e-5, "pmmp", ez.PMMP, [ez.PMMP(1.0)], ez.L0(1.0), {}])
@pytest.mark.parametrize("penalty", [None, ez.L0(1.0)])
def test_gates_that_are_none(nonsense, penalty):
    with pytest.raises(ez.InputError, match="expected gates such as") as caught:
        ez.Regularizer(nn.Linear(2, 2), penalty, gates=nonsense)
    assert "\n" not in str(caught.value)


@each_gates
def test_gates_are_no_penalty(gates):
    with pytest.raises(ez.InputError, match="expected a penalty such as"):
        ez.Regularizer(nn.Linear(2, 2), gates)


@each_gates
def test_a_ramp_needs_to_know_where_the_training_is(gates):
    regularizer = ez.Regularizer(nn.Linear(2, 2), gates=gates, ramp=ez.Schedule(0, 1, "linear"))
    with pytest.raises(ez.InputError, match="set progress"):
        regularizer.value()
    regularizer.before_forward()
    with pytest.raises(ez.InputError, match="set progress"):
        regularizer.add_gradient()


# through the whole scheme


def told(gates: Gates, **tables: Any) -> ez.Recipe:
    name = next(n for n, cls in GATES.items() if cls is type(gates))
    table = {name: {"strength": 0.003}}
    return recipe(train={"penalty": {"l2": {"strength": 1e-5}}, "gates": table}, **tables)


@each_gates
@pytest.mark.parametrize(
    ("prune", "left"),
    [
        ({"nonzeros": 20, "rounds": 2}, 20),
        ({"sparsity": 0.75, "scope": "layer"}, 24 + 12),
        ({"sparsity": 0.0}, 144),
    ],
)
def test_a_run_ends_in_plain_weights_and_the_count_asked_for(gates, prune, left, tmp_path):
    model = dropout_mlp()
    result = ez.compress(model, classification(), told(gates, prune=prune), folder=tmp_path)
    found = nonzero_weights(result.model)
    assert found == result.record.nonzeros == result.masks.nonzeros
    if left == 144:  # gates may have shut before
        assert found <= left
    else:
        assert found == left
    assert type(result.model) is nn.Sequential
    assert list(result.model.state_dict()) == list(model.state_dict())
    for file in ("model.safetensors", "trained.safetensors", "reference.safetensors"):
        with safe_open(tmp_path / file, "pt") as opened:
            assert sorted(opened.keys()) == sorted(model.state_dict())
    assert tensors_equal(ez.load(tmp_path / "model.safetensors", dropout_mlp(3)), result.model)
    assert ez.Recipe.read(tmp_path / "recipe.toml").train.gates == told(gates).train.gates


@each_gates
def test_the_metrics_are_those_of_the_network_without_gates(gates, tmp_path):
    run = told(gates, prune={"sparsity": 0.0}, finetune={"epochs": 0})
    ez.compress(mlp(), classification(), run, folder=tmp_path)
    lines = metrics_of(tmp_path)
    last = next(m for m in reversed(lines) if m["stage"] == "train")
    tuned = next(m for m in lines if m["stage"] == "finetune")
    for key in ("nonzeros", "validation_loss", "validation_score"):
        assert last[key] == tuned[key], "finalized at each epoch, and for good at the end"
    trained = ez.load(tmp_path / "trained.safetensors", mlp(seed=8))
    assert nonzero_weights(trained) == last["nonzeros"]
    penalties = [m["penalty"] for m in lines if m["stage"] == "train"]
    assert all(0 < p <= 0.003 * 144 * 1.1 for p in penalties)
    assert all(m["penalty"] < 1e-3 for m in lines if m["stage"] != "train"), "l2 alone"


@each_gates
@pytest.mark.parametrize(("channels_last", "precision"), [(True, "float32"), (False, "bfloat16")])
def test_convolutions_in_either_format_and_precision(gates, channels_last, precision):
    run = told(gates, channels_last=channels_last, precision=precision, prune={"sparsity": 0.6})
    result = ez.compress(convnet(), images(), run)
    assert result.record.nonzeros == nonzero_weights(result.model) == round(0.4 * 396)
    assert result.record.compressed.validation.score > 0.7
    kernel = result.model.get_parameter("3.weight")
    assert kernel.is_contiguous(memory_format=torch.channels_last) is channels_last


@each_gates
def test_a_training_of_no_epochs_ends_in_plain_weights(gates):
    name = next(n for n, cls in GATES.items() if cls is type(gates))
    run = recipe(
        train={"epochs": 0, "penalty": {}, "gates": {name: {"strength": 0.1}}},
        prune={"nonzeros": 20},
        finetune={"epochs": 0},
    )
    assert nonzero_weights(ez.compress(mlp(), classification(), run).model) == 20


@each_gates
def test_a_loss_that_is_not_finite_names_the_gates(gates):
    def fails(outputs, targets):
        loss = nn.functional.cross_entropy(outputs, targets)
        return loss * float("nan") if torch.is_grad_enabled() else loss

    with pytest.raises(ez.DivergenceError, match=f"{type(gates).__name__} strength 0.003"):
        ez.compress(mlp(), classification(loss=fails), told(gates), reference=mlp(seed=4))


def task_gradients(regularizer: ez.Regularizer, model: nn.Module) -> None:
    regularizer.before_forward()
    task_loss(model).backward()
    regularizer.add_gradient()


@each_gates
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_before_add_gradient_leaves_the_weights_as_they_were(gates, error):
    model = small_network()
    regularizer = ez.Regularizer(model, gates=gates)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, regularizer)
    before = copy.deepcopy(model.state_dict())

    def fails() -> None:
        with regularizer.before_forward():
            task_loss(model)
            raise error("out of memory, or an interrupt")

    with pytest.raises(error):
        fails()
    for name, _ in model.named_parameters():
        assert model.state_dict()[name].equal(before[name])
    with regularizer.before_forward():  # and the next batch goes on
        task_loss(model).backward()
    regularizer.add_gradient()
    optimizer.step()
    regularizer.step(optimizer)


@each_gates
def test_a_draw_is_taken_back_before_it_is_kept_for_good(gates):
    keeps = [
        lambda r: r.restore(),
        lambda r: r.finalize(),
        lambda r: r.finalized().__enter__(),
    ]
    results = []
    for keep in keeps:
        pair = []
        for is_drawn in (True, False):
            model = small_network()
            regularizer = ez.Regularizer(model, gates=gates)
            train(model, regularizer)
            torch.manual_seed(1)
            if is_drawn:
                regularizer.before_forward()
            block = keep(regularizer)  # held, or its end would put the weights back
            pair.append(model.state_dict())
            results.append(block)
        assert all(pair[0][name].equal(pair[1][name]) for name in pair[0])


@each_gates
def test_finalizing_twice_is_finalizing_once(gates):
    model = small_network()
    regularizer = ez.Regularizer(model, gates=gates)
    train(model, regularizer, steps=5)
    regularizer.finalize()
    plain = copy.deepcopy(model)
    regularizer.finalize()
    with regularizer.finalized():
        assert tensors_equal(model, plain)
    assert tensors_equal(model, plain)
    for call in (
        regularizer.before_forward,
        regularizer.add_gradient,
        lambda: regularizer.step(torch.optim.SGD(model.parameters(), lr=0.1)),
    ):
        with pytest.raises(ez.InputError, match=r"^finalize\(\) has turned the gates"):
            call()
    assert tensors_equal(model, plain)


@each_gates
def test_a_validation_within_another_is_of_the_same_weights(gates):
    model = small_network()
    regularizer = ez.Regularizer(model, gates=gates)
    train(model, regularizer, steps=5)
    before = copy.deepcopy(model)
    with regularizer.finalized():
        outer = copy.deepcopy(model)
        with regularizer.finalized():
            assert tensors_equal(model, outer)
        assert tensors_equal(model, outer)
        with pytest.raises(ez.InputError, match=r"^finalize\(\) within finalized\(\)"):
            regularizer.finalize()
    assert tensors_equal(model, before)


@each_gates
def test_the_state_goes_on_where_it_was_taken(gates):
    model, whole = small_network(), small_network()
    straight = ez.Regularizer(whole, gates=gates)
    for seed in (0, 1):
        train_seeded(whole, straight, seed)
    first = ez.Regularizer(model, gates=gates)
    train_seeded(model, first, 0)
    state = copy.deepcopy(first.state_dict())
    second = ez.Regularizer(model, gates=gates)
    second.load_state_dict(state)
    train_seeded(model, second, 1)
    assert tensors_equal(model, whole)
    with pytest.raises(ez.InputError, match="is of other gates"):
        ez.Regularizer(nn.Linear(3, 2), gates=gates).load_state_dict(state)
    with pytest.raises(ez.InputError, match=r"with gates; this one has no gates"):
        ez.Regularizer(model, ez.L1(0.1)).load_state_dict(state)


@each_gates
def test_a_state_taken_within_a_step_does_not_disturb_it(gates):
    model, straight = small_network(), small_network()
    for network in (model, straight):
        regularizer = ez.Regularizer(network, gates=gates)
        torch.manual_seed(0)
        regularizer.before_forward()
        if network is model:
            regularizer.state_dict()
        task_loss(network).backward()
        regularizer.add_gradient()
    assert all(
        p.grad is not None and q.grad is not None and p.grad.equal(q.grad)
        for p, q in zip(model.parameters(), straight.parameters(), strict=True)
    )


def train_seeded(model: nn.Module, regularizer: ez.Regularizer, seed: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    torch.manual_seed(seed)
    for _ in range(3):
        optimizer.zero_grad()
        task_gradients(regularizer, model)
        optimizer.step()
        regularizer.step(optimizer)
