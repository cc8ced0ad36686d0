"""Small weights are joined on a GPU: the same bits in few operations, and in little memory.

Here the CPU is told to do it, too.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ellzero as ez
from cases import PENALTY_CASES
from ellzero import chunks
from ellzero.chunks import joined_chunks

pytestmark = pytest.mark.filterwarnings("ignore:add_gradient")  # there is no loss here


class Cubes(ez.Term):
    """A user's own, which knows nothing of it."""

    def value(self, w: Tensor) -> Tensor:
        return self.strength * w.abs().pow(3).sum()

    def gradient(self, w: Tensor) -> Tensor:
        return 3 * self.strength * w * w.abs()


GRADIENT = {
    **{name: case.others[0] for name, case in PENALTY_CASES.items()},
    "l0 + l2": ez.L0(0.02) + ez.L2(0.01),
    "all": sum((case.others[0] for case in PENALTY_CASES.values()), Cubes(0.3)),
}
DECOUPLED = {
    "l0": ez.L0(1.0, form="decoupled"),
    "l0 + l1 + group-lasso": ez.L0(1.0, form="decoupled")
    + ez.L1(0.1, form="decoupled")
    + ez.GroupLasso(0.1, form="decoupled"),
}
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str
)
each_scale = pytest.mark.parametrize("layer_scale", [None, "paper"])


def network(dtype: torch.dtype) -> Any:
    """Weights of many shapes and memory orders, one of them larger than `SMALL` is here."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(5, 7),
        nn.Linear(7, 5),
        nn.Conv2d(3, 4, 3),
        nn.Linear(5, 7),
        nn.Linear(40, 9),
    ]
    model: Any = nn.Sequential(*layers, nn.Linear(3, 1))
    model.to(memory_format=torch.channels_last)
    model[1].weight.data = model[1].weight.data.mT.contiguous().mT
    model[3].weight.data = model[3].weight.data.repeat(1, 2)[:, ::2]
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model.to(dtype)


@pytest.fixture
def joined(monkeypatch):
    """A function that has the CPU join small weights, or not."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(chunks, "is_joined", lambda t: on and t.numel() <= 120)

    monkeypatch.setattr(chunks, "LARGEST", 150)
    return switch


@pytest.mark.parametrize("penalty", GRADIENT.values(), ids=list(GRADIENT))
@each_dtype
@each_scale
def test_the_gradient_is_the_same_to_the_bit(penalty, dtype, layer_scale, joined):
    found = []
    for on in (False, True):
        joined(on)
        model = network(dtype)
        before = [w.detach().clone() for w in model.parameters()]
        ez.Regularizer(model, penalty, layer_scale=layer_scale).add_gradient()
        assert all(map(torch.equal, model.parameters(), before))
        found.append([w.grad for w in model.parameters()])
    assert all(map(torch.equal, *found))
    assert not all(map(torch.equal, found[0], [w.grad for w in network(dtype).parameters()]))


@pytest.mark.parametrize("penalty", DECOUPLED.values(), ids=list(DECOUPLED))
@each_dtype
@each_scale
@pytest.mark.parametrize(
    "rates", [(0.1, 0.2), (torch.tensor(0.1), 0.2)], ids=["numbers", "a tensor"]
)
def test_the_decoupled_step_is_the_same_to_the_bit(penalty, dtype, layer_scale, rates, joined):
    found = []
    for on in (False, True):
        joined(on)
        model = network(dtype)
        groups = [
            {"params": model[:2].parameters(), "lr": rates[0]},
            {"params": model[2:].parameters(), "lr": rates[1]},
        ]
        optimizer = torch.optim.SGD(groups)
        regularizer = ez.Regularizer(
            model, penalty, layer_scale=layer_scale, ramp=ez.Schedule(0.2, 1.0)
        )
        for step in range(3):
            regularizer.progress = step / 3
            regularizer.step(optimizer)
        remainders = regularizer.state_dict()["remainders"].values()
        assert len(remainders) == (6 if dtype == torch.bfloat16 else 0)
        found.append([*model.parameters(), *remainders])
    assert all(map(torch.equal, *found))
    assert not all(map(torch.equal, found[0], network(dtype).parameters()))


class Operations(TorchDispatchMode):
    """Counts the operations that make or change values, and has the most numbers that one made."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.count += 1
        if isinstance(made, Tensor):
            self.largest = max(self.largest, made.numel())
        return made


LAYERS = 60
FORMS = {
    "gradient": ez.L0(0.02) + ez.L2(0.01),
    "decoupled": ez.L0(1.0, form="decoupled"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_layers_take_few_operations_and_no_more_memory(form, dtype, monkeypatch):
    counts = []
    for on in (False, True):
        monkeypatch.setattr(chunks, "is_joined", lambda _, on=on: on)
        monkeypatch.setattr(chunks, "LARGEST", 20 * 64)  # of which the network is three
        model = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(LAYERS)]).to(dtype)
        for w in model.parameters():
            w.grad = torch.zeros_like(w)
        regularizer = ez.Regularizer(model, FORMS[form])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        regularizer.step(optimizer)  # remainders are made once
        with Operations() as operations:
            regularizer.add_gradient()
            regularizer.step(optimizer)
        assert operations.largest <= 20 * 64
        counts.append(operations.count)
    assert counts[0] > 4 * LAYERS
    assert counts[1] <= 3 * (counts[0] / LAYERS + 4)


def test_a_chunk_is_written_back_and_what_is_only_read_stays(monkeypatch):
    monkeypatch.setattr(chunks, "is_joined", lambda t: t.numel() <= 6)
    monkeypatch.setattr(chunks, "LARGEST", 8)
    shapes = [(2, 3), (0,), (), (7,), (2, 2), (3,)]
    groups = [(torch.ones(shape), torch.full(shape, 2.0)) for shape in shapes]
    seen = []
    for written, read in joined_chunks(groups, written=1):
        assert written.shape == read.shape
        assert written.numel() <= 8
        seen.append(written.numel())
        written.add_(read)
        read.zero_()
    assert sorted(seen) == [7, 7, 7]  # 6 + 0 + 1, 7 alone, 4 + 3
    for written, read in groups:
        assert (written == 3).all()
        assert written.numel() == 7 or (read == 2).all()


def test_weights_of_other_dtypes_are_not_joined(joined):
    found = []
    for on in (False, True):
        joined(on)
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(4)])
        model[1].double()
        model[3].double()
        ez.Regularizer(model, ez.L0(0.7)).add_gradient()
        found.append([layer.get_parameter("weight").grad for layer in model])
    assert all(map(torch.equal, *found))


def test_weights_that_are_joined_keep_factors_and_rates_of_their_own(joined):
    joined(True)
    sizes = [3, 6, 3, 6]
    model = nn.Sequential(*[nn.Linear(n, n, bias=False) for n in sizes])
    before = [w.detach().clone() for w in model.parameters()]
    groups = [{"params": [w], "lr": 0.1 * (1 + n)} for n, w in enumerate(model.parameters())]
    penalty = ez.L1(0.2, form="decoupled") + ez.L0(0.5)
    regularizer = ez.Regularizer(model, penalty, layer_scale="paper")
    regularizer.add_gradient()
    regularizer.step(torch.optim.SGD(groups))
    for n, (w, old) in enumerate(zip(model.parameters(), before, strict=True)):
        gradient = (sizes[n] / 6) * 0.5 * 5 * old.sign() * (-5 * old.abs()).exp()  # sqrt(9 / 36)
        torch.testing.assert_close(w.grad, gradient)
        shrunk = old.sign() * (old.abs() - 0.1 * (1 + n) * 0.2).clamp(min=0)
        torch.testing.assert_close(w.detach(), shrunk)
