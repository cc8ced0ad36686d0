"""Data(workers=): other processes read a Dataset ahead, and nothing else changes."""

import os
import time
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

import ellzero as ez
from ellzero.data.batch import Batch
from small import Counted, blobs, dropout_mlp, mlp, recipe, tensors_equal

# Python 3.12 and later warn of every fork in a process with threads, as torch's are
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

CPU = torch.device("cpu")
X, Y = blobs(25, 0)


class Traced(Dataset[Any]):
    """Inputs (index, worker's number or -1, process); label 0."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        info = get_worker_info()
        worker = -1 if info is None else info.id
        return torch.tensor([index, worker, os.getpid()], dtype=torch.float64), torch.tensor(0)


class Failing(Counted):
    """Raises at one of its examples."""

    def __init__(self, at: int, error: Exception) -> None:
        super().__init__((X, Y))
        self.at, self.error = at, error

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.at:
            raise self.error
        return super().__getitem__(index)


def batches(data: ez.Data, seed: int = 0, *, shuffle: bool) -> list[Batch]:
    torch.manual_seed(seed)
    return list(data.train.batches(4, CPU, shuffle=shuffle))


@pytest.mark.parametrize(
    ("count", "shuffle", "expected"),
    # of four each; where it is shuffled, a single example at the end is left out
    [(24, False, 6), (24, True, 6), (25, False, 7), (25, True, 6), (26, False, 7), (26, True, 7)],
)
def test_the_batches_are_the_same_in_the_same_order(count, shuffle, expected):
    examples = (X.repeat(2, 1)[:count], Y.repeat(2)[:count])
    alone, helped = (ez.Data(Counted(examples), (X, Y), workers=n) for n in (0, 2))
    for seed in (0, 1):
        left, right = (batches(data, seed, shuffle=shuffle) for data in (alone, helped))
        assert len(left) == len(right) == expected
        for (x, y), (other_x, other_y) in zip(left, right, strict=True):
            assert x.equal(other_x)
            assert y.equal(other_y)
    rows = torch.cat([x for x, _ in right])
    assert rows.equal(examples[0]) != shuffle


@pytest.mark.parametrize("shuffle", [False, True], ids=["in-order", "shuffled"])
def test_workers_leave_the_same_random_state_behind(shuffle):
    # so that dropout, which draws in this process, does not depend on who reads the data
    after = []
    for workers in (0, 2):
        data = ez.Data(Counted((X, Y)), (X, Y), workers=workers)
        torch.manual_seed(0)
        drawn = [torch.rand(()).item() for _ in data.train.batches(4, CPU, shuffle=shuffle)]
        after.append(drawn)
    assert after[0] == after[1]
    assert len(set(after[0])) == len(after[0])


def test_the_batches_really_come_from_as_many_other_processes():
    data = ez.Data(Traced(20), Traced(20), workers=2)
    seen = torch.cat([x for x, _ in data.train.batches(4, CPU)])
    assert seen[:, 0].tolist() == list(range(20))
    assert set(seen[:, 1].tolist()) == {0, 1}
    assert len(set(seen[:, 2].tolist())) == 2
    assert os.getpid() not in seen[:, 2].tolist()


def test_without_workers_this_process_reads_them_all():
    data = ez.Data(Traced(20), Traced(20))
    seen = torch.cat([x for x, _ in data.train.batches(4, CPU)])
    assert set(seen[:, 1].tolist()) == {-1}
    assert set(seen[:, 2].tolist()) == {os.getpid()}


def test_every_part_has_workers():
    data = ez.Data(Traced(6), Traced(7), Traced(8), workers=2)
    for part, count in zip(data.parts, (6, 7, 8), strict=True):
        seen = torch.cat([x for x, _ in part.batches(2, CPU)])
        assert len(seen) == count
        assert set(seen[:, 1].tolist()) == {0, 1}


def test_the_example_is_read_in_this_process():
    # no process is started before there is anything to train
    assert ez.Data(Traced(6), Traced(6), workers=2).train.example[0][0, 1] == -1


def test_evaluation_is_the_same():
    alone, helped = (ez.Data(Counted((X, Y)), Counted((X, Y)), workers=n) for n in (0, 2))
    for part in ("train", "validation"):
        assert ez.evaluate(mlp(), helped, part) == ez.evaluate(mlp(), alone, part)
    pair = ez.evaluate(mlp(), ez.Data((X, Y), (X, Y)), "train")
    assert ez.evaluate(mlp(), helped, "train").score == pair.score


def test_a_training_is_the_same_to_the_last_bit():
    told = recipe(reference={"epochs": 1}, train={"epochs": 1}, finetune={"epochs": 0})
    ends = []
    for workers in (0, 2):
        parts = (Counted(blobs(60, 1)), Counted(blobs(45, 2)), Counted(blobs(30, 3)))
        data = ez.Data(*parts, workers=workers)
        ends.append(ez.compress(dropout_mlp(), data, told).model)
        # what a worker takes is counted in its own copy of the Dataset
        assert (sum(parts[0].taken) > 60) == (workers == 0)
    assert tensors_equal(*ends)


def test_tensors_and_loaders_need_no_workers():
    for examples in ((X, Y), [(X[:5], Y[:5]), (X[5:], Y[5:])]):
        data = ez.Data(examples, examples, workers=2)
        assert torch.cat([x for x, _ in data.train.batches(4, CPU)]).equal(X)


# what is refused, and what fails


@pytest.mark.parametrize("workers", [-1, 1.5, 2.0, True, False, "2", None, [2]], ids=repr)
def test_workers_that_are_no_whole_number(workers):
    with pytest.raises(ez.EllzeroError, match=r"workers is .*; expected a whole number >= 0"):
        ez.Data(Counted((X, Y)), (X, Y), workers=workers)


def test_a_dataset_that_raises_in_a_worker_ends_in_that_error():
    data = ez.Data(Failing(13, OSError("no such disk")), (X, Y), workers=2)
    with pytest.raises(OSError, match=r"(?s)DataLoader worker.*no such disk"):
        list(data.train.batches(4, CPU))


@pytest.mark.slow
def test_nan_that_a_worker_reads_is_refused():
    x = X.clone()
    x[13, 2] = torch.nan
    data = ez.Data(Counted((x, Y)), (X, Y), workers=2)
    with pytest.raises(ez.InputError, match="train inputs hold NaN or inf"):
        list(data.train.batches(4, CPU))


def test_an_epoch_that_is_left_early_ends_its_workers():
    data = ez.Data(Traced(400), Traced(2), workers=2)
    batches = data.train.batches(1, CPU)
    worker = int(next(iter(next(batches)))[0, 2])
    os.kill(worker, 0)  # it is at work
    del batches
    assert worker != os.getpid()
    deadline = time.monotonic() + 5  # it may take a moment to be gone
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(worker)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
