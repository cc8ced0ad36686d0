"""Scores over the whole set: objects of torchmetrics, functions, and what they refuse."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ellzero as ez
from ellzero.errors import InputError
from ellzero.training import evaluation
from judged import LABEL_LOGITS, LABELS, TOKENS, WORDS, Given, judged
from small import blobs, mlp, recipe, regression

torchmetrics = pytest.importorskip("torchmetrics")


@pytest.fixture(params=[2, 1000], ids="batches of {}".format)
def batch_size(request: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(evaluation, "BATCH", request.param)
    return request.param


def test_macro_f1_is_that_of_the_set(batch_size):
    # classes 0: 2 TP, 1 FP, 0 FN; 1: 0, 0, 1; 2: 1, 0, 0. Means of batches would be others
    logits = torch.eye(3)[[0, 0, 0, 2]]
    score = torchmetrics.F1Score(task="multiclass", num_classes=3, average="macro")
    found = judged(logits, torch.tensor([0, 0, 1, 2]), score=score)
    assert found.score == pytest.approx((4 / 5 + 0 + 1) / 3)


def test_the_area_under_the_curve_is_that_of_the_set(batch_size):
    # of 2 x 3 pairs of a positive and a negative, 5 are in the right order; the last two logits
    # lie between 0 and 1, and torchmetrics would take a batch of them for probabilities
    logits = torch.tensor([[0.0, 3.0], [0.0, 1.0], [0.0, 2.0], [0.0, 0.5], [0.0, 0.0]])
    targets = torch.tensor([1, 1, 0, 0, 0])
    score = torchmetrics.AUROC(task="multiclass", num_classes=2)
    assert judged(logits, targets, score=score).score == pytest.approx(5 / 6)


def test_r2_is_that_of_the_set(batch_size):
    guess, truth = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 3.0, 5.0])
    # squares 0 + 1 + 1, against 4 + 0 + 4 about the mean
    assert judged(guess, truth, score=torchmetrics.R2Score()).score == pytest.approx(1 - 2 / 8)


def test_tokens_reach_a_metric_with_their_classes_in_dimension_1(batch_size):
    score = torchmetrics.Accuracy(
        task="multiclass", num_classes=3, ignore_index=-100, average="micro"
    )
    assert judged(TOKENS, WORDS, score=score).score == pytest.approx(4 / 5)


def test_several_labels(batch_size):
    score = torchmetrics.F1Score(task="multilabel", num_labels=3, average="micro", threshold=0.5)
    own = judged(LABEL_LOGITS, LABELS, task="multi-label", score=score).score
    # a logit of 0 is a probability of a half, which neither takes for one
    assert own == pytest.approx(judged(LABEL_LOGITS, LABELS, task="multi-label").score)


class Counting:
    """A metric of one's own: the share of the first class, and how often it was reset."""

    def __init__(self) -> None:
        self.resets, self.seen = 0, torch.zeros(0)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        self.seen = torch.cat([self.seen, (targets == 0).float()])

    def compute(self) -> float:
        return float(self.seen.mean())

    def reset(self) -> None:
        self.resets, self.seen = self.resets + 1, torch.zeros(0)


def test_the_object_itself_is_left_as_it_is(batch_size):
    x, y = blobs(10, 1)
    score = Counting()
    score.update(torch.zeros(5), torch.zeros(5))
    data = ez.Data((x, y), (x, y), score=score)
    for _ in range(2):
        assert ez.evaluate(mlp(), data).score == pytest.approx(4 / 10)
    assert score.resets == 0
    assert len(score.seen) == 5


def test_a_metric_chooses_the_kept_epoch(tmp_path):
    score = torchmetrics.F1Score(task="multiclass", num_classes=3, average="macro")
    data = ez.Data(blobs(60, 1), blobs(45, 2), blobs(30, 3), score=score)
    result = ez.compress(mlp(), data, recipe())
    x, y = blobs(45, 2)
    with torch.no_grad():
        expected = float(score(result.model(x), y))
    assert result.record.validation_score == pytest.approx(expected)
    assert result.record.test_error_percent is None


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (torchmetrics.MeanSquaredError(), "MeanSquaredError is the better the lower it is"),
        ("f1", "score is 'f1'"),
        (torch.nn.MSELoss(), "the score is a loss, which is the better the lower it is"),
        (torchmetrics.R2Score, "score is the class R2Score; give an object of it"),
    ],
)
def test_scores_that_are_refused(score, expected):
    with pytest.raises(InputError, match=expected):
        regression(score=score)


def test_a_loss_is_no_score_for_it_would_keep_the_worst_epoch():
    loss = torch.nn.functional.l1_loss
    with pytest.raises(InputError, match="give score='loss', which is the loss times -1"):
        regression(loss=loss, score=loss)


def test_a_metric_of_several_numbers_is_refused():
    score = torchmetrics.F1Score(task="multiclass", num_classes=3, average=None)
    x, y = blobs(10, 1)
    with pytest.raises(InputError, match=r"MulticlassF1Score computes \(3,\); expected one number"):
        ez.evaluate(mlp(), ez.Data((x, y), (x, y), score=score))


def test_a_metric_of_other_outputs_is_refused():
    x, y = blobs(10, 1)
    data = ez.Data((x, y), (x, y), score=torchmetrics.F1Score(task="multiclass", num_classes=5))
    expected = r"MulticlassF1Score cannot take torch\.float32 \(10, 3\) and torch\.int64 \(10,\)"
    with pytest.raises(InputError, match=expected):
        ez.evaluate(mlp(), data)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(torch.zeros(10), r"score of a batch is \(10,\)"), ({"f1": 1.0}, "score of a batch is dict")],
)
def test_a_function_that_gives_no_number_is_refused(value, expected):
    x, y = blobs(10, 1)
    with pytest.raises(InputError, match=expected):
        ez.evaluate(mlp(), ez.Data((x, y), (x, y), score=lambda outputs, targets: value))


@pytest.mark.parametrize("number", [0.5, torch.tensor([0.5]), np.float32(0.5)])
def test_a_function_may_give_any_number(number):
    x, y = blobs(10, 1)
    data = ez.Data((x, y), (x, y), score=lambda outputs, targets: number)
    assert ez.evaluate(mlp(), data).score == 0.5


def test_a_function_is_averaged_by_the_batches_length(monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH", 2)
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [8.0, 0.0]])
    examples = (x, torch.tensor([0, 1, 0]))
    found = ez.evaluate(Given(), ez.Data(examples, examples, score=lambda o, t: o[:, 0].max()))
    assert found.score == pytest.approx((2 * 3 + 1 * 8) / 3)
