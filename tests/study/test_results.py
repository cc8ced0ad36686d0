"""Results: what records say of a study, and which strength they choose."""

import json
from typing import Any

import numpy as np
import pytest

import ellzero as ez
import hand_made
from ellzero.study.results import Results, Spread
from ellzero.study.study import Training


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "made"


def l1(folder, strength, seed=0, target="sparsity-0.9", **figures):
    return hand_made.run(folder, f"l1-{strength:g}-seed{seed}-{target}", **figures)


def chosen(folder, method="l1", target=0):
    results = Results.read(folder)
    found = results.chosen(method, results.study.targets[target])
    return None if found is None else found.strength


def test_the_best_validation_score_is_chosen_whatever_the_test_says(folder):
    hand_made.study(folder)
    l1(folder, 1e-5, score=0.90, loss=0.1, wrong=1.0, nonzeros=1)
    l1(folder, 1e-4, score=0.92, loss=0.9, wrong=30.0, nonzeros=900)
    l1(folder, 1e-3, score=0.91, loss=0.2, wrong=2.0, nonzeros=50)
    assert Results.read(folder).chosen("l1", Results.read(folder).study.targets[0]) == Training(
        "l1", 1e-4, 0
    )


def test_among_equal_scores_the_lower_validation_loss_is_chosen(folder):
    hand_made.study(folder)
    l1(folder, 1e-5, score=0.9, loss=0.3, wrong=1.0)
    l1(folder, 1e-4, score=0.9, loss=0.2, wrong=30.0)
    l1(folder, 1e-3, score=0.8, loss=0.1, wrong=2.0)
    assert chosen(folder) == 1e-4


def test_under_a_budget_the_fewest_weights_are_chosen(folder):
    hand_made.study(folder, sparsities=[], budgets=[{"max_accuracy_drop": 0.5}])
    at: dict[str, Any] = {"target": "drop-0.5"}
    l1(folder, 1e-5, **at, score=0.95, loss=0.1, nonzeros=80, wrong=1.0)
    l1(folder, 1e-4, **at, score=0.90, loss=0.5, nonzeros=70, wrong=30.0)
    l1(folder, 1e-3, **at, score=0.91, loss=0.5, nonzeros=70, wrong=40.0)
    assert chosen(folder) == 1e-3  # of two with 70 weights the one with the better score


def test_every_target_has_a_choice_of_its_own(folder):
    hand_made.study(folder, sparsities=[0.9, 0.97])
    for strength, high, low in ((1e-5, 0.9, 0.6), (1e-4, 0.8, 0.7), (1e-3, 0.7, 0.65)):
        l1(folder, strength, score=high)
        l1(folder, strength, target="sparsity-0.97", score=low)
    assert (chosen(folder), chosen(folder, target=1)) == (1e-5, 1e-4)


@pytest.mark.parametrize("status", ["missing", "running", "interrupted"])
def test_nothing_is_chosen_while_a_strength_is_still_to_come(folder, status):
    hand_made.study(folder)
    l1(folder, 1e-5, score=0.9)
    l1(folder, 1e-4, score=0.8)
    if status != "missing":
        l1(folder, 1e-3, status=status)
    assert chosen(folder) is None
    assert chosen(folder, "magnitude") is None
    assert Results.read(folder).rows() == []
    # what other seeds say does not count
    l1(folder, 1e-3, seed=1, score=0.99)
    assert chosen(folder) is None


def test_failed_and_unreadable_ones_are_left_out(folder):
    hand_made.study(folder)
    l1(folder, 1e-5, score=0.7)
    l1(folder, 1e-4, status="failed", error="it diverged")
    (l1(folder, 1e-3, score=0.9) / "record.json").write_text('{"format": 1, "stat')
    assert chosen(folder) == 1e-5
    (row,) = Results.read(folder).rows()
    assert row.strength == 1e-5
    l1_failed, unreadable = Results.read(folder).failures()[::-1]
    assert (l1_failed.status, l1_failed.error) == ("failed", "it diverged")
    assert unreadable.status == "unreadable"


def test_a_choice_from_a_part_of_the_grid_says_so(folder):
    hand_made.study(folder, sparsities=[0.9, 0.97])
    for strength in (1e-5, 1e-4, 1e-3):
        l1(folder, strength, target="sparsity-0.97", warnings=["a doubt"])
    l1(folder, 1e-5, score=0.7)
    l1(folder, 1e-4, status="failed", error="its process ended with exit code 7")
    assert Results.read(folder).warnings() == [("a doubt", 3)]  # as long as nothing is chosen
    (l1(folder, 1e-3) / "record.json").write_text("{")
    doubt = (
        "l1 at 90 % zeros: strength 1e-05 was chosen from a part of the grid, for on the first "
        "seed 0.001, 0.0001 failed"
    )
    assert Results.read(folder).warnings() == [(doubt, 2), ("a doubt", 3)]


@pytest.mark.parametrize("status", ["missed", "done"])
def test_a_strength_that_was_tried_to_its_end_is_no_gap_in_the_grid(folder, status):
    hand_made.study(folder, sparsities=[], budgets=[{"max_accuracy_drop": 0.5}])
    for strength in (1e-5, 1e-4):
        l1(folder, strength, target="drop-0.5")
    l1(folder, 1e-3, target="drop-0.5", status=status)
    assert chosen(folder) is not None
    assert Results.read(folder).warnings() == []


def test_unfinished_runs_were_begun(folder):
    hand_made.study(folder)
    hand_made.run(folder, "reference-seed0", status="interrupted")
    l1(folder, 1e-5)
    l1(folder, 1e-4, status="failed", error="no")
    begun = l1(folder, 1e-3, status="running")
    reference = folder / "cells" / "reference-seed0"
    assert [run.folder for run in Results.read(folder).unfinished()] == [reference, begun]


def test_where_all_failed_there_is_no_row(folder):
    hand_made.study(folder)
    for strength in (1e-5, 1e-4, 1e-3):
        l1(folder, strength, status="failed", error="no")
    assert chosen(folder) is None
    assert Results.read(folder).rows() == []


def test_a_row_says_whether_the_choice_is_at_the_edge_of_the_grid(folder):
    # the study has them as 1e-3, 1e-5, 1e-4, in no order
    for best, edge in ((1e-5, True), (1e-4, False), (1e-3, True)):
        here = folder / f"{best:g}"
        hand_made.study(here)
        for strength in (1e-5, 1e-4, 1e-3):
            l1(here, strength, score=0.9 if strength == best else 0.5)
        (row,) = Results.read(here).rows()
        assert (row.strength, row.at_edge) == (best, edge)
    hand_made.study(folder, methods={"magnitude": {}, "l2": {"strengths": [0.5]}})
    hand_made.run(folder, "magnitude-seed0-sparsity-0.9")
    hand_made.run(folder, "l2-0.5-seed0-sparsity-0.9")
    # a method without strengths, or with a single one, has no grid
    assert [row.at_edge for row in Results.read(folder).rows()] == [False, False]


def test_rows_stand_in_the_studys_order(folder):
    hand_made.study(
        folder,
        sparsities=[0.97, 0.9],
        methods={"l1": {"strengths": [1e-4]}, "gradual": {}, "magnitude": {}},
    )
    for target in ("sparsity-0.9", "sparsity-0.97"):
        hand_made.run(folder, f"magnitude-seed0-{target}", score=0.99)
        hand_made.run(folder, f"gradual-seed0-{target}", score=0.1)
        l1(folder, 1e-4, target=target)
    rows = Results.read(folder).rows()
    assert [(row.target.name, row.method, row.label) for row in rows] == [
        ("sparsity-0.97", "l1", "l1"),
        ("sparsity-0.97", "gradual", "no penalty, gradual"),
        ("sparsity-0.97", "magnitude", "no penalty"),
        ("sparsity-0.9", "l1", "l1"),
        ("sparsity-0.9", "gradual", "no penalty, gradual"),
        ("sparsity-0.9", "magnitude", "no penalty"),
    ]


def test_a_row_has_the_runs_of_the_chosen_strength_that_are_done(folder):
    hand_made.study(folder)
    for strength, score in ((1e-5, 0.5), (1e-4, 0.9), (1e-3, 0.6)):
        l1(folder, strength, score=score)
    expected = [l1(folder, 1e-4, seed=2, score=0.2), folder / "cells/l1-0.0001-seed0-sparsity-0.9"]
    l1(folder, 1e-4, seed=1, status="failed", error="no")
    l1(folder, 1e-5, seed=1, score=0.99)
    (row,) = Results.read(folder).rows()
    assert [cell.folder for cell in row.cells] == expected[::-1]
    assert row.seeds == 3


def test_spreads_are_medians_and_ranges_over_the_seeds(folder):
    hand_made.study(folder, seeds=[0, 1, 2, 3], methods={"magnitude": {}})
    wrong, nonzeros = [3.5, 1.25, 9.0, 4.0], [70, 30, 20, 40]
    scores = [0.9, 0.7, 0.95, 0.85]
    for seed in range(4):
        figures = {"wrong": wrong[seed], "nonzeros": nonzeros[seed], "score": scores[seed]}
        hand_made.run(folder, f"magnitude-seed{seed}-sparsity-0.9", **figures)
    (row,) = Results.read(folder).rows()
    for figure, values in (
        (lambda record: record.test_error_percent, wrong),
        (lambda record: record.nonzeros, nonzeros),
        (lambda record: record.compressed.validation.score, scores),
    ):
        spread = row.spread(figure)
        assert spread is not None
        assert spread.median == pytest.approx(np.median(values), abs=1e-12)
        assert (spread.low, spread.high) == (np.min(values), np.max(values))
    assert row.spread(lambda record: record.file_bytes) is None


def test_a_spread_is_of_the_values_that_are_there():
    assert Spread.of([None, 3.0, None, 1.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([0.0]) == Spread(0.0, 0.0, 0.0)
    assert Spread.of([None]) is None
    assert Spread.of([]) is None


def test_efforts_are_trainings_epochs_and_seconds_of_failed_cells_too(folder):
    hand_made.study(folder, seeds=[0, 1], sparsities=[0.9, 0.97])
    hand_made.run(folder, "reference-seed0", trained=50, seconds=100.0)
    hand_made.run(folder, "magnitude-seed0-sparsity-0.9", trained=5, tuned=2, seconds=3.5)
    hand_made.run(folder, "magnitude-seed0-sparsity-0.97", tuned=2, seconds=1.5)
    l1(folder, 1e-5, trained=5, tuned=2, seconds=4.0)
    l1(folder, 1e-5, target="sparsity-0.97", tuned=3, seconds=1.0)
    l1(folder, 1e-4, trained=5, tuned=2, seconds=4.0)
    l1(folder, 1e-3, trained=4, status="failed", error="no", seconds=9.0)
    l1(folder, 1e-5, seed=1, trained=5, tuned=2, seconds=2.0)
    magnitude, found = Results.read(folder).efforts()
    assert (magnitude.method, magnitude.label) == ("magnitude", "no penalty")
    assert (magnitude.strengths, magnitude.trainings, magnitude.cells) == (0, 1, 2)
    assert (magnitude.epochs, magnitude.seconds) == (5 + 2 + 2, 5.0)
    assert (found.strengths, found.trainings, found.cells) == (3, 4, 4)
    # of the failed one its four epochs, and the seconds of its five rows of metrics
    assert (found.epochs, found.seconds) == (7 + 3 + 7 + 4 + 7, 4 + 1 + 4 + 5 * 0.25 + 2.0)


def test_an_empty_study_has_results_too(folder):
    study = hand_made.study(folder)
    results = Results.read(folder)
    assert results.study == study
    assert results.rows() == []
    assert results.failures() == []
    assert {found.status for found in results.cells.values()} == {"missing"}
    assert [found.status for found in results.references] == ["missing"] * 3
    assert [(e.trainings, e.cells, e.epochs, e.seconds) for e in results.efforts()] == [
        (0, 0, 0, 0),
        (0, 0, 0, 0),
    ]
    # every cell that the study may run: (1 + 3 strengths) x 3 seeds
    assert len(results.cells) == 12
    for name, found in results.cells.items():
        assert found.folder == folder / "cells" / name


def test_records_that_cannot_be_read_are_named_and_the_others_stay(folder):
    hand_made.study(folder)
    cells = [l1(folder, strength, score=0.9) for strength in (1e-5, 1e-4, 1e-3)]
    half, newer = cells[0] / "record.json", cells[1] / "record.json"
    half.write_text(half.read_text()[:25])
    newer.write_text(json.dumps({**json.loads(newer.read_text()), "format": 2}))
    hand_made.run(folder, "reference-seed1", status="failed", error="its own mistake")
    results = Results.read(folder)
    found = [results.cells[cell.name] for cell in cells]
    assert [f.status for f in found] == ["unreadable", "unreadable", "done"]
    assert str(half) in str(found[0].error)
    assert "not JSON" in str(found[0].error)
    assert str(newer) in str(found[1].error)
    assert "install a newer one" in str(found[1].error)
    assert [f.folder.name for f in results.failures()] == [
        "reference-seed1",
        *(cell.name for cell in cells[:2]),
    ]
    assert chosen(folder) == 1e-3


def test_a_record_that_is_no_record_cannot_be_read(folder):
    hand_made.study(folder)
    for number, text in enumerate(("[]", "{}", '"done"', "")):
        cell = l1(folder, (1e-5, 1e-4, 1e-3)[number % 3], seed=number // 3)
        (cell / "record.json").write_text(text)
        found = Results.read(folder).cells[cell.name]
        assert found.status == "unreadable"
        assert str(cell / "record.json") in str(found.error)


def test_a_folder_that_holds_no_study_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ez.InputError, match=r"holds no study: there is no study\.toml in it"):
            Results.read(folder)


ALIKE = [
    ("train data has 45 examples, fewer than 100", "train data has 9 examples, fewer than 100"),
    ("the share of the largest class 0.333", "the share of the largest class 0.5"),
    ("from 1.25e-05 to 3, so", "from 0.31 to 1,000, so"),
    ("0.weight has 0 of 1,048 weights left", "0.weight has 0 of 48 weights left"),
    ("(validation error -0.5)", "(validation error 12)"),
]
DIFFERENT = [
    ("0.weight has 0 of 48 weights left", "2.weight has 0 of 180 weights left"),
    ("net.1.2.weight has 0 of 48 weights left", "net.1.3.weight has 0 of 48 weights left"),
    ("rnn.weight_ih_l0 is not selected", "rnn.weight_ih_l1 is not selected"),
    ("block-1.w has 0 of 48 weights left", "block-2.w has 0 of 48 weights left"),
    ("train data has no example of class 2", "train data has no example of class 5"),
    ("train data has no example of classes 2, 3", "train data has no example of classes 2, 4"),
    ("1 of 3 is the same for every input: 1", "1 of 3 is the same for every input: 2"),
]


@pytest.mark.parametrize(
    ("texts", "alike"), [*((t, True) for t in ALIKE), *((t, False) for t in DIFFERENT)]
)
def test_warnings_that_differ_in_their_figures_alone_are_one(folder, texts, alike):
    hand_made.study(folder)
    for strength, text in zip((1e-5, 1e-4), texts, strict=True):
        l1(folder, strength, warnings=[text])
    counted = Results.read(folder).warnings()
    assert sorted(counted) == ([(texts[0], 2)] if alike else sorted((t, 1) for t in texts))
