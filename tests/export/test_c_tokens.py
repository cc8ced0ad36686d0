"""C of tokens, constants, several inputs and outputs: what it computes, and what it refuses."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from c_programs import SANITIZERS, WARNINGS, needs_gcc
from ellzero.networks.gpt import gpt_small

TOKENS = torch.zeros(1, 8, dtype=torch.int64)


def small_gpt() -> Any:
    torch.manual_seed(0)
    model = gpt_small(vocabulary=11, layers=2, width=16, heads=2, context=8).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 3)
    return model


def prune(model: nn.Module, sparsity: float) -> None:
    """Zeros in the layers that are no embedding."""
    weights = ez.select(model, include=["blocks.*.weight"], exclude=["*norm*"])
    ez.prune(model, weights=weights, sparsity=sparsity)


class Mixed(nn.Module):
    """Words and numbers in; three values out, one of them an input, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.d = nn.Embedding(7, 4), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.tensor([0.5, -2.0, 3.0]))

    def forward(self, words: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        both = self.d(torch.cat([self.e(words).mean(1), numbers], 1))
        return both * self.scale, numbers, both, both


def mixed() -> Any:
    torch.manual_seed(0)
    return ez.trace(Mixed().eval(), [torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 2)])


def built(source: ez.CSource) -> Any:
    """The C as a function, after the test beside it has run under the sanitizers."""
    folder, name = source.folder, source.name
    command = ["gcc", *WARNINGS, *SANITIZERS, f"{name}.c", f"{name}_test.c", "-o", "check", "-lm"]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    done = subprocess.run(["./check"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    return ez.compile_c(source)


@needs_gcc
@pytest.mark.parametrize("storage", ["smallest", "fastest", "dense"])
def test_a_gpt_gives_the_logits_of_every_place(tmp_path, storage):
    model = small_gpt()
    prune(model, 0.6)
    source = ez.export_c(model, tmp_path, TOKENS, name="gpt", storage=storage)
    tokens = torch.randint(11, (5, 8))
    outputs = built(source)(tokens.float())
    with torch.no_grad():
        expected = model(tokens).flatten(1)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


@needs_gcc
def test_a_quantized_table_takes_a_byte_an_entry(tmp_path):
    model = small_gpt()
    plain = ez.export_c(model, tmp_path / "plain", TOKENS)
    weights = ez.select(model, include=["default", "tokens.weight", "positions.weight"])
    ez.quantize(model, weights=weights, bits=4)
    small = ez.export_c(model, tmp_path / "small", TOKENS)
    with torch.no_grad():
        expected = model(TOKENS + 3).flatten(1)
    torch.testing.assert_close(built(small)(TOKENS.float() + 3), expected, rtol=1e-4, atol=1e-4)
    assert small.constant_bytes < 0.5 * plain.constant_bytes


@needs_gcc
def test_several_inputs_and_outputs_lie_one_behind_the_other(tmp_path):
    network = mixed()
    source = ez.export_c(network, tmp_path, name="mixed")
    words, numbers = torch.randint(7, (4, 5)), torch.randn(4, 2)
    outputs = built(source)(torch.cat([words.float(), numbers], 1))
    with torch.no_grad():
        expected = torch.cat([y.flatten(1) for y in network(words, numbers)], 1)
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)
    header = (tmp_path / "mixed.h").read_text()
    assert "#define MIXED_INPUTS 7 /* words 5, then numbers 2 */" in header
    assert "#define MIXED_OUTPUTS 11 " in header


ASK = """
#include "net.h"
#include <stdio.h>
#include <stdlib.h>

int main(int count, char **words)
{
    float x[NET_INPUTS] = {0}, y[NET_OUTPUTS];
    for (int i = 1; i < count; ++i) x[i - 1] = strtof(words[i], NULL);
    printf("%d\\n", net_predict(x, y));
    return 0;
}
"""


def asked(folder: Path, *values: str) -> int:
    """What a program of the network's C, under the sanitizers, returns for these inputs."""
    program = folder / "ask"
    if not program.exists():
        (folder / "ask.c").write_text(ASK)
        command = ["gcc", *WARNINGS, *SANITIZERS, "net.c", "ask.c", "-o", "ask", "-lm"]
        subprocess.run(command, cwd=folder, check=True, timeout=300)
    done = subprocess.run([program, *values], check=True, capture_output=True, text=True)
    return int(done.stdout)


@needs_gcc
def test_tokens_that_a_table_does_not_have_are_refused(tmp_path):
    class Two(nn.Module):
        """Two tables, one of them of a slice; another value is no token."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Embedding(4, 3), nn.Embedding(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x[:, 0]) + self.b(x[:, 1:3]).sum(1)

    torch.manual_seed(0)
    ez.export_c(Two(), tmp_path, torch.zeros(1, 4, dtype=torch.int64))
    assert asked(tmp_path, "3", "8", "8", "99") >= 0
    for bad in (["4"], ["0", "9"], ["0", "0", "9"], ["-1"], ["0", "-1"], ["nan"], ["1e30"]):
        assert asked(tmp_path, *bad) == -1, bad


@needs_gcc
def test_from_python_an_unknown_token_is_an_error_that_says_where(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(6, 2))
    compiled = ez.compile_c(ez.export_c(model, tmp_path, torch.zeros(1, 2, dtype=torch.int64)))
    tokens = torch.tensor([[0.0, 3.0], [1.0, 2.0], [3.0, 4.0]])
    assert compiled(tokens[:2]).shape == (2, 2)
    with pytest.raises(ez.InputError, match="net refuses example 2: a token is none"):
        compiled(tokens)


def test_a_table_read_by_what_is_computed_has_no_c(tmp_path):
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Embedding(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.e(x + x).sum(1)

    network = ez.trace(Shifted(), torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(
        ez.InputError, match=r"no C for e \(embedding\) of tokens that are computed"
    ):
        ez.export_c(network, tmp_path)
    assert not list(tmp_path.iterdir())


@needs_gcc
def test_what_no_input_changes_is_computed_beforehand(tmp_path):
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.randn(6, 4))
            self.d = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.d(x + torch.tanh(self.places[1:4]) * 2)

    torch.manual_seed(0)
    model = Placed().eval()
    network = ez.trace(model, torch.zeros(1, 3, 4))
    source = ez.export_c(network, tmp_path)
    assert "tanhf" not in (tmp_path / "net.c").read_text()
    x = torch.randn(5, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(built(source)(x), network(x).flatten(1), rtol=1e-5, atol=1e-5)


MAIN = """
#include "gpt.h"
#include <stdio.h>
#include <string.h>

/* The likeliest token after each, from a first one on; what is not there yet is 0. */
int main(void)
{
    static float tokens[GPT_INPUTS], logits[GPT_OUTPUTS];
    const int vocabulary = GPT_OUTPUTS / GPT_INPUTS;
    for (int t = 0; t + 1 < GPT_INPUTS; ++t) {
        const float *row = logits + t * vocabulary;
        int best = 0;
        if (gpt_predict(tokens, logits) < 0) return 1;
        for (int i = 1; i < vocabulary; ++i) {
            if (row[i] > row[best]) best = i;
        }
        tokens[t + 1] = (float)best;
        printf("%d ", best);
    }
    return 0;
}
"""


@needs_gcc
def test_c_writes_the_text_that_pytorch_writes(tmp_path):
    model = small_gpt()
    prune(model, 0.5)
    ez.export_c(model, tmp_path, TOKENS, name="gpt")
    (tmp_path / "main.c").write_text(MAIN)
    command = ["gcc", *WARNINGS, *SANITIZERS, "gpt.c", "main.c", "-o", "write", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    done = subprocess.run(["./write"], cwd=tmp_path, check=True, capture_output=True, text=True)
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(7):
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(2)], 1)
    assert done.stdout.split() == [str(token) for token in tokens[0, 1:].tolist()]
    assert len(set(done.stdout.split())) > 1
