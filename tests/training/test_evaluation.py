"""Evaluation: the same figures as an evaluation by hand, example by example."""

import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.errors import InputError
from ellzero.training.evaluation import Evaluation
from small import blobs, classification, mlp, right_answers


@pytest.mark.parametrize(("part", "seed", "count"), [("train", 1, 60), ("test", 3, 30)])
def test_accuracy_and_loss_as_by_hand(part, seed, count):
    x, y = blobs(count, seed)
    found = ez.evaluate(mlp(), classification(), part)
    assert found.score == pytest.approx(right_answers(mlp(), (x, y)) / count)
    assert found.error_percent == pytest.approx(100 - 100 * found.score)
    with torch.no_grad():
        losses = [-mlp()(x)[i].log_softmax(0)[y[i]].item() for i in range(count)]
    assert found.loss == pytest.approx(sum(losses) / count)


def test_the_test_part_is_read_on_request_only():
    data = ez.Data(blobs(60, 1), blobs(45, 2), blobs(30, 3))
    found = ez.evaluate(mlp(), data)
    assert found.score == pytest.approx(right_answers(mlp(), blobs(45, 2)) / 45)


def test_batches_of_unequal_length_count_by_their_examples(monkeypatch):
    expected = ez.evaluate(mlp(), classification(), "train")
    monkeypatch.setattr("ellzero.training.evaluation.BATCH", 7)  # 60 = 8 * 7 + 4
    assert ez.evaluate(mlp(), classification(), "train") == pytest.approx(expected)


def test_dropout_is_off_and_the_mode_is_given_back():
    model = nn.Sequential(mlp(), nn.Dropout(0.9)).train()
    assert ez.evaluate(model, classification()) == ez.evaluate(mlp(), classification())
    assert model.training


def test_a_part_that_there_is_not():
    data = ez.Data(blobs(9, 1), blobs(9, 2))
    for part in ("test", "loss", "trian"):
        with pytest.raises(InputError, match=f"no part '{part}'; it has train, validation$"):
            ez.evaluate(mlp(), data, part)


def test_a_higher_score_is_better_and_of_equal_ones_the_lower_loss():
    assert Evaluation(0.9, 5.0).better_than(Evaluation(0.8, 0.1))
    assert Evaluation(0.9, 0.1).better_than(Evaluation(0.9, 0.2))
    assert not Evaluation(0.9, 0.2).better_than(Evaluation(0.9, 0.2))
    assert not Evaluation(0.8, 0.1).better_than(Evaluation(0.9, 5.0))


def test_a_network_without_values_is_refused():
    with pytest.raises(InputError, match=r"^0\.weight \(16, 6\) is on the meta device"):
        ez.evaluate(mlp().to("meta"), classification())
