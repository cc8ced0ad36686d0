"""ONNX files, run by onnxruntime."""

import json
import subprocess
import sys
import warnings
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from ellzero.export import onnx_file
from ellzero.export.onnx_file import _largest_difference
from ellzero.networks.lenet import lenet_5_caffe, lenet_300_100
from small import mlp


class Residual(nn.Module):
    """A convolution with batch normalization around which the input goes, then dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.normalization = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.dropout = nn.Dropout(0.5)
        self.leave = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.normalization(self.enter(x)))
        x = torch.relu(x + self.inner(x))
        return self.leave(self.dropout(x.mean((2, 3))))


def residual() -> nn.Module:
    """With statistics that are not those of a fresh normalization."""
    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        for _ in range(5):
            model(2 + 3 * torch.randn(8, 2, 6, 6))
    return model


def outputs(path: Path, inputs: Tensor) -> np.ndarray:
    """What onnxruntime makes of a batch."""
    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["input"]
    assert [o.name for o in session.get_outputs()] == ["output"]
    return session.run(None, {"input": inputs.numpy()})[0]


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@dataclass
class Exported:
    """What was exported, as it was before, and the file."""

    model: nn.Module
    before: dict[str, Tensor]
    written: ez.OnnxFile


def exported(model: nn.Module, folder: Path, example: Tensor | None = None) -> Exported:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return Exported(model, before, ez.export_onnx(model, folder / "net.onnx", example))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Exported:
    """A network in training mode, of which nothing more is known."""
    return exported(residual(), tmp_path_factory.mktemp("plain"), torch.zeros(5, 2, 6, 6))


@pytest.fixture(scope="module")
def described(tmp_path_factory) -> Exported:
    """A pruned network in double precision, with its preprocessing and its classes."""
    model = mlp().double()
    ez.prune(model, nonzeros=30, weights=ez.select(model, include=["0.weight"]))
    traced = ez.trace(
        model,
        torch.zeros(1, 6, dtype=torch.float64),
        preprocess=ez.Preprocess(scale=(0.5, 1.0, 2.0, 3.0, 4.0, 5.0), shift=-1.0),
        classes=["a", "b", "ü"],
    )
    return exported(traced, tmp_path_factory.mktemp("described"))


def check_any_batch(export: Exported, *shape: int) -> None:
    """The file is sound, and onnxruntime computes from it what the network computes."""
    path = export.written.path
    assert export.written.size_bytes == path.stat().st_size
    onnx.checker.check_model(onnx.load(path), full_check=True)
    evaluated = deepcopy(export.model).eval()
    generator = torch.Generator().manual_seed(1)
    for batch in (1, 3, 7):
        inputs = torch.randn(batch, *shape, generator=generator)
        with torch.no_grad():
            expected = evaluated(inputs).numpy()
        computed = outputs(path, inputs)
        assert computed.shape == expected.shape
        assert np.abs(computed - expected).max() < 1e-5 * max(1, np.abs(expected).max())


def test_onnxruntime_computes_what_the_network_computes(plain):
    check_any_batch(plain, 2, 6, 6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [lenet_300_100, lenet_5_caffe], ids=lambda make: make.__name__)
def test_onnxruntime_computes_what_a_lenet_computes(make, tmp_path):
    torch.manual_seed(1)
    check_any_batch(exported(make(), tmp_path, torch.zeros(5, 1, 28, 28)), 1, 28, 28)


def test_a_network_in_double_precision(described):
    inputs = torch.randn(4, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = described.model(inputs)
    assert np.allclose(outputs(described.written.path, inputs), expected, rtol=0, atol=1e-12)
    assert described.written.difference < 1e-12


def test_indices_as_inputs(tmp_path):
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
    example = torch.tensor([[1, 2, 9]])
    written = ez.export_onnx(model, tmp_path / "net.onnx", example)
    inputs = torch.tensor([[0, 0, 1], [7, 8, 9]])
    with torch.no_grad():
        assert np.allclose(outputs(written.path, inputs), model(inputs), atol=1e-6)


def test_metadata_say_preprocessing_classes_and_sparsity(described):
    entries = metadata(described.written.path)
    assert set(entries) == {
        f"ellzero.{k}" for k in ("version", "preprocess", "classes", "sparsity")
    }
    assert entries["ellzero.version"] == ez.__version__
    assert json.loads(entries["ellzero.preprocess"]) == {
        "scale": [0.5, 1.0, 2.0, 3.0, 4.0, 5.0],
        "shift": -1.0,
    }
    assert json.loads(entries["ellzero.classes"]) == ["a", "b", "ü"]
    assert json.loads(entries["ellzero.sparsity"]) == {
        "weights": 144,
        "nonzeros": 78,  # 30 and all 48
        "layers": {
            "0.weight": {"weights": 96, "nonzeros": 30},
            "2.weight": {"weights": 48, "nonzeros": 48},
        },
    }


def test_what_is_not_known_is_null(plain):
    entries = metadata(plain.written.path)
    assert entries["ellzero.preprocess"] == entries["ellzero.classes"] == "null"


def test_weights_keep_their_values_and_their_names(described):
    graph = onnx.load(described.written.path).graph
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    for name, w in described.before.items():
        assert np.array_equal(stored[name], w)


def test_no_path_of_this_machine_is_in_the_file(plain):
    content = plain.written.path.read_bytes()
    assert b".py" not in content
    assert str(Path(ez.__file__).parent).encode() not in content


def test_the_network_and_its_mode_do_not_change(plain):
    assert plain.model.training
    now = plain.model.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in plain.before.items())


@pytest.mark.slow
def test_nothing_is_said(tmp_path):
    # in a process of its own, for torch warns once a process
    code = (
        "import torch, ellzero as ez\n"
        "ez.export_onnx(torch.nn.Linear(3, 2), 'net.onnx', torch.zeros(1, 3))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def without(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Let a package fail as it is imported, as one that is broken does."""

    def importing(name: str) -> Any:
        if name == missing:
            raise ImportError(f"{name} is broken")
        return import_module(name)

    monkeypatch.setattr(onnx_file, "import_module", importing)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_extra_is_named(missing, monkeypatch, tmp_path):
    without(monkeypatch, missing)
    message = rf"needs {missing}: pip install 'ellzero\[export\]'"
    with pytest.raises(ez.InputError, match=message):
        ez.export_onnx(mlp(), tmp_path / "net.onnx", torch.zeros(1, 6))


def test_without_onnxruntime_nothing_is_compared(monkeypatch, tmp_path):
    without(monkeypatch, "onnxruntime")
    written = ez.export_onnx(mlp(), tmp_path / "net.onnx", torch.zeros(1, 6))
    assert written.difference is None
    assert outputs(written.path, torch.zeros(2, 6)).shape == (2, 3)


def test_outputs_that_differ_are_refused_and_nothing_is_written(monkeypatch, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"as before")
    real: Any = onnxruntime.InferenceSession.run

    def off(self, names, feed):
        return [real(self, names, feed)[0] + np.float32(3e-5)]

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", off)
    with pytest.raises(ez.InputError, match=r"differ from the network's by 3e-05, more than 1e-05"):
        ez.export_onnx(mlp(), path, torch.zeros(1, 6))
    assert path.read_bytes() == b"as before"


def test_an_operation_that_onnx_lacks(tmp_path):
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.pinv(x @ x.transpose(1, 2))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ez.InputError, match="cannot be said in ONNX"):
            ez.export_onnx(Odd(), tmp_path / "net.onnx", torch.ones(2, 3, 3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value, tmp_path):
    model = mlp()
    model.get_parameter("2.weight").data[0, 0] = value
    with pytest.raises(ez.InputError, match=r"2\.weight \(3, 16\) holds NaN or inf"):
        ez.export_onnx(model, tmp_path / "net.onnx", torch.zeros(1, 6))


def test_other_mistakes_are_named(tmp_path):
    with pytest.raises(ez.InputError, match="needs an example"):
        ez.export_onnx(mlp(), tmp_path / "net.onnx")
    with pytest.raises(ez.InputError, match="cannot be traced"):
        ez.export_onnx(mlp(), tmp_path / "net.onnx", torch.zeros(1, 7))
    with pytest.raises(ez.InputError, match="there is no folder"):
        ez.export_onnx(mlp(), tmp_path / "no" / "net.onnx", torch.zeros(1, 6))
    example = torch.zeros(1, 6, dtype=torch.bfloat16)
    with pytest.raises(ez.InputError, match=r"computes in torch\.bfloat16.*model\.float\(\)"):
        ez.export_onnx(mlp().bfloat16(), tmp_path / "net.onnx", example)


def test_outputs_that_are_no_numbers_count_as_different():
    nan, inf = float("nan"), float("inf")
    expected = torch.tensor([1.0, nan, inf, -2.0], dtype=torch.float64)
    assert _largest_difference(expected.float(), expected) == 0.0
    for place, wrong in ((0, nan), (0, inf), (1, 0.0), (2, -inf), (2, 3.0)):
        outputs = expected.clone()
        outputs[place] = wrong
        assert _largest_difference(outputs, expected) == inf
    outputs = expected.clone()
    outputs[3] = -2.5
    assert _largest_difference(outputs, expected) == 0.25  # relative to the largest, 2
