"""The passes that a training step makes equal the plain formula, in bounded memory."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ellzero as ez
from cases import PENALTY_CASES
from ellzero import chunks
from ellzero.penalties import Penalty
from ellzero.pruning import ranking

pytestmark = pytest.mark.filterwarnings("ignore:add_gradient")  # there is no loss here

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda t: t,
    "transposed": lambda t: t.mT.contiguous().mT,
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every other": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
}
each_shape_and_layout = pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((), "as it is"),
        ((0, 4), "as it is"),
        ((37,), "as it is"),
        ((37,), "every other"),
        ((19, 23), "as it is"),
        ((19, 23), "transposed"),
        ((19, 23), "every other"),
        ((3, 200), "as it is"),  # rows longer than a block
        ((3, 200), "transposed"),
        ((8, 6, 3, 3), "as it is"),
        ((8, 6, 3, 3), "channels last"),
        ((8, 6, 3, 3), "every other"),
    ],
)
PENALTIES: dict[str, Penalty] = {
    **{name: case.others[0] for name, case in PENALTY_CASES.items()},
    "sharp l0": ez.L0(0.7, beta=50.0),
    "l0 + l2": ez.L0(0.02, beta=5) + ez.L2(0.01),
    "all": sum((case.others[0] for case in PENALTY_CASES.values()), ez.L1(0.3)),
}
each_penalty = pytest.mark.parametrize("penalty", PENALTIES.values(), ids=list(PENALTIES))


class One(nn.Module):
    """A network that is one weight of any shape."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    """Small and large weights of both signs, with zeros of both signs, in float64."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator, dtype=torch.float64)
    if w.numel() > 8:
        w.view(-1)[::7], w.view(-1)[3::7], w.view(-1)[5::7] = 0.0, -0.0, 1e-3
    return w


def bound(w: Tensor, penalty: Penalty) -> tuple[One, ez.Regularizer]:
    model = One(w)
    return model, ez.Regularizer(model, penalty, weights=ez.select(model, include=["weight"]))


@pytest.fixture(params=[16, 1 << 16], ids=["in blocks", "whole"])
def block(request, monkeypatch):
    monkeypatch.setattr(chunks, "LARGEST", request.param)


def exact(penalty: Penalty, w: Tensor) -> Tensor:
    """The gradient by autograd of the value, in float64."""
    w = w.detach().double().requires_grad_()
    return torch.autograd.grad(penalty.value(w), w)[0]


@pytest.mark.usefixtures("block")
@each_shape_and_layout
@each_penalty
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2**-8)],
    ids=["float64", "float32", "bfloat16"],
)
def test_the_gradient_is_that_of_the_formula(penalty, shape, layout, dtype, rtol):
    w = LAYOUTS[layout](random(shape, 0).to(dtype))
    before = LAYOUTS[layout](random(shape, 1).to(dtype))
    model, regularizer = bound(w, penalty)
    model.weight.grad = before.clone(memory_format=torch.preserve_format)
    regularizer.add_gradient()
    gradient = model.weight.grad
    assert gradient is not None
    added = exact(penalty, w)
    expected = before.double() + added
    # relative to what is added up, for the sum may cancel; autograd's exp is one of expm1
    scale = before.double().abs() + added.abs() + 1e-16 * PENALTY_SIZE
    assert gradient.dtype == dtype
    if dtype == torch.bfloat16:  # rounds by 2^-8 once for all that is elementwise, and once a term
        elementwise = [term.elementwise for term in penalty.terms]
        rtol *= 1.01 * (any(elementwise) + elementwise.count(False))
    assert ((gradient.double() - expected).abs() <= rtol * scale).all()


@each_penalty
def test_a_factor_multiplies_what_is_added(penalty):
    w = random((9, 40), 0)
    for term in penalty.terms:
        added = torch.zeros_like(w)
        term.add_gradient_(added, w, 0.25)
        torch.testing.assert_close(added, 0.25 * term.gradient(w), rtol=1e-13, atol=1e-16)


@each_penalty
def test_the_gradient_of_a_large_parameter_can_be_asked_for_outside_no_grad(penalty):
    w = nn.Parameter(torch.randn(512, 1024))
    torch.testing.assert_close(penalty.gradient(w).detach(), penalty.gradient(w.detach()))


PENALTY_SIZE = 1e3  # no slope of the penalties here is steeper


@pytest.mark.usefixtures("block")
@each_shape_and_layout
@pytest.mark.parametrize(
    "penalty",
    [ez.L0(0.2, beta=5, form="decoupled"), ez.L1(0.2, form="decoupled")],
    ids=["l0", "l1"],
)
@pytest.mark.parametrize("masked", [False, True])
def test_the_decoupled_step_is_that_of_the_formula(penalty, shape, layout, masked):
    w = LAYOUTS[layout](random(shape, 0).float())
    model, regularizer = bound(w.clone(memory_format=torch.preserve_format), penalty)
    mask = random(shape, 2) > 0
    masks = ez.Masks(regularizer.weights, {"weight": mask}) if masked else None
    regularizer.step(torch.optim.SGD(model.parameters(), lr=0.5), masks=masks)
    kept = w.double() * mask if masked else w.double()
    expected = kept.sign() * (kept.abs() - 0.5 * exact(penalty, kept).abs()).clamp(min=0)
    torch.testing.assert_close(model.weight.double(), expected, rtol=1e-6, atol=1e-7)
    assert (model.weight[w == 0] == 0).all()


class Allocations(TorchDispatchMode):
    """Counts operations, and has the bytes of the largest tensor that any of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if is_tensor(t)
        }
        made = func(*args, **(kwargs or {}))
        self.count += 1
        for tensor in tree_leaves(made):
            if is_tensor(tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return made


def is_tensor(leaf: object) -> bool:
    return isinstance(leaf, Tensor)


@contextmanager
def at_most(nbytes: int) -> Iterator[None]:
    with Allocations() as allocations:
        yield
    assert allocations.count > 0
    assert allocations.largest <= nbytes


NUMEL = 1 << 21


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((NUMEL,), "as it is"),
        ((1 << 11, 1 << 10), "as it is"),
        ((1 << 11, 1 << 10), "transposed"),
        ((512, 512, 4, 2), "as it is"),
        ((512, 512, 4, 2), "channels last"),
    ],
)
@each_penalty
def test_no_intermediate_is_larger_than_a_chunk(penalty, shape, layout):
    assert math.prod(shape) == NUMEL
    model, regularizer = bound(LAYOUTS[layout](torch.randn(shape)), penalty)
    model.weight.grad = torch.zeros_like(model.weight)
    with at_most(8 * chunks.chunk_size(torch.device("cpu"))):
        regularizer.add_gradient()


@pytest.mark.parametrize("shape", [(1 << 11, 1 << 10), (NUMEL,)], ids=str)
@pytest.mark.parametrize("name", [n for n, c in PENALTY_CASES.items() if c.shrunk is not None])
def test_no_intermediate_of_the_decoupled_step_is_larger_than_a_chunk(name, shape):
    penalty = type(PENALTY_CASES[name].hand)(0.1, form="decoupled")
    model, regularizer = bound(torch.randn(shape), penalty)
    masks = ez.Masks.of(regularizer.weights)
    masks.bits.of(model.weight)  # as large as the weight; a hold makes them once
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with at_most(8 * chunks.chunk_size(torch.device("cpu"))):
        regularizer.step(optimizer, masks=masks)


@pytest.mark.parametrize("asked", [{"sparsity": 0.9}, {"threshold": 0.01}], ids=str)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_pruning_makes_nothing_larger_than_a_chunk_beside_the_masks(asked, scope, monkeypatch):
    monkeypatch.setattr(ranking, "CHUNK", 1 << 17)
    model = nn.Sequential(*[nn.Linear(1 << 11, 1 << 9, bias=False) for _ in range(2)])
    numel = 1 << 20  # of each; a mask has as many bytes, and a histogram 2^19
    with at_most(numel):
        masks = ez.prune(model, scope=scope, **asked)
    assert 0 < masks.nonzeros < 2 * numel
