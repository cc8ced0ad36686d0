"""Integer C against the integer network in PyTorch, bit for bit, under the sanitizers."""

import subprocess
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import ellzero as ez
from c_programs import by_each_compiler, needs_gcc, succeed
from ellzero.graph import Network
from ellzero.operations import Concat, Flatten, Pad
from ellzero.operations.integer import Dequantize
from integer_programs import (
    IntegerBuilder,
    check_integers,
    random_integer_network,
    random_integers,
    rows_of_kernels,
)

pytestmark = needs_gcc


def every_kind() -> dict[str, Network]:
    """A network for each kernel and setting."""
    networks = {}

    def keep(name: str, b: IntegerBuilder) -> None:
        networks[name] = b.network()

    for number, (rows, columns) in enumerate(((1, 1), (4, 700), (9, 64))):
        for density in (0.0, 0.05, 1.0):
            b = IntegerBuilder((columns,), number)
            b.linear(rows, density)
            b.linear(3, 0.9)
            keep(f"linear_{rows}_{columns}_{density:.2f}".replace(".", "_"), b)
    b = IntegerBuilder((4, 6))
    b.linear(5)
    keep("linear_places", b)
    settings = {
        "plain": {},
        "strided": {"stride": (2, 3)},
        "padded": {"before": (1, 1), "after": (1, 1)},
        "uneven": {"before": (0, 2), "after": (3, 1), "stride": (2, 2)},
        "causal": {"before": (2, 3), "after": (0, 0)},
        "dilated": {"dilation": (2, 3), "before": (2, 2), "after": (1, 0)},
    }
    shapes = ((1, 5, 0.1), (4, 4, 0.9), (1, 3, 0.9), (2, 6, 0.2), (4, 8, 0.1))
    cases = [("plain", shape) for shape in shapes]
    # margins are of all channels at once, or where each output reads one channel, of one
    cases += [(name, shape) for name in settings if name != "plain" for shape in shapes[:2]]
    for name, (groups, out, density) in cases:
        options = settings[name]
        b = IntegerBuilder((4, 9, 11), len(networks))
        b.conv(out, (3, 2), groups=groups, density=density, **options)
        keep(f"conv_{name}_{groups}_{out}_{density * 10:.0f}", b)
    for columns in (1, 2, 5, 8, 9, 11, 17):
        networks[f"rows_{columns}"] = rows_of_kernels(columns)
        b = IntegerBuilder((3, 2, columns), columns)
        b.conv(4, (1, 1))
        b.conv(2, (1, 1), stride=(1, 2))
        b.conv(4, (1, 1), groups=2)
        keep(f"pointwise_{columns}", b)
    pools = {
        "beside": {},
        "overlapping": {"stride": (1, 2)},
        "padded": {"padding": (1, 1), "stride": (2, 2)},
        "ceil": {"stride": (2, 2), "ceil": True},
        "inner": {"padding": (1, 0), "stride": (2, 2), "ceil": True, "count_padding": False},
    }
    for (name, options), function in product(pools.items(), ("max", "average")):
        kernel = (5, 4) if name == "beside" else (3, 2)
        b = IntegerBuilder((3, 9, 8), len(networks))
        b.table()
        b.pool(function, kernel, **options)
        keep(f"{function}_{name}_{kernel[0]}", b)
    b = IntegerBuilder((3, 9, 8))
    b.pool("max", (2, 2), stride=(1, 1), dilation=(2, 3))
    keep("max_dilated", b)
    for function in ("max", "average"):
        b = IntegerBuilder((3, 9))
        b.pool(function, (3,), padding=(1,), stride=(2,))
        keep(f"{function}_signal", b)
    b = IntegerBuilder((2, 8, 8))
    b.conv(3, (3, 3), before=(1, 1), after=(1, 1))
    b.pool("max", (3, 3), padding=(1, 1), stride=(2, 2))
    b.conv(4, (1, 1))
    b.pool("max", (2, 2))
    b.add(Flatten())
    b.linear(5)
    keep("pooled_at_once", b)
    b = IntegerBuilder((3, 5, 4))
    first = b.conv(3, (3, 3), before=(1, 1), after=(1, 1))
    second = b.conv(3, (1, 1))
    b.sum_with(first)
    b.sum_with(b.last)
    b.add(Concat(axis=0), first, second)
    b.add(Concat(axis=2), b.last)
    b.add(Pad(before=(1, 0, 2), after=(0, 1, 1), value=-7.0))
    b.conv(2, (2, 2))
    keep("joined", b)
    b = IntegerBuilder((2, 3))
    b.add(Pad(before=(0, 2), after=(1, 0), value=127.0))
    keep("padded_alone", b)
    return networks


@by_each_compiler
@pytest.mark.parametrize(
    "storage",
    ["smallest", *(pytest.param(s, marks=pytest.mark.slow) for s in ("fastest", "dense"))],
)
def test_every_kind_of_step(tmp_path, storage, compiler):
    check_integers(tmp_path, every_kind(), storage, compiler)


@by_each_compiler
def test_random_networks(tmp_path, compiler):
    check_integers(
        tmp_path, {f"net{n}": random_integer_network(n) for n in range(8)}, compiler=compiler
    )


def test_the_test_beside_it_asks_for_every_integer(tmp_path):
    network = random_integer_network(3)
    ez.export_c(network, tmp_path, random_integers(network))
    command = ["gcc", "-std=c99", "-O1", "net.c", "net_test.c", "-o", "net_test"]
    succeed(command, tmp_path)
    succeed(["./net_test"], tmp_path)
    text = (tmp_path / "net.c").read_text()
    wrong = text.replace(
        "    return best;", "    output[NET_OUTPUTS - 1] ^= 1;\n    return best;", 1
    )
    (tmp_path / "net.c").write_text(wrong)
    succeed(command, tmp_path)
    done = subprocess.run(["./net_test"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "3 examples, 3 integers are not PyTorch's" in done.stdout


def digits(preprocess: ez.Preprocess) -> tuple[Network, torch.Tensor]:
    """A network of quantized layers that takes pixels, and raw ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    model.append(nn.Linear(27, 4))
    raw = torch.randint(0, 256, (20, 2, 8, 8)).to(torch.uint8)
    raw[0], raw[1] = 0, 255
    network = ez.trace(model, preprocess(raw), preprocess=preprocess)
    return ez.quantize(network, activations=8, data=preprocess(raw), ranges="minmax").model, raw


@pytest.mark.parametrize(
    "preprocess",
    [ez.Preprocess(1 / 255), ez.Preprocess(0.02, -1.3), ez.Preprocess((0.1, 0.3), (-4.0, 0.5))],
)
def test_inputs_of_floats_and_bytes_are_pytorchs(tmp_path, preprocess):
    """Also where the compiler may contract a product and a sum."""
    network, raw = digits(preprocess)
    source = ez.export_c(network, tmp_path, preprocess(raw))
    compiled = ez.compile_c(source)
    quantize, dequantize = network.graph.nodes[1].op, network.graph.nodes[-1].op
    assert isinstance(dequantize, Dequantize)
    expected = quantize.run([preprocess(raw)], {}).flatten(1)
    text = (tmp_path / "net.c").read_text()
    # of one scale a byte's integer is the byte less 128
    assert ("raw_table" in text) == isinstance(preprocess.scale, tuple)
    main = """
#include "net.c"
#include <stdio.h>
int main(void)
{
    uint8_t raw[NET_INPUTS];
    while (fread(raw, 1, NET_INPUTS, stdin) == NET_INPUTS) {
        float floats[NET_INPUTS];
        int8_t input[2 * NET_INPUTS];
        for (int i = 0; i < NET_INPUTS; ++i) floats[i] = raw[i];
        net_input_from_floats(floats, input);
        net_input_from_bytes(raw, input + NET_INPUTS);
        fwrite(input, 1, sizeof input, stdout);
    }
    return 0;
}
"""
    (tmp_path / "main.c").write_text(main)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-O2", "-march=native"]
    succeed(["gcc", *flags, "-ffp-contract=fast", "main.c", "-o", "main"], tmp_path)
    done = subprocess.run(
        ["./main"], cwd=tmp_path, input=raw.numpy().tobytes(), capture_output=True, check=True
    )
    both = torch.from_numpy(np.frombuffer(done.stdout, np.int8).copy()).view(20, 2, -1)
    assert torch.equal(both[:, 0], expected)
    assert torch.equal(both[:, 1], expected)
    outputs = compiled(expected)
    assert outputs.dtype == torch.int8
    assert torch.equal(dequantize.run([outputs], {}), network(preprocess(raw)))


def test_what_is_refused(tmp_path):
    network = random_integer_network(0)
    with pytest.raises(ez.InputError, match="C of integers has them in 'arrays'"):
        ez.export_c(network, tmp_path, random_integers(network), weights="blob")
    source = ez.export_c(network, tmp_path, random_integers(network))
    compiled = ez.compile_c(source)
    with pytest.raises(ez.InputError, match="takes int8"):
        compiled(random_integers(network))
    name = next(n for n in network.state_dict() if n.endswith("bias"))
    network.state_dict()[name].fill_(2**31 - 1)
    with pytest.raises(ez.InputError, match="more than the 2147483647 that int32 holds"):
        ez.export_c(network, tmp_path)


def test_links_from_cpp_and_has_its_sizes_as_macros(tmp_path):
    network, raw = digits(ez.Preprocess(1 / 255))
    source = ez.export_c(network, tmp_path, raw.float())
    (tmp_path / "main.cpp").write_text(
        '#include "net.h"\nint main() { static int8_t x[NET_INPUTS], y[NET_OUTPUTS], '
        "work[NET_SCRATCH]; return net_predict_in(x, y, work) >= NET_OUTPUTS; }\n"
    )
    section = '-DNET_CONST=__attribute__((section(".weights")))'
    succeed(["gcc", "-std=c99", "-DNET_NO_STATIC", section, "-c", "net.c"], tmp_path)
    succeed(["g++", "main.cpp", "net.o", "-o", "main"], tmp_path)
    succeed(["./main"], tmp_path)
    text = (tmp_path / "net.h").read_text()
    assert f"#define NET_CONSTANTS {source.constant_bytes} " in text
    assert f"#define NET_SCRATCH {source.scratch_bytes} " in text
    assert "float" not in (tmp_path / "net.c").read_text().split("net_input_from")[0].replace(
        "NO_FLOAT", ""
    )
