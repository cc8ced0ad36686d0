"""What a run comes to: its traced network, and how much of it is left."""

import pytest
import torch
from torch import nn

import ellzero as ez
from c_programs import needs_gcc
from small import classification, convnet, images, mlp, recipe

# the traced network


@needs_gcc
def test_c_made_from_a_result_takes_raw_inputs(tmp_path):
    data = images(classes=("left", "right"))
    result = ez.compress(convnet(), data, recipe())
    small = ez.compact(result.trace()).model
    ez.export_c(small, tmp_path, name="net")
    raw = torch.randint(0, 256, (9, 2, 6, 6), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = result.model(raw.float() / 128 - 1)  # as images() are preprocessed
    assert torch.allclose(ez.compile_c(tmp_path)(raw.float()), expected, atol=1e-4)
    assert small.graph.classes == ("left", "right")


def test_a_result_of_data_without_preprocessing_is_traced_too():
    result = ez.compress(mlp(), classification(), recipe())
    network = result.trace()
    x = torch.randn(5, 6)
    assert torch.equal(network(x), result.model(x))
    assert (network.graph.preprocess, network.graph.classes) == (None, None)


# all parameters


class Scaled(nn.Module):
    """A linear layer under two names, and a scale that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.last = nn.Linear(6, 3)
        self.tied = self.last

    def forward(self, x):
        return self.last((x.view(-1, 3, 2) * self.scale).flatten(1))


def test_what_is_not_selected_counts_as_left():
    model = Scaled()
    model.last.bias.requires_grad_(False)
    result = ez.compress(model, classification(), recipe(prune={"nonzeros": 2}))
    # 18 weights, tied but counted once, 3 frozen biases and a scale of 2
    kept = sum(int((p != 0).sum()) for p in result.model.parameters())
    assert kept == 2 + 3 + 2
    record = result.record
    assert (record["weights"], record["nonzeros"]) == (18, 2)
    assert (record["parameters"], record["parameters_left"]) == (18 + 3 + 2, 7)
    assert record["parameter_ratio"] == pytest.approx(23 / 7)
    assert record["nonzero_ratio"] == 9


def test_a_zero_that_is_not_selected_counts_as_left():
    # a bias of zero is a bias; only selected weights can go
    model = mlp()
    with torch.no_grad():
        model.get_parameter("0.bias").zero_()
    told = recipe(train={"epochs": 0}, finetune={"epochs": 0}, prune={"nonzeros": 44})
    record = ez.compress(model, classification(), told, reference=model).record
    assert (record["parameters"], record["parameters_left"]) == (144 + 19, 44 + 19)
