"""Every layer in C against PyTorch, under AddressSanitizer and UBSan."""

import math

import numpy as np
import pytest
import torch

import ellzero as ez
from activation_cases import ACTIVATIONS, OF_POSITIVES
from c_programs import (
    WARNINGS,
    Builder,
    by_each_compiler,
    check_networks,
    needs_gcc,
    random_network,
    succeed,
)
from ellzero import operations as ops
from ellzero.c import layer, storage
from ellzero.c.storage import Matrix, Storage
from ellzero.graph import Network

pytestmark = needs_gcc
STORAGES = ("smallest", "fastest", "dense")
FAR = ("gaps", "offsets")


def every_activation() -> dict[str, Network]:
    """Each function after a layer, and alone; with PReLU and an affine one."""
    networks = {}
    for function in [*ACTIVATIONS, "prelu", "affine"]:
        for alone in (True, False):
            b = Builder((3, 2, 3), seed=len(networks))
            if not alone:
                b.layer(ops.Conv(), 4, 3, 1, 2, density=0.7)
            if function in OF_POSITIVES:
                b.activation("abs")
                b.activation("plus")  # of 1.5
            if function in ACTIVATIONS:
                b.activation(function)
            else:
                b.per_channel(ops.PReLU() if function == "prelu" else ops.Affine())
            networks[f"{function}_{'alone' if alone else 'after'}"] = b.network()
    return networks


def every_pool() -> dict[str, Network]:
    """Windows that fit, that overlap, that leave the input, and that are large."""
    # kernel, stride, padding, ceil, count_padding
    settings = {
        "fits": ((2, 2), (2, 2), (0, 0), False, True),
        "overlaps": ((3, 2), (1, 2), (0, 0), False, True),
        "large": ((7, 6), (1, 1), (0, 0), False, True),
        "padded": ((3, 3), (2, 2), (1, 1), False, True),
        "ceil": ((2, 3), (2, 2), (0, 0), True, True),
        "ceil_padded": ((3, 2), (3, 3), (1, 1), True, True),
        "uncounted": ((3, 3), (2, 2), (1, 1), False, False),
        "all": ((2, 2), (2, 2), (1, 0), True, False),
    }
    networks = {}
    for name, (kernel, stride, padding, ceil, count) in settings.items():
        for function in ("max", "average"):
            b = Builder((2, 7, 9))
            b.add(
                ops.Pool(
                    function=function,
                    kernel=kernel,
                    stride=stride,
                    padding=padding,
                    ceil=ceil,
                    count_padding=count,
                )
            )
            networks[f"{function}_{name}"] = b.network()
    b = Builder((2, 7, 9))
    b.add(ops.Pool(function="max", kernel=(3, 2), stride=(1, 1), padding=(1, 1), dilation=(2, 3)))
    networks["max_dilated"] = b.network()
    return networks


def odd_ones() -> dict[str, Network]:
    """What the random ones seldom meet."""
    networks = {}
    for rows, columns in ((1, 1), (1, 300), (37, 1), (4, 8), (9, 16)):
        b = Builder((columns,))
        b.linear(rows, density=1.0)
        networks[f"matrix_{rows}_{columns}"] = b.network()
    for density in (0.0, 1.0):
        for kind in ("float32", "codebook", "int8"):
            b = Builder((2, 5, 5), seed=3)
            b.layer(ops.Conv(padding=(1, 1)), 3, 2, 3, 3, density=density, kind=kind, bias=True)
            b.linear(5, density=density, kind=kind, bias=True)
            networks[f"all_{kind}_{density:.0f}"] = b.network()
    for log in (True, False):
        b = Builder((4, 3, 2))
        b.add(ops.Affine(), scale=torch.full((4,), 150.0), shift=torch.zeros(4))  # exp overflows
        b.add(ops.Softmax(log=log))
        networks[f"softmax_{'log' if log else 'plain'}"] = b.network()
    b = Builder((3, 37))
    steps = torch.tensor([0.0, 0.5, 1.0])  # equal values, and some far from 0
    b.add(ops.Affine(), scale=steps, shift=torch.tensor([1234.567, 30.1, 0.0]))
    b.add(ops.InstanceNorm())
    networks["normalized"] = b.network()
    b = Builder((6, 2, 2))
    b.add(ops.Select(), indices=torch.tensor([0, 3, 4]))
    b.linear(3, density=1.0)
    networks["select"] = b.network(preprocess=ez.Preprocess(2.0, 0.5))
    networks["select_each"] = b.network(
        preprocess=ez.Preprocess((1.0, 2.0, 0.0, -1.0, 3.0, 0.5), 0.5)
    )
    b = Builder((5,))
    b.linear(5, density=1.0)
    b.add(ops.Add(), b.last)  # a value added to itself
    b.activation("relu")
    before = b.last
    b.linear(5, density=0.3)
    b.add(ops.Add(), before)
    networks["sums"] = b.network()
    b = Builder((2, 3, 3))
    b.layer(ops.Conv(), 4, 2, 2, 2, density=1.0)
    before = b.last
    b.activation("relu")  # not in place: what it reads is read once more
    b.add(ops.Add(), before)
    b.linear(3, density=1.0)
    networks["read_twice"] = b.network()
    return networks


def far_ones() -> dict[str, Network]:
    """Inputs far apart: distances above 255 and offsets above 65,535."""
    b = Builder((700,))
    weight = torch.zeros(3, 700)
    weight[0, [0, 300, 699]] = torch.tensor([1.5, -2.0, 0.3])
    weight[2, 699] = 1.0
    b.add(ops.PReLU(), slope=b.normal(700))  # what it reads stays, so that the distances do
    b.add(ops.Softmax())
    b.add(ops.Affine(), scale=torch.full((700,), 100.0), shift=torch.zeros(700))
    b.add(ops.Linear(), weight=weight)
    networks = {"gaps": b.network()}
    b = Builder((1, 262, 260))
    b.add(ops.Conv(dilation=(260, 3)), weight=torch.tensor([[[[0.5, 2.0], [0.0, -1.0]]]]))
    b.add(ops.Pool(function="max", kernel=(2, 2), stride=(50, 50)))
    networks["offsets"] = b.network()
    b = Builder((70_000,))
    weight = torch.zeros(2, 70_000)
    weight[0, [5, 69_999]], weight[1, 66_000] = 1.0, -2.0
    b.add(ops.Linear(), weight=weight)
    networks["selected"] = b.network(preprocess=ez.Preprocess(0.5, 1.0))
    return networks


@pytest.mark.parametrize("storage", STORAGES)
def test_random_networks(tmp_path, storage):
    seeds = range(STORAGES.index(storage), 18, 3)
    check_networks(tmp_path, {f"net{seed}": random_network(seed) for seed in seeds}, storage)


@pytest.mark.slow
@by_each_compiler
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("batch", range(6))
def test_many_random_networks(tmp_path, storage, batch, compiler):
    seeds = range(100 + 40 * batch, 140 + 40 * batch)
    networks = {f"net{seed}": random_network(seed) for seed in seeds}
    check_networks(tmp_path, networks, storage, compiler)
    succeed([compiler, *WARNINGS, "-O2", "-c", "driver.c"], tmp_path)  # optimizing warns of more


@by_each_compiler
def test_activations(tmp_path, compiler):
    networks = every_activation()
    check_networks(tmp_path, networks, "smallest", compiler)
    for name, network in networks.items():
        size = math.prod(network.graph.input_shape)
        np.full(size, np.nan, np.float32).tofile(tmp_path / f"{name}.in")
    succeed([str(tmp_path / "driver")], tmp_path)
    for name in networks:
        *outputs, _ = np.fromfile(tmp_path / f"{name}.out", np.float32)
        assert np.isnan(outputs).all(), name


@by_each_compiler
def test_pools(tmp_path, compiler):
    check_networks(tmp_path, every_pool(), "smallest", compiler)


@by_each_compiler
@pytest.mark.parametrize("storage", STORAGES)
def test_odd_ones(tmp_path, storage, compiler):
    networks = odd_ones() | far_ones()
    if storage == "dense":
        del networks["selected"]  # half a megabyte of zeros
    check_networks(tmp_path, networks, storage, compiler)


def candidates(matrix: Matrix, offsets: np.ndarray, *, lanes: bool) -> list[Storage]:
    found = [
        *storage.gaps(matrix, offsets),
        *storage.indices(matrix, offsets),
        *storage.bitmap(matrix, offsets),
        *storage.dense(matrix, storage.DENSE_LANES if lanes else 1),
    ]
    return [*found, *(storage.sliced(matrix, offsets) if lanes else [])]


@pytest.mark.parametrize("kind", ["float32", "codebook", "int8"])
def test_every_storage(tmp_path, monkeypatch, kind):
    """Each layout with each kind of values, whatever would be chosen."""

    def chosen(matrix, offsets, choice, *, lanes):
        layout, *_ = matrix.name.split("_")  # it begins with the network's name
        ways = candidates(matrix, offsets, lanes=lanes)
        wanted = [w for w in ways if (w.layout, w.values.kind) == (layout, kind)]
        return wanted[0] if wanted else ways[0]

    monkeypatch.setattr(layer, "_chosen", chosen)
    b = Builder((3, 6, 7), seed=5)
    b.layer(ops.Conv(padding=(1, 1), groups=3), 6, 1, 3, 3, density=0.5, kind=kind)
    b.layer(ops.Conv(stride=(2, 1)), 7, 6, 2, 3, density=0.3, kind=kind, bias=True)
    b.linear(30, density=0.4, kind=kind)
    b.linear(11, density=0.9, kind=kind)
    layouts = ["gaps", "indices", "bitmap", "dense"]
    sources = check_networks(tmp_path, {layout: b.network() for layout in layouts}, "smallest")
    for source in sources:
        assert {(n.layout, n.values) for n in source.layers} == {(source.name, kind)}
    if kind == "float32":
        far = far_ones()
        check_networks(tmp_path, {f"{w}_{n}": far[n] for w in layouts for n in FAR}, "smallest")
        (source,) = check_networks(tmp_path, {"sliced": b.network()}, "fastest")
        assert {n.layout for n in source.layers} == {"gaps", "sliced"}  # no lanes in convolutions
