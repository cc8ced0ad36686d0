"""On a GPU: the same effects as on a CPU, where there is one."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from cases import small_network
from small import classification, convnet, images, mlp, recipe

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:add_gradient"),  # there is no loss here
]
DECOUPLED = [ez.L0(1.0, form="decoupled"), ez.GroupLasso(0.2, form="decoupled")]


@pytest.mark.parametrize("penalty", DECOUPLED, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_small_decoupled_steps_are_those_of_float32_rounded_once(penalty, dtype):
    model = nn.Linear(300, 40).cuda().to(dtype)
    exact = copy.deepcopy(model).float()
    before = model.weight.detach().clone()
    for network in (model, exact):
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-5)
        regularizer = ez.Regularizer(network, penalty)
        for _ in range(500):
            regularizer.step(optimizer)
    assert model.weight.detach().equal(exact.weight.detach().to(dtype))
    assert not model.weight.equal(before)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("together", [False, True])
def test_infinite_gradients_under_a_mask_leave_zeros(options, together):
    model = small_network(dtype=torch.float32).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, **options)
    masks = ez.prune(model, sparsity=0.6)
    regularizer = ez.Regularizer(model, DECOUPLED[0]) if together else None
    x = torch.randn(6, 2, 5, 5, device="cuda")
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
    model = small_network().cuda().eval()
    masks = ez.prune(model, sparsity=0.6)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, line_search_fn="strong_wolfe")
    x = torch.randn(6, 2, 5, 5, dtype=torch.float64, device="cuda")

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
    model = nn.Linear(500, 80, bias=False).cuda().to(dtype)
    above = sum(abs(w) > 0.0217 for w in model.weight.flatten().tolist())
    assert ez.prune(model, threshold=0.0217).nonzeros == above


def test_a_compiled_gradient_follows_a_schedule():
    model = nn.Linear(300, 40).cuda()
    plain = copy.deepcopy(model)
    penalty = ez.L0(2.0, beta=ez.Schedule(1.0, 9.0)) + ez.L2(0.1)
    for progress in (0.1, 0.9):
        for network, is_compiled in ((model, True), (plain, False)):
            network.zero_grad()
            regularizer = ez.Regularizer(network, penalty, compile=is_compiled)
            regularizer.progress = progress
            regularizer.add_gradient()
        torch.testing.assert_close(model.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [(mlp, classification), (convnet, images)], ids=["mlp", "conv"])
def test_the_whole_scheme_and_what_its_record_says(make, tmp_path):
    network, data = make
    told = recipe(device="cuda", precision="auto")
    result = ez.compress(network(), data(), told, folder=tmp_path / "run")
    assert result.record.recipe["precision"] == "bfloat16"
    assert result.record.living_nonzeros is not None
    assert result.record.living_nonzeros <= result.masks.nonzeros
    traced = result.trace()
    small = ez.compact(traced).model
    x = torch.randn(5, *traced.graph.input_shape, device="cuda")
    torch.testing.assert_close(small(x), traced(x), rtol=1e-4, atol=1e-5)
