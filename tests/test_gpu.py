"""On a GPU: the same effects as on a CPU, where there is one."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from cases import PENALTY_CASES, small_network
from ellzero.networks.lenet import lenet_5_caffe
from ellzero.preprocess import Preprocess
from on_gpu import GPU, MARKS, each_gradient, gradients, network
from small import classification, convnet, images, mlp, recipe

pytestmark = MARKS
DECOUPLED = [ez.L0(1.0, form="decoupled"), ez.GroupLasso(0.2, form="decoupled")]


# the same as on a CPU


@each_gradient
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 2**-7)],
    ids=["float64", "float32", "bfloat16"],
)
@pytest.mark.parametrize("layer_scale", [None, "paper"])
def test_the_gradient_is_that_of_a_cpu(penalty, dtype, rtol, layer_scale):
    on_cpu, on_gpu = network(dtype), network(dtype).to(GPU)
    before = gradients(on_cpu)
    for model in (on_cpu, on_gpu):
        ez.Regularizer(model, penalty, layer_scale=layer_scale).add_gradient()
    expected = gradients(on_cpu)
    for name, found in gradients(on_gpu).items():
        # relative to what is added up, for the sum may cancel
        scale = before[name].abs() + (expected[name] - before[name]).abs()
        assert ((found - expected[name]).abs() <= rtol * scale).all(), name
    assert not before["0.weight"].equal(expected["0.weight"])


@each_gradient
def test_the_loss_form_is_that_of_a_cpu(penalty):
    terms = [dataclasses.replace(term, form="loss") for term in penalty.terms]
    on_cpu, on_gpu = network(torch.float64), network(torch.float64).to(GPU)
    values = []
    for model in (on_cpu, on_gpu):
        loss = ez.Regularizer(model, sum(terms[1:], terms[0])).loss()
        loss.backward()
        values.append(loss.item())
    assert values[1] == pytest.approx(values[0], rel=1e-12)
    expected = gradients(on_cpu)
    for name, found in gradients(on_gpu).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [n for n, case in PENALTY_CASES.items() if case.shrunk])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rate", [0.01, torch.tensor(0.01)], ids=["number", "tensor on the CPU"])
def test_the_decoupled_step_is_that_of_a_cpu(name, dtype, rate):
    penalty = type(PENALTY_CASES[name].hand)(1.0, form="decoupled")
    found = []
    for device in ("cpu", GPU):
        model = network(dtype).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, foreach=False)
        regularizer = ez.Regularizer(model, penalty)
        for _ in range(3):
            regularizer.step(optimizer)
        found.append([w.detach().double().cpu() for w in model.parameters()])
    for here, there, w in zip(*found, network(dtype).parameters(), strict=True):
        if w.ndim < 2:
            continue
        # a bfloat16 may be rounded to either side of a half
        atol = 2**-7 * w.detach().double().abs() if dtype == torch.bfloat16 else 1e-6
        assert ((here - there).abs() <= atol).all()
        assert not there.equal(w.detach().double())


@pytest.mark.parametrize("gates", [ez.PMMP(1e-3), ez.HardConcrete(1e-2, rate=5.0)], ids=str)
def test_gates_learn_as_on_a_cpu(gates, monkeypatch):
    noise = torch.Generator()
    # the generators of the devices draw other numbers
    monkeypatch.setattr(
        torch, "rand_like", lambda t: torch.rand(t.shape, generator=noise, dtype=t.dtype).to(t)
    )
    found = []
    for device in ("cpu", GPU):
        noise.manual_seed(1)
        model = small_network(dtype=torch.float64).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        regularizer = ez.Regularizer(model, gates=gates)
        # a constant input would have no variance, by whose root batch normalization divides
        x = torch.randn(6, 2, 5, 5, dtype=torch.float64).to(device)
        for _ in range(5):
            optimizer.zero_grad()
            with regularizer.before_forward():
                model(x).square().mean().backward()
            regularizer.add_gradient()
            optimizer.step()
            regularizer.step(optimizer)
        regularizer.finalize()
        found.append([w.detach().cpu() for w in model.parameters()])
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-8)


# pruning

PRUNINGS: list[dict[str, Any]] = [
    {"sparsity": 0.9},
    {"nonzeros": 1001},
    {"threshold": 0.25},
    {"sparsity": 0.8, "scope": "layer"},
    {"sparsity": 0.98, "keep_per_layer": 40},
]


@pytest.mark.parametrize("asked", PRUNINGS, ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_masks_are_those_of_a_cpu_ties_included(asked, dtype):
    on_cpu = network(dtype)
    for w in on_cpu.parameters():
        w.data = (w.detach().double() * 200).round().div(64).to(dtype)  # a few values, many ties
    on_gpu = copy.deepcopy(on_cpu).to(GPU)
    here, there = ez.prune(on_cpu, **asked), ez.prune(on_gpu, **asked)
    assert there.nonzeros == here.nonzeros
    for name, mask in there.items():
        assert mask.device.type == torch.device(GPU).type
        assert mask.cpu().equal(here[name])
        assert on_gpu.get_parameter(name).cpu().equal(on_cpu.get_parameter(name))


NUMEL = 100_000_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_hundred_million_weights_are_pruned_as_on_a_cpu(dtype):
    torch.manual_seed(0)
    on_gpu = nn.Linear(NUMEL // 10_000, 10_000, bias=False, device=GPU, dtype=dtype)
    on_cpu = copy.deepcopy(on_gpu).cpu()
    here, there = ez.prune(on_cpu, sparsity=0.97), ez.prune(on_gpu, sparsity=0.97)
    assert there.nonzeros == 3 * NUMEL // 100
    assert there["weight"].cpu().equal(here["weight"])


# what was found on one first


@pytest.mark.parametrize("penalty", DECOUPLED, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_small_decoupled_steps_are_those_of_float32_rounded_once(penalty, dtype):
    model = nn.Linear(300, 40).to(GPU).to(dtype)
    exact = copy.deepcopy(model).float()
    before = model.weight.detach().clone()
    for one in (model, exact):
        optimizer = torch.optim.SGD(one.parameters(), lr=1e-5)
        regularizer = ez.Regularizer(one, penalty)
        for _ in range(500):
            regularizer.step(optimizer)
    assert model.weight.detach().equal(exact.weight.detach().to(dtype))
    assert not model.weight.equal(before)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("together", [False, True])
def test_infinite_gradients_under_a_mask_leave_zeros(options, together):
    model = small_network(dtype=torch.float32).to(GPU)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, **options)
    masks = ez.prune(model, sparsity=0.6)
    regularizer = ez.Regularizer(model, DECOUPLED[0]) if together else None
    x = torch.randn(6, 2, 5, 5, device=GPU)
    with masks.hold(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            for name, mask in masks.items():
                gradient = model.get_parameter(name).grad
                assert gradient is not None
                gradient[~mask] = torch.inf
            optimizer.step()
            if regularizer is not None:
                regularizer.step(optimizer, masks=masks)
            for name, mask in masks.items():
                assert int(model.get_parameter(name)[~mask].count_nonzero()) == 0


def test_lbfgs_sees_the_pruned_network():
    model = small_network().to(GPU).eval()
    masks = ez.prune(model, sparsity=0.6)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, line_search_fn="strong_wolfe")
    x = torch.randn(6, 2, 5, 5, dtype=torch.float64, device=GPU)

    def closure() -> Any:
        for name, mask in masks.items():
            assert int(model.get_parameter(name)[~mask].count_nonzero()) == 0
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    with masks.hold(optimizer):
        first = optimizer.step(closure).item()
        assert optimizer.step(closure).item() < first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_threshold_is_not_rounded(dtype):
    model = nn.Linear(500, 80, bias=False).to(GPU).to(dtype)
    above = sum(abs(w) > 0.0217 for w in model.weight.flatten().tolist())
    assert ez.prune(model, threshold=0.0217).nonzeros == above


def test_a_compiled_gradient_follows_a_schedule():
    model = nn.Linear(300, 40).to(GPU)
    plain = copy.deepcopy(model)
    penalty = ez.L0(2.0, beta=ez.Schedule(1.0, 9.0)) + ez.L2(0.1)
    for progress in (0.1, 0.9):
        for one, is_compiled in ((model, True), (plain, False)):
            one.zero_grad()
            regularizer = ez.Regularizer(one, penalty, compile=is_compiled)
            regularizer.progress = progress
            regularizer.add_gradient()
        torch.testing.assert_close(model.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-7)


def score_of(result: ez.Result) -> float:
    test = result.record.compressed.test
    assert test is not None
    return test.score


@pytest.mark.parametrize("first", ["cpu", GPU])
def test_a_run_goes_on_on_the_other_device(first, tmp_path):
    second = "cpu" if first == GPU else GPU
    tables = {"prune": {"nonzeros": 40, "rounds": 2}, "train": {"learning_rate": 0.01}}
    stops: list[int] = []

    def stop(metrics: Any) -> None:
        stops.append(metrics.epoch)
        if len(stops) == 6:
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ez.compress(
            mlp(), classification(), recipe(device=first, **tables), folder=folder, callback=stop
        )
    result = ez.compress(
        mlp(), classification(), recipe(device=second, **tables), folder=folder, resume=True
    )
    whole = ez.compress(mlp(), classification(), recipe(device=second, **tables))
    assert result.masks.nonzeros == whole.masks.nonzeros == 40
    assert abs(score_of(result) - score_of(whole)) <= 0.2
    for name, w in whole.model.state_dict().items():
        near = (result.model.state_dict()[name].cpu() - w.cpu()).abs()
        assert float(near.median()) <= 1e-3, name


def test_lenet_5_is_compressed_on_data_of_mnists_shape(tmp_path):
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 200, (10, 1, 28, 28), generator=generator)
    parts = []
    for count in (1280, 200, 200):
        y = torch.arange(count) % 10
        noise = torch.randint(0, 56, (count, 1, 28, 28), generator=generator)
        parts.append(((patterns[y] + noise).to(torch.uint8), y))
    told = recipe(
        device=GPU,
        precision="bfloat16",
        channels_last=True,
        train={"batch_size": 64, "learning_rate": 2e-3},
        prune={"sparsity": 0.98},
    )
    data = ez.Data(*parts, preprocess=Preprocess(1 / 255))
    result = ez.compress(lenet_5_caffe(), data, told, folder=tmp_path / "run")
    assert result.masks.nonzeros == round(0.02 * 430_500)
    score = score_of(result)
    assert score > 0.95
    loaded = ez.load(tmp_path / "run" / "model.safetensors", lenet_5_caffe())
    again = ez.evaluate(loaded, data, "test").score
    assert again is not None
    assert again == pytest.approx(score, abs=0.02)


@pytest.mark.parametrize("make", [(mlp, classification), (convnet, images)], ids=["mlp", "conv"])
def test_the_whole_scheme_and_what_its_record_says(make, tmp_path):
    network, data = make
    told = recipe(device=GPU, precision="auto")
    result = ez.compress(network(), data(), told, folder=tmp_path / "run")
    assert result.record.recipe["precision"] == "bfloat16"
    assert result.record.living_nonzeros is not None
    assert result.record.living_nonzeros <= result.masks.nonzeros
    traced = result.trace()
    small = ez.compact(traced).model
    x = torch.randn(5, *traced.graph.input_shape, device=GPU)
    torch.testing.assert_close(small(x), traced(x), rtol=1e-4, atol=1e-5)
