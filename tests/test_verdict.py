"""The verdict on a run: by hand-made records, with the noise computed by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import hand_made
from ellzero.record import FinishedRecord
from ellzero.verdict import verdict


def record(dense: float, small: float, **entries: Any) -> FinishedRecord:
    """A run whose networks score so on test data, 99.8 % on validation data."""
    of_both = {"validation": {"score": 0.998, "loss": 0.02}}
    figures = {
        "reference": {**of_both, "test": {"score": dense, "loss": 0.02}},
        "compressed": {**of_both, "test": {"score": small, "loss": 0.03}, "epoch": 1},
        "test_error_percent": 100 * (1 - small),
        "reference_error_percent": 100 * (1 - dense),
        **entries,
    }
    return FinishedRecord.model_validate(hand_made.table(nonzeros=20, **figures))


def answers(folder: Path, count: int, *, gained: int, lost: int, wrong: int = 0) -> None:
    """Of so many answers these were mended, broken and wrong before and after."""
    reference = torch.ones(count, dtype=torch.bool)
    reference[: gained + wrong] = False
    compressed = torch.ones(count, dtype=torch.bool)
    compressed[gained : gained + wrong + lost] = False
    save_file({"reference": reference, "compressed": compressed}, folder / "answers.safetensors")


def budget(limit: float, *outcomes: tuple[int, float], kind: str = "max_accuracy_drop") -> dict:
    rounds = [
        {"stage": "finetune", "round": number, "nonzeros": nonzeros, "score": 0.9, "loss": 0.1,
         "used": used, "within": used <= limit}
        for number, (nonzeros, used) in enumerate(outcomes, 1)
    ]  # fmt: skip
    return {"recipe": {"prune": {"budget": {kind: limit}}}, "outcomes": rounds}


def test_a_loss_within_the_noise_of_the_paired_difference_is_shipped(tmp_path):
    # 10,000 answers: 20 broken, 15 mended, 135 wrong before and after
    answers(tmp_path, 10_000, gained=15, lost=20, wrong=135)
    found = verdict(record(1 - 0.0150, 1 - 0.0155), tmp_path)
    mean = (20 - 15) / 10_000
    error = 100 * math.sqrt((20 + 15) / 10_000 - mean**2) / math.sqrt(10_000)
    assert found.loss.worse == pytest.approx(0.05)
    assert found.loss.error == pytest.approx(error)
    assert found.level == "ship"
    assert found.sentence == (
        "Ship it: 50 times fewer weights, on test data 0.05 points worse than the dense network, "
        f"less than the noise of 10,000 answers (two standard errors: {2 * error:.2f})."
    )


@pytest.mark.parametrize(
    ("counts", "scores", "level", "words"),
    [
        # 60 broken and none mended is 0.60 points, two standard errors are 0.15
        ({"gained": 0, "lost": 60, "wrong": 150}, (0.985, 0.979), "weigh", "more than the noise"),
        ({"gained": 60, "lost": 0, "wrong": 150}, (0.979, 0.985), "ship", "0.60 points better"),
        ({"gained": 0, "lost": 0, "wrong": 150}, (0.985, 0.985), "ship", "as many errors"),
        # 40 errors of the dense network; 5 more, and noise of 2 sqrt(75) = 17 answers, are over 20
        (
            {"gained": 35, "lost": 40, "wrong": 5},
            (0.996, 0.9955),
            "weigh",
            "; too few answers to rule out",
        ),
        # no answer differs, but two of 10,000 might: more than half of the 3 errors
        (
            {"gained": 0, "lost": 0, "wrong": 3},
            (0.9997, 0.9997),
            "weigh",
            "; too few answers to rule out",
        ),
        # of the wrong network: the answers do not give these scores
        ({"gained": 0, "lost": 60, "wrong": 0}, (0.985, 0.984), "weigh", "noise is not known"),
    ],
)
def test_levels_without_a_budget(counts, scores, level, words, tmp_path):
    answers(tmp_path, 10_000, **counts)
    found = verdict(record(*scores), tmp_path)
    assert found.level == level
    assert words in found.sentence
    assert found.budget == found.rounds == ()


@pytest.mark.parametrize("told", [{}, budget(0.5, (20, 0.0))])
def test_few_examples_are_weighed(told, tmp_path):
    # as many errors as before, but of 40 answers
    answers(tmp_path, 40, gained=0, lost=0, wrong=10)
    few = [
        f"{part} data has 40 examples, fewer than 100: what they say of a network is largely chance"
        for part in ("validation", "test")
    ]
    found = verdict(record(0.75, 0.75, warnings=few, **told), tmp_path)
    assert found.level == "weigh"
    assert found.sentence.endswith("; but so few test examples may say so by chance.")
    assert verdict(record(0.75, 0.75, warnings=few[:1], **told), tmp_path).level == "ship"


def test_without_answers_the_noise_is_not_known(tmp_path):
    found = verdict(record(0.985, 0.984), tmp_path)
    assert found.level == "weigh"
    assert "0.10 points worse than the dense network; how much of that is noise" in found.sentence
    assert "a budget (prune.budget)" in found.sentence


def test_a_budget_s_rounds_use_and_slack(tmp_path):
    # validation: 99.8 % against 99.8 - 0.3 %
    answers(tmp_path, 10_000, gained=15, lost=20, wrong=135)
    told = budget(0.5, (40, 0.1), (10, 0.9), (20, 0.3))
    told["compressed"] = {
        "validation": {"score": 0.995, "loss": 0.1}, "test": {"score": 0.9845, "loss": 0.1},
        "epoch": 1,
    }  # fmt: skip
    found = verdict(record(0.985, 0.9845, **told), tmp_path)
    assert found.level == "ship"
    assert found.sentence.startswith(
        "Ship it: 50 times fewer weights for 0.30 points of the 0.50 points that may be lost on "
        "validation data; on test data 0.05 points worse"
    )
    assert dict(found.budget) == {
        "allowed": "0.50 points of accuracy",
        "used": "0.30 points",
        "left": "0.20 points",
        "rounds": "3 tried, 2 within the budget, 1 refused",
    }
    assert [(r.number, r.ratio, r.lost, r.result) for r in found.rounds] == [
        (1, 25.0, "0.10 points", "within the budget"),
        (2, 100.0, "0.90 points", "refused: 0.40 points too much"),
        (3, 50.0, "0.30 points", "within the budget"),
    ]


def test_a_budget_that_test_data_do_not_bear_out(tmp_path):
    told = budget(0.5, (20, 0.0))
    answers(tmp_path, 10_000, gained=0, lost=100, wrong=150)  # 1.00 points, noise 0.20
    found = verdict(record(0.985, 0.975, **told), tmp_path)
    assert found.level == "no"
    assert found.sentence.endswith("beyond the budget, by more than noise.")
    answers(tmp_path, 10_000, gained=100, lost=155, wrong=50)  # 0.55 points, noise 0.32
    found = verdict(record(0.985, 0.9795, **told), tmp_path)
    assert found.level == "weigh"
    assert found.sentence.endswith("beyond the budget, by less than noise.")
    assert "none of the 0.50 points" in found.sentence
    assert "none was refused, so more of them (prune.rounds)" in dict(found.budget)["rounds"]


def test_a_loss_that_may_grow_is_told_in_percent(tmp_path):
    told = budget(0.1, (20, 0.25), kind="max_loss_increase")
    entries = {**told, "test_error_percent": None, "reference_error_percent": None}
    found = verdict(record(-0.020, -0.030, **entries), tmp_path)
    assert dict(found.budget)["allowed"] == "10.0 % more loss than the reference's"
    assert [(r.lost, r.result) for r in found.rounds] == [("25.0 %", "refused: 15.0 % too much")]
    # 0.03 against 0.02 on test data; on validation data they are the same
    assert found.level == "weigh"
    assert "for none of the 10.0 % that may be lost on validation data" in found.sentence
    # the score is the loss times -1, and is not said beside it
    assert "but test loss 0.03 against 0.02, 50.0 % more: beyond the budget" in found.sentence


def test_a_regression_has_scores_and_no_points(tmp_path):
    entries = {"test_error_percent": None, "reference_error_percent": None}
    found = verdict(record(-0.030, -0.020, **entries), tmp_path)
    assert found.level == "ship"
    assert "points" not in found.sentence
    # the loss of the compressed network is 0.03, which is no score of -0.02
    assert "test score -0.02, the dense network -0.03 (higher is better); loss" in found.sentence
    assert verdict(record(-0.020, -0.030, **entries), tmp_path).level == "weigh"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"nonzeros": 0, "nonzero_ratio": None}, "no weight is left"),
        ({"nonzeros": 1000, "nonzero_ratio": 1.0}, "no weight has gone"),
        ({"warnings": ["the reference is hardly better than one constant answer (x)"]}, "hardly"),
    ],
)
def test_what_is_worth_nothing_is_not_shipped(entries, words):
    told = {**record(0.985, 0.985).to_table(), **entries}
    found = verdict(FinishedRecord.model_validate(told))
    assert found.level == "no"
    assert words in found.sentence


@pytest.mark.parametrize("prune", [3, {"budget": 4}, {"budget": {"max_accuracy_drop": "x"}}, None])
def test_a_budget_that_is_none_is_left_alone(prune):
    assert verdict(record(0.985, 0.985, recipe={"prune": prune})).budget == ()
