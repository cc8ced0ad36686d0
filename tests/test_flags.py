"""Flags: each sentence at the figures where it begins, worked out by hand."""

import pytest

import ellzero as ez
from ellzero import flags
from ellzero.flags import Constant
from ellzero.training.evaluation import Evaluation


@pytest.mark.parametrize(
    ("reference", "compressed", "worse"),
    [
        # 32 of 45 right: a standard error of sqrt(0.711 * 0.289 / 45) = 0.0676, or 3.04 answers
        (32 / 45, 35 / 45, False),
        (32 / 45, 36 / 45, True),
        (32 / 45, 20 / 45, False),
        (1.0, 1.0, False),
        (0.0, 1 / 45, True),
    ],
)
def test_an_accuracy_that_the_reference_falls_short_of(reference, compressed, worse):
    budget = ez.Budget(max_accuracy_drop=1.0)
    told = flags.worse_reference(budget, Evaluation(reference, 9), Evaluation(compressed, 1), 45)
    assert len(told) == worse
    if worse:
        assert f"validation accuracy {reference:.3f} against {compressed:.3f};" in told[0]


@pytest.mark.parametrize(
    ("reference", "compressed", "worse"),
    [(0.365, 0.154, True), (0.170, 0.154, True), (0.169, 0.154, False), (0.154, 0.365, False)],
)
def test_a_loss_that_the_reference_exceeds(reference, compressed, worse):
    budget = ez.Budget(max_loss_increase=0.1)
    told = flags.worse_reference(budget, Evaluation(0.1, reference), Evaluation(0.9, compressed), 1)
    assert len(told) == worse
    if worse:
        assert f"validation loss {reference:.3g} against {compressed:.3g};" in told[0]


@pytest.mark.parametrize(
    ("score", "constant", "weak"),
    [
        # a third of 45: two standard errors are 2 * sqrt(2 / 9 / 45) = 0.1405, so up to 0.4739
        (21 / 45, Constant(1 / 3, 45, accuracy=True), True),
        (22 / 45, Constant(1 / 3, 45, accuracy=True), False),
        # of a variance of 2 at least a tenth is to be explained
        (-1.81, Constant(-2.0, 45, accuracy=False), True),
        (-1.79, Constant(-2.0, 45, accuracy=False), False),
    ],
)
@pytest.mark.parametrize("who", ["reference", "compressed network"])
def test_a_network_no_better_than_one_answer(score, constant, weak, who):
    found = Evaluation(score, 1.0)
    good = Evaluation(1.0 if constant.accuracy else 0.0, 1.0)
    told = flags.weak_networks(found if who == "reference" else good, found, constant)
    assert len(told) == weak
    if weak:
        assert told[0].startswith(f"the {who} is hardly better")
        assert f"{abs(score):.3g}" in told[0]


def test_a_single_class_makes_the_reference_weak_and_nothing_else_is_said():
    right = Evaluation(1.0, 1.0)  # nothing can be better than to name it
    (told,) = flags.weak_networks(right, right, Constant(1.0, 45, accuracy=True))
    assert told.startswith("the reference is hardly better")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([], None),  # it was given
        ([0.7], "for one epoch only"),
        ([0.7, 1.0, 0.94], "from 1 to 0.94"),
        ([0.7, 1.0, 0.96], None),
        ([1.0, 1.5], None),
        ([1.0, -1.0], None),  # nothing is relative to a loss below zero
    ],
)
def test_a_reference_not_trained_to_its_end(losses, said):
    told = flags.short_reference(losses)
    assert len(told) == (said is not None)
    assert said is None or said in told[0]
