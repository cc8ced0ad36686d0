"""Inputs and targets of every wrong shape, kind and number: refused before anything is trained."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn

import ellzero as ez
from small import blobs, classification, convnet, images, mlp, recipe, regression

X, Y = blobs(60, 1)
FRAME = pd.DataFrame(X.numpy(), columns=list("abcdef"))
SERIES = pd.Series(Y.numpy())
IMAGES, SIDES = torch.rand(20, 2, 6, 6), torch.arange(20) % 2
GREY = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 2))
WORDS = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 3))
ONE_HOT = nn.functional.one_hot(Y, 3)


def refused(inputs: Any, targets: Any, model: nn.Module | None = None, **options: Any) -> str:
    """What `compress` says of data that are the same in each part; nothing is written."""
    with pytest.raises(ez.InputError) as caught:
        ez.compress(
            model or mlp(), ez.Data((inputs, targets), (inputs, targets), **options), recipe()
        )
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("inputs", "model", "expected"),
    [
        (X.double(), None, "the weights are torch.float32: give inputs.to(torch.float32)"),
        (X.half(), None, "the weights are torch.float32: give inputs.to(torch.float32)"),
        (X.long(), None, "the weights are torch.float32: give inputs.to(torch.float32)"),
        (X > 0, None, "the weights are torch.float32: give inputs.to(torch.float32)"),
        (X.byte(), None, "give inputs.to(torch.float32), or preprocess=ez.Preprocess(1 / 255)"),
        (X, mlp().double(), "the weights are torch.float64: give inputs.to(torch.float64)"),
        (X, WORDS, "looks them up by their numbers: give inputs.long()"),
        (X.to(torch.complex64), None, "inputs of torch.complex64 (1, 6)"),
        (X[:, :5], None, "train inputs of torch.float32 (1, 5)"),
        (X.reshape(-1, 2, 3), None, "let the network begin with nn.Flatten()"),
        (X.numpy().astype(object), None, "train inputs are object; expected numbers"),
        (X / X.new_zeros(1), None, "train inputs hold NaN or inf; clean or drop those examples"),
        (X[:50], None, "train data has 50 inputs and 60 targets"),
        (X[0, 0], None, "train data holds a single number; expected a batch (N, ...)"),
        (X.to_sparse(), None, "train inputs are torch.sparse_coo; give them dense: to_dense()"),
        (csr_matrix(X), None, "train inputs are csr_matrix; give them dense: toarray()"),
    ],
)
def test_inputs_that_do_not_fit_say_what_to_do(inputs, model, expected):
    assert expected in refused(inputs, Y, model)


@pytest.mark.parametrize(
    ("inputs", "model", "expected"),
    [
        (IMAGES.movedim(1, -1), convnet(), "before height and width: give inputs.movedim(-1, 1)"),
        (IMAGES[:, 0], convnet(), "channels seems to be missing: give inputs.unsqueeze(1)"),
        (IMAGES[:, 0], GREY, "channels seems to be missing: give inputs.unsqueeze(1)"),
        (torch.rand(20, 3, 6, 6), convnet(), "to have 2 channels, but got 3 channels"),
        (torch.rand(20, 2, 9, 9), convnet(), "train inputs of torch.float32 (1, 2, 9, 9)"),
        (IMAGES.flatten(1), convnet(), "Expected 3D (unbatched) or 4D (batched) input"),
    ],
)
def test_images_that_do_not_fit_say_what_to_do(inputs, model, expected):
    assert expected in refused(inputs, SIDES, model)


@pytest.mark.parametrize(
    ("targets", "outputs", "expected"),
    [
        (ONE_HOT, 3, "for one-hot rows give the class numbers, targets.argmax(1)"),
        (Y.float(), 3, "for classes give their numbers, targets.long()"),
        (Y.float(), 1, "give targets.unsqueeze(1)"),
        (Y[:, None], 3, "give targets.squeeze(1)"),
        (SERIES.to_frame(), 3, "give targets.squeeze(1)"),
        (Y + 1, 3, "train labels run from 1 to 3; expected 0 to 2"),
        (Y - 1, 3, "train labels run from -1 to 1; expected 0 to 2"),
        (Y, 2, "train labels run from 0 to 2; expected 0 to 1"),
        (np.array(["cat", "dog", "owl"] * 20), 3, "np.unique(targets, return_inverse=True)[1]"),
        (["cat", "dog", "owl"] * 20, 3, "np.unique(targets, return_inverse=True)[1]"),
        (SERIES.map(str), 3, "np.unique(targets, return_inverse=True)[1]"),
        ((Y, Y), 3, "targets of an example are several tensors, for which there is no task"),
        (torch.full((60, 3), torch.nan), 3, "train targets hold NaN or inf"),
        (
            Y.to(torch.complex64),
            3,
            "train targets are torch.complex64; classification expects labels",
        ),
    ],
)
def test_targets_that_do_not_fit_say_what_to_do(targets, outputs, expected):
    assert expected in refused(X, targets, mlp(outputs))


def test_swapped_inputs_and_targets():
    assert "inputs and targets seem to be swapped" in refused(Y, X)


def test_labels_are_named_by_as_many_classes_as_there_are():
    assert "labels run from 0 to 2; expected 0 to 1" in refused(X, Y, classes=["cat", "dog"])


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize(
    ("spoilt", "expected"),
    [
        ((X[:, :5], Y), "{} inputs of torch.float32 (1, 5)"),
        ((X.double(), Y), "{} inputs of torch.float64 (1, 6)"),
        ((X, Y + 1), "{} labels run from 1 to 3"),
        ((X, Y.float()), "{} targets are torch.float32; classification expects labels"),
        ((X, Y[:50]), "{} data has 60 inputs and 50 targets"),
        ((X[:0], Y[:0]), "{} data is empty; expected at least one example"),
    ],
)
def test_a_part_that_is_unlike_the_others_is_found_before_the_training(part, spoilt, expected):
    parts = {"validation": (X, Y), "test": (X, Y), part: spoilt}
    with pytest.raises(ez.InputError) as caught:
        ez.compress(mlp(), ez.Data((X, Y), **parts), recipe())
    assert expected.format(part) in str(caught.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (X, "train data is Tensor; expected (inputs, targets)"),
        (X.numpy(), "train data is ndarray; expected (inputs, targets)"),
        (FRAME, "train data is DataFrame; expected (inputs, targets)"),
        ("digits", "train data is str; expected (inputs, targets)"),
        (None, "train data is NoneType; expected a pair of tensors"),
        (5, "train data is int; expected a pair of tensors"),
        ((X,), "tuple of 1; expected (inputs, targets)"),
        ({"inputs": X, "targets": Y}, "train data has no 'labels'; it has inputs, targets"),
        (iter([(X, Y)]), "can be read once only"),
        ([], "is empty"),
    ],
)
def test_a_part_that_is_no_examples(given, expected):
    with pytest.raises(ez.InputError) as caught:
        ez.Data(given, (X, Y))
    assert expected in str(caught.value)


def test_a_validation_part_that_was_left_out_is_named():
    with pytest.raises(ez.InputError, match="validation data is NoneType"):
        ez.Data((X, Y), None)  # pyright: ignore[reportArgumentType]


# what is accepted


def test_pandas_frames_are_tensors_of_their_numbers():
    flags = FRAME.assign(flag=SERIES == 1)  # of which numpy makes objects
    data = ez.Data((flags, SERIES.astype("category")), (flags, SERIES))
    inputs, targets = next(iter(data.train.batches(60, torch.device("cpu"))))
    assert torch.equal(inputs, torch.cat([X, (Y == 1)[:, None].float()], 1))
    assert torch.equal(targets.long(), Y)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (FRAME.assign(kind="new", name="x"), "(columns kind, name); expected numbers"),
        (FRAME.assign(age=pd.array([1, None] * 30, dtype="Int64")), "hold NaN or inf"),
        (FRAME.assign(day=pd.Timestamp("2026-01-01")), "(column day); expected numbers"),
    ],
)
def test_pandas_frames_that_hold_no_numbers_name_their_columns(frame, expected):
    with pytest.raises(ez.InputError) as caught:
        ez.Data((frame, SERIES), (frame, SERIES))
    assert expected in str(caught.value)


def test_columns_in_another_order_are_refused():
    with pytest.raises(ez.InputError, match="the columns of validation are f, e"):
        ez.Data((FRAME, SERIES), (FRAME[list("fedcba")], SERIES))


# data of which there are few


TINY = recipe(reference={"epochs": 1}, train={"epochs": 1}, finetune={"epochs": 1})


def warned(model: nn.Module, *parts: Any) -> list[str]:
    """What is warned of when a network is compressed on these parts."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        ez.compress(model, ez.Data(*parts), TINY)
    return [str(warning.message) for warning in given]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("model", [mlp, convnet])
def test_one_or_two_examples_are_trained_on_and_warned_of(count, model):
    whole = classification() if model is mlp else images()
    x, y = next(iter(whole.train.batches(60, torch.device("cpu"))))
    few = x[:count], y[:count]
    s = "s" if count > 1 else ""
    texts = warned(model(), few, few, few)
    assert any(t.startswith(f"train data has {count} example{s}, fewer than 100") for t in texts)


def test_one_class_alone_is_warned_of():
    texts = warned(mlp(), (X, 0 * Y), (X, 0 * Y))
    assert "train data has no example of classes 1, 2" in texts


def test_a_class_that_only_the_validation_part_has_is_warned_of():
    assert "train data has no example of class 2" in warned(mlp(), (X, Y.clamp(max=1)), (X, Y))


def test_a_batch_larger_than_the_data_is_the_data():
    settings = recipe(train={"epochs": 1, "batch_size": 1000})
    assert ez.compress(mlp(), classification(), settings).record.nonzero_ratio == 4


def test_one_hot_rows_of_floating_numbers_are_warned_of_once():
    with pytest.warns(ez.EllzeroWarning, match=r"for classification give .* targets.argmax\(1\)"):
        ez.Data((X, ONE_HOT.float()), (X, ONE_HOT.float()))


def test_a_budget_of_accuracy_does_not_go_with_a_regression():
    wrong = recipe(prune={"budget": {"max_accuracy_drop": 1}})
    with pytest.raises(ez.InputError, match="use max_loss_increase"):
        ez.compress(mlp(1), regression(), wrong)
