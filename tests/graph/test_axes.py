"""Names of axes: what they say of shapes, and what they refuse."""

import pytest

from ellzero.errors import InputError
from ellzero.operations.axes import Axes, Axis


def test_names_are_read():
    axes = Axes(("c (h d)", "1 a+b"), "c a+b", {"weight": "c d"})
    assert axes.read == (
        (Axis(("c",)), Axis(("h", "d"))),
        (Axis(()), Axis(("a", "b"), joined=True)),
    )
    assert axes.result == (Axis(("c",)), Axis(("a", "b"), joined=True))
    assert axes.of_weight("weight") == (Axis(("c",)), Axis(("d",)))
    assert axes.of_weight("bias") == ()


def test_sizes_follow_from_shapes():
    axes = Axes(("c (h d)", "1 a+b"), "c a+b", {"weight": "h d"}, sizes={"a": 2, "b": 5})
    assert axes.sizes_of([(3, 8), (1, 7)], (3, 7), {"weight": (2, 4)}) == {
        "a": 2,
        "b": 5,
        "c": 3,
        "h": 2,
        "d": 4,
    }


@pytest.mark.parametrize(
    ("axes", "inputs", "output", "expected"),
    [
        (Axes(("c h",), "c h"), [(3, 4, 5)], (3, 4), r"2 axes named for the shape \(3, 4, 5\)"),
        (Axes(("c h",), "c"), [(3, 4)], (4,), "the axis c has 3 and 4 indices"),
        (Axes(("c h",), "(c h)"), [(3, 4)], (11,), r"11 indices is not made of \('c', 'h'\)"),
        (Axes(("c", "d"), "c+d"), [(3,), (4,)], (12,), r"12 indices is not made of \('c', 'd'\)"),
        (Axes(("c -",), "c"), [(3, 4)], (3,), "'c -' names no axes"),
    ],
)
def test_what_does_not_go_together_is_refused(axes, inputs, output, expected):
    with pytest.raises(InputError, match=expected):
        axes.sizes_of(inputs, output, {})
