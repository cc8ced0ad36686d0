import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ellzero as ez
from ellzero.schedules import SHAPES, ScheduleShape, learning_rate

# Middle points by hand. cosine: (1 - cos 60 deg) / 2 = 1/4 at a third, (1 - cos 90) / 2 = 1/2 in
# the middle. cubic: 1 - (1/2)^3 = 7/8 in the middle, 1 - (3/4)^3 = 37/64 at a quarter.
POINTS = {
    "constant": [(0, 1), (0.3, 1), (1, 1)],
    "linear": [(0, 0), (0.25, 0.25), (0.5, 0.5), (1, 1)],
    "cosine": [(0, 0), (1 / 3, 0.25), (0.5, 0.5), (2 / 3, 0.75), (1, 1)],
    "cubic": [(0, 0), (0.25, 37 / 64), (0.5, 7 / 8), (1, 1)],
}
each_shape = pytest.mark.parametrize("shape", get_args(ScheduleShape))


def test_every_shape_has_points():
    assert set(POINTS) == set(SHAPES) == set(get_args(ScheduleShape))


@each_shape
def test_points_by_hand(shape):
    for t, expected in POINTS[shape]:
        assert ez.Schedule(0, 1, shape)(t) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("shape", [shape for shape in POINTS if shape != "constant"])
def test_runs_between_start_and_end(shape):
    curve = ez.Schedule(0, 1, shape, after=0.2, until=0.6)
    for t, expected in POINTS[shape]:
        assert curve(0.2 + 0.4 * t) == pytest.approx(expected, abs=1e-15)
    assert curve(0.0) == curve(0.1) == POINTS[shape][0][1]
    assert curve(0.7) == curve(1.0) == 1.0


@each_shape
@given(st.floats(0, 1), st.floats(0, 1))
def test_never_falls_and_stays_within_zero_and_one(shape, s, t):
    bounds = {} if shape == "constant" else {"after": 0.1, "until": 0.9}
    low, high = (ez.Schedule(0, 1, shape, **bounds)(x) for x in sorted((s, t)))
    assert 0 <= low <= high <= 1


@each_shape
def test_progress_beyond_the_ends_changes_nothing(shape):
    curve = ez.Schedule(0, 1, shape)
    assert curve(-0.5) == curve(0)
    assert curve(1.5) == curve(1) == 1


@pytest.mark.parametrize("bounds", [{"after": 0.5}, {"until": 0.5}])
def test_bounds_of_a_constant_schedule_have_no_effect_and_are_refused(bounds):
    with pytest.raises(ez.InputError, match=r"a constant schedule runs .* 0\.5.*no effect"):
        ez.Schedule(0, 1, "constant", **bounds)
    with pytest.raises(ez.InputError, match=r"train\.ramp: a constant schedule runs .* 0\.5"):
        ez.Recipe.parse(
            {"train": {"ramp": {"shape": "constant", **bounds}}, "prune": {"nonzeros": 9}}
        )


def test_unknown_shape():
    with pytest.raises(ez.EllzeroError, match=r"shape is 'square'; .*linear, cosine, cubic"):
        ez.Schedule(0, 1, "square")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("after", "until"),
    [
        (0.5, 0.5),
        (0.6, 0.5),
        (-0.1, 0.5),
        (0.0, 1.1),
        (1.0, 1.0),
        (math.nan, 1.0),
        (0.0, math.nan),
        ("0", 1.0),
        (False, 1.0),
        (0.0, True),
        (None, 1.0),
    ],
)
def test_bounds_out_of_order(after, until):
    with pytest.raises(ez.EllzeroError, match="expected 0 <= after < until <= 1"):
        ez.Schedule(0, 1, "linear", after=after, until=until)


@pytest.mark.parametrize(
    ("progress", "decay", "expected"),
    [
        (0.0, "linear", 0.0),
        (0.1, "linear", 1.0),  # half of the warm-up: half of the peak
        (0.2, "linear", 2.0),
        (0.4, "linear", 1.5),  # a quarter of the way down
        (0.6, "linear", 1.0),
        (1.0, "linear", 0.0),
        (0.1, "cosine", 1.0),
        (0.6, "cosine", 1.0),
        (0.2 + 0.8 / 3, "cosine", 1.5),  # a third of the way: (1 + cos 60 deg) / 2 = 3/4
        (1.0, "cosine", 0.0),
        (0.6, "cubic", 0.25),  # (1/2)^3 of the peak is left in the middle
        (1.0, "cubic", 0.0),
        (0.1, "constant", 1.0),
        (0.2, "constant", 2.0),
        (1.0, "constant", 2.0),
    ],
)
def test_learning_rate_by_hand(progress, decay, expected):
    rate = learning_rate(progress, peak=2.0, warmup=0.2, decay=decay)
    assert rate == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("progress", "decay", "expected"),
    [
        (0.1, "linear", 1.0),  # the warm-up starts at 0 all the same
        (0.2, "linear", 2.0),
        (0.6, "linear", 1.25),  # in the middle between 2 and a quarter of it
        (1.0, "linear", 0.5),
        (1.0, "cosine", 0.5),
        (0.6, "cubic", 0.5 + 1.5 / 8),
        (1.0, "constant", 2.0),
    ],
)
def test_learning_rate_falls_to_its_floor(progress, decay, expected):
    rate = learning_rate(progress, peak=2.0, warmup=0.2, decay=decay, floor=0.25)
    assert rate == pytest.approx(expected, abs=1e-15)


@each_shape
def test_learning_rate_without_warm_up_starts_at_the_peak(shape):
    assert learning_rate(0.0, peak=3.0, warmup=0.0, decay=shape) == 3.0
