"""Data: what is taken, what is refused, and how outputs are judged."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ellzero as ez
from ellzero.data.batch import Batch
from ellzero.errors import InputError
from small import Counted, blobs, classification, mlp, regression

CPU = torch.device("cpu")
X, Y = blobs(12, 0)


def whole(part, batch_size=5, **options):
    batches = list(part.batches(batch_size, CPU, **options))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


# what is refused


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        ((X[:0], Y[:0]), "is empty; expected at least one example"),
        (TensorDataset(X[:0], Y[:0]), "is empty"),
        (DataLoader(TensorDataset(X[:0], Y[:0])), "is empty"),
        ((X, Y[:5]), "has 12 inputs and 5 targets"),
        ((X, Y, Y, Y), r"is tuple of 4; expected \(inputs, targets\)"),
        ([X], "is list of 1"),
        ((None, Y), "inputs cannot be made into tensors"),
        ((X, ["a"] * 12), "targets are <U1; expected numbers: for classes give"),
        ((X, torch.tensor(1)), "holds a single number"),
        (((x, y) for x, y in [(X, Y)]), "is generator, which can be read once only"),
        (None, "is NoneType; expected a pair of tensors"),
        (7, "is int; expected a pair of tensors"),
        (DataLoader(TensorDataset(X)), r"is list of 1; expected \(inputs, targets\)"),
        (["text"], "is list of 1"),
        ({"x": X, "y": Y}, "has no 'labels'; it has x, y"),
        ({"labels": Y}, "has no inputs beside labels"),
    ],
)
def test_what_is_no_data_is_named(part, examples, expected):
    parts: dict[str, Any] = {"train": (X, Y), "validation": (X, Y), "test": (X, Y)} | {
        part: examples
    }
    if part == "test" and examples is None:
        pytest.skip("None means that there is no test part")
    with pytest.raises(InputError, match=f"{part} .*{expected}"):
        ez.Data(**parts)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["inputs", "targets"])
@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_nan_and_inf_are_refused_wherever_they_are(bad, what, part):
    pair = {"inputs": X.clone(), "targets": X[:, 0].clone()}
    pair[what].view(-1)[-1] = bad
    parts: dict[str, Any] = dict.fromkeys(("train", "validation", "test"), (X, X[:, 0]))
    parts[part] = (pair["inputs"], pair["targets"])
    with pytest.raises(InputError, match=f"{part} {what} hold NaN or inf"):
        ez.Data(**parts)


def test_large_finite_values_are_not_taken_for_inf():
    x = torch.full((4, 2), 3e38)  # their float32 sum would overflow
    data = ez.Data((x, torch.zeros(4)), (x, torch.zeros(4)))
    assert whole(data.train)[0].equal(x)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize(("bad", "low", "high"), [(-1, -1, 2), (3, 0, 3)])
def test_labels_out_of_range_are_refused_by_the_classes_or_the_outputs(part, bad, low, high):
    y = Y.clone()
    y[3] = bad
    parts: dict[str, Any] = {"train": (X, Y), "validation": (X, Y), "test": (X, Y)} | {part: (X, y)}
    expected = f"{part} labels run from {low} to {high}; expected 0 to 2, one per class"
    with pytest.raises(InputError, match=expected):
        ez.Data(**parts, classes=["a", "b", "c"])
    with pytest.raises(InputError, match=expected):
        ez.Data(**parts).check_fit(mlp())


def test_labels_of_a_dataset_are_checked_batch_by_batch():
    y = Y.clone()
    y[-1] = 3
    data = ez.Data(TensorDataset(X, y), (X, Y), classes=["a", "b", "c"])
    batches = data.train.batches(6, CPU)
    next(batches)
    with pytest.raises(InputError, match="train labels run from 0 to 3"):
        next(batches)


def test_a_loss_of_ones_own_may_give_labels_a_meaning_of_its_own():
    y = Y.clone()
    y[::2] = -100
    loss = nn.CrossEntropyLoss(ignore_index=-100)
    data = ez.Data((X, y), (X, y), loss=loss)
    data.check_fit(mlp())
    expected = nn.functional.cross_entropy(mlp()(X)[1::2], Y[1::2]).item()
    assert ez.evaluate(mlp(), data, "validation").loss == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_are_as_good_as_int64(dtype):
    data, expected = (ez.Data((X, y), (X, y)) for y in (Y.to(dtype), Y))
    data.check_fit(mlp())
    assert ez.evaluate(mlp(), data, "train") == ez.evaluate(mlp(), expected, "train")
    assert data.loss(mlp()(X), Y.to(dtype)) == data.loss(mlp()(X), Y)


# defaults


def score_of(data: ez.Data, outputs: Any, *batch: Any) -> float:
    metric = data.objective.metric(CPU)
    if metric is None:
        return -float(data.loss(outputs, *batch))
    metric.update(outputs, Batch(None, *batch))
    return metric.compute()


def test_integers_mean_classification_and_floats_regression():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    data = classification()
    assert data.is_classification
    assert data.scores_accuracy
    # softmax of two logits a, b in front of the right one a: log(1 + exp(b - a))
    by_hand = (math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2
    assert float(data.loss(logits, torch.tensor([0, 0]))) == pytest.approx(by_hand)

    data = regression()
    assert not data.is_classification
    assert not data.scores_accuracy
    guess, truth = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    assert float(data.loss(guess, truth)) == 2.5
    assert score_of(data, guess, truth) == -2.5


def test_accuracy_and_mse_by_hand():
    logits = torch.tensor([[0.1, 0.9, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0], [5.0, 0.0, 0.0]])
    assert score_of(classification(), logits, torch.tensor([1, 0, 2, 1])) == 0.75
    # a pixel each: outputs (N, C, H), targets (N, H)
    pixels = ez.Data((X, Y[:, None]), (X, Y[:, None]), task="segmentation")
    assert score_of(pixels, logits.T[None], torch.tensor([[1, 0, 1, 1]])) == 0.5
    assert score_of(regression(), torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0])) == -5.0


def test_loss_and_score_of_ones_own_are_used():
    data = regression(loss=nn.functional.l1_loss, score=lambda o, t: torch.tensor(7.0))
    found = ez.evaluate(mlp(1), data, "test")
    x, y = whole(data.test)
    assert found.loss == pytest.approx((mlp(1)(x) - y).abs().mean().item())
    assert found.score == 7.0


# batches


@pytest.mark.parametrize("wrap", ["pair", "list", "numpy", "dataset"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_batches_hold_each_example_once(wrap, shuffle, batch_size):
    x, y = torch.arange(12.0)[:, None], torch.arange(12)
    examples = {
        "pair": (x, y),
        "list": [x, y],
        "numpy": (x.numpy(), y.numpy()),
        "dataset": TensorDataset(x, y),
    }[wrap]
    part = ez.Data(examples, (x, y)).train
    sizes = [len(t) for _, t in part.batches(batch_size, CPU, shuffle=shuffle)]
    assert sum(sizes) == 12
    assert max(sizes) == min(batch_size, 12)
    assert len(sizes) == part.batch_count(batch_size) == math.ceil(12 / batch_size)
    inputs, targets = whole(part, batch_size, shuffle=shuffle)
    assert torch.equal(inputs[:, 0].long(), targets)  # inputs stay beside their targets
    assert sorted(targets.tolist()) == list(range(12))
    assert shuffle or targets.tolist() == list(range(12))


@pytest.mark.parametrize("wrap", [lambda x, y: (x, y), TensorDataset])
def test_shuffling_follows_the_global_seed(wrap):
    part = ez.Data(wrap(torch.arange(50.0)[:, None], torch.arange(50)), (X, Y)).train

    def order(seed):
        torch.manual_seed(seed)
        return whole(part, 8, shuffle=True)[1].tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_a_loader_sets_batch_size_itself_and_can_be_used_again():
    loader = DataLoader(TensorDataset(X, Y), batch_size=4)
    part = ez.Data(loader, (X, Y)).train
    assert part.batch_count(1000) == 3
    for _ in range(2):
        assert torch.equal(whole(part, 1000)[0], X)


def test_every_kind_of_examples_is_judged_alike():
    kinds = ((X, Y), TensorDataset(X, Y), DataLoader(TensorDataset(X, Y), batch_size=5))
    found = [ez.evaluate(mlp(), ez.Data(kind, kind), "validation") for kind in kinds]
    for other in found[1:]:
        assert other == pytest.approx(found[0])


def test_the_users_tensors_are_not_changed():
    x, y = X.clone(), Y.clone()
    data = ez.Data((x, y), (x, y), preprocess=ez.Preprocess(2.0, 1.0))
    whole(data.train, shuffle=True)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


def test_a_dataset_is_looked_at_once_before_it_is_used():
    dataset = Counted((X, Y))
    ez.Data(dataset, (X, Y))
    assert dataset.taken == [1] + [0] * 11


# preprocessing


def test_preprocessing_per_channel_by_hand():
    x = torch.tensor([[[[0, 255]], [[10, 20]]]], dtype=torch.uint8)  # (1, 2 channels, 1, 2)
    scaled = ez.Preprocess((1 / 255, 2.0), (0.0, -10.0))(x)
    assert scaled.dtype is torch.float32
    torch.testing.assert_close(scaled, torch.tensor([[[[0.0, 1.0]], [[10.0, 30.0]]]]))
    features = ez.Preprocess((1.0, 10.0), 1.0)(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert features.tolist() == [[2.0, 21.0], [4.0, 41.0]]


@pytest.mark.parametrize("kind", ["pair", "dataset", "loader"])
def test_batches_are_preprocessed_once(kind):
    examples = {
        "pair": (X, Y),
        "dataset": TensorDataset(X, Y),
        "loader": DataLoader(TensorDataset(X, Y), 3),
    }[kind]
    part = ez.Data(examples, (X, Y), preprocess=ez.Preprocess(2.0, 1.0)).train
    for _ in range(2):
        torch.testing.assert_close(whole(part)[0], 2 * X + 1)


# fit


def test_a_network_that_cannot_take_the_data_is_named_with_the_shapes():
    with pytest.raises(
        InputError, match=r"Linear cannot take the data, train inputs of torch.float32 \(1, 6\)"
    ):
        classification().check_fit(nn.Linear(5, 3))
    doubles = ez.Data((X.double(), Y), (X, Y))
    with pytest.raises(InputError, match=r"inputs of torch.float64"):
        doubles.check_fit(mlp())


def test_targets_that_the_loss_cannot_take_are_named():
    column = ez.Data((X, Y[:, None]), (X, Y[:, None]))
    with pytest.raises(InputError, match=r"targets of torch.int64 \(1, 1\)"):
        column.check_fit(mlp())


def test_regression_does_not_broadcast_outputs_against_targets():
    # (N, 1) against (N,) would silently compare every output with every target
    flat = ez.Data((X, X[:, 0]), (X, X[:, 0]))
    with pytest.raises(InputError, match=r"outputs of \(1, 1\).*targets of torch.float32 \(1,\)"):
        flat.check_fit(mlp(1))
    ez.Data((X, X[:, :1]), (X, X[:, :1])).check_fit(mlp(1))


@pytest.mark.parametrize("fails", [False, True])
def test_checking_the_fit_leaves_every_module_in_its_mode(fails):
    model = nn.Sequential(nn.Linear(5 if fails else 6, 3), nn.BatchNorm1d(3), nn.Dropout())
    model.train()
    model[1].eval()  # a frozen normalization layer
    before = {name: buffer.clone() for name, buffer in model.state_dict().items()}
    if fails:
        with pytest.raises(InputError):
            classification().check_fit(model)
    else:
        classification().check_fit(model)
        ez.evaluate(model, classification())
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_list_of_batches_is_gone_through_every_epoch():
    batches = [blobs(5, 1), blobs(7, 2)]
    data = ez.Data(batches, blobs(9, 3))
    assert data.train.batch_count(128) == 2
    for _ in range(2):
        found = list(data.train.batches(128, CPU, shuffle=True))
        assert all(x.equal(a) and y.equal(b) for (x, y), (a, b) in zip(found, batches, strict=True))


@pytest.mark.parametrize("kind", [tuple, lambda pair: TensorDataset(*pair)])
def test_a_last_batch_of_one_is_none_of_its_own(kind):
    # batch normalization cannot be trained on one example
    examples = blobs(9, 1)
    part = ez.Data(kind(examples), kind(examples)).train
    sizes = [len(y) for _, y in part.batches(4, CPU, shuffle=True)]
    assert sizes == ([4, 5] if kind is tuple else [4, 4])
    assert part.batch_count(4) == len(sizes)
    assert sum(len(y) for _, y in part.batches(4, CPU)) == 9  # an evaluation takes all
    assert [len(y) for _, y in part.batches(9, CPU, shuffle=True)] == [9]
    assert [len(y) for _, y in part.batches(7, CPU, shuffle=True)] == [7, 2]


def test_the_accuracy_of_a_single_output_is_refused():
    def binary(outputs, targets):
        return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], targets.float())

    x, y = blobs(20, 1)
    with pytest.raises(InputError, match="there is no score by default"):
        ez.Data((x, y % 2), (x, y % 2), loss=binary)
    data = ez.Data((x, y % 2), (x, y % 2), loss=binary, task="classification")
    with pytest.raises(InputError, match="score of your own"):
        data.check_fit(nn.Linear(6, 1))


# several inputs

TOKENS = torch.arange(24).view(12, 2)


class Pairs(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return len(Y)

    def __getitem__(self, index: int) -> Any:
        return (TOKENS[index], X[index]), Y[index]


@pytest.mark.parametrize(
    "examples",
    [((TOKENS, X), Y), [[TOKENS, X], Y], Pairs(), DataLoader(Pairs(), 5, shuffle=True)],
    ids=["tuple", "list", "Dataset", "DataLoader"],
)
def test_several_inputs_of_an_example_stay_together(examples):
    data = ez.Data(
        examples,
        ((TOKENS, X), Y),
        preprocess=ez.Preprocess(2.0, 1.0),
        augment=lambda tokens: tokens + 100,
    )
    batches = list(data.train.batches(5, CPU, shuffle=True))
    tokens, x, y = (torch.cat(part) for part in zip(*((*i, t) for i, t in batches), strict=True))
    order = ((tokens - 1) / 2 - 100)[:, 0].long() // 2  # row n of the tokens is 2n, 2n + 1
    assert sorted(order.tolist()) == list(range(12))
    assert torch.equal(x, X[order])
    assert torch.equal(y, Y[order])
    (plain, _), _ = next(data.validation.batches(5, CPU))
    assert torch.equal(plain, TOKENS[:5] * 2.0 + 1.0)


def test_several_inputs_of_unequal_length_are_refused():
    with pytest.raises(InputError, match="train data has 11 inputs and 12 targets"):
        ez.Data(((X, TOKENS[1:]), Y), ((X, TOKENS), Y))
    with pytest.raises(InputError, match="train inputs hold NaN or inf"):
        ez.Data(((X, X / 0), Y), ((X, TOKENS), Y))


def test_a_network_of_one_input_does_not_take_two():
    shapes = r"train inputs of torch.float32 \(1, 6\) and torch.int64 \(1, 2\)"
    with pytest.raises(InputError, match=f"Sequential cannot take the data, {shapes}"):
        ez.Data(((X, TOKENS), Y), ((X, TOKENS), Y)).check_fit(mlp())
