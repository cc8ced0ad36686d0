"""Who differs: the bootstrap, Holm's rule, and which pairs are compared."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import hand_made
from ellzero.study.results import Results
from ellzero.study.statistics import bootstrap, holm, pairs

EXAMPLES = 400


def wrong_and_right(first, second, both=20):
    """Differences of one seed: so many examples only the first gets wrong, only the second."""
    difference = np.zeros(EXAMPLES)
    difference[both : both + first] = 100.0
    difference[both + first : both + first + second] = -100.0
    return difference


def mcnemar(first, second):
    """The exact two-sided p-value of McNemar's test: a fair coin for each discordant example."""
    n, k = first + second, min(first, second)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def test_the_interval_of_a_large_sample_is_the_normal_one():
    values = np.random.default_rng(3).choice([-1.0, 0.0, 0.5, 2.0], size=5000)
    low, high, p = bootstrap(values)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    # the 2.5 % quantile of 10,000 draws is itself known to about 0.03 standard errors
    assert low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.05 * half)
    assert p < 0.001


def test_the_interval_of_a_small_sample_is_the_exact_one():
    # two examples, -1 and 2, drawn twice: means -1, 0.5, 2 with chances 1/4, 1/2, 1/4
    low, high, p = bootstrap(np.array([-1.0, 2.0]))
    assert (low, high) == (-1.0, 2.0)
    assert p == pytest.approx(2 * 0.25, abs=0.02)
    # ten examples, one of which is 1: the mean is 0 with chance 0.9 ** 10, which is all of a tail
    low, high, p = bootstrap(np.array([0.0] * 9 + [1.0]))
    assert low == 0.0
    # P(at most 2 of 10) = 0.9298, P(at most 3) = 0.9872
    assert high == pytest.approx(0.3)
    assert p == pytest.approx(2 * 0.9**10, abs=0.03)


def test_p_is_small_for_a_clear_difference_and_one_for_none():
    assert bootstrap(wrong_and_right(40, 2))[2] == pytest.approx(2 / 10_000)
    assert bootstrap(wrong_and_right(2, 40))[2] == pytest.approx(2 / 10_000)
    assert bootstrap(wrong_and_right(20, 20))[2] > 0.9
    assert bootstrap(np.zeros(30)) == (0.0, 0.0, 1.0)


def test_the_sign_turns_the_interval_around():
    difference = wrong_and_right(25, 12)
    low, high, p = bootstrap(difference)
    below, above, q = bootstrap(-difference)
    assert (below, above) == pytest.approx((-high, -low), abs=0.3)
    assert p == pytest.approx(q, abs=0.01)


def test_a_bootstrap_is_the_same_each_time_and_another_by_another_seed():
    difference = wrong_and_right(25, 12)
    assert bootstrap(difference) == bootstrap(difference) == bootstrap(difference, seed=0)
    assert bootstrap(difference) != bootstrap(difference, seed=1)
    assert bootstrap(difference) == bootstrap(np.random.default_rng(0).permutation(difference))


@pytest.mark.parametrize(("first", "second"), [(25, 12), (14, 10), (30, 9), (8, 6), (40, 20)])
def test_for_one_seed_p_is_of_the_order_of_mcnemars(first, second):
    exact, found = mcnemar(first, second), bootstrap(wrong_and_right(first, second))[2]
    assert exact / 4 < found < exact * 2


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
    # steps go up only: 3 * 0.02 = 0.06, then 2 * 0.021 = 0.042 is raised to it; and never above one
    assert holm([0.021, 0.9, 0.02]) == pytest.approx([0.06, 0.9, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.01, 0.01]) == pytest.approx([0.02, 0.02])


def answers(*wrong: tuple[int, int]) -> list[int]:
    """Right (1) but for these ranges of examples."""
    right = np.ones(EXAMPLES, dtype=int)
    for start, end in wrong:
        right[start:end] = 0
    return right.tolist()


METHODS = {
    "magnitude": {},
    "gradual": {},
    "l1": {"strengths": [1e-4]},
    "l2": {"strengths": [1e-4]},
}


@pytest.fixture
def folder(tmp_path):
    """The best on validation data is gradual; l1 is much like it on the test, magnitude worse."""
    hand_made.study(tmp_path, seeds=[0, 1], methods=METHODS)
    for seed in (0, 1):
        end = f"seed{seed}-sparsity-0.9"
        hand_made.run(tmp_path, f"gradual-{end}", score=0.95, right=answers((0, 20)))
        # 40 more wrong on both seeds: 10 % of the examples
        hand_made.run(tmp_path, f"magnitude-{end}", score=0.94, right=answers((0, 60)))
        # other ones wrong, and as many
        same = answers((10, 30 + seed))
        hand_made.run(tmp_path, f"l1-0.0001-{end}", score=0.93, right=same)
    # better than all on the test, and last on validation data
    for seed in (0, 1):
        name = f"l2-0.0001-seed{seed}-sparsity-0.9"
        hand_made.run(tmp_path, name, score=0.5, right=answers())
    return tmp_path


def test_each_method_is_set_beside_the_best_on_validation_data(folder):
    found = {pair.other.method: pair for pair in pairs(Results.read(folder).rows())}
    assert list(found) == ["magnitude", "l1", "l2"]
    assert {pair.best.method for pair in found.values()} == {"gradual"}
    assert found["magnitude"].difference == pytest.approx(10.0)
    assert found["magnitude"].differs
    assert 0 < found["magnitude"].low < 10.0 < found["magnitude"].high
    # of three p-values of the least that 10,000 draws can tell, the first is times three
    assert found["magnitude"].p == pytest.approx(3 * 2 / 10_000)
    # 10 wrong become right; 10 and 11 right become wrong: (10 + 11) / 2 - 10 of 400
    assert found["l1"].difference == pytest.approx(100 * 0.5 / EXAMPLES)
    assert not found["l1"].differs
    assert found["l1"].low < 0 < found["l1"].high
    # a negative difference: the other one is better
    assert found["l2"].difference == pytest.approx(-5.0)
    assert found["l2"].high < 0
    assert found["l2"].differs


def test_seeds_are_averaged_before_examples_are_drawn(folder):
    # on one seed 40 more wrong and on the other one the same 40 fewer: no difference at all
    for seed, wrong in ((0, (0, 60)), (1, (0, 20))):
        _answer_anew(folder, f"magnitude-seed{seed}", answers(wrong))
        _answer_anew(folder, f"gradual-seed{seed}", answers((0, 60) if seed else (0, 20)))
    (pair,) = [p for p in pairs(Results.read(folder).rows()) if p.other.method == "magnitude"]
    assert (pair.difference, pair.low, pair.high, pair.p) == (0.0, 0.0, 0.0, 1.0)


def _answer_anew(folder, start, right):
    (cell,) = (folder / "cells").glob(f"{start}-*")
    (cell / "answers.safetensors").unlink()
    made = hand_made.run(folder, f"other-{start}", right=right)
    (made / "answers.safetensors").rename(cell / "answers.safetensors")


def test_under_a_budget_the_best_has_the_fewest_weights(tmp_path):
    hand_made.study(
        tmp_path,
        seeds=[0, 1],
        sparsities=[],
        budgets=[{"max_loss_increase": 0.1}],
        methods={"magnitude": {}, "l1": {"strengths": [1e-4]}},
    )
    for seed in (0, 1):
        end = f"seed{seed}-loss-0.1"
        hand_made.run(tmp_path, f"magnitude-{end}", score=0.99, nonzeros=80, right=answers((0, 5)))
        hand_made.run(tmp_path, f"l1-0.0001-{end}", score=0.9, nonzeros=70, right=answers((0, 9)))
    (pair,) = pairs(Results.read(tmp_path).rows())
    assert (pair.best.method, pair.other.method) == ("l1", "magnitude")
    assert pair.difference == pytest.approx(-1.0)


def test_the_best_is_the_one_with_the_highest_median_over_the_seeds(tmp_path):
    hand_made.study(tmp_path, methods={"magnitude": {}, "gradual": {}})
    # on the first seed, and by the highest and the mean score, magnitude is ahead
    for name, scores in (("magnitude", (0.99, 0.7, 0.98)), ("gradual", (0.5, 0.985, 0.99))):
        for seed, score in enumerate(scores):
            end = f"seed{seed}-sparsity-0.9"
            hand_made.run(tmp_path, f"{name}-{end}", score=score, right=answers((0, 5)))
    (pair,) = pairs(Results.read(tmp_path).rows())
    assert pair.best.method == "gradual"


@pytest.mark.parametrize("what", ["missing", "failed", "no answers", "half a file", "other length"])
def test_a_method_that_is_not_complete_takes_no_part(folder, what):
    cell = folder / "cells" / "gradual-seed1-sparsity-0.9"
    file = cell / "answers.safetensors"
    if what == "missing":
        (cell / "record.json").unlink()
    elif what == "failed":
        (cell / "record.json").write_text('{"format": 1, "status": "failed", "error": "no"}')
    elif what == "no answers":
        file.unlink()
    elif what == "half a file":
        file.write_bytes(file.read_bytes()[:100])
    else:
        _answer_anew(folder, "gradual-seed1", answers()[:-1])
    found = pairs(Results.read(folder).rows())
    # without gradual, magnitude has the best score
    assert {pair.best.method for pair in found} == {"magnitude"}
    assert [pair.other.method for pair in found] == ["l1", "l2"]
    (l1, _) = found
    assert l1.difference == pytest.approx(100 * (20.5 - 60) / EXAMPLES)


def test_every_target_is_compared_by_itself(folder):
    hand_made.study(folder, seeds=[0, 1], sparsities=[0.9, 0.99], methods=METHODS)
    for seed in (0, 1):
        end = f"seed{seed}-sparsity-0.99"
        hand_made.run(folder, f"l1-0.0001-{end}", score=0.8, right=answers((0, 50)))
        hand_made.run(folder, f"gradual-{end}", score=0.7, right=answers((0, 90)))
    found = pairs(Results.read(folder).rows())
    assert [(p.target.name, p.best.method, p.other.method) for p in found] == [
        ("sparsity-0.9", "gradual", "magnitude"),
        ("sparsity-0.9", "gradual", "l1"),
        ("sparsity-0.9", "gradual", "l2"),
        ("sparsity-0.99", "l1", "gradual"),
    ]
    # the other target's p-values have no part in the adjustment
    assert found[-1].p == pytest.approx(2 / 10_000)


def test_one_method_alone_makes_no_pair(tmp_path):
    hand_made.study(tmp_path, seeds=[0], methods={"magnitude": {}})
    hand_made.run(tmp_path, "magnitude-seed0-sparsity-0.9", right=answers())
    assert pairs(Results.read(tmp_path).rows()) == []


@pytest.mark.parametrize(
    "answers",
    [torch.tensor(True), torch.zeros(0, dtype=torch.bool), torch.ones(2, 3), torch.ones(5)],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_answers_that_are_none_are_left_out(answers, tmp_path):
    hand_made.study(tmp_path, seeds=[0], methods={"magnitude": {}, "l1": {"strengths": [1e-4]}})
    for name in ("magnitude", "l1-0.0001"):
        cell = hand_made.run(tmp_path, f"{name}-seed0-sparsity-0.9", right=[1, 0, 1])
    assert len(pairs(Results.read(tmp_path).rows())) == 1
    save_file({"compressed": answers}, cell / "answers.safetensors")
    assert pairs(Results.read(tmp_path).rows()) == []
