"""The stages of a network's way, each as a function that checks its effect on one network.

`test_matrix.py` runs them as tests; `docs/make_matrix.py` writes what came of them into a page.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import ellzero as ez
from c_programs import SANITIZERS, WARNINGS, assert_close, outputs_of, succeed
from ellzero.graph import Network
from ellzero.penalties import L0
from matrix_networks import MatrixCase
from small import tensors_equal


def select(case: MatrixCase, folder: Path) -> None:
    """All matrices and kernels of layers are selected, embeddings and normalizations are not."""
    model = case.model()
    matrices = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    assert set(case.not_selected) <= set(matrices)
    assert list(ez.select(model)) == [name for name in matrices if name not in case.not_selected]


def regularize(case: MatrixCase, folder: Path) -> None:
    """Two steps with an l0 penalty move every selected weight towards zero, and nothing else."""
    rate = 1e-3
    model = case.model().train()
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    regularizer = ez.Regularizer(model, L0(1.0, beta=1.0))
    for step in range(2):
        without_gradient(model, case.batches(4, step))
        regularizer.add_gradient()
        optimizer.step()
    selected = ez.select(model)
    for name, old in before.named_parameters():
        new = model.get_parameter(name)
        if name in selected:
            far = old.abs() > 2 * rate  # both steps together move a weight by less
            assert far.any()
            assert (new.abs() < old.abs())[far].all()
            assert (new.sign() == old.sign())[far].all()
        else:
            assert torch.equal(new, old)


def prune(case: MatrixCase, folder: Path) -> None:
    """As many weights are zero as were asked for, in the network itself; the rest is as it was."""
    model = case.model()
    before = copy.deepcopy(model)
    masks = ez.prune(model, sparsity=0.7)
    assert masks.nonzeros == sum(int(w.count_nonzero()) for w in ez.select(model).values())
    assert masks.nonzeros == masks.numel - round(0.7 * masks.numel)
    for name, old in before.named_parameters():
        expected = old * masks[name] if name in masks else old
        assert torch.equal(model.get_parameter(name), expected)


def hold(case: MatrixCase, folder: Path) -> None:
    """Adam with its momentum leaves zeros at zero while masks are held, and only then."""
    model = case.model().train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    train_step(model, optimizer, case, 0)
    masks = ez.prune(model, sparsity=0.5)
    pruned = copy.deepcopy(model)
    with masks.hold(optimizer):
        for step in range(1, 3):
            train_step(model, optimizer, case, step)
    revived = {name: model.get_parameter(name)[~mask] for name, mask in masks.items()}
    assert not any(w.any() for w in revived.values())
    for name, mask in masks.items():
        if mask.any():
            assert not torch.equal(model.get_parameter(name), pruned.get_parameter(name)), name
    train_step(model, optimizer, case, 3)
    assert any(model.get_parameter(name)[~mask].any() for name, mask in masks.items())


def save(case: MatrixCase, folder: Path) -> None:
    """The file has the keys of the network's state_dict and no others."""
    model = case.model()
    ez.save(model, folder / "net.safetensors", masks=ez.prune(model, sparsity=0.9))
    with safe_open(folder / "net.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())


def load(case: MatrixCase, folder: Path) -> None:
    """A network of other weights that loads the file gives the same outputs to the bit."""
    model, other, inputs = case.model(), case.model(seed=1), case.batches(3)
    ez.save(model, folder / "net.safetensors", masks=ez.prune(model, sparsity=0.5))
    with torch.no_grad():
        expected = model(*inputs)
        assert not torch.equal(other(*inputs), expected)
        ez.load(folder / "net.safetensors", other)
        assert torch.equal(other(*inputs), expected)


RECIPE = {
    "device": "cpu",
    "reference": {"epochs": 1},
    "train": {
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "penalty": {"l0": {"strength": 1e-4}},
    },
    "prune": {"sparsity": 0.6},
    "finetune": {"epochs": 1},
}


def resume(case: MatrixCase, folder: Path) -> None:
    """A run that is stopped and resumed ends in the same weights, to the bit."""
    recipe = ez.Recipe.parse(RECIPE)

    def stop(metrics: ez.EpochMetrics) -> None:
        if (metrics.stage, metrics.epoch) == ("train", 1):
            raise KeyboardInterrupt

    whole = ez.compress(case.model(), data(case), recipe)
    with pytest.raises(KeyboardInterrupt):
        ez.compress(case.model(), data(case), recipe, folder=folder / "run", callback=stop)
    result = ez.compress(case.model(), data(case), recipe, folder=folder / "run", resume=True)
    assert tensors_equal(result.model, whole.model)
    assert result.masks.nonzeros == result.masks.numel - round(0.6 * result.masks.numel)
    assert result.record.living_note is None


def compact(case: MatrixCase, folder: Path) -> None:
    """Dead units, channels and heads leave the network; its outputs stay, in float64."""
    model = case.model().double()
    with torch.no_grad():
        for name, part in case.dead.items():
            model.get_parameter(name)[part] = 0
    inputs = [x.double() if x.is_floating_point() else x for x in case.batches(3)]
    small = ez.compact(model, inputs).model
    for name, shape in case.smaller.items():
        assert tuple(small.weight(name).shape) == shape, name
    with torch.no_grad():
        expected = model(*inputs)
        scale = float(expected.abs().max())
        torch.testing.assert_close(small(*inputs), expected, rtol=0, atol=1e-12 * scale)


def quantize(case: MatrixCase, folder: Path) -> None:
    """A weight of 4 bits has 16 values and zero at most; outputs change little, by 8 bits less."""
    network, inputs = traced(case), case.batches(16)
    names = list(ez.select(case.model()))
    with torch.no_grad():
        expected = network(*inputs)
    lost = {}
    for bits in (4, 8):
        rounded = copy.deepcopy(network)
        assert list(ez.quantize(rounded, bits=bits)) == names
        for name in names:
            assert 1 < len(rounded.weight(name).unique()) <= 2**bits + 1, name
        with torch.no_grad():
            lost[bits] = float((rounded(*inputs) - expected).norm() / expected.norm())
    assert 0 < 4 * lost[8] < lost[4] < 0.2


def pack(case: MatrixCase, folder: Path) -> None:
    """The packed file gives the network back without its class."""
    network, inputs = pruned(case), case.batches(3)
    assert ez.pack(network, folder / "net.ellz").self_contained
    loaded = ez.load(folder / "net.ellz")
    assert isinstance(loaded, Network)
    with torch.no_grad():
        torch.testing.assert_close(loaded(*inputs), network(*inputs))


def onnx(case: MatrixCase, folder: Path) -> None:
    """onnxruntime computes what PyTorch does."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    written = ez.export_onnx(pruned(case), folder / "net.onnx")
    assert written.difference is not None
    assert written.difference < 1e-5


def c(case: MatrixCase, folder: Path) -> None:
    """C, dense and in the fewest bytes, computes what PyTorch does, under both sanitizers."""
    network, inputs = pruned(case), case.batches(3)
    raw = torch.cat([x.flatten(1).float() for x in inputs], 1)
    with torch.no_grad():
        expected = network(*inputs).flatten(1).double()
    sources = {
        storage: ez.export_c(network, folder, example(inputs), name=storage, storage=storage)
        for storage in ("smallest", "dense")
    }
    test = ["smallest.c", "smallest_test.c", "-lm", "-o", "smallest_test"]
    succeed(["gcc", *WARNINGS, *SANITIZERS, *test], folder)
    assert "wrong classes 0" in succeed([str(folder / "smallest_test")], folder)
    for storage, (outputs, _) in outputs_of(folder, dict.fromkeys(sources, raw)).items():
        assert_close(outputs, expected, storage)
    assert sources["smallest"].constant_bytes < sources["dense"].constant_bytes


STAGES: dict[str, Callable[[MatrixCase, Path], None]] = {
    "select": select,
    "regularize": regularize,
    "prune": prune,
    "hold": hold,
    "save": save,
    "load": load,
    "resume": resume,
    "compact": compact,
    "quantize": quantize,
    "pack": pack,
    "ONNX": onnx,
    "C": c,
}


def outcome(case: MatrixCase, stage: str, folder: Path) -> str:
    """What comes of a cell: "yes", or the first clause with which the library refuses it."""
    try:
        STAGES[stage](case, folder)
    except ez.InputError as error:
        return str(error).split(";")[0]
    return "yes"


def example(inputs: list[Tensor]) -> Any:
    """A batch of each input as `ez.trace` takes it."""
    return inputs[0] if len(inputs) == 1 else inputs


@cache
def traced(case: MatrixCase) -> Network:
    """The case's network; made once, as it takes seconds."""
    return ez.trace(case.model(), example(case.batches(2)))


def pruned(case: MatrixCase) -> Network:
    """The case's network with half of its weights."""
    network = copy.deepcopy(traced(case))
    ez.prune(network, sparsity=0.5)
    return network


def data(case: MatrixCase) -> ez.Data:
    """Random numbers to predict from random inputs."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        shape = case.model()(*case.batches(1)).shape[1:]
    parts = [
        (example(case.batches(count, seed)), torch.randn(count, *shape, generator=generator))
        for seed, count in enumerate((8, 4))
    ]
    return ez.Data(*parts)


def without_gradient(model: nn.Module, inputs: list[Tensor]) -> None:
    """The gradient of a loss that no weight changes."""
    model.zero_grad()
    (model(*inputs) * 0).sum().backward()


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, case: MatrixCase, seed: int
) -> None:
    optimizer.zero_grad()
    model(*case.batches(4, seed)).square().mean().backward()
    optimizer.step()
