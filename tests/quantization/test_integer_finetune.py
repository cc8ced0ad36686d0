"""Networks of integers, fine-tuned: they get better, keep their zeros, and are still C's."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from c_programs import needs_gcc
from ellzero.graph import Graph, Network
from ellzero.operations.integer import Dequantize, Quantize
from ellzero.quantization.integer import IntegerForm
from integer_programs import check_integers
from small import blobs, classification, convnet, images, mlp, residual, tensors_equal, trained


def quantized_badly(data: ez.Data, factor: float) -> IntegerForm:
    """A trained network whose ranges were taken of inputs so many times as large as they are."""
    model = trained(data, mlp(seed=4))
    inputs = factor * blobs(60, 1)[0]
    return ez.quantize(model, activations=8, data=inputs, ranges="minmax")


def integers(form: IntegerForm) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in form.model.state_dict().items()}


@pytest.mark.parametrize("factor", [0.2, 40.0], ids=["values clipped", "steps too coarse"])
def test_a_network_that_was_quantized_badly_gets_better(factor):
    data = classification()
    form = quantized_badly(data, factor)
    floats = ez.evaluate(form.source.network, data)
    before = ez.evaluate(form.model, data)
    assert before.score < floats.score - 0.05, "the test needs a loss that there is"
    reached = form.finetune(data, epochs=15, learning_rate=1.0, batch_size=32)
    assert reached == ez.evaluate(form.model, data)
    assert reached.score > before.score + 0.5 * (floats.score - before.score)


def test_zeros_are_held_and_scales_are_those_of_the_network():
    data = classification()
    form = quantized_badly(data, 40.0)
    before, ranges = integers(form), dict(form.source.ranges)
    form.finetune(data, epochs=15, learning_rate=1.0, batch_size=32)
    after, weights = integers(form), ["0.weight", "2.weight"]
    for name in weights:
        zero = before[name] == 0
        assert 0.2 < zero.float().mean() < 0.8
        assert not after[name][zero].any()
        assert (after[name] != before[name]).any()
        assert int(after[name].abs().max()) == 127
    assert any((after[n] != before[n]).any() for n in after if n.endswith("bias"))
    assert form.source.ranges == ranges
    ends = {type(node.op): node.op for node in form.model.graph.nodes}
    op = ends[Dequantize]
    assert isinstance(op, Dequantize)
    assert form.scales["2"] == (op.scale, op.zero)


def test_the_network_that_was_quantized_stays_as_it_is():
    data = images()
    model = trained(data, convnet())
    before, state = copy.deepcopy(model), torch.get_rng_state()
    forms = [ez.quantize(model, activations=8, data=data) for _ in range(3)]
    for form, seed in zip(forms, (3, 3, 4), strict=True):
        form.finetune(data, epochs=2, learning_rate=1.0, batch_size=8, seed=seed)
    assert tensors_equal(model, before)
    assert model.training == before.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert tensors_equal(forms[0].model, forms[1].model), "deterministic by the seed"
    assert not tensors_equal(forms[0].model, forms[2].model)


def test_it_goes_on_from_what_was_kept():
    data = classification()
    form = quantized_badly(data, 40.0)
    first = form.finetune(data, epochs=5, learning_rate=1.0, batch_size=32)
    kept = integers(form)
    # as far as one step of 1e-6 int8 steps goes nothing changes
    form.finetune(data, epochs=1, learning_rate=1e-6, batch_size=60)
    assert all(torch.equal(kept[n], value) for n, value in integers(form).items())
    second = form.finetune(data, epochs=5, learning_rate=1.0, batch_size=32)
    assert not first.better_than(second)


def test_what_was_there_before_is_kept_where_no_epoch_is_better():
    data = classification()
    model = trained(data, mlp(seed=4))
    form = ez.quantize(model, activations=8, data=data)
    before, start = integers(form), ez.evaluate(form.model, data)
    assert form.finetune(data, epochs=2, learning_rate=1e4) == start
    assert all(torch.equal(before[n], value) for n, value in integers(form).items())


def test_an_interrupt_leaves_the_form_as_it_was():
    scored = []

    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        scored.append(1)
        if len(scored) == 4:
            raise KeyboardInterrupt
        return outputs.mean() * 0 + len(scored)  # each epoch is better than the one before

    form = quantized_badly(classification(score=score), 40.0)
    before, source = integers(form), form.source
    with pytest.raises(KeyboardInterrupt):
        form.finetune(classification(score=score), learning_rate=1.0)
    assert len(scored) == 4
    assert form.source is source
    assert all(torch.equal(before[n], value) for n, value in integers(form).items())


def test_a_softmax_that_was_left_out_is_in_the_loss():
    """With a loss that takes log-probabilities; that of the bare logits has no lower bound."""
    data = classification(loss=nn.NLLLoss())
    model = nn.Sequential(*trained(classification(), mlp(seed=4)), nn.LogSoftmax(1))
    form = ez.quantize(model, activations=8, data=40 * blobs(60, 1)[0], ranges="minmax")
    assert form.left_out
    before = ez.evaluate(nn.Sequential(form.model, nn.LogSoftmax(1)), data)
    reached = form.finetune(data, epochs=15, learning_rate=1.0, batch_size=32)
    assert reached.better_than(before)
    assert reached == ez.evaluate(nn.Sequential(form.model, nn.LogSoftmax(1)), data)


def test_layers_that_share_a_weight():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.inner(torch.relu(self.inner(x)))))

    data = classification()
    torch.manual_seed(0)
    form = ez.quantize(Twice(), activations=8, data=data)
    start = ez.evaluate(form.model, data)
    assert form.finetune(data, epochs=10, learning_rate=1.0, batch_size=32).better_than(start)
    shared = [n for n in form.model.graph.nodes if n.op.kind == "integer_linear"][:2]
    assert torch.equal(*(form.model.weight(node.weights["weight"]) for node in shared))


@needs_gcc
def test_its_c_computes_the_same_integers(tmp_path: Path):
    model, x = residual(), torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    data = ez.Data((x, torch.arange(64) % 3), (x, torch.arange(64) % 3))
    form = ez.quantize(model, activations=8, data=x)
    before = copy.deepcopy(form.model)
    form.finetune(data, epochs=6, learning_rate=0.5, batch_size=16)
    assert not tensors_equal(form.model, before)
    check_integers(tmp_path, {"net": of_integers(form.model)})


def of_integers(network: Network) -> Network:
    """The same network, of inputs and outputs that are the integers themselves."""
    nodes = [
        node.model_copy(update={"op": node.op.model_copy(update={"scale": 1.0, "zero": 0})})
        if isinstance(node.op, Quantize | Dequantize)
        else node
        for node in network.graph.nodes
    ]
    graph: Graph = network.graph.model_copy(update={"nodes": tuple(nodes)})
    return Network(graph, network.state_dict()).eval()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected a whole number >= 1"),
        ({"learning_rate": math.inf}, "learning_rate is inf; expected a finite number > 0"),
        ({"data": images()}, r"cannot take the data, train inputs of .*\(1, 2, 6, 6\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_named(options: dict[str, Any], message: str):
    form = ez.quantize(mlp(), activations=8, data=blobs(60, 1)[0])
    before = integers(form)
    with pytest.raises(ez.InputError, match=message):
        form.finetune(**{"data": classification(), **options})
    assert all(torch.equal(before[n], value) for n, value in integers(form).items())


def test_a_network_of_zeros_is_refused():
    model = mlp()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.zero_()  # type: ignore[union-attr, operator]
    with pytest.warns(ez.EllzeroWarning, match="the same for every input"):
        form = ez.quantize(model, activations=8, data=blobs(60, 1)[0])
    with pytest.raises(ez.InputError, match="no weight can be trained: all are zero"):
        form.finetune(classification())


def test_weights_that_become_nan_are_refused():
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.sqrt(outputs - outputs).mean()  # of which the gradient is NaN

    form = ez.quantize(mlp(), activations=8, data=blobs(60, 1)[0])
    before = integers(form)
    with pytest.raises(ez.DivergenceError, match=r"0\.weight became NaN .* lower learning_rate"):
        form.finetune(classification(loss=loss), epochs=1)
    assert all(torch.equal(before[n], value) for n, value in integers(form).items())
