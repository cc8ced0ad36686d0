"""A .npz file as a data set: which arrays are which part, what they become, what is refused."""

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from ellzero.data import npz as npz_module
from ellzero.data.npz import npz
from ellzero.data.part import Part
from ellzero.factories import build_data
from ellzero.recipe import Factory
from small import blobs, mlp, recipe


@pytest.fixture
def save(tmp_path):
    """Saves arrays as numpy does, and gives the path."""

    def save(**arrays: Any) -> Path:
        path = tmp_path / "arrays.npz"
        np.savez(path, **arrays)
        return path

    return save


def batch(part: Part | None) -> tuple[Tensor, Tensor]:
    """All preprocessed inputs and targets of a part, in order."""
    assert part is not None
    ((inputs, targets),) = part.batches(1_000_000, torch.device("cpu"))
    return inputs, targets


def numbered(count: int = 40) -> dict[str, np.ndarray]:
    """Examples of two values that tell their own number and label."""
    numbers = np.arange(count)
    return {"x": np.stack([numbers, -numbers], 1).astype(np.float32), "y": numbers % 2}


def test_one_pair_is_split_by_class_and_each_example_keeps_its_target(save):
    data = npz(path=save(**numbered()), validation=0.2, test=0.1, standardize="none")
    assert [part.examples for part in data.parts] == [28, 8, 4]
    assert data.preprocess is None
    seen = []
    for part in data.parts:
        inputs, labels = batch(part)
        assert (inputs.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert torch.equal(inputs[:, 0], -inputs[:, 1])
        assert torch.equal(inputs[:, 0].long() % 2, labels)
        assert labels.bincount().tolist() == [len(labels) // 2] * 2
        seen += inputs[:, 0].tolist()
    assert sorted(seen) == list(range(40))


def test_a_second_reading_gives_the_same_bits(save):
    path = save(**numbered())
    first, again = npz(path=path), npz(path=path)
    assert first.preprocess == again.preprocess
    for part, other in zip(first.parts, again.parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch(part), batch(other), strict=True))


@pytest.mark.parametrize("name", ["validation", "val"])
def test_parts_that_the_file_has_stay_whole_and_others_are_split_off(save, name):
    x, y = numbered(10).values()
    pair = {f"x_{name}": x[:3], f"y_{name}": y[:3]}
    data = npz(path=save(x_train=x, y_train=y, **pair), standardize="none", test=0.2)
    assert [part.examples for part in data.parts] == [8, 3, 2]
    assert batch(data.validation)[0].tolist() == x[:3].tolist()

    pair |= {"x_test": x[3:8], "y_test": y[3:8]}
    data = npz(path=save(x=x, y=y, **pair), standardize="none")
    assert [part.examples for part in data.parts] == [10, 3, 5]
    assert batch(data.train)[0].tolist() == x.tolist()
    assert batch(data.test)[1].tolist() == y[3:8].tolist()


def test_no_test_part_by_a_fraction_of_0(save):
    assert npz(path=save(**numbered()), test=0).test is None


def three_channels() -> np.ndarray:
    """(4, 3, 2): channel 0 has the values 0 and 2, channel 1 has 10 and 50, channel 2 has 7."""
    return np.array([[[0, 2], [10, 50], [7, 7]]] * 4, np.uint8)


@pytest.mark.parametrize(
    ("standardize", "preprocess"),
    [
        ("channel", ez.Preprocess((1.0, 0.05, 1.0), (-1.0, -1.5, -7.0))),
        # the mean of 0, 2, 10, 50, 7, 7 is 76/6, that of their squares 2702/6
        ("all", ez.Preprocess(1 / (2702 / 6 - (76 / 6) ** 2) ** 0.5, None)),  # pyright: ignore
    ],
)
def test_inputs_are_standardized_by_the_training_examples_alone(save, standardize, preprocess):
    x, y = three_channels(), np.arange(4) % 2
    other = np.full((2, 3, 2), 200, np.uint8)
    path = save(x_train=x, y_train=y, x_val=other, y_val=y[:2], x_test=other, y_test=y[:2])
    data = npz(path=path, standardize=standardize)
    assert data.train.example[0].dtype == torch.uint8  # as it lies in the file
    assert data.preprocess is not None
    assert data.preprocess.scale == pytest.approx(preprocess.scale)
    inputs = batch(data.train)[0]
    if standardize == "all":
        assert inputs.mean() == pytest.approx(0, abs=1e-6)
        assert batch(data.test)[0][0, 0, 0] == pytest.approx((200 - 76 / 6) * preprocess.scale)
    else:
        assert data.preprocess.shift == pytest.approx(preprocess.shift)
        assert inputs[0].tolist() == [[-1, 1], [-1, 1], [0, 0]]


CONVERTED = {
    "bool": "uint8",
    "uint8": "uint8",
    "int8": "int8",
    "int16": "int16",
    "uint16": "int32",
    "int32": "int32",
    "uint32": "int64",
    "int64": "int64",
    "float16": "float32",
    "float32": "float32",
    "float64": "float32",
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", CONVERTED)
def test_inputs_keep_their_values_in_a_type_that_torch_has(save, kind, order):
    dtype = np.dtype(kind).newbyteorder(order)
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.iinfo("int8")
    low, high = (0, 1) if kind == "bool" else (limits.min, limits.max)
    x = np.array([[low, high, 1]] * 6).astype(dtype)
    data = npz(path=save(x=x, y=np.arange(6) % 2))
    example = data.train.example[0]
    assert example.dtype == getattr(torch, CONVERTED[kind])
    assert example.tolist() == [[low, high, 1]]

    tokens = npz(path=save(x=x, y=np.arange(6) % 2), standardize="none").train.example[0]
    assert tokens.dtype == (torch.float32 if dtype.kind == "f" else torch.int64)
    assert tokens.tolist() == [[low, high, 1]]


def test_the_order_of_fortran_is_read(save):
    x = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    expected, data = (
        npz(path=save(x=a, y=np.arange(4) % 2), standardize="none")
        for a in (x, np.asfortranarray(x))
    )
    assert np.asfortranarray(x).strides != x.strides
    assert torch.equal(batch(data.train)[0], batch(expected.train)[0])


@pytest.mark.parametrize("kind", ["uint8", ">i2", "uint32", "int64"])
def test_integers_are_labels(save, kind):
    data = npz(path=save(**{**numbered(), "y": (np.arange(40) % 2).astype(kind)}))
    assert batch(data.train)[1].dtype == torch.int64
    assert data.is_classification


@pytest.mark.parametrize("kind", ["float16", ">f8", "float32"])
def test_floating_numbers_are_for_regression(save, kind):
    y = (np.arange(40) / 4).astype(kind)[:, None]
    data = npz(path=save(**{**numbered(), "y": y}), standardize="none")
    assert not data.is_classification
    inputs, targets = batch(data.train)
    assert targets.dtype == torch.float32
    assert torch.equal(targets, inputs[:, :1] / 4)


def test_names_of_classes_are_kept_and_limit_the_labels(save):
    path = save(**numbered())
    assert npz(path=path, classes=["even", "odd"]).classes == ("even", "odd")
    with pytest.raises(ez.InputError, match="labels run from 0 to 1; expected 0 to 0"):
        npz(path=path, classes=["even"])


def test_what_can_be_augmented_follows_from_the_inputs(save):
    y = np.arange(40) % 2
    pictures = save(x=np.ones((40, 1, 4, 4)), y=y)
    data = npz(path=pictures, augment={"shift": 1, "gain": 0.5}, standardize="none")
    torch.manual_seed(0)
    ((inputs, _),) = data.train.batches(100, torch.device("cpu"), shuffle=True)
    assert inputs.unique().numel() > 16  # gains, and the zeros of what moved in
    assert batch(data.train)[0].unique().tolist() == [1]

    numbers = save(**numbered())
    npz(path=numbers, augment={"gain": 0.1, "noise": 0.1})
    with pytest.raises(ez.InputError, match="augment has no 'shift' for this data; known: gain,"):
        npz(path=numbers, augment={"shift": 1})
    tokens = save(x=np.ones((40, 9), np.uint8), y=y)
    with pytest.raises(ez.InputError, match="augment has no 'gain' for this data; there are none"):
        npz(path=tokens, augment={"gain": 0.1}, standardize="none")


X, Y = np.zeros((10, 2)), np.arange(10) % 2

REFUSED = {
    "another name": (
        {"x": X, "y": Y, "z": Y},
        {},
        r"has 'z\.npy', which is not used; known .*x_val",
    ),
    "no target": ({"x": X}, {}, "has x and no y; save both"),
    "no input": ({"x": X, "y": Y, "y_test": Y}, {}, "has y_test and no x_test"),
    "no training": ({"x_test": X, "y_test": Y}, {}, "no training examples; save x and y"),
    "a part twice": (
        {"x": X, "y": Y, "x_train": X, "y_train": Y},
        {},
        "the train examples twice, as x_train too",
    ),
    "lengths": ({"x": X, "y": Y[:9]}, {}, "x has 10 examples and y 9"),
    "values alone": (
        {"x": X[:, 0], "y": Y},
        {},
        r"x has the shape \(10,\); expected \(N, features",
    ),
    "other inputs": (
        {"x": X, "y": Y, "x_val": X[:, :1], "y_val": Y},
        {},
        r"x_val is float32 \(N, 1\); that of the training examples float32 \(N, 2\)",
    ),
    "other scaling": (
        {"x": X, "y": Y, "x_val": X.astype(np.uint8), "y_val": Y},
        {},
        r"x_val is uint8 \(N, 2\); that of the training examples float32",
    ),
    "other targets": (
        {"x": X, "y": Y, "x_val": X, "y_val": Y / 2},
        {},
        r"y_val is float32 \(N\); that of the training examples int64 \(N\)",
    ),
    "nothing": ({"x": X[:0], "y": Y[:0]}, {}, r"x has the shape \(0, 2\); expected values"),
    "no values": ({"x": X[:, :0], "y": Y}, {}, r"x has the shape \(10, 0\); expected values"),
    "one number": ({"x": np.float32(1), "y": Y}, {}, r"x has the shape \(\); expected values"),
    "nine dimensions": ({"x": X.reshape(10, *[1] * 7, 2), "y": Y}, {}, "in 1 to 8 dimensions"),
    "unsigned 64 bit": (
        {"x": X.astype(np.uint64), "y": Y},
        {},
        "x is of uint64; expected integers",
    ),
    "complex": ({"x": X + 0j, "y": Y}, {}, "x is of complex128; expected"),
    "structured": ({"x": np.zeros(9, "u1,u1"), "y": Y}, {}, "x is of void16; expected"),
    "true or false": ({"x": X, "y": Y == 1}, {}, "y is of bool; expected integers or floating"),
    "texts": ({"x": X, "y": Y.astype(str)}, {}, "y is of str.*; expected integers or floating"),
    "NaN": ({"x": X * np.nan, "y": Y}, {}, "train inputs hold NaN or inf"),
    "beyond float32": ({"x": X + 1e39, "y": Y}, {}, "train inputs hold NaN or inf"),
    "another standardization": (
        {"x": X, "y": Y},
        {"standardize": "rows"},
        "standardize is 'rows'; expected channel, all or none",
    ),
    "all for testing": ({"x": X, "y": Y}, {"test": 0.95}, "leave none for training"),
    "classes of quantities": (
        {"x": X, "y": Y / 1},
        {"classes": ["a", "b"]},
        "floating numbers in y, so there are no classes",
    ),
}


@pytest.mark.parametrize(("arrays", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_by_name(save, arrays, options, message):
    path = save(**arrays)
    with pytest.raises(ez.InputError, match=message):
        npz(path=path, **options)


class Opened:
    """What would be a file of that name, were it unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_nothing_is_unpickled(save, tmp_path):
    trace = tmp_path / "trace"
    x = np.array([[Opened(trace)]] * 10, object)
    with pytest.raises(ez.InputError, match="x has Python objects, which are not unpickled"):
        npz(path=save(x=x, y=Y))
    assert not trace.exists()


def member(array: np.ndarray = X, **header: Any) -> bytes:
    """The content of a .npy file whose header says something else of the array."""
    stream = io.BytesIO()
    told = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **header}
    np.lib.format.write_array_header_1_0(stream, told)
    return stream.getvalue() + array.tobytes()


HOSTILE = {
    "10^12 values": (member(shape=(10**12, 1)), r"announces float64 of shape \(1000000000000, 1\)"),
    "10^12 times nothing": (member(X[:0], shape=(0, 10**12)), "expected values"),
    "negative lengths": (member(shape=(-10, -2)), "announces .* 160 bytes; it has 160"),
    "cut short": (member()[:-1], "160 bytes; it has 159"),
    "more than it says": (member() + b"\0", "160 bytes; it has 161"),
    "cut short in its header": (member()[:20], "no header of an array"),
    "nothing": (b"", "no header of an array"),
    "a text": (b"1,2,3\n", "no header of an array"),
    "an unknown version": (b"\x93NUMPY\x09\x00" + member()[8:], "no header of an array"),
    "no dictionary": (member().replace(b"{'descr'", b"['descr'"), "no header of an array"),
    "another dictionary": (member().replace(b"'shape'", b"'shapf'"), "no header of an array"),
    "a call": (member().replace(b"False", b"int()"), "no header of an array"),
    "an unknown type": (member(descr="<q9"), "no header of an array"),
    "nested beyond the parser": (
        b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000,
        "no header of an array",
    ),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_members_are_refused_before_an_array_is_made(tmp_path, content, message):
    path = tmp_path / "hostile.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)
    tracemalloc.start()
    try:
        with pytest.raises(ez.InputError, match=message) as refusal:
            npz(path=path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(path) in str(refusal.value)
    assert peak_bytes < 8 * 2**20


def test_two_members_of_one_name_are_refused(tmp_path):
    path = tmp_path / "twice.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", member())
    with pytest.raises(ez.InputError, match=r"has 'x\.npy' twice"):
        npz(path=path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member())
        archive.writestr("x", member())
    with pytest.raises(ez.InputError, match="has 'x', which is not used"):
        npz(path=path)


def test_a_decompression_bomb_is_refused_before_it_takes_memory(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros((64, 2**20), np.uint8))
    assert path.stat().st_size < 2**18
    monkeypatch.setattr(npz_module, "MOST_BYTES", 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(ez.InputError, match=r"'x\.npy' has 67,108,992 bytes; expected at most"):
            npz(path=path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2 * 2**20


def test_all_arrays_together_are_limited(save, monkeypatch):
    path = save(x=X, y=Y)
    monkeypatch.setattr(npz_module, "MOST_BYTES", 300)  # x has 288 bytes, y 208
    with pytest.raises(ez.InputError, match="holds more than 300 bytes"):
        npz(path=path)


def test_what_is_no_npz_file_is_refused(tmp_path):
    with pytest.raises(ez.InputError, match=r"nowhere\.npz is no file"):
        npz(path=tmp_path / "nowhere.npz")
    with pytest.raises(ez.InputError, match="is no file"):
        npz(path=tmp_path)
    path = tmp_path / "single.npy"
    np.save(path, X)
    with pytest.raises(ez.InputError, match="is a single array; save inputs and targets by numpy"):
        npz(path=path)
    path.write_text("x,y\n1,2\n")
    with pytest.raises(ez.InputError, match=r"is no \.npz file"):
        npz(path=path)
    path.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ez.InputError, match="cannot be read"):
        npz(path=path)


def test_a_recipe_names_the_file_and_a_network_learns_from_it(save):
    x, y = blobs(150, 1, spread=0.3)
    path = save(x=100 * x.double().numpy(), y=y.numpy().astype(np.uint8))
    told = {"name": "npz", "path": str(path), "augment": {"noise": 1.0}, "test": 0.3}
    asked = recipe(data=told, train={"epochs": 10})
    data = build_data(asked.data)
    result = ez.compress(mlp(), data, asked)
    assert ez.evaluate(result.model, data).score > 0.9
    assert data.test is not None
    assert data.test.examples == 45


def test_tokens_go_into_an_embedding(save):
    x = np.arange(60, dtype=np.uint8).reshape(20, 3)
    told = {"name": "npz", "path": str(save(x=x, y=np.arange(20) % 2)), "standardize": "none"}
    data = build_data(Factory.model_validate(told))
    data.check_fit(nn.Sequential(nn.Embedding(60, 4), nn.Flatten(), nn.Linear(12, 2)))
