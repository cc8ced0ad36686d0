"""ONNX of quantized networks: integers in QDQ form, int8 weights with a DequantizeLinear."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.errors import InputError
from ellzero.export import onnx_file
from ellzero.operations import Concat, Flatten, Pad
from integer_programs import IntegerBuilder, random_integer_network, random_integers


def run(path, x: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.asarray(session.run(None, {"input": x.numpy()})[0]))


def joined():
    b = IntegerBuilder((3, 5, 4))
    first = b.conv(3, (3, 3), before=(1, 1), after=(1, 1))
    second = b.conv(3, (1, 1))
    b.sum_with(first)
    b.add(Concat(axis=0), first, second)
    b.add(Pad(before=(1, 0, 2), after=(0, 1, 1), value=-7.0))
    b.pool("average", (2, 2), stride=(1, 2), padding=(1, 1), count_padding=False)
    b.table()
    b.add(Flatten())
    b.linear(5)
    return b.network()


@pytest.mark.parametrize("network", [joined(), *map(random_integer_network, range(6))])
def test_onnxruntime_gives_the_integers(network, tmp_path):
    path = tmp_path / "net.onnx"
    ez.export_onnx(network, path)
    x = random_integers(network, 20)
    off = (run(path, x) - network(x)).abs()
    # halves are rounded otherwise, so a sum that is one may differ by 1
    assert off.max() <= 1
    assert (off > 0).float().mean() < 0.1


def test_places_of_a_dense_layer_and_signals(tmp_path):
    b = IntegerBuilder((3, 7), 1)
    b.conv(4, (3,), stride=(2,), before=(2,), after=(0,))
    b.linear(5)
    network = b.network()
    ez.export_onnx(network, tmp_path / "net.onnx")
    x = random_integers(network, 20)
    assert torch.equal(run(tmp_path / "net.onnx", x), network(x))


def test_a_trained_network_keeps_its_classes(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    model.append(nn.Linear(8 * 9, 4))
    x = torch.randn(400, 1, 8, 8)
    y = 2 * (x[:, 0, :4].mean((1, 2)) > 0).long() + (x[:, 0, 4:].mean((1, 2)) > 0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    form = ez.quantize(ez.trace(model, x), activations=8, data=x)
    written = ez.export_onnx(form.model, tmp_path / "net.onnx")
    classes = run(tmp_path / "net.onnx", x).argmax(1)
    assert (classes == form.model(x).argmax(1)).float().mean() > 0.99
    assert (classes == y).float().mean() > 0.9
    # weights lie in a byte each: the file is far smaller than the float32 weights
    assert written.size_bytes < 4 * sum(p.numel() for p in model.parameters()) + 4000
    types = {t.data_type for t in onnx.load(tmp_path / "net.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in types


def test_outputs_too_far_off_are_refused(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = ez.quantize(nn.Linear(20, 5), activations=8, data=torch.randn(50, 20)).model
    proto = onnx_file.integer_proto

    def wrong(given):
        made = proto(given)
        for tensor in made.graph.initializer:
            if tensor.name.endswith("weight/integers"):
                other = onnx.numpy_helper.to_array(tensor)[..., ::-1]
                tensor.CopyFrom(onnx.numpy_helper.from_array(other.copy(), tensor.name))
        return made

    monkeypatch.setattr(onnx_file, "integer_proto", wrong)
    with pytest.raises(InputError, match="steps of its integers, more than 4; nothing was written"):
        ez.export_onnx(network, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_int8_weights_are_stored_as_int8_and_nodes_have_their_names(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 7))
    network = ez.trace(model, torch.zeros(1, 40))
    before = ez.export_onnx(network, tmp_path / "float.onnx").size_bytes
    ez.quantize(network, method="int8")
    written = ez.export_onnx(network, tmp_path / "int8.onnx")
    assert written.difference is not None
    assert written.difference < 1e-5
    # 2,350 weights of 4 bytes become 1 each
    assert before - written.size_bytes > 3 * 2350 - 500
    graph = onnx.load(tmp_path / "int8.onnx").graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    w = stored["0.weight_int8"] * stored["0.weight_scale"]
    assert stored["0.weight_int8"].dtype == np.int8
    assert torch.allclose(torch.from_numpy(w), network.weight("0.weight"), rtol=1e-6)
    assert [n.name for n in graph.node if n.op_type == "Gemm"] == ["0", "2"]
