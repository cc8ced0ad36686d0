"""What the pictures are drawn from."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ellzero as ez
from ellzero.record import Magnitudes
from ellzero.report.attraction import MagnitudeShares, Pull, bounds, pull
from ellzero.report.pictures import epochs_of, training_rows
from ellzero.report.run_pictures import mask_image, stages
from ellzero.report.style import KNOWN, Look, looks, marker, svg
from ellzero.run_folder import RunFolder
from ellzero.study.results import Results
from ellzero.study.study import built_in
from small import classification, mlp, recipe


def cell(folder, name: str) -> RunFolder:
    return RunFolder.at(folder / "cells" / f"{name}-seed0-sparsity-0.75")


def test_the_attraction_is_the_gradient_of_the_run_s_penalty(folder):
    run = cell(folder, "l0+l2-0.01")
    curve = pull(run, run.folder, -4, 0)
    assert isinstance(curve, Pull)
    m = curve.magnitudes
    # the paper's zero attraction, and that of l2
    expected = 0.01 * 5 * np.exp(-5 * m) + 2 * 1e-5 * m
    np.testing.assert_allclose(curve.attraction, expected, rtol=1e-6)
    assert pull(cell(folder, "magnitude"), folder, -4, 0) == "no penalty"
    assert pull(cell(folder, "hard-concrete-0.0001"), folder, -4, 0) == "learned gates"
    (run.folder / "recipe.toml").write_text("prune = 3")
    assert pull(run, run.folder, -4, 0) == "recipe cannot be read"


def test_the_attraction_of_a_beta_that_follows_a_schedule_is_that_of_its_end(tmp_path):
    beta = {"start": 1.0, "end": 9.0}
    told = recipe(
        train={"penalty": {"l0": {"strength": 0.01, "beta": beta}, "l2": {"strength": 0}}}
    )
    ez.compress(mlp(), classification(), told, folder=tmp_path / "run")
    curve = pull(RunFolder.at(tmp_path / "run"), tmp_path / "run", -4, 0)
    assert isinstance(curve, Pull)
    np.testing.assert_allclose(curve.attraction, 0.09 * np.exp(-9 * curve.magnitudes), rtol=1e-6)
    page = ez.write_report([tmp_path / "run"]).read_text()
    assert "l0 0.01" in page


def test_the_attraction_of_hoyer_square_is_that_of_its_trained_weights(folder):
    run = cell(folder, "hoyer-square-0.001")
    curve = pull(run, run.folder, -3, 1)
    assert isinstance(curve, Pull)
    w = torch.cat([t.flatten() for n, t in load_file(run.folder / "trained.safetensors").items()
                   if t.ndim == 2]).abs()  # fmt: skip
    # it pulls small weights to zero and pushes large ones away
    assert curve.attraction[0] > 0 > curve.attraction[-1]
    assert w.min() < curve.magnitudes[0] < curve.magnitudes[-1] < 1.3 * w.max()
    (run.folder / "trained.safetensors").unlink()
    assert pull(run, run.folder, -3, 1) == "depends on the layer"


def test_magnitudes_are_shares_and_the_cut_is_where_pruning_is():
    counts = [0] * 100
    counts[50], counts[70], counts[75] = 60, 30, 9
    counted = Magnitudes(zeros=1, smallest=-8, per_decade=10, counts=tuple(counts))
    histogram = MagnitudeShares.of(counted)
    assert histogram.zeros == pytest.approx(0.01)
    assert histogram.shares.sum() == pytest.approx(0.99)
    assert histogram.edges[50] == pytest.approx(-3)
    assert histogram.cut(0.09) == pytest.approx(-0.5)  # bin 75 begins there
    assert -1.0 <= histogram.cut(0.39) <= -0.9
    low, high = bounds([histogram])
    assert low < -3
    assert high > -0.4


def test_the_course_of_a_cell_that_another_one_trained_for(folder):
    results = Results.read(folder)
    path = folder / "cells" / "l1-0.01-seed0-sparsity-0.75" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    own = [row for row in rows if row["stage"] == "finetune"]
    path.write_text("".join(json.dumps(row) + "\n" for row in own))
    (training,) = [t for t in results.study.tuning() if t.name == "l1-0.01-seed0"]
    course = training_rows(results, training, results.study.targets[1])
    assert [row.stage for row in course] == ["train"] * 3 + ["finetune"] * 3
    assert epochs_of(course) == ([1, 2, 3, 3, 4, 5], 3)
    assert stages(course) == [(0, 3, "train"), (3, 6, "fine-tune")]


def test_masks_are_drawn_by_what_they_are_made_of():
    pixels = np.zeros((3, 16), dtype=bool)
    pixels[:2, 5] = True
    image, caption, _ = mask_image(pixels)
    assert image.tolist() == [[0] * 4, [0, 2, 0, 0], [0] * 4, [0] * 4]
    assert "input pixel" in caption
    kernels = np.ones((5, 2, 3, 3), dtype=bool)
    image, caption, _ = mask_image(kernels)
    assert np.nansum(image) == 5 * 2 * 9
    assert "5 kernels" in caption
    matrix = np.zeros((7, 500), dtype=bool)
    matrix[0, :4] = True
    image, caption, _ = mask_image(matrix)
    assert image.shape == (7, 125)
    assert image[0].tolist() == [1.0] + [0.0] * 124
    assert "blocks of 1 x 4" in caption


def test_every_built_in_method_has_a_look_of_its_own():
    assert set(built_in()) <= set(KNOWN)
    found = looks(built_in())
    assert len({look.marker for look in found.values()}) == len(found)
    assert {name for name, look in found.items() if look.strong} == {
        "l0",
        "l0+l2",
        "l0+l2-decoupled",
    }
    assert len(set(looks(f"own {i}" for i in range(8)).values())) == 8
    assert marker(Look("#123456", "o")).count("<polygon") == 1


def test_text_in_a_picture_is_text():
    def draw(figure):
        figure.subplots().set_title("<b>$x_1$ & y")

    picture = svg("name", 'a "title" <b>', (2, 1), draw)
    assert "&lt;b&gt;$x_1$ &amp; y</text>" in picture
    assert 'aria-label="a &quot;title&quot; &lt;b&gt;"' in picture
    assert "<style" not in picture
    assert svg("other", "t", (2, 1), draw).count('id="p') == picture.count('id="p')
    assert replace(Look("#123456", "o"), strong=True).width > Look("#123456", "o").width
