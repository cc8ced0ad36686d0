"""Networks on a Cortex-M4F that QEMU plays: PyTorch's outputs, and fewer instructions if sparse."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import ellzero as ez
from c_programs import random_network, raw_inputs
from ellzero.graph import Network
from ellzero.networks.lenet import lenet_300_100
from ellzero.operations import Flatten
from integer_programs import (
    IntegerBuilder,
    random_integer_network,
    random_integers,
    rows_of_kernels,
)
from recurrent_networks import random_recurrent

BOARD = Path(__file__).parents[2] / "examples" / "microcontroller"
TOOLS = ("make", "arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

MACS = 784 * 300 + 300 * 100 + 100 * 10


def make(target: str, folder: Path, name: str = "net") -> subprocess.CompletedProcess[str]:
    command = ["make", "-s", "-C", str(BOARD), target, f"NETWORK={folder}", f"NAME={name}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def on_board(folder: Path, name: str = "net") -> dict:
    """What the program on the board says; it fails if an output is not PyTorch's."""
    done = make("run", folder, name)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def lenets() -> tuple[Network, Network, torch.Tensor]:
    """LeNet-300-100 before and after pruning to 2 %, and digits of noise."""
    torch.manual_seed(0)
    x = torch.randn(5, 1, 28, 28)
    model = lenet_300_100()
    dense = ez.trace(model, x, preprocess=ez.Preprocess(1 / 78.0, -0.4))
    with torch.no_grad():
        for parameter in model.parameters():  # else what is left of a fresh network is its biases
            parameter.mul_(8)
    ez.prune(model, sparsity=0.98)
    return dense, ez.trace(model, x, preprocess=ez.Preprocess(1 / 78.0, -0.4)), x


def test_sparse_against_dense(tmp_path, lenets):
    dense, sparse, x = lenets
    results = {}
    ez.export_c(dense, tmp_path, example=x, name="dense", storage="dense")
    ez.export_c(sparse, tmp_path, example=x, name="sparse")
    for name, network in (("dense", dense), ("sparse", sparse)):
        results[name] = result = on_board(tmp_path, name)
        assert result["failed"] == 0
        assert result["classes"] == network(x).argmax(1).tolist()
        # two instructions, a million times; SysTick counts 40 at once
        assert abs(result["loop"] - 2_000_000) <= 80
        assert len(result["instructions"]) == len(x)
        assert on_board(tmp_path, name) == result, "counts are repeatable"
    counts = {name: max(result["instructions"]) for name, result in results.items()}
    assert MACS < counts["dense"] <= 4 * MACS
    assert 0 < 6 * counts["sparse"] < counts["dense"]


def test_object_is_as_large_as_export_c_says(tmp_path, lenets):
    _, sparse, x = lenets
    source = ez.export_c(sparse, tmp_path, example=x)
    done = make("size", tmp_path)
    text, data, bss = map(int, done.stdout.splitlines()[1].split()[:3])
    assert data == 0
    assert source.constant_bytes < text < source.constant_bytes + 2000, "constants and some code"
    assert source.scratch_bytes <= bss < source.scratch_bytes + 8


def test_random_networks_give_pytorchs_outputs(tmp_path):
    """Among them convolutions, pools and functions of math.h, by another compiler and library."""
    for seed in range(4):
        network = random_network(seed)
        prepare = network.graph.preprocess
        raw = raw_inputs(network)
        x = raw if prepare is None else prepare(raw)
        ez.export_c(network, tmp_path, example=x, name=f"net{seed}")
        assert on_board(tmp_path, f"net{seed}")["failed"] == 0


@pytest.mark.filterwarnings("ignore::ellzero.EllzeroWarning")
def test_recurrent_networks_give_pytorchs_outputs_frame_by_frame(tmp_path):
    for seed in range(2):
        network = random_recurrent(seed, streams=True)
        ez.export_c(network, tmp_path, example=raw_inputs(network), name=f"net{seed}")
        assert f"net{seed}_step(" in (tmp_path / f"net{seed}_test.c").read_text()
        assert on_board(tmp_path, f"net{seed}")["failed"] == 0


def test_wrong_outputs_are_told(tmp_path, lenets):
    _, sparse, x = lenets
    ez.export_c(sparse, tmp_path, example=x)
    path = tmp_path / "net.c"
    path.write_text(path.read_text().replace("return best;", "output[3] += 1.0f; return best;"))
    done = make("run", tmp_path)
    assert done.returncode != 0
    assert '"failed": 1' in done.stdout


def test_faults_end_the_run(tmp_path, lenets):
    _, sparse, x = lenets
    ez.export_c(sparse, tmp_path, example=x)
    path = tmp_path / "net.c"
    path.write_text(
        path.read_text().replace("int best = 0;", "int best = *(volatile int *)0xF0000000;")
    )
    assert make("run", tmp_path).returncode != 0
    assert (tmp_path / "build" / "net.elf").is_file(), "it was built, and ran"


def test_folder_is_asked_for():
    command = ["make", "-s", "-C", str(BOARD), "run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "NETWORK is missing: the folder that ez.export_c wrote" in done.stderr


def test_integer_networks_give_pytorchs_integers(tmp_path):
    """By the instructions for signals, which a desktop's test does not see; and without them."""
    networks = {f"net{seed}": random_integer_network(seed) for seed in range(3)}
    b = IntegerBuilder((4, 12, 12))
    b.conv(8, (3, 3), before=(1, 1), after=(1, 1), density=0.2)
    b.pool("max", (2, 2))
    b.add(Flatten())
    b.linear(40, density=0.1)
    b.linear(9, density=1.0)
    networks["layers"] = b.network()
    networks |= {f"rows{n}": rows_of_kernels(n) for n in (4, 7, 9, 13, 24, 41)}
    for name, network in networks.items():
        ez.export_c(network, tmp_path, random_integers(network), name=name)
        assert on_board(tmp_path, name)["failed"] == 0
    # no floating point where the function that turns floats into integers is left out
    flags = ["-mcpu=cortex-m0", "-mthumb", "-std=c99", "-O2", "-DLAYERS_NO_FLOAT", "-Werror"]
    command = ["arm-none-eabi-gcc", *flags, "-S", "layers.c", "-o", "-"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    called = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("\tbl\t__")}
    assert called <= {"__aeabi_lmul", "__aeabi_idiv", "__gnu_thumb1_case_uqi"}
