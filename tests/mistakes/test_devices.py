"""Devices that there are not, and networks that lie on them."""

import pytest
import torch
from torch import nn

import ellzero as ez
from small import classification, mlp, recipe

ELSEWHERE = {
    "gpu": "did you mean 'cuda'?",
    "GPU:0": "did you mean 'cuda'?",
    "cuda:99": "try 'auto' or 'cpu'",
    "mps": "try 'auto' or 'cpu'",
    "meta": "try 'auto' or 'cpu'",
    "hpu": "try 'auto' or 'cpu'",
    "cuda:first": "torch knows none of that name",
    "": "torch knows none of that name",
}


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="which has such a device")
@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_device_that_there_is_not_is_one_line_that_says_which_there_are(name, ellzero, project):
    line = ellzero("run", "mine.toml", "--set", f"device='{name}'").says()
    assert f"device {name!r} cannot be used: " in line
    assert ELSEWHERE[name] in line
    assert len(line) < 150
    assert not list(project.glob("runs/*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="which has such a device")
def test_cuda_without_cuda(ellzero):
    line = ellzero("run", "mine.toml", "--set", "device=cuda").says()
    assert "device 'cuda' cannot be used" in line


def on_meta() -> nn.Sequential:
    with torch.device("meta"):
        return mlp()


def test_a_network_without_values_is_refused_wherever_it_is_given():
    model = on_meta()
    for use in (
        lambda: ez.compress(model, classification(), recipe()),
        lambda: ez.prune(model, sparsity=0.5),
        lambda: ez.Regularizer(model, ez.L1(1e-4)),
        lambda: ez.evaluate(model, classification(), "validation"),
    ):
        with pytest.raises(ez.InputError, match="meta"):
            use()


def test_a_network_in_parts_on_two_devices_is_refused():
    model = mlp()
    model[2] = nn.Linear(16, 3, device="meta")
    with pytest.raises(ez.InputError, match="meta"):
        ez.compress(model, classification(), recipe())
