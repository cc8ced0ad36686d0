"""Recurrent networks in C against PyTorch: whole sequences, and frame by frame."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ellzero as ez
from c_programs import (
    SANITIZERS,
    WARNINGS,
    Builder,
    assert_close,
    by_each_compiler,
    check_networks,
    needs_clang,
    needs_gcc,
    predicted,
    succeed,
)
from ellzero import operations as ops
from ellzero.compaction.compact import Removed
from ellzero.export.c.stream import NoStream, Stream, stream
from ellzero.graph import Graph, Network
from ellzero.networks.audio import audio_gru
from recurrent_networks import random_recurrent, recurrent

pytestmark = [needs_gcc, pytest.mark.filterwarnings("ignore::ellzero.EllzeroWarning")]
STORAGES = ("smallest", "fastest", "dense")

# as many frames as come in, each one's outputs out; the struct ends where its memory ends
STEPS = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int steps_NAME(void)
{
    NAME_state *const state = malloc(sizeof *state);
    float *const x = malloc(UPPER_FRAME * sizeof *x);
    float *const y = malloc(UPPER_STEP_OUTPUTS * sizeof *y);
    FILE *const in = fopen("NAME.frames", "rb"), *const out = fopen("NAME.steps", "wb");
    int failed = !state || !x || !y || !in || !out;
    if (!failed) memset(state, 0xFF, sizeof *state);
    if (!failed) NAME_reset(state);
    while (!failed && fread(x, sizeof *x, UPPER_FRAME, in) == UPPER_FRAME) {
        const int best = NAME_step(state, x, y);
        for (int i = 0; i < UPPER_STEP_OUTPUTS; ++i) failed |= y[i] > y[best];
        fwrite(y, sizeof *y, UPPER_STEP_OUTPUTS, out);
    }
    if (in) fclose(in);
    if (out) fclose(out);
    free(state);
    free(x);
    free(y);
    return failed;
}
"""


def stepped(folder: Path, inputs: dict[str, Tensor], compiler: str = "gcc") -> dict[str, Tensor]:
    """What each exported network's C gives after each of some frames (frames, ...)."""
    includes = "\n".join(f'#include "{name}.c"' for name in inputs)
    for name, x in inputs.items():
        (folder / f"{name}.frames").write_bytes(np.ascontiguousarray(x, np.float32).tobytes())
    functions = "".join(
        STEPS.replace("NAME", name).replace("UPPER", name.upper()) for name in inputs
    )
    calls = " | ".join(f"steps_{name}()" for name in inputs)
    source = folder / "steps.c"
    source.write_text(f"{includes}\n{functions}\nint main(void) {{ return {calls}; }}\n")
    command = [compiler, *WARNINGS, *SANITIZERS, str(source), "-lm", "-o", str(folder / "steps")]
    succeed(command, folder)
    succeed([str(folder / "steps")], folder)
    return {
        name: torch.from_numpy(np.fromfile(folder / f"{name}.steps", np.float32)).view(len(x), -1)
        for name, x in inputs.items()
    }


def of_frames(network: Network, frames: int) -> Network:
    """The network for another number of frames: the same weights, another input."""
    before = network.graph.input_shape[0]
    nodes = []
    for node in network.graph.nodes:
        op: Any = node.op
        if isinstance(op, ops.Input):
            op = op.model_copy(update={"size": (frames, *op.size[1:])})
        elif isinstance(op, ops.Slice) and op.axis == 0 and op.stop == before:
            op = op.model_copy(update={"start": frames - 1, "stop": frames})
        nodes.append(node.model_copy(update={"op": op}))
    return Network(
        Graph(nodes=tuple(nodes)), {n: network.weight(n) for n in network.graph.weight_names()}
    ).eval()


@pytest.mark.parametrize("storage", STORAGES)
def test_random_networks(tmp_path, storage):
    check_networks(tmp_path, {f"net{n}": random_recurrent(n) for n in range(8)}, storage)


@pytest.mark.slow
@by_each_compiler
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("batch", range(4))
def test_many_random_networks(tmp_path, storage, batch, compiler):
    seeds = range(100 + 30 * batch, 130 + 30 * batch)
    check_networks(tmp_path, {f"net{n}": random_recurrent(n) for n in seeds}, storage, compiler)


def check_steps(folder: Path, seeds: range, storage: Any, compiler: str = "gcc") -> None:
    """After each frame C gives what PyTorch gives for the frames so far, also past the last."""
    networks = {f"net{n}": random_recurrent(n, streams=True) for n in seeds}
    inputs = {}
    for name, network in networks.items():
        ez.export_c(network, folder, name=name, storage=storage)
        frames, features = network.graph.input_shape
        generator = torch.Generator().manual_seed(len(inputs))
        inputs[name] = torch.randn(frames + 2, features, generator=generator)
    for name, outputs in stepped(folder, inputs, compiler).items():
        x, network = inputs[name], networks[name]
        for count in range(1, len(x) + 1):
            whole = predicted(of_frames(network, count), x[None, :count])
            expected = whole[:, -outputs.shape[1] :]  # of each frame there may be a row
            assert_close(outputs[count - 1 : count], expected, f"{name}, {count} frames")


@pytest.mark.parametrize("storage", STORAGES)
def test_steps_give_what_whole_sequences_give(tmp_path, storage):
    check_steps(tmp_path, range(6), storage)


@pytest.mark.slow
@needs_clang
@pytest.mark.parametrize("storage", STORAGES)
def test_steps_by_another_compiler(tmp_path, storage):
    check_steps(tmp_path, range(50, 70), storage, "clang")


def on_the_way() -> Network:
    """Frames through a linear layer, a norm, an activation, two cells, and a softmax at the end."""
    b = Builder((5, 4), seed=3)
    b.layer(ops.Linear(), 6, 4, density=0.5, bias=True)
    b.add(ops.LayerNorm(eps=1e-5), scale=b.normal(6), shift=b.normal(6))
    before = b.activation("relu")
    recurrent(b, 5)
    b.add(ops.Concat(axis=1), before)
    recurrent(b, 4)
    b.add(ops.Slice(axis=0, start=4, stop=5))
    b.linear(3, density=1.0, bias=True)
    b.add(ops.Softmax())
    return b.network(preprocess=ez.Preprocess(0.5, -0.25))


def test_layers_around_recurrent_ones_go_frame_by_frame(tmp_path):
    network = on_the_way()
    source = ez.export_c(network, tmp_path)
    streamed = stream(network)
    assert isinstance(streamed, Stream)
    assert streamed.frames == 5
    assert not streamed.gives_each
    nodes = streamed.network.graph.nodes
    after = [node.op.kind for node in nodes if node.name not in streamed.each]
    assert after == ["flatten", "linear", "softmax"]
    x = torch.randn(7, 4)
    outputs = stepped(tmp_path, {"net": x})["net"]
    for count in range(1, 8):
        expected = predicted(of_frames(network, count), 0.5 * x[None, :count] - 0.25)
        assert_close(outputs[count - 1 : count], expected, f"{count} frames")
    # scratch for one frame, not for five: both states and the gates of one
    assert source.scratch_bytes < 4 * 5 * (6 + 5 + 4)


def test_a_network_of_frames_has_constants_once_and_no_static_memory_of_its_own(tmp_path):
    network = on_the_way()
    source = ez.export_c(network, tmp_path)
    text = (tmp_path / "net.c").read_text()
    assert len(re.findall(r"^static const \w+ net_recurrent_\d_weight_hh_values", text, re.M)) == 2
    without = text[: text.index("#ifndef NET_NO_STATIC")]
    assert not re.search(r"^ +static ", without, re.M)
    assert source.scratch_bytes // 4 == int(
        re.findall(r"NET_SCRATCH (\d+)", (tmp_path / "net.h").read_text())[0]
    )


def refused() -> dict[str, tuple[Network, str]]:
    """Networks that take all frames at once, and what their headers say."""
    backwards, summed = Builder((4, 3)), Builder((4, 3))
    recurrent(backwards, 2)
    recurrent(backwards, 2, reverse=True)
    recurrent(summed, 2)
    summed.add(ops.Reduce(function="mean", over=(0,)))
    early = Builder((4, 3))
    recurrent(early, 2)
    early.add(ops.Slice(axis=0, start=1, stop=2))
    return {
        "backwards": (backwards.network(), "recurrent.2 begins at the last frame"),
        "summed": (summed.network(), r"reduce.2 \(reduce\) reads more than one frame"),
        "early": (early.network(), r"slice.2 \(slice\) reads more than one frame"),
    }


@pytest.mark.parametrize("what", refused())
def test_a_header_says_why_there_are_no_steps(tmp_path, what):
    network, reason = refused()[what]
    streamed = stream(network)
    assert isinstance(streamed, NoStream)
    assert re.search(reason, streamed.reason)
    ez.export_c(network, tmp_path)
    header = (tmp_path / "net.h").read_text()
    assert re.search(rf"/\* It takes all frames at once: {reason}\. \*/", header)
    assert "net_step" not in header


def test_a_network_without_recurrent_layers_says_nothing_of_frames(tmp_path):
    b = Builder((4, 3))
    b.layer(ops.Linear(), 2, 3, density=1.0)
    assert stream(b.network()) is None
    ez.export_c(b.network(), tmp_path)
    assert "frame" not in (tmp_path / "net.h").read_text()


def test_nan_goes_through(tmp_path):
    """Through the units that read it, and on to what reads them."""
    torch.manual_seed(0)
    b = Builder((3, 2))
    weights = {"weight_ih": torch.randn(9, 2), "weight_hh": torch.randn(9, 3)}
    b.add(ops.Recurrent(cell="gru"), **weights)
    ez.export_c(b.network(), tmp_path)
    x = torch.randn(3, 2)
    x[1, 0] = torch.nan
    outputs = stepped(tmp_path, {"net": x})["net"]
    assert outputs.isnan().all(1).tolist() == [False, True, True]
    assert not outputs[0].isnan().any()


def test_the_report_has_both_weights_of_a_layer(tmp_path):
    b = Builder((3, 2), seed=1)
    weights = {"weight_ih": torch.randn(4, 2), "weight_hh": torch.eye(4), "bias_ih": torch.ones(4)}
    b.add(ops.Recurrent(cell="rnn_tanh"), **weights)
    source = ez.export_c(b.network(), tmp_path, storage="smallest")
    first, second = source.layers
    assert (first.name, first.weights, first.nonzeros) == ("recurrent.1.weight_ih", 8, 8)
    assert (second.name, second.weights, second.nonzeros) == ("recurrent.1.weight_hh", 16, 4)
    assert first.size_bytes + second.size_bytes == source.constant_bytes


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("    net_begin(state->memory);", "    (void)state;"),
        ("    net_after(output, state->memory);\n    return", "    return"),
    ],
)
def test_the_test_beside_the_c_goes_frame_by_frame_too(tmp_path, right, wrong):
    ez.export_c(on_the_way(), tmp_path)
    command = ["gcc", "-std=c99", "net.c", "net_test.c", "-lm", "-o", "net_test"]
    succeed(command, tmp_path)
    assert "wrong classes 0" in succeed([str(tmp_path / "net_test")], tmp_path)
    text = (tmp_path / "net.c").read_text()
    assert text.count(right) == 1
    (tmp_path / "net.c").write_text(text.replace(right, wrong))
    succeed(command, tmp_path)
    assert subprocess.run([tmp_path / "net_test"], capture_output=True).returncode == 1


def test_the_gru_of_the_networks_goes_all_the_way(tmp_path):
    """Pruned, compacted, quantized, packed, in C: each step gives what the one before gives."""
    torch.manual_seed(0)
    model, x = audio_gru(hidden=16).eval(), torch.randn(4, 12, 40)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    first = model.get_parameter("gru.weight_ih_l0")
    first.data[:, 5] *= 1e-3  # a feature that pruning leaves nothing of
    masks = ez.prune(model, sparsity=0.9)
    assert set(masks) == {"gru.weight_ih_l0", "gru.weight_hh_l0", "fc.weight"}
    traced = ez.trace(model, x)
    assert torch.equal(traced(x), model(x))
    compacted = ez.compact(traced)
    read = int(first.any(0).sum())
    assert read < 40
    assert Removed("gru", "inputs", 40, read) in compacted.removed
    small = compacted.model
    torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)
    quantized = ez.quantize(small, bits=4)
    assert set(quantized) == set(masks)
    expected = small(x)
    assert ez.pack(small, tmp_path / "gru.ellz").self_contained
    loaded = ez.load(tmp_path / "gru.ellz")
    assert torch.equal(loaded(x), expected)
    source = ez.export_c(loaded, tmp_path / "c", x)
    layers = {layer.name: layer for layer in source.layers}
    for role in ("weight_ih", "weight_hh"):
        assert layers[f"gru.{role}"].nonzeros == int(small.weight(f"gru.{role}_l0").count_nonzero())
        assert layers[f"gru.{role}"].values in ("codebook", "float32")
    assert_close(ez.compile_c(source)(x), expected.double(), "C")
