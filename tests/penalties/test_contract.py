"""What every penalty in `PENALTIES` must satisfy; a new one needs a case in `cases.py`."""

import copy
import dataclasses
import math
import pickle
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ellzero as ez
from cases import PENALTY_CASES, SHRINK_LR
from ellzero.penalties import PENALTIES, Penalty, Term

DOCS = Path(__file__).parents[2] / "docs" / "penalties.md"

ALL: list[Penalty] = [p for case in PENALTY_CASES.values() for p in (case.hand, *case.others)]
for _several in (
    [case.hand for case in PENALTY_CASES.values()],
    [case.hand for case in PENALTY_CASES.values() if case.hand.elementwise],
):
    ALL.append(reduce(add, _several[1:], _several[0]))
ELEMENTWISE = [p for p in ALL if all(term.elementwise for term in p.terms)]
DECOUPLED = [
    dataclasses.replace(p, form="decoupled")
    for case in PENALTY_CASES.values()
    if case.shrunk is not None
    for p in (case.hand, *case.others)
]
ATTRACTING = [p for p in DECOUPLED if p.strength > 0 and getattr(p, "beta", 1) > 0]

each_case = pytest.mark.parametrize("name", PENALTY_CASES)
each_penalty = pytest.mark.parametrize("penalty", ALL, ids=str)
each_elementwise = pytest.mark.parametrize("penalty", ELEMENTWISE, ids=str)
each_decoupled = pytest.mark.parametrize("penalty", DECOUPLED, ids=str)
each_class = pytest.mark.parametrize("cls", PENALTIES.values(), ids=lambda cls: cls.__name__)


def random_weights(*shape: int, dtype=torch.float64, seed=0) -> torch.Tensor:
    """Of both signs, with zeros of both signs among them, and none so close to 0 as 1e-3.

    Where there are several rows, the last one is all zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(*shape, generator=generator, dtype=torch.float64)
    w[w.abs() < 1e-3] = 0.5
    w.view(-1)[::5] = 0.0
    w.view(-1)[::10] = -0.0
    if w.dim() > 1 and len(w) > 1:
        w[-1] = 0.0
    return w.to(dtype)


def test_every_penalty_has_a_case():
    assert PENALTY_CASES.keys() == PENALTIES.keys()
    for name, case in PENALTY_CASES.items():
        assert type(case.hand) is PENALTIES[name]
        assert (case.shrunk is not None) == ("decoupled" in PENALTIES[name].forms)


@each_class
def test_every_penalty_is_documented(cls):
    assert cls.__name__ in DOCS.read_text(encoding="utf-8")


@each_case
def test_hand_values(name):
    case = PENALTY_CASES[name]
    w = torch.tensor(case.w, dtype=torch.float64)
    assert case.hand.value(w).item() == pytest.approx(case.value, rel=1e-14)
    assert case.hand.gradient(w).flatten().tolist() == pytest.approx(case.gradient, rel=1e-14)


@each_penalty
@pytest.mark.parametrize("shape", [(), (40,), (8, 5), (2, 3, 2, 2)])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_at_zero(penalty: Penalty, shape, zero):
    w = torch.full(shape, zero, requires_grad=True)
    value = penalty.value(w)
    (by_autograd,) = torch.autograd.grad(value, w)
    assert value == 0
    for gradient in (penalty.gradient(w.detach()), by_autograd):
        assert gradient.count_nonzero() == 0  # NaN would count


@each_penalty
def test_even_value_odd_gradient(penalty: Penalty):
    w = random_weights(10, 5)
    assert penalty.value(w).equal(penalty.value(-w))
    assert penalty.gradient(-w).equal(-penalty.gradient(w))


@each_penalty
def test_gradient_is_that_of_autograd(penalty: Penalty):
    # zeros and a row of them included: the subgradient there is 0
    w = random_weights(10, 5).requires_grad_()
    (expected,) = torch.autograd.grad(penalty.value(w), w)
    # autograd differentiates expm1 as expm1 + 1: rounding relative to the steepest slope, that at 0
    steepest = penalty.gradient(torch.tensor([1e-9, 3.0], dtype=w.dtype)).max().item()
    torch.testing.assert_close(
        penalty.gradient(w.detach()), expected, rtol=1e-13, atol=4e-16 * steepest
    )


@each_penalty
def test_gradient_is_that_of_finite_differences(penalty: Penalty):
    w, h = random_weights(5, 4), 1e-6
    w[w == 0] = 0.3
    differences = []
    for i in range(w.numel()):
        step = torch.zeros_like(w)
        step.view(-1)[i] = h
        differences.append((penalty.value(w + step) - penalty.value(w - step)) / (2 * h))
    # rounding of the value (at most about 500) / h, and h^2 beta^3 / 6 for beta = 50
    expected = torch.stack(differences).view_as(w)
    torch.testing.assert_close(penalty.gradient(w), expected, rtol=1e-7, atol=2e-7)


@each_elementwise
def test_adds_up_over_parts(penalty: Penalty):
    a, b = random_weights(7, seed=1), random_weights(12, seed=2)
    whole = penalty.value(torch.cat([a, b]))
    torch.testing.assert_close(whole, penalty.value(a) + penalty.value(b), rtol=1e-13, atol=0)


@each_class
def test_the_gradient_can_be_taken_in_parts_where_it_is_elementwise(cls):
    case = next(case for case in PENALTY_CASES.values() if type(case.hand) is cls)
    w = random_weights(6, 5)
    for penalty in (case.hand, *case.others):
        parts = torch.cat([penalty.gradient(part) for part in w.view(-1).split(7)]).view_as(w)
        if cls.elementwise:
            torch.testing.assert_close(parts, penalty.gradient(w), rtol=1e-14, atol=0)
        elif penalty.strength:
            assert not torch.allclose(parts, penalty.gradient(w), rtol=1e-3)


@each_penalty
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 6), (2, 3, 2, 1), (1, 1, 12)])
def test_any_shape(penalty: Penalty, shape):
    w = random_weights(math.prod(shape)).view(shape)
    assert penalty.value(w).shape == ()
    assert penalty.gradient(w).shape == shape
    # what comes into a unit may count as a group, in whatever order; single weights do not
    like = [w.flatten(1)] if w.dim() > 1 else []
    like += [w.view(-1)] if penalty in ELEMENTWISE else []
    for flat in like:
        torch.testing.assert_close(penalty.value(w), penalty.value(flat), rtol=1e-13, atol=0)
        assert penalty.gradient(w).view(-1).equal(penalty.gradient(flat).view(-1))
    if not w.numel():
        assert penalty.value(w) == 0


@each_penalty
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_tensors_can_be_differentiated(penalty: Penalty, shape):
    w = torch.zeros(shape, requires_grad=True)
    penalty.value(w).backward()
    assert w.grad is not None
    assert w.grad.shape == shape


NON_CONTIGUOUS = {
    "transposed": random_weights(4, 6).T,
    "strided": random_weights(6, 8)[::2, 1::3],
    "channels last": random_weights(4, 3, 2, 2).to(memory_format=torch.channels_last),
}


@each_penalty
@pytest.mark.parametrize("w", NON_CONTIGUOUS.values(), ids=list(NON_CONTIGUOUS))
def test_non_contiguous_weights(penalty: Penalty, w):
    straight = w.contiguous()
    assert straight.stride() != w.stride()
    torch.testing.assert_close(penalty.value(w), penalty.value(straight), rtol=1e-13, atol=0)
    torch.testing.assert_close(
        penalty.gradient(w), penalty.gradient(straight), rtol=1e-13, atol=1e-14
    )
    if penalty in ELEMENTWISE:
        assert penalty.gradient(w).equal(penalty.gradient(straight))


@each_decoupled
@pytest.mark.parametrize("w", NON_CONTIGUOUS.values(), ids=list(NON_CONTIGUOUS))
def test_decoupled_step_on_non_contiguous_weights(penalty: Term, w):
    w, straight = w.clone(memory_format=torch.preserve_format), w.contiguous().clone()
    for weights in (w, straight):
        penalty.shrink_(weights, 0.1)
    torch.testing.assert_close(w, straight, rtol=1e-13, atol=0)


@each_case
@pytest.mark.parametrize(
    # bfloat16 has 8 bits: a relative error of 2^-9 per rounding, of which there are a handful
    ("dtype", "rtol"),
    [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 2**-6)],
    ids=str,
)
def test_dtype_is_kept(name, dtype, rtol):
    case = PENALTY_CASES[name]
    w = torch.tensor(case.w, dtype=dtype)
    value, gradient = case.hand.value(w), case.hand.gradient(w)
    assert gradient.dtype == dtype
    assert value.dtype == max(dtype, torch.float32, key=lambda d: d.itemsize)  # a sum is no half
    assert value.item() == pytest.approx(case.value, rel=rtol)
    assert gradient.flatten().tolist() == pytest.approx(case.gradient, rel=rtol)


@each_case
def test_the_value_of_half_precision_does_not_overflow(name):
    # values far beyond 65,504, where float16 ends
    shape = (400, 1000)
    w = torch.full(shape, 2.0, dtype=torch.float16)
    penalty = dataclasses.replace(PENALTY_CASES[name].hand, strength=1000.0)
    value = penalty.value(w)
    assert value.item() == pytest.approx(penalty.value(w.double()).item(), rel=1e-4)
    assert value.item() > 70_000


@each_penalty
def test_leaves_the_weights_alone(penalty: Penalty):
    w = random_weights(50)
    before = w.clone()
    gradient = penalty.gradient(w)
    penalty.value(w)
    gradient.add_(1)  # and the gradient is no view of them
    assert w.equal(before)


@each_penalty
def test_is_frozen_hashable_and_copied_by_value(penalty: Penalty):
    field = dataclasses.fields(penalty)[0].name  # pyright: ignore[reportArgumentType]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(penalty, field, 7.0)
    for twin in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))):
        assert twin == penalty
        assert {twin, penalty} == {penalty}


def test_different_penalties_differ():
    assert len(set(ALL)) == len(ALL)
    assert ez.L0(1.0) != ez.L1(1.0)
    assert ez.L0(1.0) != ez.L0(1.0, beta=6)
    assert ez.L1(1.0) != ez.L1(1.0, form="loss")


class TestSum:
    a, b, c, d = (ez.L0(0.5, beta=3), ez.L1(0.25), ez.L2(2.0), ez.L0(0.1, form="loss"))

    def test_composes_in_any_grouping(self):
        expected = (self.a, self.b, self.c, self.d)
        assert (self.a + self.b + self.c + self.d).terms == expected
        assert ((self.a + self.b) + (self.c + self.d)).terms == expected
        assert (self.a + (self.b + (self.c + self.d))).terms == expected
        assert self.a.terms == (self.a,)
        assert self.a + self.b + self.c == self.a + (self.b + self.c)
        assert (self.a + self.a).terms == (self.a, self.a)

    def test_value_and_gradient_are_sums(self):
        w = random_weights(5, 6)
        total = self.a + self.b + self.c + self.d
        values = sum(term.value(w).item() for term in (self.a, self.b, self.c, self.d))
        assert total.value(w).item() == pytest.approx(values, rel=1e-14)
        gradients = [term.gradient(w) for term in (self.a, self.b, self.c, self.d)]
        torch.testing.assert_close(total.gradient(w), sum(gradients), rtol=1e-14, atol=0)
        twice = self.c + self.c
        assert twice.gradient(w).equal(2 * self.c.gradient(w))

    @pytest.mark.parametrize("other", [1, 0.0, None, "l1", ez.L1])
    def test_only_penalties_add_up(self, other):
        with pytest.raises(TypeError):
            _ = self.a + other
        with pytest.raises(TypeError):
            _ = other + self.a

    def test_python_can_sum_them(self):
        assert sum([self.a, self.b]) == self.a + self.b


@each_class
@pytest.mark.parametrize("strength", [-1e-9, -1, math.nan, math.inf, -math.inf, "1", True, False])
def test_bad_strength(cls, strength):
    with pytest.raises(ez.EllzeroError, match=rf"^{cls.__name__}: strength is {strength!r};"):
        cls(strength)


@each_class
@pytest.mark.parametrize("strength", [None, [1.0], torch.tensor(1.0)], ids=repr)
def test_strength_is_a_number(cls, strength):
    with pytest.raises(ez.EllzeroError, match=f"^{cls.__name__}: strength is"):
        cls(strength)


@each_case
@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_numbers_of_numpy_are_numbers(name, number):
    case = PENALTY_CASES[name]
    w = torch.tensor(case.w, requires_grad=True)
    strength = number(case.hand.strength)  # 2 or 1/2, exact in either
    penalty = dataclasses.replace(case.hand, strength=strength)
    value = penalty.value(w)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(case.value)
    value.backward()
    assert w.grad is not None
    for gradient in (w.grad, penalty.gradient(w.detach())):
        assert gradient.flatten().tolist() == pytest.approx(case.gradient)
    if case.shrunk is not None:
        w = torch.tensor(case.shrink_w)
        penalty.shrink_(w, SHRINK_LR)
        assert w.flatten().tolist() == pytest.approx(case.shrunk, abs=1e-7)  # differences of ~1


@each_class
@pytest.mark.parametrize("form", ["proximal", "", "Gradient", None, 1])
def test_bad_form(cls, form):
    with pytest.raises(ez.EllzeroError, match=rf"^{cls.__name__}: form is {form!r};.* gradient"):
        cls(1.0, form=form)


@pytest.mark.parametrize(
    ("cls", "options"),
    [(PENALTIES[name], bad) for name, case in PENALTY_CASES.items() for bad in case.bad],
    ids=str,
)
def test_bad_options(cls, options):
    ((key, value),) = options.items()
    with pytest.raises(ez.EllzeroError, match=rf"^{cls.__name__}: {key} is {value!r};"):
        cls(1.0, **options)


@pytest.mark.parametrize("cls", [ez.L2, ez.HoyerSquare])
def test_those_without_a_decoupled_form_refuse_it(cls):
    expected = f"{cls.__name__}: form is 'decoupled'; expected gradient or loss"
    with pytest.raises(ez.EllzeroError, match=expected):
        cls(1.0, form="decoupled")
    with pytest.raises(NotImplementedError, match=cls.__name__):
        cls(1.0).shrink_(torch.ones(2), 0.1)


@pytest.mark.parametrize("name", [name for name, c in PENALTY_CASES.items() if c.shrunk])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_decoupled_hand_values(name, as_tensor):
    case = PENALTY_CASES[name]
    w = torch.tensor(case.shrink_w, dtype=torch.float64)
    assert case.shrunk is not None
    penalty = dataclasses.replace(case.hand, form="decoupled")
    # 0.5 is exact in float32, in which optimizers hold a learning rate that is a tensor
    penalty.shrink_(w, torch.tensor(SHRINK_LR) if as_tensor else SHRINK_LR)
    assert w.flatten().tolist() == pytest.approx(case.shrunk, rel=1e-14)


@each_decoupled
def test_a_small_decoupled_step_is_a_gradient_step(penalty: Term):
    w, step = random_weights(20, 10, seed=3), 1e-5  # no weight is within 1e-3 of zero
    expected = w - step * penalty.gradient(w)
    penalty.shrink_(w, step)
    torch.testing.assert_close(w, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("penalty", [p for p in DECOUPLED if p.elementwise], ids=str)
def test_decoupled_step_subtracts_the_derivative(penalty: Term):
    w, step = random_weights(200, seed=3), 0.3
    magnitude = w.abs().requires_grad_()
    (slope,) = torch.autograd.grad(penalty.value(magnitude), magnitude)
    expected = w.sign() * (w.abs() - step * slope).clamp(min=0)
    penalty.shrink_(w, step)
    torch.testing.assert_close(w, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("penalty", ATTRACTING, ids=str)
@given(
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 2**32),
    step=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
)
def test_decoupled_step_moves_towards_zero_and_stops_there(penalty: Term, dtype, seed, step):
    before = random_weights(10, 7, dtype=dtype, seed=seed) * 0.1
    w = before.clone()
    penalty.shrink_(w, step)
    assert w.dtype == dtype
    assert (w.abs() <= before.abs()).all()
    assert (w * before >= 0).all(), "no weight crosses zero"
    assert not w[before == 0].count_nonzero(), "zeros stay"
    assert not torch.signbit(w[w == 0]).any(), "zeros are +0, whatever sign they had"


@each_decoupled
def test_decoupled_step_of_no_length_changes_nothing(penalty: Term):
    w = random_weights(10, 5)
    before = w.clone()
    penalty.shrink_(w, 0.0)
    assert w.equal(before)


def test_decoupled_step_empties_a_network_at_once():
    w = random_weights(50)
    assert w.count_nonzero() == 40
    ez.L1(1.0, form="decoupled").shrink_(w, 10.0)
    assert not w.count_nonzero()
