"""What sets the l0 approximation apart from other penalties."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ellzero as ez

WEIGHTS = st.lists(st.just(0.0) | st.floats(-3, 3, width=32), max_size=30)


def of(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(values=WEIGHTS, strength=st.floats(0, 1e3), beta=st.floats(0, 1e4))
def test_is_at_most_the_count_of_nonzeros(values, strength, beta):
    value = ez.L0(strength, beta=beta).value(of(values)).item()
    nonzeros = sum(v != 0 for v in values)
    assert 0 <= value <= strength * nonzeros * (1 + 1e-12)
    assert value <= strength * len(values) * (1 + 1e-12)


@given(values=WEIGHTS)
def test_grows_with_beta(values):
    rising = [ez.L0(1.0, beta=beta).value(of(values)).item() for beta in (0, 0.5, 1, 5, 20, 100)]
    assert rising[0] == 0
    assert all(low <= high + 1e-12 for low, high in itertools.pairwise(rising))


@given(values=st.lists(st.just(0.0) | st.floats(0.01, 3) | st.floats(-3, -0.01), max_size=30))
def test_tends_to_the_count_of_nonzeros(values):
    # |w| >= 0.01 and beta = 4000: what is missing per weight is exp(-40) = 4e-18
    nonzeros = sum(v != 0 for v in values)
    assert ez.L0(0.25, beta=4000).value(of(values)).item() == pytest.approx(0.25 * nonzeros)


def test_keeps_its_precision_where_beta_w_is_tiny():
    # 1 - exp(-x) = x - x^2/2 + ..., which 1 - exp in float32 would round to 0 or 1.19e-7
    value = ez.L0(1.0, beta=1.0).value(torch.tensor([1e-8])).item()
    assert value == pytest.approx(1e-8, rel=1e-6)


def test_attracts_small_weights_and_lets_large_ones_be():
    small, large = ez.L0(1.0, beta=10).gradient(of([0.01, 2.0])).tolist()
    assert small > 9  # 10 exp(-0.1) = 9.05
    assert large < 3e-8  # 10 exp(-20) = 2.1e-8


def test_beta_zero_switches_it_off():
    w = of([-1.0, 0.0, 1e-9, 5.0])
    assert ez.L0(3.0, beta=0).value(w) == 0
    assert not ez.L0(3.0, beta=0).gradient(w).count_nonzero()


def test_the_default_beta_is_five():
    assert ez.L0(1.0) == ez.L0(1.0, beta=5.0)
