"""How generated C is written: braces on every branch, no ternary in another, clean under cppcheck.

`check_networks` and `check_integers` look at the C of every operation, too.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from c_programs import random_network, succeed
from c_style import lapses
from ellzero.networks.audio import audio_gru
from ellzero.networks.gpt import gpt_small
from integer_programs import random_integer_network, random_integers
from operation_cases import OPERATION_CASES, around

STORAGES: tuple[Any, ...] = ("smallest", "fastest", "dense")


def image_network() -> Any:
    """Padding, pooling, preprocessing and classes; zeros in its layers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.Hardswish(), nn.MaxPool2d(3, 2, 1), nn.Flatten()
    ).append(nn.Linear(8 * 4 * 5, 12))
    ez.prune(model, sparsity=0.7)
    preprocess = ez.Preprocess((0.1, 0.3), (-4.0, 0.5))
    example = torch.zeros(1, 2, 8, 9)
    return ez.trace(model, example, preprocess=preprocess, classes=[f"c{n}" for n in range(12)])


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """C of every kind: floats and integers, in arrays and in a file, tokens, frame by frame."""
    folder = tmp_path_factory.mktemp("c")
    images, x = image_network(), torch.randint(0, 256, (30, 2, 8, 9)) / 16
    integers = ez.quantize(images, activations=8, data=x).model
    frames = ez.trace(audio_gru(hidden=8).eval(), torch.zeros(1, 6, 40))
    text = ez.trace(
        gpt_small(vocabulary=11, layers=1, width=16, heads=2, context=8).eval(),
        torch.zeros(1, 8, dtype=torch.int64),
    )
    for storage in STORAGES:
        for name, network in {"frames": frames, "text": text, "images": images}.items():
            ez.export_c(network, folder, name=f"{name}_{storage}", storage=storage)
        ez.export_c(integers, folder, x, name=f"integers_{storage}", storage=storage)
    for name, network in {"frames": frames, "text": text}.items():
        ez.export_c(network, folder, name=f"{name}_blob", weights="blob")
    ez.export_c(images, folder / "project", x, package="project")
    ez.export_c(integers, folder / "library", x, package="arduino")
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("if (a) { b(); } else if (c) { d(); } else { e(); }", []),
        ("for (int i = 0; i < (a ? b : c); ++i) { x = d ? e : f; }", []),
        ('/* if (a) b(); */ s("? ?"); // else c ? d : e ? f : g\n#if defined(X) && (Y)\nt();', []),
        ("if (a) b();", ["no brace after: if (a) b()"]),
        ("if (a) { b(); } else c();", ["no brace after: else c()"]),
        ("for (int i = 0; i < f(n); ++i) x[i] = 0;", ["no brace after: for (int i = 0"]),
        ("for (;;) { while (a(b)) c(); }", ["no brace after: while (a(b)) c()"]),
        ("x = a ? b :\n    (c ? d : e);", ["several ?: in: x = a ? b : (c ? d : e)"]),
    ],
)
def test_what_is_told_from_a_text(text, expected):
    found = lapses(text)
    assert len(found) == len(expected)
    assert all(lapse.startswith(start) for lapse, start in zip(found, expected, strict=True))


def test_every_file_has_braces_and_single_ternaries(written):
    files = [*written.rglob("*.[ch]"), *written.rglob("*.ino")]
    assert len(files) == 3 * (4 * 3 + 2 + 1 + 1) + 1
    assert not {file.name: found for file in files if (found := lapses(file.read_text()))}


CPPCHECK = (
    *("cppcheck", "--quiet", "--std=c99", "--enable=warning,style,performance,portability"),
    # a struct is the same whichever of its layers a network has
    *("--error-exitcode=1", "--suppress=unusedStructMember"),
)
needs_cppcheck = pytest.mark.skipif(
    shutil.which("cppcheck") is None, reason="cppcheck is not installed"
)


@pytest.mark.slow
@needs_cppcheck
def test_cppcheck_finds_nothing_in_any_kind_of_c(written):
    succeed([*CPPCHECK, "."], written)


@pytest.mark.slow
@needs_cppcheck
@pytest.mark.filterwarnings("ignore::ellzero.EllzeroWarning")  # random ones have dead outputs
@pytest.mark.parametrize("storage", ["smallest", "fastest"])
def test_cppcheck_finds_nothing_in_any_operation(tmp_path, storage):
    networks = [around(c, seed) for seed, c in enumerate(OPERATION_CASES.values()) if not c.refused]
    networks += [random_network(seed) for seed in range(10)]
    for number, network in enumerate(networks):
        ez.export_c(network, tmp_path, name=f"net{number}", storage=storage)
    for seed in range(10):
        network = random_integer_network(seed)
        x = random_integers(network)
        ez.export_c(network, tmp_path, x, name=f"integers{seed}", storage=storage)
    succeed([*CPPCHECK, "."], tmp_path)


@needs_cppcheck
def test_cppcheck_is_asked_for_what_it_can_tell(tmp_path):
    (tmp_path / "wrong.c").write_text("int f(int n) { int a[2]; a[0] = n; return a[2]; }\n")
    with pytest.raises(AssertionError, match="arrayIndexOutOfBounds"):
        succeed([*CPPCHECK, "."], tmp_path)
