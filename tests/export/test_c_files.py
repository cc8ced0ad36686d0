"""What export_c writes: the files, their names, the test beside them; and what it refuses."""

import functools
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from activation_cases import Own
from c_programs import (
    CORTEX_M4F,
    SANITIZERS,
    WARNINGS,
    Builder,
    assert_close,
    needs_arm_gcc,
    needs_gcc,
    outputs_of,
    predicted,
    random_network,
    succeed,
    write_program,
)
from ellzero import operations as ops
from ellzero.c.arrays import c_float, unsigned
from ellzero.export.memory import Memory
from ellzero.graph import Network
from small import convnet, mlp

STORAGES = ("smallest", "fastest", "dense")
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@functools.cache
def traced(seed: int = 0) -> Network:
    return ez.trace(mlp(seed=seed), X)


@functools.cache
def pruned() -> Network:
    model = mlp()
    ez.prune(model, sparsity=0.5, scope="layer")
    return ez.trace(model, X)


def run_test(folder: Path, name: str = "net") -> subprocess.CompletedProcess[str]:
    """Build the network's own test and run it."""
    sources = [f"{name}.c", f"{name}_test.c"]
    succeed(["gcc", *WARNINGS, "-O1", *SANITIZERS, *sources, "-o", "own_test", "-lm"], folder)
    return subprocess.run([str(folder / "own_test")], cwd=folder, capture_output=True, text=True)


@needs_gcc
def test_own_test_compares_with_pytorch(tmp_path):
    model = convnet().eval()
    x = torch.randn(9, 2, 6, 6)
    prepare = ez.Preprocess((0.5, 2.0), (-1.0, 0.25))
    ez.export_c(ez.trace(model, x, preprocess=prepare), tmp_path, example=x)
    done = run_test(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "8 examples" in done.stdout, "eight of the nine"
    expected = numbers(tmp_path / "net_test.c", "expected")
    assert torch.allclose(expected, model(x[:8]).flatten(), atol=1e-5)
    raw = numbers(tmp_path / "net_test.c", "inputs").view(8, 2, 6, 6)
    assert torch.allclose(prepare(raw), x[:8], atol=1e-5), "the test's inputs are raw"


def numbers(path: Path, array: str) -> Tensor:
    """A float array of a C source."""
    body = re.search(rf"float {array}\[\d+\] = {{(.*?)}};", path.read_text(), re.DOTALL)
    assert body is not None
    return torch.tensor([float(word.rstrip("f")) for word in re.findall(r"[^\s,]+", body[1])])


@needs_gcc
def test_own_test_fails_where_a_weight_is_another(tmp_path):
    ez.export_c(pruned(), tmp_path, example=X)
    assert run_test(tmp_path).returncode == 0
    path = tmp_path / "net.c"
    changed, count = re.subn(
        r"(float net_2_values\[\d+\] = {\s*)([^,]+)", r"\g<1>9.0f", path.read_text()
    )
    assert count == 1
    path.write_text(changed)
    done = run_test(tmp_path)
    assert done.returncode == 1
    assert float(done.stdout.split("difference ")[1].split(",")[0]) > 1e-3


@needs_gcc
def test_own_test_fails_on_nan_and_on_a_wrong_class(tmp_path):
    ez.export_c(nn.Linear(6, 3), tmp_path, example=X)
    path = tmp_path / "net.c"
    good = path.read_text()
    for bad in ("output[0] = 0.0f / 0.0f * output[0];\n    return best;", "return (best + 1) % 3;"):
        path.write_text(good.replace("return best;", bad))
        assert run_test(tmp_path).returncode == 1


@needs_gcc
def test_two_networks_in_one_program(tmp_path):
    """Of the same layers, in one translation unit and as two objects."""
    for name, seed in (("first", 1), ("second", 2)):
        ez.export_c(traced(seed), tmp_path, example=X, name=name)
    write_program(tmp_path, ["first", "second"])
    succeed(["gcc", *WARNINGS, "-c", "driver.c", "-o", "driver.o"], tmp_path)
    for name in ("first", "second"):
        assert run_test(tmp_path, name).returncode == 0
        succeed(["gcc", *WARNINGS, "-c", f"{name}.c"], tmp_path)
    symbols = succeed(["nm", "-g", "--defined-only", "first.o", "second.o"], tmp_path)
    assert set(re.findall(r" T (\w+)", symbols)) == {
        "first_predict", "first_predict_in", "second_predict", "second_predict_in",
    }  # fmt: skip


@needs_gcc
def test_no_static_memory_where_it_is_not_wanted(tmp_path):
    source = ez.export_c(traced(), tmp_path, example=X)
    for option, expected in (("-O1", source.scratch_bytes), ("-DNET_NO_STATIC", 0)):
        succeed(["gcc", *WARNINGS, option, "-c", "net.c"], tmp_path)
        row = succeed(["size", "net.o"], tmp_path).splitlines()[1].split()
        assert int(row[1]) == 0, "nothing in .data"
        assert expected <= int(row[2]) < expected + 64
    assert "net_predict\n" not in succeed(["nm", "net.o"], tmp_path)


@pytest.mark.filterwarnings("ignore::ellzero.EllzeroWarning")
@needs_gcc
@needs_arm_gcc
@pytest.mark.parametrize("storage", STORAGES)
def test_arm_compiler_says_nothing(tmp_path, storage):
    names = [f"net{seed}" for seed in range(8)]
    for seed, name in enumerate(names):
        ez.export_c(random_network(seed), tmp_path, name=name, storage=storage)
    (tmp_path / "all.c").write_text("".join(f'#include "{name}.c"\n' for name in names))
    command = ["arm-none-eabi-gcc", *CORTEX_M4F, *WARNINGS, "-O2", "-c", "all.c"]
    succeed(command, tmp_path)


@needs_gcc
def test_header_alone_and_twice(tmp_path):
    """The header alone is a translation unit, and can be included twice."""
    ez.export_c(traced(), tmp_path, example=X)
    (tmp_path / "twice.c").write_text('#include "net.h"\n#include "net.h"\n')
    succeed(["gcc", *WARNINGS, "-c", "twice.c"], tmp_path)


@needs_gcc
def test_odd_names_of_layers_and_classes(tmp_path):
    """Node names become identifiers that differ; comments cannot be left."""
    b = Builder((3,))
    b.linear(3, density=1.0)
    b.linear(3, density=1.0)
    names = {"linear.1": "a*/b", "linear.2": "a  b"}
    nodes = [
        n.model_copy(
            update={
                "name": names.get(n.name, n.name),
                "inputs": tuple(names.get(i, i) for i in n.inputs),
            }
        )
        for n in b.nodes
    ]
    b.nodes = nodes
    network = b.network(classes=("*/ int x;", "größer\n", "/*"))
    ez.export_c(network, tmp_path)
    assert run_test(tmp_path).returncode == 0


def test_files_are_the_same_each_time(tmp_path):
    for part in ("a", "b"):
        ez.export_c(pruned(), tmp_path / part, example=X)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["net.c", "net.h", "net_test.c"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_other_files_stay(tmp_path):
    (tmp_path / "main.c").write_text("mine")
    ez.export_c(traced(), tmp_path, example=X)
    first = (tmp_path / "net.c").read_text()
    ez.export_c(traced(1), tmp_path, example=X)
    assert (tmp_path / "main.c").read_text() == "mine"
    assert (tmp_path / "net.c").read_text() != first, "its own are replaced"


def test_model_is_not_changed(tmp_path):
    model = convnet().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ez.export_c(model, tmp_path, example=torch.randn(2, 2, 6, 6))
    assert model.training
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_report_is_what_the_weights_are(tmp_path):
    model = pruned()
    source = ez.export_c(model, tmp_path, example=X, storage="dense")
    assert [(n.name, n.weights) for n in source.layers] == [("0", 96), ("2", 48)]
    assert [n.nonzeros for n in source.layers] == [48, 24]
    assert source.scratch_bytes == 4 * 16
    smaller = ez.export_c(model, tmp_path, example=X)
    assert sum(n.size_bytes for n in smaller.layers) <= smaller.constant_bytes
    assert smaller.constant_bytes < source.constant_bytes


def test_integers_have_the_smallest_type_that_holds_them():
    tops = {255: "uint8_t", 256: "uint16_t", 65_535: "uint16_t", 65_536: "uint32_t"}
    for top, c_type in tops.items():
        array = unsigned("a", [0, top])
        assert array.c_type == c_type
        assert array.values.tolist() == [0, top]


@pytest.mark.filterwarnings("ignore::ellzero.EllzeroWarning")
@needs_gcc
def test_constant_bytes_are_the_objects(tmp_path):
    b = Builder((6,))
    b.linear(5, density=0.5)
    b.add(ops.Softmax())
    b.linear(3, density=0.0)  # no entry at all, and C has no array without one
    source = ez.export_c(b.network(), tmp_path)
    succeed(["gcc", "-c", "net.c"], tmp_path)  # not optimized: every array stands
    symbols = succeed(["nm", "-S", "net.o"], tmp_path)
    sizes = [int(size, 16) for size in re.findall(r"\w+ (\w+) r net_", symbols)]
    assert sum(sizes) == source.constant_bytes


@pytest.mark.filterwarnings("ignore::ellzero.EllzeroWarning")
def test_size_is_never_larger_than_another_aim(tmp_path):
    for seed in range(6):
        sizes = {
            storage: ez.export_c(random_network(seed), tmp_path, storage=storage).constant_bytes
            for storage in ("smallest", "fastest")
        }
        assert sizes["smallest"] <= sizes["fastest"]


@pytest.mark.filterwarnings("ignore::ellzero.EllzeroWarning")
def test_kept_is_what_compaction_kept(tmp_path):
    b = Builder((4,))
    b.linear(4, density=1.0)
    b.add(ops.Softmax())
    weight = torch.eye(4)
    weight[:, 0] = 0
    b.add(ops.Linear(), weight=weight)
    network = b.network()
    source = ez.export_c(network, tmp_path)
    assert source.kept == ez.compact(network).kept


class Summed(nn.Module):
    """A layer that there is no C for."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 4)
        self.middle = Own(lambda x: x.cumsum(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self.enter(x))


def test_unknown_layers_are_named(tmp_path):
    network = ez.trace(Summed(), X)
    message = r"no C for middle .*cumsum.*replace.*export ONNX"
    for storage in STORAGES:
        with pytest.raises(ez.InputError, match=message):
            ez.export_c(network, tmp_path, storage=storage)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path, storage, value):
    model = mlp()
    model.get_parameter("2.weight").data[1, 2] = value
    with pytest.raises(ez.InputError, match=r"2\.weight.*NaN or inf"):
        ez.export_c(model, tmp_path, example=X, storage=storage)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("storage", STORAGES)
def test_weights_that_only_float64_holds_are_named(tmp_path, storage):
    model = mlp().double()
    model.get_parameter("2.weight").data[1, 2] = 1e300
    with pytest.raises(ez.InputError, match=r"2\.weight \(3, 16\) has NaN or inf as float32"):
        ez.export_c(model, tmp_path, example=X.double(), storage=storage)
    assert not list(tmp_path.iterdir())


@needs_gcc
def test_weights_of_any_floating_type(tmp_path):
    """float32 of the same weights, in each storage; one program of all."""
    x = torch.randn(4, 2, 6, 6).bfloat16()  # every type holds these inputs
    exact = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model = convnet().eval().to(dtype)
        traced = ez.trace(model, x.to(dtype))
        for storage in STORAGES:
            name = f"{dtype}_{storage}".removeprefix("torch.")
            ez.export_c(traced, tmp_path, example=x.to(dtype), name=name, storage=storage)
            exact[name] = model.double()(x.double())
            expected = numbers(tmp_path / f"{name}_test.c", "expected").double()
            assert torch.allclose(expected, exact[name].flatten(), atol=1e-5), name
    computed = outputs_of(tmp_path, dict.fromkeys(exact, x.float()))
    for name, (outputs, _) in computed.items():
        assert_close(outputs, exact[name], name)


@needs_gcc
def test_parameters_are_rounded_to_float32(tmp_path):
    """A slope that float32 has no number for but 0, which -Werror would complain of."""
    ez.export_c(nn.Sequential(nn.Linear(6, 3), nn.LeakyReLU(1e-50)), tmp_path, example=X)
    assert run_test(tmp_path).returncode == 0
    with pytest.raises(ez.InputError, match=r"1e\+300 is none as float32"):
        ez.export_c(nn.ELU(1e300), tmp_path, example=X)


def test_constants_read_back():
    for value in (0.1, 1e-45, 3.4028234663852886e38, -1 / 3, 0.0, 123456789.0):
        text = c_float(value)
        assert re.fullmatch(r"-?\d+(\.\d+)?(e[+-]\d+)?f", text)
        assert np.float32(text[:-1]) == np.float32(value)
    for value in (float("nan"), float("inf"), -1e39):
        with pytest.raises(ez.InputError, match="is none as float32"):
            c_float(value)


def test_examples_that_no_test_can_have(tmp_path):
    for value in (float("nan"), float("inf")):
        x = X.clone()
        x[3, 1] = value
        with pytest.raises(ez.InputError, match="example 3 has NaN or inf"):
            ez.export_c(traced(), tmp_path, example=x)
    large = nn.Sequential(nn.Linear(6, 2, bias=False))
    large.get_parameter("0.weight").data.fill_(1e38)
    x = torch.zeros(4, 6)
    x[2] = 10
    with pytest.raises(ez.InputError, match="example 2 gives NaN or inf"):
        ez.export_c(large, tmp_path, example=x)
    assert not list(tmp_path.iterdir())


@needs_gcc
def test_every_name_begins_with_the_networks(tmp_path):
    """Layers of names that would give a function the name of an array."""
    b = Builder((3,))
    b.linear(3, density=1.0, bias=True)
    b.linear(3, density=1.0, bias=True)
    b.nodes = [
        b.nodes[0],
        b.nodes[1].model_copy(update={"name": "step_a"}),
        b.nodes[2].model_copy(update={"name": "a_bias", "inputs": ("step_a",)}),
    ]
    ez.export_c(b.network(), tmp_path)
    succeed(["gcc", *WARNINGS, "-c", "net.c"], tmp_path)
    symbols = [row.split()[-1] for row in succeed(["nm", "net.o"], tmp_path).splitlines()]
    own = [s for s in symbols if not s.startswith("scratch")]  # a function's own
    assert "net_predict" in own
    assert all(s.startswith("net_") for s in own), symbols


@pytest.mark.parametrize(
    "name", ["", "9net", "my-net", "a b", "nét", "int", "a" * 32, "net\n", "../net", "_net", None]
)
def test_names_that_are_no_identifiers(tmp_path, name):
    with pytest.raises(ez.InputError, match="expected a C identifier"):
        ez.export_c(traced(), tmp_path, example=X, name=name)
    assert not list(tmp_path.iterdir())


@needs_gcc
def test_names_that_the_c_uses_itself(tmp_path):
    names = ["x", "y", "w", "r", "p", "at", "input", "output", "scratch"]
    for name in names:
        ez.export_c(traced(), tmp_path, example=X, name=name)
    for name, (outputs, _) in outputs_of(tmp_path, dict.fromkeys(names, X)).items():
        assert_close(outputs, predicted(traced(), X), name)
    own_tests = [f"{name}_test.c" for name in names]
    succeed(["gcc", *WARNINGS, "-fsyntax-only", *own_tests], tmp_path)


def test_refused(tmp_path):
    with pytest.raises(ez.InputError, match="there is no folder"):
        ez.export_c(traced(), tmp_path / "a" / "b", example=X)
    with pytest.raises(ez.InputError, match="storage is 'small'"):
        ez.export_c(traced(), tmp_path, example=X, storage="small")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ez.InputError, match="needs an example"):
        ez.export_c(mlp(), tmp_path)
    with pytest.raises(ez.InputError, match="computes nothing"):
        ez.export_c(nn.Flatten(), tmp_path, example=torch.zeros(1, 2, 2))
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ez.InputError, match="file"):
        ez.export_c(traced(), file, example=X)
    assert file.read_text() == "mine"


def test_more_values_than_an_int_counts_are_refused(tmp_path):
    wide = nn.Conv2d(1, 1, 1, padding=2**15, stride=2**15)
    with pytest.raises(ez.InputError, match="0 padding has 4295229444 values at 0 padding; C"):
        ez.export_c(nn.Sequential(wide), tmp_path, example=torch.zeros(1, 1, 2, 2))


def test_working_memory_is_given_back_and_joined():
    memory = Memory(first=3)
    assert [memory.take(n) for n in (4, 2, 5, 1)] == [3, 7, 9, 14]
    memory.give(3, 4)
    memory.give(9, 5)
    assert memory.take(5) == 9  # the lowest that is long enough
    memory.give(7, 2)  # 3 to 9 are free
    assert memory.take(6) == 3
    memory.give(14, 1)
    assert memory.take(100) == 14
    assert memory.size == 114
