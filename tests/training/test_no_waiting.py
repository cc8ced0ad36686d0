"""Nothing within an epoch waits for the device: no number of a tensor is asked for, batch by batch.

On a GPU each such operation would empty the queue of kernels; here they are counted on the CPU.
"""

from collections import Counter
from contextlib import ExitStack, nullcontext
from types import TracebackType
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import ellzero as ez
from cases import small_network
from ellzero.training import loop
from ellzero.training.plan import Step
from ellzero.training.state import State
from small import blobs, convnet, images, mlp, recipe

WAITING = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "nonzero_numpy",
    "argwhere",
    "masked_select",
    "equal",
    "unique",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "unique_dim_consecutive",
    "repeat_interleave",
    "bincount",
    "allclose",
)
"""Operations of aten whose result, or its size, the host has to know."""

INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
"""These as well, where an index is a mask."""

READING = ("tolist", "numpy", "__array__", "cpu", "__bool__", "__int__", "__float__", "item")
"""Methods of a tensor that do the same, of which aten sees nothing where all is on the CPU."""


class Waits:
    """Counts what would make a GPU wait, in the block."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._modes = ExitStack()

    def __enter__(self) -> Counter[str]:
        self._modes.enter_context(_Operations(self.counts))
        self._modes.enter_context(_Methods(self.counts))
        return self.counts

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._modes.close()


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if masked or name in WAITING:
            self._counts[name] += 1
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READING:
            self._counts[f"Tensor.{name}"] += 1
        return func(*args, **(kwargs or {}))


# an epoch of the loop

BATCH_SIZE = 4
PENALTY = {"l0": {"strength": 1e-3}, "l2": {"strength": 1e-4}}
DECOUPLED = {"l0": {"strength": 1e-2, "form": "decoupled"}, "l2": {"strength": 1e-4}}
TRAININGS: dict[str, dict[str, Any]] = {
    "no-penalty": {},
    "gradient": {"penalty": PENALTY},
    "loss": {"penalty": {"l0": {"strength": 1e-3, "form": "loss"}}},
    "layer-scale": {"penalty": PENALTY, "layer_scale": "paper"},
    "ramp": {"penalty": PENALTY, "ramp": {"shape": "cubic"}},
    "decoupled": {"penalty": DECOUPLED},
    "decoupled-ramp": {"penalty": DECOUPLED, "ramp": {"shape": "linear"}},
    "l1-decoupled": {"penalty": {"l1": {"strength": 1e-2, "form": "decoupled"}}},
    "group-lasso": {"penalty": {"group_lasso": {"strength": 1e-2}}},
    "group-lasso-decoupled": {"penalty": {"group_lasso": {"strength": 1e-2, "form": "decoupled"}}},
    "hoyer-square": {"penalty": {"hoyer_square": {"strength": 1e-3}}},
    "hard-concrete": {"gates": {"hard_concrete": {"strength": 1e-3}}},
    "hard-concrete-ramp": {
        "gates": {"hard_concrete": {"strength": 1e-3}},
        "penalty": PENALTY,
        "ramp": {"shape": "linear"},
    },
    "pmmp": {"gates": {"pmmp": {"strength": 1e-3}}},
    "mixup": {"penalty": PENALTY, "mixup": 0.2},
    "sgd": {"penalty": PENALTY, "optimizer": "sgd"},
    "adamw": {"penalty": PENALTY, "optimizer": "adamw", "weight_decay": 0.01},
    "no-decay": {"optimizer": "adamw", "weight_decay": 0.01, "no_decay": ["bias", "norm"]},
    "rmsprop": {"penalty": PENALTY, "optimizer": "rmsprop", "momentum": 0.9},
    "average": {"penalty": PENALTY, "ema_decay": 0.9},
    "clip-norm": {"penalty": PENALTY, "clip_grad_norm": 0.1},
    "clip-value": {"penalty": PENALTY, "clip_grad_value": 0.1},
}
each_training = pytest.mark.parametrize("name", TRAININGS)


def waits(batches: int, *, masked: bool = False, loss: Any = None, **tables: Any) -> Counter[str]:
    """What one epoch of so many batches waits for, its validation and metrics included."""
    data = ez.Data(blobs(batches * BATCH_SIZE, 1), blobs(30, 2), loss=loss, task="classification")
    return epoch(mlp(), data, batches, masked=masked, **tables)


def epoch(
    model: nn.Module, data: ez.Data, batches: int, *, masked: bool = False, **tables: Any
) -> Counter[str]:
    told = recipe(**tables)
    state = State(model, ez.select(model), start={})
    state.step = Step("train", epochs=1)
    if masked:
        state.masks = ez.prune(model, sparsity=0.5)
    state.equip(told)
    ticks = []
    with Waits() as counts:
        ((metrics, _),) = loop.epochs(state, told, data, tick=lambda: ticks.append(1))
    assert len(ticks) == batches
    assert metrics.train_loss is not None
    assert metrics.train_loss > 0
    return counts


def told(train: dict[str, Any]) -> dict[str, Any]:
    return {"train": {"penalty": {}, **train, "batch_size": BATCH_SIZE}}


@each_training
def test_an_epoch_of_many_batches_waits_no_more_than_one_of_few(name):
    tables = told(TRAININGS[name])
    assert waits(3, **tables) == waits(8, **tables)


@pytest.mark.parametrize("name", ["gradient", "decoupled", "hard-concrete"])
def test_nor_does_it_in_bfloat16(name):
    tables = {**told(TRAININGS[name]), "precision": "bfloat16"}
    masked = "gates" not in TRAININGS[name]
    assert waits(3, masked=masked, **tables) == waits(8, masked=masked, **tables)


# beside gates, which choose the weights themselves, no masks are held
@pytest.mark.parametrize("name", [n for n, train in TRAININGS.items() if "gates" not in train])
def test_nor_does_it_with_masks_held(name):
    tables = told(TRAININGS[name])
    assert waits(3, masked=True, **tables) == waits(8, masked=True, **tables)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nor_with_images_in_channels_last_and_a_last_batch_that_is_short(precision):
    tables = {**told({"penalty": PENALTY}), "precision": precision, "channels_last": True}
    counts = []
    for size, batches in ((12, 4), (6, 7)):  # of 40 images
        tables["train"] = {**tables["train"], "batch_size": size}
        counts.append(epoch(convnet(), images(), batches, **tables))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("task", ["tokens", "weights", "weights of tokens"])
def test_nor_with_labels_that_are_ignored_and_weights(task):
    def examples(count: int) -> tuple[torch.Tensor, ...]:
        x, y = blobs(count, 1)
        weights = (torch.arange(count) % 3.0,) if "weights" in task else ()
        if "tokens" not in task:
            return (x, y, *weights)
        y = y[:, None].repeat(1, 2)
        y[::5, 0] = -100
        return (x[:, None].repeat(1, 2, 1), y, *weights)

    counts = []
    for batches in (3, 8):
        data = ez.Data(examples(batches * BATCH_SIZE), examples(30))
        data.check_fit(mlp())
        counts.append(epoch(mlp(), data, batches, **told({"penalty": PENALTY})))
    assert counts[0] == counts[1]


def test_a_loss_that_asks_for_a_number_is_counted():
    # the control: this is what the tests above would see
    def asking(outputs, targets):
        loss = nn.functional.cross_entropy(outputs, targets)
        return loss if loss.item() > 0 else loss * 0

    few, many = (waits(n, loss=asking, **told({"penalty": PENALTY})) for n in (3, 8))
    assert many["_local_scalar_dense"] - few["_local_scalar_dense"] == 5
    assert many["Tensor.item"] - few["Tensor.item"] == 5


@pytest.mark.parametrize(
    ("ask", "name"),
    [
        (lambda t: t[t > 0], "index"),
        (lambda t: t.__setitem__(t > 0, 1.0), "index_put_"),
        (lambda t: t.masked_select(t > 0), "masked_select"),
        (lambda t: t.nonzero(), "nonzero"),
        (lambda t: torch.where(t > 0), "nonzero"),
        (lambda t: t.equal(t), "equal"),
        (lambda t: torch.unique(t), "_unique2"),
        (lambda t: bool((t > 0).any()), "_local_scalar_dense"),
        (lambda t: float(t.sum()), "_local_scalar_dense"),
        (lambda t: t.tolist(), "Tensor.tolist"),
        (lambda t: t.numpy(), "Tensor.numpy"),
        (lambda t: t.cpu(), "Tensor.cpu"),
    ],
    ids=[
        "index-by-mask",
        "put-by-mask",
        "masked-select",
        "nonzero",
        "where",
        "equal",
        "unique",
        "bool",
        "float",
        "tolist",
        "numpy",
        "cpu",
    ],
)
def test_what_waits_is_counted(ask, name):
    with Waits() as counts:
        ask(torch.arange(-2.0, 3.0))
    assert counts[name] == 1


@pytest.mark.parametrize(
    "work",
    [
        lambda t: t.index_select(0, torch.tensor([1, 2])),
        lambda t: t[torch.tensor([1, 2])],
        lambda t: t.masked_fill_(t > 0, 1.0),
        lambda t: torch.where(t > 0, t, 0.0),
        lambda t: t[1:3] + t.sum(),
    ],
    ids=["index-select", "index-by-numbers", "masked-fill", "where", "slice"],
)
def test_what_does_not_wait_is_not_counted(work):
    with Waits() as counts:
        work(torch.arange(-2.0, 3.0))
    assert not counts


# the parts, in a loop of the user's own

PENALTIES = {
    "gradient": ez.L0(0.05) + ez.L1(0.01) + ez.L2(0.01) + ez.GroupLasso(0.01) + ez.HoyerSquare(1.0),
    "loss": ez.L0(0.05, form="loss") + ez.L1(0.01, form="loss"),
    "schedule": ez.L0(0.05, beta=ez.Schedule(1.0, 9.0)),
    "decoupled": ez.L0(0.05, form="decoupled")
    + ez.L1(0.01, form="decoupled")
    + ez.GroupLasso(0.01, form="decoupled"),
}


@pytest.mark.filterwarnings("ignore:add_gradient")  # there is no loss here
@pytest.mark.parametrize("rate", ["number", "tensor"])
@pytest.mark.parametrize("ramp", [None, ez.Schedule(0, 1, "cubic")], ids=["steady", "ramp"])
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_regularizer_asks_for_no_number(penalty, ramp, rate, dtype):
    model = small_network(dtype=dtype).to(memory_format=torch.channels_last)
    lr = 0.1 if rate == "number" else torch.tensor(0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    regularizer = ez.Regularizer(model, penalty, layer_scale="paper", ramp=ramp)
    masks = ez.prune(model, sparsity=0.5)
    before = [w.detach().clone() for w in model.parameters()]
    for given in (None, masks):
        with masks.hold(optimizer), Waits() as counts:
            for step in range(3):
                regularizer.progress = step / 3
                optimizer.zero_grad()
                regularizer.before_forward()
                if penalty is PENALTIES["loss"]:
                    regularizer.loss().backward()
                regularizer.add_gradient()
                regularizer.step(optimizer, masks=given)
            assert not counts
            if penalty is not PENALTIES["decoupled"]:
                assert model[4].weight.grad is not None
    if penalty is PENALTIES["decoupled"]:
        assert not model[4].weight.equal(before[-4])


@pytest.mark.parametrize("kind", ["fused", "foreach", "loop"])
def test_the_holds_hook_asks_for_no_number(kind):
    ways: dict[str, dict[str, Any]] = {
        "fused": {"fused": True},
        "foreach": {"foreach": True},
        "loop": {"foreach": False},
    }
    counted = []
    for held in (True, False):
        model = small_network(dtype=torch.float32)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, **ways[kind])
        masks = ez.prune(model, sparsity=0.5)
        with masks.hold(optimizer) if held else nullcontext():
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            with Waits() as counts:
                for _ in range(3):
                    optimizer.step()
            revived = [int(model.get_parameter(n)[~m].count_nonzero()) for n, m in masks.items()]
            assert all(n == 0 for n in revived) if held else all(revived)
        counted.append(counts)
    # Adam itself looks at its count of steps, on the CPU, where it is not fused
    assert counted[0] == counted[1]
    assert bool(counted[0]) == (kind != "fused")
