"""The plan: what comes next, by hand, for every kind of recipe. It is a pure function."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ellzero.record import Stage
from ellzero.training.plan import Outcome, Step, kept_at, next_step, stage_epochs
from small import classification, recipe

NUMEL = 1000
EPOCHS: dict[Stage, int] = {"reference": 3, "train": 4, "finetune": 3}
"""As `recipe` has them."""
DENSE = (Outcome("reference", 0, NUMEL, 0.9, 0.5), Outcome("train", 0, NUMEL, 0.9, 0.5))


def steps(told, *, has_reference=False, reached=()):
    """All steps of a run whose fine-tunings reach these (nonzeros, within), or what was asked."""
    outcomes, found, reached = (), [], list(reached)
    while step := next_step(told, NUMEL, outcomes, has_reference=has_reference, epochs=EPOCHS):
        again = next_step(told, NUMEL, outcomes, has_reference=has_reference, epochs=EPOCHS)
        assert step == again, "a pure function gives the same answer twice"
        found.append(step)
        nonzeros, within = step.nonzeros or NUMEL, None
        if step.stage == "finetune" and reached:
            nonzeros, within = reached.pop(0)
        outcomes += (Outcome(step.stage, step.round, nonzeros, 0.9, 0.5, within=within),)
        assert len(found) < 20
    return found


@pytest.mark.parametrize(
    ("train", "epochs"),
    # 60 examples in batches of 16 are 4 steps an epoch, in batches of 7 nine
    [
        ({}, 4),
        ({"steps": 8}, 2),
        ({"steps": 9}, 3),
        ({"steps": 3}, 1),
        ({"steps": 9, "gradient_accumulation_steps": 2}, 5),
        ({"steps": 9, "gradient_accumulation_steps": 9}, 9),
        ({"steps": 18, "batch_size": 7}, 2),
    ],
)
def test_epochs_of_a_stage_that_counts_steps(train, epochs):
    found = stage_epochs(recipe(train=train), classification())
    assert found == {"reference": 3, "train": epochs, "finetune": 3}


def test_one_shot():
    assert steps(recipe(prune={"sparsity": 0.9})) == [
        Step("reference", epochs=3),
        Step("train", epochs=4),
        Step("finetune", round=1, epochs=3, nonzeros=100),
    ]


def test_a_given_reference_is_not_trained():
    found = steps(recipe(prune={"nonzeros": 7}), has_reference=True)
    assert found == [
        Step("train", epochs=4),
        Step("finetune", round=1, epochs=3, nonzeros=7),
    ]


@pytest.mark.parametrize(
    ("rounds", "counts"),
    # 1000 -> 100 in equal ratios: the square and cube root of 10, and 10^(1/4)
    [(1, [100]), (2, [316, 100]), (3, [464, 215, 100]), (4, [562, 316, 178, 100])],
)
def test_rounds_are_geometric(rounds, counts):
    found = steps(recipe(prune={"sparsity": 0.9, "rounds": rounds}))[2:]
    assert [step.nonzeros for step in found] == counts
    assert [step.round for step in found] == list(range(1, rounds + 1))
    assert {step.stage for step in found} == {"finetune"}


def test_gradual_tells_the_training_where_it_ends():
    assert steps(recipe(prune={"sparsity": 0.9, "gradual": {}})) == [
        Step("reference", epochs=3),
        Step("train", epochs=4, nonzeros=100),
        Step("finetune", round=1, epochs=3, nonzeros=100),
    ]


def budget(rounds):
    return recipe(prune={"budget": {"max_accuracy_drop": 1}, "rounds": rounds})


def test_under_a_budget_the_first_round_searches_everything():
    found = next_step(budget(3), NUMEL, DENSE, has_reference=False, epochs=EPOCHS)
    assert found == Step("finetune", 1, 3, search=(0.0, math.log(1000)))


def test_after_a_success_the_search_goes_on_from_there():
    second = steps(budget(2), reached=[(100, True)])[3]
    assert second.nonzeros is None
    assert second.search == (pytest.approx(math.log(10)), pytest.approx(math.log(1000)))


def test_after_a_failure_the_way_to_the_last_success_is_halved_in_log_ratio():
    # 10x held, 100x failed: 10 sqrt(10) = 31.6x is next
    found = steps(budget(3), reached=[(100, True), (10, False)])
    assert (found[4].nonzeros, found[4].search) == (32, None)
    # 10x failed and nothing held: sqrt(10) = 3.16x
    assert steps(budget(2), reached=[(100, False)])[3].nonzeros == 316
    # 10x held, 100x and then 31.25x failed: sqrt(312.5) = 17.7x
    found = steps(budget(4), reached=[(100, True), (10, False), (32, False)])
    assert found[5].nonzeros == 57


def test_a_budget_ends_with_its_rounds_or_where_nothing_is_left_to_try():
    assert len(steps(budget(2), reached=[(100, True), (50, True)])) == 4
    assert len(steps(budget(9), reached=[(3, True), (2, False)])) == 4


def test_a_budget_ends_where_one_weight_is_left():
    left = [Outcome("train", 0, 100, 1.0, 0.1), Outcome("finetune", 1, 1, 1.0, 0.1, 0.0, True)]
    assert next_step(budget(5), 100, tuple(left), has_reference=True, epochs=EPOCHS) is None


def test_labels():
    assert [Step("train").label, Step("finetune", 1).label] == ["train", "finetune"]
    assert Step("finetune", 2).label == "finetune round 2"


GRADUAL = recipe(prune={"sparsity": 0.8, "gradual": {"after": 0.2, "until": 0.8}})


@pytest.mark.parametrize(
    ("epoch", "kept"),
    [
        (0, None),
        (2, None),  # at its start the curve is still 0
        (5, 300),  # half way 1 - (1/2)^3 = 7/8 of the 800 that go
        (8, 200),
        (9, 200),
    ],
)
def test_the_cubic_schedule_at_its_ends_and_middle(epoch, kept):
    assert kept_at(GRADUAL, Step("train", epochs=10, nonzeros=200), NUMEL, epoch) == kept


def test_a_schedule_up_to_the_very_end_still_gets_there():
    told = recipe(prune={"sparsity": 0.8, "gradual": {}})
    step = Step("train", epochs=4, nonzeros=200)
    # a quarter and half of the way: 1 - (3/4)^3 = 37/64 and 7/8 of 800; the last epoch is at 100 %
    assert [kept_at(told, step, NUMEL, e) for e in range(4)] == [None, 538, 300, 200]


@pytest.mark.parametrize("step", [Step("reference", epochs=9), Step("finetune", 1, 9, 200)])
def test_only_the_training_is_gradual(step):
    assert kept_at(GRADUAL, step, NUMEL, 8) is None
    one_shot = recipe(prune={"sparsity": 0.8})
    assert kept_at(one_shot, Step("train", epochs=9), NUMEL, 8) is None


@given(
    st.floats(0, 0.9),
    st.floats(0.01, 1),
    st.integers(1, 60),
    st.integers(1, 10**9),
    st.data(),
)
def test_the_schedule_never_brings_a_weight_back(start, width, epochs, numel, data):
    target = data.draw(st.integers(1, numel))
    gradual = {"after": start, "until": min(start + width, 1.0)}
    told = recipe(prune={"nonzeros": target, "gradual": gradual})
    step = Step("train", epochs=epochs, nonzeros=target)
    kept = [kept_at(told, step, numel, epoch) for epoch in range(epochs)]
    counts = [numel if k is None else k for k in kept]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == target
    assert all(target <= count <= numel for count in counts)
