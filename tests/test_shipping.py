"""Shipping from Python: what is written is what the network computes, and nothing else changes."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from ellzero.errors import InputError
from small import blobs, classification, mlp, tensors_equal


def pruned() -> nn.Module:
    model = mlp()
    ez.prune(model, sparsity=0.5)
    return model.eval()


X = blobs(20, 7)[0]


def test_a_network_is_written_in_every_form_and_stays_as_it_is(tmp_path):
    model = pruned()
    before = copy.deepcopy(model)
    files = ez.Destinations(
        ellz=tmp_path / "a.ellz", onnx=tmp_path / "a.onnx", c=tmp_path / "c", name="own"
    )
    shipped = ez.ship(model, files, ez.Quantization(bits=3), example=X[:2])
    assert tensors_equal(model, before)
    assert shipped.float32_bytes == 4 * (144 + 19)
    assert shipped.bits is not None
    assert set(shipped.bits) == {"0.weight", "2.weight"}
    assert (shipped.before, shipped.after) == (None, None)
    network = ez.load(tmp_path / "a.ellz")
    for _, weight in network.named_parameters():
        assert weight.ndim < 2 or len(weight[weight != 0].unique()) <= 8
    assert shipped.onnx is not None
    assert shipped.onnx.difference is None or shipped.onnx.difference < 1e-5
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "CMakeLists.txt",
        "Makefile",
        "README.md",
        "own.c",
        "own.h",
        "own_test.c",
    ]
    table = json.loads(json.dumps(shipped.to_table()))
    assert table["ellz"]["bytes"] == (tmp_path / "a.ellz").stat().st_size
    assert list(table) == ["float32_bytes", "kept", "quantized", "ellz", "onnx", "c"]


def test_a_budget_is_judged_on_the_data_and_fine_tuning_takes_them(tmp_path):
    model, data = pruned(), classification()
    files = ez.Destinations(ellz=tmp_path / "a.ellz")
    how = ez.Quantization(budget=ez.Budget(max_accuracy_drop=3), finetune_epochs=1)
    shipped = ez.ship(model, files, how, data=data, example=X[:2])
    assert shipped.before is not None
    assert shipped.after is not None
    assert shipped.before == ez.evaluate(model, data)
    assert shipped.after == pytest.approx(ez.evaluate(ez.load(tmp_path / "a.ellz"), data))
    assert shipped.after.score >= shipped.before.score - 0.03 - 1e-9
    (tmp_path / "a.ellz").unlink()
    with pytest.raises(InputError, match="need data"):
        ez.ship(model, files, how, example=X[:2])
    assert not (tmp_path / "a.ellz").exists()


def test_fine_tuning_trains_the_codebooks(tmp_path):
    outputs = []
    for epochs in (0, 1):
        files = ez.Destinations(ellz=tmp_path / f"{epochs}.ellz")
        how = ez.Quantization(bits=3, finetune_epochs=epochs)
        data = classification() if epochs else None
        ez.ship(pruned(), files, how, data=data, example=X[:2])
        outputs.append(ez.load(tmp_path / f"{epochs}.ellz")(X))
    assert not torch.equal(*outputs)


def test_fine_tuning_trains_the_integers(tmp_path):
    model, data, errors = pruned(), classification(), []
    before = copy.deepcopy(model)
    for epochs in (0, 40):
        files = ez.Destinations(ellz=tmp_path / f"{epochs}.ellz", c=tmp_path / f"c{epochs}")
        how = ez.Quantization(activations=8, finetune_epochs=epochs)
        shipped = ez.ship(model, files, how, data=data, example=X[:2])
        assert shipped.after is not None
        assert shipped.after == pytest.approx(
            ez.evaluate(ez.load(tmp_path / f"{epochs}.ellz"), data)
        )
        assert (
            f"validation data: {shipped.after.score:.4f}"
            in (tmp_path / f"c{epochs}/net.h").read_text()
        )
        errors.append(shipped.after)
    assert errors[1].better_than(errors[0])
    assert tensors_equal(model, before)


class Summed(nn.Module):
    """Layers around what no operation says."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).cumsum(1))


def test_a_network_with_an_opaque_part_is_compacted_and_packed_without_its_code(tmp_path):
    torch.manual_seed(0)
    model = Summed().eval()
    with torch.no_grad():
        model.first.weight[:, :2] = 0
    before = copy.deepcopy(model)
    files = ez.Destinations(ellz=tmp_path / "a.ellz")
    shipped = ez.ship(model, files, ez.Quantization(int8=True), example=X[:2])
    assert tensors_equal(model, before)
    assert shipped.ellz is not None
    assert not shipped.ellz.self_contained
    where = r"cumsum \(aten\.cumsum\S*, test_shipping\.py:\d+\)"
    assert re.search(f"{where} read and give stay: they cannot be seen through", shipped.kept[0])
    assert re.search(f"{where} is code: of it the packed file holds the name", shipped.kept[-1])
    loaded = ez.load(tmp_path / "a.ellz", Summed())
    weight = loaded.get_parameter("first.weight")
    assert weight.shape == (8, 4)
    steps = weight / (weight.abs().max() / 127)
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    with torch.no_grad():
        assert (loaded(X) - model(X)).abs().max() < 0.1
    with pytest.raises(InputError, match=r"there is no C for cumsum \(aten\.cumsum"):
        ez.ship(model, ez.Destinations(c=tmp_path / "c"), example=X[:2])


def test_dense_c_is_the_network_as_it_is(tmp_path):
    model = mlp()
    ez.prune(model, nonzeros=12)
    dense, small = (
        ez.ship(model, ez.Destinations(c=tmp_path / kind, storage=kind), example=X[:2]).c
        for kind in ("dense", "smallest")
    )
    assert dense is not None
    assert small is not None
    kinds = [(layer.weights, layer.layout) for layer in dense.layers]
    assert kinds == [(96, "dense"), (48, "dense")]
    assert sum(layer.weights for layer in small.layers) < 144
    assert small.constant_bytes < dense.constant_bytes


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "none of the four ways"),
        ({"bits": 3, "int8": True}, "2 of the four ways .* give one"),
        ({"int8": True, "uniform": True}, r"uniform values \(--uniform\) .* give bits"),
        ({"bits": 9}, r"bits \(--bits\) is 9; expected a whole number from 2 to 8"),
        ({"bits": 1}, "is 1; expected a whole number from 2 to 8"),
        ({"bits": 4.0}, r"is 4\.0; expected a whole number"),
        ({"bits": 3, "finetune_epochs": -1}, r"finetune_epochs \(--finetune\) is -1; .* >= 0"),
        ({"activations": 16}, r"activations \(--activations\) is 16; expected 8"),
        ({"activations": 8, "biases": 6}, "integers has biases of 32 bits"),
        ({"bits": 3, "finetune_epochs": 1.5}, r"is 1\.5; expected a whole number"),
    ],
)
def test_ways_to_quantize_that_are_refused(options, expected):
    with pytest.raises(InputError, match=expected):
        ez.Quantization(**options)


def test_destinations_that_are_refused(tmp_path):
    there = tmp_path / "there.ellz"
    there.write_text("mine")
    for options, expected in (
        ({}, "nothing to write"),
        ({"ellz": there}, "there.ellz is there already"),
        ({"ellz": tmp_path}, "is a folder"),
        ({"ellz": tmp_path / "a" / "b.ellz"}, "there is no folder"),
        ({"c": there}, "there.ellz is a file; expected a folder"),
        ({"c": tmp_path / "c", "name": "2fast"}, "expected a C identifier"),
        ({"ellz": tmp_path / "x", "onnx": tmp_path / "x"}, "two of the outputs are one path"),
        ({"ellz": tmp_path / "x", "c": tmp_path / "y" / ".." / "x"}, "there is no folder"),
        ({"onnx": tmp_path / "x", "c": tmp_path / "x"}, "two of the outputs are one path"),
        ({"ellz": tmp_path / "c" / "a.ellz", "c": tmp_path / "c"}, "there is no folder"),
        ({"c": tmp_path / "c", "storage": "speed"}, "storage is 'speed'; expected 'smallest'"),
        ({"ellz": tmp_path / "x", "name": "own"}, r"name \(--name\), storage"),
        ({"ellz": tmp_path / "x", "storage": "dense"}, r"name its folder \(--c\)"),
    ):
        with pytest.raises(InputError, match=expected):
            ez.Destinations(**options)
    assert ez.Destinations(ellz=there, overwrite=True).ellz == there
    assert Path(there).read_text() == "mine"


def test_paths_may_be_text(tmp_path):
    files = ez.Destinations(ellz=f"{tmp_path}/a.ellz", onnx=f"{tmp_path}/a.onnx", c=f"{tmp_path}/c")
    ez.ship(pruned(), files, example=X[:2])
    names = ["CMakeLists.txt", "Makefile", "README.md", "net.c", "net.h", "net_test.c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ellz", "a.onnx", "c"]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == names


@pytest.mark.parametrize("how", [None, ez.Quantization(bits=3)])
def test_data_that_nothing_takes_are_refused(how, tmp_path):
    files = ez.Destinations(ellz=tmp_path / "a.ellz")
    with pytest.raises(InputError, match=r"data \(--data\) are for a budget"):
        ez.ship(pruned(), files, how, data=classification(), example=X[:2])


def test_what_is_shipped_is_never_overwritten(tmp_path):
    run = ez.Run(tmp_path / "model.safetensors", ez.Recipe.parse({"prune": {"sparsity": 0.5}}))
    ez.pack(pruned(), tmp_path / "a.ellz", X[:2])
    before = (tmp_path / "a.ellz").read_bytes()
    for source, options in (
        (run, {"onnx": tmp_path / "model.safetensors"}),
        (run, {"ellz": tmp_path / "record.json"}),
        (run, {"ellz": tmp_path / "checkpoint.safetensors"}),
        (ez.open_run(tmp_path / "a.ellz"), {"ellz": tmp_path / "." / "a.ellz"}),
    ):
        with pytest.raises(InputError, match="is a file of the run that is shipped"):
            ez.ship(source, ez.Destinations(**options, overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["a.ellz"]
    assert (tmp_path / "a.ellz").read_bytes() == before
