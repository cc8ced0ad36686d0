"""C whose weights are in a file beside it: the same results, and no other weights than its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from c_programs import SANITIZERS, WARNINGS, needs_gcc
from ellzero.networks.audio import audio_gru
from ellzero.networks.lenet import lenet_300_100


def quantized() -> Any:
    model: Any = lenet_300_100()
    ez.prune(model, sparsity=0.9)
    ez.quantize(model, bits=4)
    return ez.trace(model, torch.zeros(1, 1, 28, 28))


NETWORKS: dict[str, Callable[[], Any]] = {
    "floats": lambda: ez.trace(nn.Linear(5, 3), torch.zeros(1, 5)),
    "codebooks, gaps and biases": quantized,
    "frames": lambda: ez.trace(audio_gru(hidden=8).eval(), torch.zeros(1, 6, 40)),
}


def run_test(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What the test beside the C says, under the sanitizers."""
    program = folder / "check"
    if not program.exists():
        command = ["gcc", *WARNINGS, *SANITIZERS, "net.c", "net_test.c", "-o", "check", "-lm"]
        subprocess.run(command, cwd=folder, check=True, timeout=300)
    return subprocess.run([program, *words], cwd=folder, capture_output=True, text=True)


@needs_gcc
@pytest.mark.parametrize("what", NETWORKS)
def test_it_computes_what_the_arrays_compute(what, tmp_path):
    torch.manual_seed(0)
    network = NETWORKS[what]()
    arrays = ez.export_c(network, tmp_path / "arrays")
    blob = ez.export_c(network, tmp_path / "blob", weights="blob")
    assert blob.constant_bytes == arrays.constant_bytes
    done = run_test(blob.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    x = torch.randn(4, *network.graph.input_shape)
    assert torch.equal(ez.compile_c(blob)(x), ez.compile_c(arrays)(x))
    source = (blob.folder / "net.c").read_text()
    assert "static const float" not in source
    size = (blob.folder / "net_weights.bin").stat().st_size
    assert blob.constant_bytes <= size < blob.constant_bytes + 4 * 30


@needs_gcc
def test_other_weights_are_refused(tmp_path):
    torch.manual_seed(0)
    source = ez.export_c(NETWORKS["floats"](), tmp_path, weights="blob")
    file = tmp_path / "net_weights.bin"
    content = file.read_bytes()
    for wrong in (content[:-1], content + b"\0", bytes(len(content)), b""):
        file.write_bytes(wrong)
        done = run_test(tmp_path)
        assert (done.returncode, done.stderr) == (
            1,
            "net_weights.bin is not the weights of net\n",
        )
        with pytest.raises(ez.InputError, match=r"net_weights.bin is not of net.c"):
            ez.compile_c(source)
    for bit in range(0, 8 * len(content), 7):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        assert run_test(tmp_path).returncode == 1
    file.unlink()
    assert "net_weights.bin is not the weights" in run_test(tmp_path).stderr
    with pytest.raises(ez.InputError, match=r"there is no .*net_weights.bin"):
        ez.compile_c(source)
    (tmp_path / "elsewhere").write_bytes(content)
    assert run_test(tmp_path, "elsewhere").returncode == 0


UNSET = """
#include "net.h"
#include <stdio.h>

int main(void)
{
    static float x[NET_INPUTS], y[NET_OUTPUTS];
    static const unsigned char wrong[NET_WEIGHTS + 4];
    const int before = net_predict(x, y);
    const int given = net_set_weights(wrong, NET_WEIGHTS);
    printf("%d %d %d %d", before, given, net_set_weights(NULL, NET_WEIGHTS), net_predict(x, y));
    return 0;
}
"""


@needs_gcc
def test_without_weights_nothing_is_computed(tmp_path):
    ez.export_c(NETWORKS["floats"](), tmp_path, weights="blob")
    (tmp_path / "main.c").write_text(UNSET)
    command = ["gcc", *WARNINGS, *SANITIZERS, "net.c", "main.c", "-o", "main", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    done = subprocess.run([tmp_path / "main"], check=True, capture_output=True, text=True)
    assert done.stdout == "-1 -1 -1 -1"


def test_weights_lie_in_arrays_or_a_blob(tmp_path):
    with pytest.raises(ez.InputError, match="weights is 'file'; expected 'arrays' or 'blob'"):
        ez.export_c(NETWORKS["floats"](), tmp_path, weights="file")  # pyright: ignore
