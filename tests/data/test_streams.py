"""Data without a length, that end or do not: counted, cut into epochs of a number of steps."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import ellzero as ez
from ellzero.errors import InputError
from small import blobs, mlp, recipe, tensors_equal

CPU = torch.device("cpu")
X, Y = blobs(37, 1)


class Stream(IterableDataset[Any]):
    """Examples one after the other, so many of them, or without end; counts how often it began."""

    def __init__(self, count: int | None = len(Y)) -> None:
        self.count, self.began = count, 0

    def __iter__(self) -> Iterator[Any]:
        self.began += 1
        index = 0
        while self.count is None or index < self.count:
            yield X[index % len(Y)], Y[index % len(Y)]
            index += 1


class Sized(Stream):
    def __len__(self) -> int:
        assert self.count is not None
        return self.count


class Batches:
    """Batches of 10, 10, 10 and 7 without a length."""

    def __init__(self) -> None:
        self.began = 0

    def __iter__(self) -> Iterator[Any]:
        self.began += 1
        yield from zip(X.split(10), Y.split(10), strict=True)


KINDS: dict[str, Any] = {
    "stream": Stream,
    "sized": Sized,
    "loader": lambda: DataLoader(Stream(), 10),
    "batches": Batches,
    "function": lambda: lambda: iter(Batches()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_is_counted_and_every_example_seen(kind):
    data = ez.Data(KINDS[kind](), KINDS[kind]())
    assert data.train.batch_count(10) == 4
    for shuffle in (True, False):
        batches = list(data.train.batches(10, CPU, shuffle=shuffle))
        assert [batch.length for batch in batches] == [10, 10, 10, 7]
        assert torch.cat([batch.targets for batch in batches]).equal(Y)
    assert data.train.examples == 37
    found = ez.evaluate(mlp(), data)
    assert found == pytest.approx(ez.evaluate(mlp(), ez.Data((X, Y), (X, Y))))


@pytest.mark.parametrize("kind", ["stream", "batches", "function"])
def test_a_training_by_a_stream_is_one_by_a_list_of_its_batches(kind):
    told = recipe(train={"batch_size": 10}, reference={"batch_size": 10})
    listed = list(zip(X.split(10), Y.split(10), strict=True))
    one, other = (
        ez.compress(mlp(), ez.Data(examples, (X, Y)), told).model
        for examples in (KINDS[kind](), listed)
    )
    assert tensors_equal(one, other)


def test_it_is_counted_once_and_when_it_is_needed():
    batches, stream = Batches(), Stream()
    data = ez.Data(batches, stream)
    assert (batches.began, stream.began) == (1, 1)  # a look at the first
    for _ in range(3):
        data.train.batch_count(128)
        data.validation.batch_count(10)
    assert (batches.began, stream.began) == (2, 2)


@pytest.mark.parametrize(("count", "size", "expected"), [(31, 10, [10, 10, 10]), (1, 10, [1])])
def test_a_last_example_alone_is_left_out_of_training(count, size, expected):
    data = ez.Data(Stream(count), (X, Y))
    lengths = [batch.length for batch in data.train.batches(size, CPU, shuffle=True)]
    assert lengths == expected
    assert data.train.batch_count(size) == len(expected)
    assert sum(batch.length for batch in data.train.batches(size, CPU)) == count


ENDLESS: dict[str, Any] = {
    "stream": lambda: Stream(None),
    "function": lambda: lambda: iter(DataLoader(Stream(None), 5)),
    "tensors": lambda: (X, Y),
    "dataset": lambda: TensorDataset(X, Y),
    "weighted": lambda: (X, Y, torch.ones(37)),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_epoch_of_so_many_steps(kind):
    data = ez.Data(ENDLESS[kind](), (X, Y), steps_per_epoch=3)
    assert data.train.batch_count(5) == 3
    seen: list[Tensor] = []
    for _ in range(2):
        batches = list(data.train.batches(5, CPU, shuffle=True))
        assert [batch.length for batch in batches] == [5, 5, 5]
        seen = [batch.targets for batch in batches]
    assert torch.cat(seen).equal(Y[:15]) == (kind in ("stream", "function"))
    result = ez.compress(mlp(), data, recipe(train={"batch_size": 5}))
    assert result.record.status == "done"


def test_an_epoch_that_ends_before_its_steps_is_refused():
    data = ez.Data(Stream(12), (X, Y), steps_per_epoch=3)
    with pytest.raises(InputError, match="train data gave 2 batches; expected steps_per_epoch = 3"):
        list(data.train.batches(10, CPU, shuffle=True))


def test_a_stream_that_grows_is_refused():
    stream = Stream(20)
    data = ez.Data(stream, (X, Y))
    assert data.train.batch_count(10) == 2
    stream.count = 30
    with pytest.raises(InputError, match="gave 2 batches in a first pass, and more in another"):
        list(data.train.batches(10, CPU, shuffle=True))


@pytest.mark.parametrize("steps", [0, -1, 2.0, True])
def test_steps_that_are_no_number(steps):
    with pytest.raises(InputError, match=r"steps_per_epoch is .*; expected a whole number >= 1"):
        ez.Data((X, Y), (X, Y), steps_per_epoch=steps)


@pytest.mark.parametrize(
    "once", [iter([(X, Y)]), (pair for pair in [(X, Y)]), zip([X], [Y], strict=True)]
)
def test_what_can_be_read_once_only_is_refused(once):
    with pytest.raises(InputError, match="which can be read once only; give a function"):
        ez.Data((X, Y), once)


def test_a_function_that_gives_the_same_generator_again_is_refused():
    x, y = blobs(20, 1)
    once = ((x, y) for _ in range(3))
    with pytest.raises(InputError, match="train data's function gave the same generator again"):
        ez.compress(mlp(), ez.Data(lambda: once, (x, y)), recipe())


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"x": 0, "mask": 1, "labels": 2, "w": 3}, "some of the train examples have weights, and"),
        ({"mask": 1, "x": 0, "labels": 2}, "train inputs are mask, x; expected x, mask"),
    ],
)
def test_batches_that_are_unlike_the_first_are_refused(second, expected):
    x, y = blobs(20, 1)
    values = (x, x, y, torch.ones(20))
    first = {"x": x, "mask": x, "labels": y}
    batches = [first, {name: values[at] for name, at in second.items()}]
    data = ez.Data(batches, {**first, "w": values[3]}, weights="w")
    with pytest.raises(InputError, match=expected):
        list(data.train.batches(20, torch.device("cpu"), shuffle=True))
