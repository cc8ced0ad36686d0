"""Holds where pruned weights used to come back, or where nothing was held: each by its effect."""

import copy
import gc
import pickle
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ellzero as ez
from cases import small_network
from in_training import backward, data, revived, started, step_without_gradient
from small import classification, recipe

LINE_SEARCHES = [None, "strong_wolfe"]
L1 = ez.L1(0.01, form="decoupled")


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process alone."""
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def loss_of(model: nn.Module) -> Tensor:
    x, y = data(0)
    return nn.functional.cross_entropy(model(x), y)


class Closure:
    """The closure of a user's loop, which notes how many zeros have moved and what it saw."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, masks: ez.Masks) -> None:
        self.model, self.optimizer, self.masks = model, optimizer, masks
        self.calls = 0

    def __call__(self) -> Tensor:
        assert revived(self.model, self.masks) == 0
        self.calls += 1
        self.optimizer.zero_grad()
        loss = loss_of(self.model)
        loss.backward()
        return loss


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
@pytest.mark.parametrize("given", ["positional", "keyword"])
def test_lbfgs_trains_the_pruned_network_as_if_there_were_no_other_weights(line_search, given):
    model = small_network().eval()  # no statistics that depend on how often the closure is called
    masks = ez.prune(model, sparsity=0.6)
    options: Any = {"lr": 0.5, "max_iter": 6, "line_search_fn": line_search}

    # the reference knows no masks: L-BFGS on the kept weights alone, scattered into zeros
    reference = copy.deepcopy(model)
    packed = {
        name: nn.Parameter(p.detach()[masks[name]] if name in masks else p.detach().clone())
        for name, p in reference.named_parameters()
    }

    def whole() -> dict[str, Tensor]:
        return {
            name: torch.zeros_like(masks[name], dtype=p.dtype).masked_scatter(masks[name], p)
            if name in masks
            else p
            for name, p in packed.items()
        }

    plain = torch.optim.LBFGS(packed.values(), **options)

    def plain_closure() -> Tensor:
        plain.zero_grad()
        x, y = data(0)
        loss = nn.functional.cross_entropy(torch.func.functional_call(reference, whole(), (x,)), y)
        loss.backward()
        return loss

    optimizer = torch.optim.LBFGS(model.parameters(), **options)
    closure = Closure(model, optimizer, masks)
    with masks.hold(optimizer):
        for _ in range(3):
            plain.step(plain_closure)
            if given == "positional":
                optimizer.step(closure)
            else:
                optimizer.step(closure=closure)
            assert revived(model, masks) == 0
    assert closure.calls > 3
    for name, expected in whole().items():
        torch.testing.assert_close(model.get_parameter(name), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
@pytest.mark.parametrize("together", [False, True])
def test_lbfgs_that_was_under_way_keeps_nothing_of_the_pruned_weights(line_search, together):
    model = small_network()
    optimizer = torch.optim.LBFGS(
        model.parameters(), lr=0.5, max_iter=4, line_search_fn=line_search
    )

    def dense() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    optimizer.step(dense)
    masks = ez.prune(model, sparsity=0.6)
    regularizer = ez.Regularizer(model, L1) if together else None
    closure = Closure(model, optimizer, masks)
    with masks.hold(optimizer):
        for _ in range(2):
            assert optimizer.step(closure).item() < 5
            if regularizer is not None:
                regularizer.step(optimizer, masks=masks)
            assert revived(model, masks) == 0
    pruned = torch.cat([~masks[n].flatten() if n in masks else torch.zeros(p.numel()).bool()
                        for n, p in model.named_parameters()])  # fmt: skip
    (state,) = optimizer.state.values()
    vectors = [state["d"], state["prev_flat_grad"], *state["old_dirs"], *state["old_stps"]]
    assert all(int(vector[pruned].count_nonzero()) == 0 for vector in vectors)
    assert any(int(vector.count_nonzero()) for vector in vectors)


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")  # its module's own
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_the_state_of_an_optimizer_within_is_cleared(kind):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    options: Any = {"momentum": 0.9} if kind is torch.optim.SGD else {}

    def make(parameters: Any) -> torch.optim.Optimizer:
        return ZeroRedundancyOptimizer(parameters, kind, lr=0.05, **options)

    model, optimizer = started(make)
    masks = ez.prune(model, sparsity=0.6)
    with masks.hold(optimizer):
        for step in range(3):
            backward(model, step)
            optimizer.step()
            assert revived(model, masks) == 0
    step_without_gradient(model, optimizer)
    assert revived(model, masks) == 0


@pytest.mark.parametrize("together", [False, True])
def test_several_optimizers_are_held_at_once(together):
    model = small_network()
    optimizers = [
        torch.optim.SGD(model[:4].parameters(), lr=0.1, momentum=0.9),
        torch.optim.Adam(model[4:].parameters(), lr=0.01),
    ]
    for step in range(2):
        backward(model, step)
        for optimizer in optimizers:
            optimizer.step()
    masks = ez.prune(model, sparsity=0.6)
    regularizer = ez.Regularizer(model, L1) if together else None
    before = {name: model.get_parameter(name).detach().clone() for name in masks}
    with masks.hold(optimizers):
        for step in range(3):
            backward(model, step)
            for optimizer in optimizers:
                optimizer.step()
            if regularizer is not None:
                regularizer.step(optimizers, masks=masks)
            assert revived(model, masks) == 0
    assert all(not model.get_parameter(name).equal(old) for name, old in before.items())
    for optimizer in optimizers:
        step_without_gradient(model, optimizer)
    assert revived(model, masks) == 0
    with pytest.raises(ez.InputError, match=r"^0\.weight is in no parameter group"):
        masks.hold(optimizers[1:])
    with pytest.raises(ez.InputError, match=r"is no optimizer; expected one of torch\.optim"):
        masks.hold([model])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_bad_gradient_under_a_mask_leaves_a_zero(kind, dtype, together, bad):
    model = small_network(dtype=dtype)
    optimizer = kind(model.parameters(), lr=0.01)
    masks = ez.prune(model, sparsity=0.6)
    regularizer = ez.Regularizer(model, L1) if together else None
    with masks.hold(optimizer):
        for step in range(2):
            backward(model, step)
            if step == 0:
                for name, mask in masks.items():
                    model.get_parameter(name).grad[~mask] = bad
            optimizer.step()
            if regularizer is not None:
                regularizer.step(optimizer, masks=masks)
            for name, mask in masks.items():
                w = model.get_parameter(name).detach()
                assert w[~mask].equal(torch.zeros_like(w[~mask])), "NaN is no zero"
                assert w.isfinite().all()
    step_without_gradient(model, optimizer)
    assert revived(model, masks) == 0


REPLACE = {
    "assign": lambda model: model.load_state_dict(
        {name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True
    ),
    "module": lambda model: setattr(model, "4", nn.Linear(36, 8, dtype=torch.float64)),
    "parametrization": lambda model: nn.utils.parametrizations.weight_norm(model[4]),
}


@pytest.mark.parametrize("replace", REPLACE.values(), ids=REPLACE)
class TestReplacedWeights:
    def test_a_step_under_a_hold_says_so(self, replace):
        model = small_network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        masks = ez.prune(model, sparsity=0.6)

        def train() -> None:
            with masks.hold(optimizer):
                replace(model)
                optimizer.step()

        with pytest.raises(ez.InputError, match=r"weight of Sequential is (another|no longer)"):
            train()
        assert not optimizer._optimizer_step_post_hooks

    def test_the_end_of_a_hold_says_so(self, replace):
        model = small_network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        masks = ez.prune(model, sparsity=0.6)
        hold = masks.hold(optimizer)
        replace(model)
        with pytest.raises(ez.InputError, match=r"weight of Sequential is (another|no longer)"):
            hold.release()
        assert not optimizer._optimizer_step_post_hooks

    def test_masks_and_regularizers_say_so(self, replace):
        model = small_network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        masks = ez.prune(model, sparsity=0.6)
        regularizer = ez.Regularizer(model, L1 + ez.L2(0.1) + ez.L0(0.1, form="loss"))
        gated = ez.Regularizer(model, gates=ez.HardConcrete(0.1))
        replace(model)
        later = torch.optim.SGD(model.parameters(), lr=0.1)  # as one makes it after a load
        calls = [
            masks.apply,
            lambda: masks.hold(optimizer),
            lambda: masks.hold(later),
            regularizer.loss,
            regularizer.value,
            regularizer.add_gradient,
            lambda: regularizer.step(optimizer),
            lambda: ez.Regularizer(model, ez.L2(0.1)).step(later, masks=masks),
            gated.before_forward,
            gated.add_gradient,
            gated.finalize,
            lambda: gated.finalized().__enter__(),
            lambda: ez.prune(model, sparsity=0.5, weights=masks.weights),
            lambda: ez.Regularizer(model, L1, weights=masks.weights),
        ]
        for call in calls:
            with pytest.raises(ez.InputError, match=r"weight of Sequential is (another|no longer)"):
                call()


def test_copies_alone_are_refused_and_copies_with_the_network_work():
    model = small_network()
    masks, regularizer = ez.prune(model, sparsity=0.6), ez.Regularizer(model, ez.L2(0.1))
    for bound in (masks, regularizer):
        with pytest.raises(ez.InputError, match="a copy of them alone would act on none"):
            copy.deepcopy(bound)
    twin, its_masks, its_regularizer = copy.deepcopy((model, masks, regularizer))
    with torch.no_grad():
        twin[4].weight.fill_(1)
    its_masks.apply()
    assert revived(twin, masks) == 0
    assert int(twin[4].weight.sum()) == int(masks["4.weight"].sum())
    backward(twin, 0)
    before = twin[4].weight.grad.clone()
    its_regularizer.add_gradient()
    torch.testing.assert_close(twin[4].weight.grad - before, 0.2 * twin[4].weight.detach())


def test_masks_and_regularizers_are_not_pickled():
    model = small_network()
    for bound in (ez.prune(model, sparsity=0.6), ez.Regularizer(model, ez.L2(0.1))):
        with pytest.raises(ez.InputError, match=r"cannot be pickled; keep their state_dict"):
            pickle.dumps(bound)


def test_a_selection_of_another_network_is_refused():
    model = small_network()
    other, weights = copy.deepcopy(model), ez.select(model)
    before = copy.deepcopy(model.state_dict())
    for use in (
        lambda: ez.prune(other, sparsity=0.5, weights=weights),
        lambda: ez.Regularizer(other, L1, weights=weights),
        lambda: ez.quantize(other, bits=4, weights=weights),
    ):
        with pytest.raises(ez.InputError, match=r"^0\.weight is a weight of another network"):
            use()
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())
    ez.Regularizer(nn.DataParallel(model), L1, weights=weights)  # a wrapper has its weights


class Coded(torch.optim.SGD):
    """Momentum as 8-bit codes, of which 0 stands for -1, as quantized optimizers have it."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for group in self.param_groups:
            for w in group["params"]:
                state = self.state[w]
                codes = state.setdefault("codes", torch.full(w.shape, 255, dtype=torch.uint8))
                with torch.no_grad():
                    w.sub_(group["lr"] * (codes.double() / 255 * 2 - 2))
        return None


def test_a_state_of_codes_begins_anew():
    model = small_network()
    optimizer = Coded(model.parameters(), lr=0.1)
    masks = ez.prune(model, sparsity=0.6)
    with masks.hold(optimizer):
        backward(model, 0)
        optimizer.step()
    step_without_gradient(model, optimizer)
    assert revived(model, masks) == 0


class Bare(torch.optim.Optimizer):
    """A wrapper that leaves out what torch's optimizers set up, as some libraries have it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.param_groups = optimizer.param_groups
        self.state = optimizer.state


def test_what_is_no_optimizer_is_refused():
    model = small_network()
    masks = ez.prune(model, sparsity=0.6)
    regularizer = ez.Regularizer(model, gates=ez.HardConcrete(0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for odd, what in [
        (None, "is no optimizer"),
        (nn.Linear, "is no optimizer"),
        ([], "an empty list"),
        (Bare(optimizer), "Bare is a wrapper without the hooks"),
    ]:
        for use in (masks.hold, regularizer.step):
            with pytest.raises(ez.InputError, match=what):
                use(odd)


class Lookahead(Bare):
    """A wrapper that moves the weights itself, by a state of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self.optimizer, self.state = optimizer, defaultdict(dict)


class Accelerated(Bare):
    """A wrapper that leaves everything to the optimizer within, as accelerate's does."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self.optimizer = optimizer


def test_an_optimizer_is_found_within_wrappers_that_have_no_state():
    model, optimizer = started(torch.optim.Adam)
    masks = ez.prune(model, sparsity=0.6)
    regularizer = ez.Regularizer(model, ez.L1(0.1, form="decoupled"))
    with pytest.raises(ez.InputError, match="Lookahead is a wrapper without the hooks"):
        masks.hold(Lookahead(optimizer))
    wrapped = Accelerated(Accelerated(optimizer))
    with masks.hold(wrapped):
        backward(model, 0)
        optimizer.step()
        regularizer.step(wrapped)
        assert revived(model, masks) == 0
    step_without_gradient(model, optimizer)
    assert revived(model, masks) == 0


@pytest.mark.parametrize("together", [False, True])
def test_a_network_that_is_converted_within_a_hold_stays_pruned(together):
    model, optimizer = started(torch.optim.Adam)
    masks, regularizer = ez.prune(model, sparsity=0.6), ez.Regularizer(model, L1)
    with masks.hold(optimizer):
        for dtype in (torch.float64, torch.bfloat16, torch.float32):
            model.to(dtype)
            for state in optimizer.state.values():
                state.update(
                    exp_avg=state["exp_avg"].to(dtype), exp_avg_sq=state["exp_avg_sq"].to(dtype)
                )
            for step in range(2):
                before = model[4].weight.detach().clone()
                backward(model, step)
                optimizer.step()
                regularizer.step(optimizer, masks=masks if together else None)
                assert revived(model, masks) == 0
                assert not model[4].weight.equal(before)


@pytest.mark.parametrize("masked_steps", [(0, 1, 2), (0,), ()])
def test_pruned_weights_are_zero_at_any_time_after_a_step(masked_steps):
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks, regularizer = ez.prune(model, sparsity=0.6), ez.Regularizer(model, L1)
    average: Any = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    with masks.hold(optimizer):
        for step in range(3):
            backward(model, step)
            optimizer.step()
            assert revived(model, masks) == 0
            average.update_parameters(model)
            regularizer.step(optimizer, masks=masks if step in masked_steps else None)
            assert revived(model, masks) == 0
    assert revived(average.module, masks) == 0


def test_a_regularizers_step_before_the_optimizers_leaves_the_forward_passes_pruned():
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks, regularizer = ez.prune(model, sparsity=0.6), ez.Regularizer(model, L1)
    with masks.hold(optimizer):
        for step in range(3):
            backward(model, step)
            assert revived(model, masks) == 0
            regularizer.step(optimizer, masks=masks)
            optimizer.step()
    assert revived(model, masks) == 0


def test_a_hold_that_is_never_released_keeps_no_optimizer_alive():
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = ez.prune(model, sparsity=0.6)
    masks.hold(optimizer)
    reference = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("by_with", [False, True])
def test_a_second_release_leaves_weights_that_were_trained_since(by_with):
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = ez.prune(model, sparsity=0.6)
    hold = masks.hold(optimizer)
    with suppress(KeyError), hold if by_with else nullcontext():
        hold.release()
        backward(model, 0)
        optimizer.step()
        hold.release()
        assert revived(model, masks) > 0
        raise KeyError  # ends the `with` in the other way
    assert revived(model, masks) > 0


class Words(nn.Module):
    """An embedding whose gradients are sparse, and a layer after it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4, sparse=True)
        self.layer = nn.Linear(4, 2)

    def forward(self, words: Tensor) -> Tensor:
        return self.layer(self.embedding(words))


def test_sparse_moments_begin_anew_after_a_hold():
    model = Words()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks = ez.prune(model, sparsity=0.5, weights=ez.select(model, include=["*.weight"]))
    with masks.hold(optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.tensor([1, 3])).square().sum().backward()
            optimizer.step()
            assert revived(model, masks) == 0
    assert not optimizer._optimizer_step_post_hooks
    assert model.embedding.weight not in optimizer.state
    momentum = optimizer.state[model.layer.weight]["momentum_buffer"]
    assert int(momentum[~masks["layer.weight"]].count_nonzero()) == 0
    optimizer.zero_grad()
    optimizer.step()
    assert revived(model, masks) == 0


@pytest.mark.parametrize("together", [False, True])
def test_masks_that_are_loaded_within_a_hold_are_the_ones_that_hold(together):
    model, optimizer = started(torch.optim.Adam)
    masks, regularizer = ez.prune(model, sparsity=0.3), ez.Regularizer(model, L1)
    fewer = ez.prune(model, sparsity=0.6)
    with masks.hold(optimizer):
        for step in range(4):
            if step == 2:
                masks.load_state_dict(fewer.state_dict())
            backward(model, step)
            optimizer.step()
            regularizer.step(optimizer, masks=masks if together else None)
            assert revived(model, masks) == 0
    assert masks.sparsity == fewer.sparsity


def test_masks_of_weights_that_the_optimizer_does_not_move_are_refused():
    model = small_network()
    optimizer = torch.optim.SGD(model[:4].parameters(), lr=0.1)
    regularizer = ez.Regularizer(model, L1, weights=ez.select(model, include=["0.weight"]))
    for masks in (ez.prune(model, sparsity=0.6), ez.prune(small_network(), sparsity=0.6)):
        with pytest.raises(ez.InputError, match=r"weight is in no parameter group of the optimi"):
            regularizer.step(optimizer, masks=masks)


class TestOtherNetworks:
    def test_an_average_from_before_the_pruning_is_dense_until_the_masks_are_applied(self):
        model = small_network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        average: Any = AveragedModel(model)
        average.update_parameters(model)
        masks = ez.prune(model, sparsity=0.6)
        with masks.hold(optimizer):
            backward(model, 0)
            optimizer.step()
            average.update_parameters(model)
        kept = average.module[4].weight.detach()[masks["4.weight"]].clone()
        assert revived(average.module, masks) > 0
        masks.apply_to(average)
        assert revived(average.module, masks) == 0
        assert average.module[4].weight.detach()[masks["4.weight"]].equal(kept)

    @pytest.mark.parametrize(
        ("wrap", "wrap_other"),
        [
            (lambda m: m, nn.DataParallel),
            (nn.DataParallel, lambda m: m),
            (lambda m: m, lambda m: AveragedModel(nn.DataParallel(m))),
            (lambda m: torch.compile(m, backend="eager"), AveragedModel),
        ],
    )
    def test_wrappers_of_either_network_do_not_matter(self, wrap, wrap_other):
        model, other = small_network(), small_network(seed=1)
        masks = ez.prune(wrap(model), sparsity=0.6)
        wrapped = wrap_other(other)
        masks.apply_to(wrapped)
        pruned = [w for name, w in wrapped.named_parameters() if name.endswith("4.weight")]
        (mask,) = (mask for name, mask in masks.items() if name.endswith("4.weight"))
        assert (pruned[0].detach() != 0).equal(mask)

    def test_a_network_of_other_weights_is_refused_untouched(self):
        masks = ez.prune(small_network(), sparsity=0.6)
        other = small_network()
        other[6] = nn.Linear(8, 4)
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ez.InputError, match=r"have 6\.weight \(3, 8\).* one of \(4, 8\)"):
            masks.apply_to(other)
        assert all(before[name].equal(tensor) for name, tensor in other.state_dict().items())
        with pytest.raises(ez.InputError, match=r"Linear has none of that name"):
            masks.apply_to(nn.Linear(2, 2))


@pytest.mark.usefixtures("alone")
class TestDTensor:
    @pytest.fixture
    def sharded(self) -> Any:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))

    def test_is_refused_where_a_whole_network_is_needed(self, sharded, tmp_path):
        uses = [
            lambda: ez.compress(sharded, classification(), recipe()),
            lambda: ez.trace(sharded, torch.zeros(1, 6)),
            lambda: ez.pack(sharded, tmp_path / "sharded.ellz"),
        ]
        for use in uses:
            with pytest.raises(ez.InputError, match=r"0\.weight is a DTensor.*as a whole"):
                use()
        assert not (tmp_path / "sharded.ellz").exists()


def test_masks_of_nothing_are_not_sparse():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    masks = ez.Masks(ez.select(model).__class__(model, []), {})
    assert (masks.numel, masks.nonzeros, masks.sparsity) == (0, 0, 0.0)
