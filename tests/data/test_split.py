import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ellzero.data.split import held_out, stratified
from ellzero.errors import InputError


@st.composite
def labels_and_sizes(draw):
    labels = np.array(draw(st.lists(st.integers(-2, 5), max_size=80)), np.int64)
    left, sizes = len(labels), []
    for _ in range(draw(st.integers(0, 4))):
        sizes.append(draw(st.integers(0, left)))
        left -= sizes[-1]
    return labels, sizes


@given(labels_and_sizes(), st.integers(0, 2**32))
def test_parts_are_disjoint_sorted_of_exact_size_and_proportional(case, seed):
    labels, sizes = case
    parts = stratified(labels, sizes, seed)
    assert [len(part) for part in parts] == sizes

    remaining = set(range(len(labels)))
    for part, size in zip(parts, sizes, strict=True):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
        assert set(part) <= remaining
        here = labels[sorted(remaining)]
        for label in set(labels):
            share = size * np.mean(here == label) if len(here) else 0
            assert abs(np.sum(labels[part] == label) - share) < 1
        remaining -= set(part)


def test_rounds_by_largest_remainder():
    # Shares of 4 among 5, 3 and 2 are 2.0, 1.2 and 0.8: the last example goes to the third class.
    labels = np.repeat([0, 1, 2], [5, 3, 2])
    (part,) = stratified(labels, (4,), seed=0)
    assert np.bincount(labels[part]).tolist() == [2, 1, 1]


def test_the_seed_alone_decides():
    labels = np.arange(1000) % 7
    first, again, other = (stratified(labels, (700, 300), seed)[1] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_a_split_stays_what_it_was():
    # Published results name the split by its seed, so a new NumPy must not change it unnoticed.
    parts = stratified(np.arange(20) % 2, (12, 4, 4), seed=0)
    assert [part.tolist() for part in parts] == [
        [1, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 19],
        [0, 15, 17, 18],
        [2, 3, 11, 16],
    ]


@pytest.mark.parametrize(
    ("labels", "sizes", "message"),
    [
        (np.zeros(5, np.int64), (4, 2), r"\(4, 2\).*at most the 5 examples"),
        (np.zeros(5, np.int64), (-1, 2), r"\(-1, 2\).*>= 0"),
        (np.zeros(5), (4,), "float64 of shape"),
        (np.zeros((5, 1), np.int64), (4,), r"shape \(5, 1\)"),
    ],
)
def test_wrong_input_is_explained(labels, sizes, message):
    with pytest.raises(InputError, match=message):
        stratified(labels, sizes, seed=0)


@given(
    st.lists(st.integers(0, 4), min_size=3, max_size=60),
    st.floats(0, 0.4),
    st.floats(0, 0.4),
)
def test_fractions_are_held_out_of_all_examples(labels, validation, test):
    labels = np.array(labels, np.int64)
    fractions = {"validation": validation, "test": test}
    sizes = [max(round(len(labels) * f), 1) if f > 0 else 0 for f in fractions.values()]
    if sum(sizes) >= len(labels):
        with pytest.raises(InputError, match="leave none for training"):
            held_out(labels, fractions, seed=0)
        return
    parts = held_out(labels, fractions, seed=0)
    assert [len(part) for part in parts] == [len(labels) - sum(sizes), *sizes]
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))


def test_held_out_parts_have_all_classes():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    _, validation, test = held_out(labels, {"validation": 0.1, "test": 0.2}, seed=0)
    assert np.bincount(labels[validation]).tolist() == [5, 3, 2]
    assert np.bincount(labels[test]).tolist() == [10, 6, 4]


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan"), "half"])
def test_a_fraction_out_of_range_is_explained(fraction):
    with pytest.raises(InputError, match=r"validation is .*expected a fraction, from 0 to below 1"):
        held_out(np.zeros(9, np.int64), {"validation": fraction}, seed=0)
