import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ellzero as ez
from ellzero.pruning.budget import bisect


def test_accuracy_is_counted_in_percentage_points():
    budget = ez.Budget(max_accuracy_drop=0.5)
    used = budget.used(reference=(0.98, 9.0), candidate=(0.9725, 1.0))  # the loss plays no part
    assert used == pytest.approx(0.75)
    assert budget.limit == 0.5
    assert not budget.allows(used)
    better = budget.used(reference=(0.98, 0.1), candidate=(0.99, 0.1))
    assert better == pytest.approx(-1)
    assert budget.allows(better)


def test_loss_is_counted_relative_to_the_reference():
    budget = ez.Budget(max_loss_increase=0.1)
    used = budget.used(reference=(0.1, 0.4), candidate=(0.9, 0.5))  # the score plays no part
    assert used == pytest.approx(0.25)
    assert budget.limit == 0.1
    assert not budget.allows(used)
    assert budget.allows(budget.used(reference=(0, 0.4), candidate=(0, 0.4)))


@pytest.mark.parametrize("images", [500, 1000, 9973])
def test_a_drop_of_exactly_the_limit_is_allowed_however_it_rounds(images):
    for right in range(images // 2, images, 7):
        drop = 100 * 5 / images  # five images more are wrong
        budget = ez.Budget(max_accuracy_drop=drop)
        reference = (right / images, 0.1)
        assert budget.allows(
            budget.used(reference=reference, candidate=((right - 5) / images, 0.1))
        )
        assert not budget.allows(
            budget.used(reference=reference, candidate=((right - 6) / images, 0.1))
        )


def test_a_budget_may_be_widened_to_guide_a_search():
    budget = ez.Budget(max_accuracy_drop=1.0)
    assert not budget.allows(1.5)
    assert budget.allows(1.5, times=2)
    assert not budget.allows(2.1, times=2)


def test_zero_allows_no_loss_at_all():
    budget = ez.Budget(max_accuracy_drop=0)
    assert budget.limit == 0
    assert budget.allows(0.0)
    assert not budget.allows(0.01)


@pytest.mark.parametrize("used", [math.nan, math.inf])
def test_a_candidate_without_a_score_is_not_allowed(used):
    assert not ez.Budget(max_loss_increase=10.0).allows(used)


def test_a_reference_without_loss_allows_no_relative_increase():
    budget = ez.Budget(max_loss_increase=0.5)
    assert budget.used(reference=(1.0, 0.0), candidate=(1.0, 0.1)) == math.inf


@pytest.mark.parametrize("option", ["max_accuracy_drop", "max_loss_increase"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1", True, False])
def test_bad_values(option, value):
    with pytest.raises(ez.EllzeroError, match=f"{option}={value!r}.*finite number >= 0"):
        ez.Budget(**{option: value})


@pytest.mark.parametrize("options", [{}, {"max_accuracy_drop": 1.0, "max_loss_increase": 0.1}])
def test_exactly_one_is_given(options):
    with pytest.raises(ez.EllzeroError, match="expected exactly one of them"):
        ez.Budget(**options)


def test_it_is_not_given_by_place():
    with pytest.raises(TypeError, match="positional argument"):
        ez.Budget(0.5)  # pyright: ignore[reportCallIssue]


@given(
    low=st.floats(-10, 10),
    width=st.floats(0.01, 100),
    where=st.floats(0, 1),
    evaluations=st.integers(0, 30),
)
def test_bisect_finds_the_boundary_in_that_many_questions(low, width, where, evaluations):
    high, boundary = low + width, low + where * width
    asked = []

    def accept(x: float) -> bool:
        asked.append(x)
        return x <= boundary

    found = bisect(accept, low, high, evaluations=evaluations)
    assert len(asked) <= evaluations
    assert all(low <= x <= high for x in asked)
    assert found == low or (found in asked and found <= boundary), "what it returns was accepted"
    assert boundary - found <= (high - low) * 2.0**-evaluations + 1e-12


def test_bisect_asks_twelve_times_by_default():
    asked = []
    found = bisect(lambda x: asked.append(x) or x < 0.3, 0.0, 1.0)
    assert len(asked) == 12
    assert 0.3 - 2**-12 <= found < 0.3


def test_numbers_of_numpy_are_numbers():
    budget = ez.Budget(max_accuracy_drop=np.float32(0.5))  # pyright: ignore[reportArgumentType]
    assert budget.allows(0.5)
    assert not budget.allows(0.6)


def test_bisect_where_nothing_is_accepted_returns_the_low_end():
    assert bisect(lambda x: False, 2.0, 3.0) == 2.0
