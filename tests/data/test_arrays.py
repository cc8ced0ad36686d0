"""Arrays and frames: numpy and pandas in every place; columns that are no numbers."""

import re
from typing import Any

import numpy as np
import pytest
import torch

import ellzero as ez
from ellzero.data.arrays import as_tensor
from ellzero.errors import InputError
from small import blobs, mlp

CPU = torch.device("cpu")
X, Y = blobs(12, 0)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.zeros((3, 2)), torch.float32),
        (np.zeros((3, 2), np.float32), torch.float32),
        (np.zeros((3, 2), np.float16), torch.float16),
        (np.zeros(3, np.int64), torch.int64),
        (np.zeros(3, np.uint8), torch.uint8),
        (np.zeros(3, bool), torch.bool),
        (np.zeros((3, 2), np.complex64), torch.complex64),
        ([[0.0, 1.0]] * 3, torch.float32),
        ([0, 1, 2], torch.int64),
        (torch.zeros(3, dtype=torch.float64), torch.float64),
    ],
)
def test_the_type_of_numbers(given, dtype):
    made = as_tensor("x", given)
    assert made.dtype is dtype
    assert len(made) == 3


def test_an_array_that_must_not_be_written_to_is_copied():
    given = np.arange(3)
    given.flags.writeable = False
    made = as_tensor("x", given)
    made[0] = 7
    assert given.tolist() == [0, 1, 2]


@pytest.mark.parametrize("given", [np.array(["a", "b"]), np.array([1, None]), np.zeros(2, "M8[s]")])
def test_arrays_of_no_numbers(given):
    with pytest.raises(InputError, match=re.escape(f"x are {given.dtype}; expected numbers")):
        as_tensor("x", given)


def whole(part: Any) -> Any:
    (batch,) = part.batches(100, CPU)
    return batch


def test_frames_and_series():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X.double().numpy(), columns=list("abcdef"))
    frame["f"] = frame["f"].astype("float32")
    kinds: list[Any] = [
        (frame, pd.Series(Y.numpy())),
        (frame.to_numpy(), Y.numpy()),
        {"input": frame, "labels": pd.Series(Y.numpy())},
    ]
    for examples in kinds:
        inputs, targets = whole(ez.Data(examples, examples).train)
        inputs = inputs["input"] if isinstance(inputs, dict) else inputs
        assert torch.equal(inputs, X)
        assert torch.equal(targets, Y)
    weighted = (frame, pd.Series(Y.numpy()), pd.Series(np.arange(12.0)))
    batch = whole(ez.Data(weighted, weighted).train)
    assert batch.weights is not None
    assert batch.weights.tolist() == list(range(12))
    ez.Data(weighted, weighted).check_fit(mlp())


def test_columns_that_are_no_numbers_are_named():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"size": [1.0, 2.0], "colour": ["red", "blue"], "kind": ["a", "b"]})
    with pytest.raises(InputError, match=r"train inputs are object \(columns colour, kind\)"):
        ez.Data((frame, [0, 1]), (frame, [0, 1]))
    with pytest.raises(InputError, match="train targets are "):
        ez.Data((frame[["size"]], frame["kind"]), (X, Y))


def test_a_tuple_of_arrays_is_several_inputs():
    tokens = np.arange(24).reshape(12, 2)
    examples = ((tokens, X.numpy()), Y.numpy())
    inputs, _ = whole(ez.Data(examples, examples).train)
    assert [tuple(x.shape) for x in inputs] == [(12, 2), (12, 6)]


def test_columns_in_another_order_are_refused():
    pd = pytest.importorskip("pandas")
    train, y = pd.DataFrame(X.numpy(), columns=list("abcdef")), pd.Series(Y.numpy())
    ez.Data((train, y), (X, Y), (train, y))
    with pytest.raises(InputError, match="columns of test are f, e, d, c, b, a; expected those of"):
        ez.Data((train, y), (X, Y), (train[list("fedcba")], y))
