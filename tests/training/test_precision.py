"""Precision: chosen by the device's features, written down, kept by a resume; and what it costs."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import ellzero as ez
from ellzero.training import precision
from ellzero.training.precision import bfloat16_pays, costs, settled
from small import accuracy, classification, mlp, nonzero_weights, recipe, tensors_equal

CPU = torch.device("cpu")
XEON = (
    "processor\t: 0\nmodel name\t: a Xeon\nflags\t\t: fpu avx512f amx_bf16 avx512_bf16 amx_tile\n"
)
WITHOUT = XEON.replace("amx_bf16 ", "")


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Lets Linux say this of the CPU; None takes its file away."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "CPUINFO", path)

    def say(text: str | None) -> None:
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)

    say(None)
    return say


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (XEON, "bfloat16"),
        (XEON * 2, "bfloat16"),
        (WITHOUT, "float32"),
        (XEON.replace("amx_tile", ""), "float32"),
        (XEON.replace("amx_bf16", "amx_bf16x"), "float32"),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 amx_bf16 amx_tile\n", "float32"),
        ("", "float32"),
        (None, "float32"),
    ],
)
def test_auto_is_bfloat16_on_a_cpu_that_is_known_to_have_the_tiles_for_it(cpu, says, expected):
    cpu(says)
    told = recipe(precision="auto")
    assert settled(told, CPU) == recipe(precision=expected)
    assert bfloat16_pays(CPU) == (expected == "bfloat16")
    for name in ("float32", "bfloat16"):
        assert settled(recipe(precision=name), CPU) == recipe(precision=name)


@pytest.mark.parametrize("supported", [True, False])
def test_on_a_gpu_torch_says_it_and_emulation_does_not_count(supported, cpu, monkeypatch):
    cpu(XEON)
    asked = []

    def is_bf16_supported(including_emulation=True):
        asked.append(including_emulation)
        return supported or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    found = settled(recipe(precision="auto"), torch.device("cuda", 0)).precision
    assert (found, asked) == ("bfloat16" if supported else "float32", [False])


def test_a_device_that_is_not_known_takes_float32(cpu):
    cpu(XEON)
    assert settled(recipe(precision="auto"), torch.device("meta")).precision == "float32"


@pytest.mark.parametrize(("says", "expected"), [(XEON, "bfloat16"), (WITHOUT, "float32")])
def test_the_run_says_which_it_was_and_trains_by_it(cpu, says, expected, tmp_path):
    cpu(says)
    result = ez.compress(mlp(), classification(), recipe(precision="auto"), folder=tmp_path / "run")
    assert result.record.recipe["precision"] == expected
    assert ez.Recipe.read(tmp_path / "run" / "recipe.toml").precision == expected
    told = recipe(precision=expected)
    assert tensors_equal(result.model, ez.compress(mlp(), classification(), told).model)
    other = "float32" if expected == "bfloat16" else "bfloat16"
    cpu(XEON)  # so that nothing is said of what it costs
    told = recipe(precision=other)
    assert not tensors_equal(result.model, ez.compress(mlp(), classification(), told).model)


def stopping_after(count: int) -> ez.Data:
    """Data whose score can be asked for so many times; then comes Ctrl-C."""
    left = iter(range(count))

    def score(outputs, targets):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return accuracy(outputs, targets)

    return classification(score=score)


@pytest.mark.parametrize(("begun", "then"), [(XEON, WITHOUT), (WITHOUT, XEON)])
def test_a_resume_goes_on_in_the_precision_it_was_begun_in(cpu, begun, then, tmp_path):
    told = recipe(precision="auto")
    cpu(begun)
    whole = ez.compress(mlp(), stopping_after(1000), told, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        ez.compress(mlp(), stopping_after(6), told, folder=tmp_path / "part")
    cpu(then)
    data, part = stopping_after(1000), tmp_path / "part"
    resumed = ez.compress(mlp(), data, told, folder=part, resume=True)
    assert tensors_equal(resumed.model, whole.model)
    assert resumed.record.recipe == whole.record.recipe


def test_bfloat16_where_it_takes_longer_is_said(cpu):
    told = recipe(precision="bfloat16")
    cpu(WITHOUT)
    with pytest.warns(ez.EllzeroWarning, match=r"no.* AMX.* LeNet-5 takes 1\.2 times as long"):
        assert nonzero_weights(ez.compress(mlp(), classification(), told).model) == 36
    for says, name in ((XEON, "bfloat16"), (WITHOUT, "float32")):  # and "auto" is one of the two
        cpu(says)
        assert costs(recipe(precision=name), CPU) == []


def test_the_default_is_float32_whatever_the_device(cpu):
    cpu(XEON)
    assert settled(recipe(), CPU).precision == "float32"


@pytest.mark.parametrize("path", ["recipes/*.toml", "src/ellzero/demo.toml"])
def test_built_in_recipes_name_their_precision_and_what_it_costs(path):
    for file in Path(__file__).parents[2].glob(path):
        lines = file.read_text().splitlines()
        (at,) = [i for i, line in enumerate(lines) if line.startswith("precision = ")]
        assert "CPU" in " ".join(lines[at - 2 : at + 1])
