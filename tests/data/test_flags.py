"""What data say is doubtful about them, at once or after a pass, and what they do not say."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ellzero as ez
from ellzero.data.flags import flags
from ellzero.data.tally import Tally
from small import blobs, mlp

CPU = torch.device("cpu")


def labelled(*labels: int, count: int = 120) -> tuple[Tensor, Tensor]:
    """So many examples, of these labels in turn."""
    y = torch.tensor(labels)[torch.arange(count) % len(labels)]
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0)), y


ALL = labelled(0, 1, 2)


def test_nothing_is_said_of_data_that_are_as_they_should_be():
    data = ez.Data(ALL, ALL, ALL)
    data.check_fit(mlp())
    assert flags(data) == []


def test_a_part_of_fewer_than_a_hundred_examples():
    data = ez.Data(blobs(99, 1), blobs(100, 2), TensorDataset(*blobs(30, 3)))
    few, fewer = flags(data)
    assert few.startswith("train data has 99 examples, fewer than 100: ")
    assert fewer.startswith("test data has 30 examples, fewer than 100: ")


@pytest.mark.parametrize(
    ("train", "validation", "options", "expected"),
    [
        # by the labels of all parts
        ((0, 1, 3), (0, 1), {}, ["validation data has no example of class 3"]),
        ((0, 1), (0, 1), {"test": labelled(0, 1, 2)}, [
            "train data has no example of class 2", "validation data has no example of class 2"]),
        # by their names
        ((0, 2), (0, 1, 2), {"classes": ["cat", "dog", "owl"]},
         ["train data has no example of class dog"]),
        ((0, 1), (0, 1), {"classes": ["cat", "dog", "owl"]}, [
            "train data has no example of class owl",
            "validation data has no example of class owl"]),
        ((0,), tuple(range(14)), {}, [
            "train data has no example of classes 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 3 more"]),
        # the test data take no part in any choice
        ((0, 1, 2), (0, 1, 2), {"test": labelled(0)}, []),
    ],
)  # fmt: skip
def test_a_class_that_is_absent(train, validation, options, expected):
    assert flags(ez.Data(labelled(*train), labelled(*validation), **options)) == expected


def test_the_outputs_of_a_network_say_how_many_classes_there_are():
    data = ez.Data(labelled(0, 1), ALL)
    assert flags(data) == ["train data has no example of class 2"]
    data.check_fit(mlp(outputs=4))
    assert flags(data) == [
        "train data has no example of classes 2, 3",
        "validation data has no example of class 3",
    ]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32])
def test_labels_of_any_integer_type_are_counted(dtype):
    (x, y), both = labelled(0), labelled(0, 1)
    data = ez.Data((x, y.to(dtype)), (both[0], both[1].to(dtype)))
    assert flags(data) == ["train data has no example of class 1"]


def test_labels_with_a_meaning_of_their_own_are_not_counted_as_classes():
    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, ignore_index=-100)

    many = labelled(0, 5)
    assert flags(ez.Data(many, ALL, loss=loss, score=lambda o, t: -loss(o, t))) == []
    # of torch's cross-entropy they are classes; what it leaves out is none
    data = ez.Data(labelled(0, 1, -100), ALL, loss=nn.CrossEntropyLoss(ignore_index=-100))
    assert flags(data) == ["train data has no example of class 2"]


def kinds(x: Tensor, y: Tensor):
    batches = [(x[:50], y[:50]), (x[50:], y[50:])]
    return TensorDataset(x, y), DataLoader(TensorDataset(x, y), 50), batches


@pytest.mark.parametrize("kind", range(3))
def test_what_is_no_pair_of_tensors_is_counted_in_the_first_whole_pass(kind):
    data = ez.Data(kinds(*labelled(0, 1, count=60))[kind], kinds(*ALL)[kind])
    data.check_fit(mlp())
    few = "train data has 60 examples, fewer than 100: what they say of a network is largely chance"
    at_once = [few] if kind == 0 else []  # a Dataset knows its length
    assert flags(data) == at_once
    next(iter(data.train.batches(50, CPU)))
    assert flags(data) == at_once, "a pass that was not whole"
    ez.evaluate(mlp(), data, "train")
    assert flags(data) == [few, "train data has no example of class 2"]
    ez.evaluate(mlp(), data)
    assert flags(data) == [few, "train data has no example of class 2"]


def test_an_epoch_that_leaves_an_example_out_is_no_whole_pass():
    x, y = labelled(0, 1, 2, count=121)
    data = ez.Data(TensorDataset(x, y), ALL, classes=["a", "b", "c", "d"])
    assert sum(len(t) for _, t in data.train.batches(60, CPU, shuffle=True)) == 120
    assert flags(data) == ["validation data has no example of class d"]
    assert sum(len(t) for _, t in data.train.batches(50, CPU, shuffle=True)) == 121
    assert flags(data)[0] == "train data has no example of class d"


def test_two_epochs_that_leave_an_example_out_say_which_classes_there_are():
    torch.manual_seed(0)
    x, y = labelled(0, 1, count=121)
    data = ez.Data(TensorDataset(x, y), ALL)
    for expected in ([], ["train data has no example of class 2"]):
        assert sum(len(t) for _, t in data.train.batches(60, CPU, shuffle=True)) == 120
        assert flags(data) == expected


class OneOfItsClass(TensorDataset):
    """The last example is the only one of class 2."""

    def __init__(self) -> None:
        x, y = labelled(0, 1, count=121)
        y[120] = 2
        super().__init__(x, y)


def test_a_class_whose_only_example_was_left_out_once_is_there():
    data = ez.Data(OneOfItsClass(), ALL)
    for seed in (left_out_at(120), left_out_at(0)):
        torch.manual_seed(seed)
        list(data.train.batches(60, CPU, shuffle=True))
    assert data.train.tally is not None
    assert data.train.tally.labels == {0, 1, 2}
    assert flags(data) == []


def left_out_at(wanted: int) -> int:
    """A seed with which this example is the one left out."""
    for seed in range(10_000):
        torch.manual_seed(seed)
        numbers = TensorDataset(torch.zeros(121), torch.arange(121))
        taken = torch.cat(
            [t for _, t in ez.Data(numbers, ALL).train.batches(60, CPU, shuffle=True)]
        )
        if wanted not in taken:
            return seed
    raise AssertionError


def test_tokens_of_a_vocabulary_are_no_classes():
    x, y = torch.randn(120, 5), torch.arange(600).view(120, 5) % 30
    data = ez.Data((x, y), (x, y.clamp(min=7)))
    assert flags(data) == []
    # whoever names them means classes, such as those of each pixel
    names = [str(n) for n in range(31)]
    assert flags(ez.Data((x, y), (x, y), classes=names)) == [
        "train data has no example of class 30",
        "validation data has no example of class 30",
    ]


def test_one_hot_targets_that_are_taken_for_regression():
    x, y = ALL
    rows = nn.functional.one_hot(y, 3).double()
    with pytest.warns(
        ez.EllzeroWarning, match=r"one-hot rows .* regression .* targets\.argmax\(1\)"
    ):
        data = ez.Data((x, rows), (x, rows))
    (said,) = flags(data)
    assert "targets.argmax(1)" in said
    # a Dataset's are known after a pass
    data = ez.Data(TensorDataset(x, rows), (x, rows))
    assert flags(data) == []
    list(data.train.batches(50, CPU))
    assert flags(data) == [said]


def one_hot(**changes: float) -> Tensor:
    rows = nn.functional.one_hot(ALL[1], 3).float()
    rows[-1] = torch.tensor([0.0, changes.get("middle", 1.0), changes.get("last", 0.0)])
    return rows


@pytest.mark.parametrize(
    "targets",
    [
        one_hot(middle=0.999),
        one_hot(middle=-1.0),
        one_hot()[:, :1],
        torch.ones(120),
        one_hot()[:, :, None],
    ],
)
def test_targets_that_are_a_regression(targets):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert flags(ez.Data((ALL[0], targets), (ALL[0], targets))) == []


@pytest.mark.parametrize("targets", [one_hot(middle=1.0, last=1.0), one_hot(middle=0.0)])
def test_rows_of_0_and_1_may_be_meant_as_labels(targets):
    with pytest.warns(ez.EllzeroWarning, match="task='multi-label'"):
        data = ez.Data((ALL[0], targets), (ALL[0], targets))
    (said,) = flags(data)
    assert "rows of the floating numbers 0 and 1" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for task in ("regression", "multi-label"):
            assert flags(ez.Data((ALL[0], targets), (ALL[0], targets), task=task)) == []


def test_one_hot_targets_with_a_loss_of_ones_own_are_as_they_should_be():
    data = ez.Data(
        (ALL[0], one_hot()), (ALL[0], one_hot()), loss=nn.functional.cross_entropy, score="loss"
    )
    assert flags(data) == []


@pytest.mark.parametrize(
    ("targets", "counts", "is_one_hot", "is_multi_hot"),
    [
        (torch.tensor([3, 1, -1, 3]), {1: 1, 3: 2}, False, False),
        (torch.tensor([[3, 3], [0, 3], [1, 1], [-100, 0]]), {0: 2, 1: 2, 3: 3}, False, False),
        (torch.eye(4), None, True, True),
        (torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), None, False, True),
        (torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.5]]), None, False, False),
    ],
)
@pytest.mark.parametrize("cut", [1, 3])
def test_a_tally_of_parts_is_that_of_the_whole(targets, counts, is_one_hot, is_multi_hot, cut):
    parts = Tally.of(targets[:cut]) + Tally.of(targets[cut:])
    expected = Tally(4, targets.numel(), counts, is_one_hot, is_multi_hot)
    assert parts == expected == Tally.of(targets)


def test_huge_labels_take_no_memory():
    x = torch.zeros(200, 1)
    y = torch.full((200,), 1 << 60)
    assert flags(ez.Data((x, y), (x, y))) == []
