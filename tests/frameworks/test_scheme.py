"""What a scheme accepts, and what it does at the events of a trainer, by a loop of one's own."""

import math

import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.frameworks import Scheme
from ellzero.frameworks.sparsifier import Sparsifier
from small import blobs, mlp, nonzero_weights, tensors_equal

X, Y = blobs(60, 1)


def first_weight(model: nn.Module) -> nn.Parameter:
    return next(model.parameters())


def gradient(model: nn.Module) -> torch.Tensor:
    """That of the first weight."""
    added = first_weight(model).grad
    assert added is not None
    return added


def trained(scheme: Scheme, steps: int, model: nn.Module, *, log=None) -> Sparsifier:
    """So many steps of SGD with momentum under a scheme."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(scheme, model, optimizer, steps)
    for step in range(steps):
        sparsifier.begin_step(step)
        if log is not None:
            log.append(nonzero_weights(model))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        sparsifier.add_gradient()
        optimizer.step()
    sparsifier.finish()
    return sparsifier


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "sparsity is None, nonzeros None"),
        ({"sparsity": 0.5, "nonzeros": 3}, "sparsity is 0.5, nonzeros 3"),
        ({"sparsity": 1.5}, "prune.sparsity"),
        ({"sparsity": 0.5, "prune_at": 1}, r"prune_at is 1; expected a number in \[0, 1\)"),
        ({"sparsity": 0.5, "prune_at": math.nan}, "prune_at is nan"),
        ({"sparsity": 0.5, "penalty": 1e-5}, "train.penalty"),
        ({"sparsity": 0.5, "penalty": ez.L1(0.1, form="loss")}, "L1 has the form 'loss'"),
        ({"sparsity": 0.5, "gradual": ez.Schedule(0, 2)}, "expected from 0 to 1"),
        (
            {"sparsity": 0.5, "gradual": ez.Schedule(0, 1), "gates": ez.HardConcrete(0.1)},
            "prune.gradual does not go with them",
        ),
    ],
)
def test_what_a_scheme_refuses(settings, message):
    with pytest.raises(ez.InputError, match=message):
        Scheme(**settings)


def test_fine_tuning_keeps_the_terms_that_do_not_sparsify():
    scheme = Scheme(penalty=ez.L1(0.1) + ez.L2(0.2), sparsity=0.5)
    assert scheme.recipe.finetune.penalty == ez.L2(0.2)
    assert Scheme(penalty=ez.L1(0.1), sparsity=0.5).recipe.finetune.penalty is None


@pytest.mark.parametrize(("prune_at", "first"), [(0, 0), (0.5, 5), (0.62, 6), (0.99, 9)])
def test_it_prunes_before_the_step_that_is_asked_for(prune_at, first):
    log = []
    trained(Scheme(nonzeros=14, prune_at=prune_at), 10, mlp(), log=log)
    # 144 weights, of which 14 stay
    assert [count == 14 for count in log] == [step >= first for step in range(10)]


def test_a_gradual_sparsity_follows_its_schedule():
    log = []
    scheme = Scheme(nonzeros=64, prune_at=0.5, gradual=ez.Schedule(0, 1, "linear", after=0.2))
    trained(scheme, 20, mlp(), log=log)
    # 80 of 144 weights go, linearly from step 2 (a fifth of ten) to step 10
    expected = [144 - 10 * min(max(step - 2, 0), 8) for step in range(20)]
    assert log == expected


def test_each_layer_to_the_sparsity_on_its_own():
    model = mlp()
    trained(Scheme(sparsity=0.75, scope="layer", gradual=ez.Schedule(0, 1)), 6, model)
    state = model.state_dict()
    assert int(state["0.weight"].count_nonzero()) == 24
    assert int(state["2.weight"].count_nonzero()) == 12


def test_schedules_go_over_the_regularized_training_alone():
    """A beta that ends at the pruning, seen in the gradient that the first step of each gets."""
    model, beta = mlp(), ez.Schedule(1.0, 5.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scheme = Scheme(penalty=ez.L0(1.0, beta=beta) + ez.L2(0.5), sparsity=0.5, prune_at=0.4)
    sparsifier = Sparsifier(scheme, model, optimizer, 10)
    for step, expected in [(0, 1.0), (1, 2.0), (3, 4.0)]:
        sparsifier.begin_step(step)
        first_weight(model).grad = torch.zeros_like(first_weight(model))
        sparsifier.add_gradient()
        total = (ez.L0(1.0, beta=expected) + ez.L2(0.5)).terms
        added = sum(term.gradient(first_weight(model).detach()) for term in total)
        torch.testing.assert_close(gradient(model), added)
    sparsifier.begin_step(4)
    first_weight(model).grad = torch.zeros_like(first_weight(model))
    sparsifier.add_gradient()
    assert torch.equal(gradient(model), ez.L2(0.5).gradient(first_weight(model).detach()))


def test_the_masks_come_before_the_decoupled_step():
    """The group lasso's step goes by norms, in which pruned weights must not count."""
    penalty = ez.GroupLasso(0.05, form="decoupled") + ez.L2(1e-3)
    scheme = Scheme(penalty=penalty, nonzeros=70, gradual=ez.Schedule(0, 1, "constant"))
    model, by_hand = mlp(), mlp()
    trained(scheme, 6, model)

    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    regularizer, after = ez.Regularizer(by_hand, penalty), ez.Regularizer(by_hand, ez.L2(1e-3))

    def step(regularizer: ez.Regularizer) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(X), Y).backward()
        regularizer.add_gradient()
        optimizer.step()
        regularizer.step(optimizer)

    for _ in range(3):
        with ez.prune(by_hand, nonzeros=70).hold(optimizer):
            step(regularizer)
    with ez.prune(by_hand, nonzeros=70).hold(optimizer):
        for _ in range(3):
            step(after)
    assert tensors_equal(model, by_hand)


def test_gates_are_plain_weights_in_a_validation_and_after_the_pruning():
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gates = ez.HardConcrete(0.02, keep=0.9)
    sparsifier = Sparsifier(Scheme(gates=gates, sparsity=0.5), model, optimizer, 4)
    for step in range(4):
        before = first_weight(model).detach().clone()
        sparsifier.begin_step(step)
        assert torch.equal(before, first_weight(model)) == (step >= 3)
        if step < 2:
            with pytest.raises(ez.InputError, match="a validation between the batches"):
                sparsifier.finalized().__enter__()
            with pytest.raises(ez.InputError, match="a checkpoint between the batches"):
                sparsifier.state_dict()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        sparsifier.add_gradient()
        optimizer.step()
        before = first_weight(model).detach().clone()
        with sparsifier.finalized():
            assert torch.equal(before, first_weight(model)) == (step >= 2)
        assert torch.equal(before, first_weight(model))
    sparsifier.finish()
    assert nonzero_weights(model) == 72


def test_a_training_that_ends_before_the_pruning_is_told():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(Scheme(sparsity=0.5), model, optimizer, 10)
    sparsifier.begin_step(3)
    with pytest.warns(
        ez.EllzeroWarning, match=r"after 4 of 10 steps, before the pruning at step 5"
    ):
        sparsifier.finish()


def test_weights_that_something_else_moved_are_zero_again_and_told():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(Scheme(sparsity=0.5, prune_at=0), model, optimizer, 10)
    sparsifier.begin_step(0)
    with torch.no_grad():
        first_weight(model).fill_(1.0)
    with pytest.warns(ez.EllzeroWarning, match="such as an average of the weights"):
        sparsifier.finish()
    assert nonzero_weights(model) == 72


class Pair(nn.Module):
    """Two networks, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(seed=1), mlp(seed=2)


def test_each_optimizer_adds_the_penalty_to_its_own_weights():
    model = Pair()
    one, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model.first, model.second))
    sparsifier = Sparsifier(Scheme(penalty=ez.L1(0.1), sparsity=0.5), model, [one, other], 4)
    sparsifier.begin_step(0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    sparsifier.add_gradient(other)
    assert not gradient(model.first).any()
    assert torch.equal(gradient(model.second), 0.1 * first_weight(model.second).detach().sign())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_scale": "paper"}, "layer_scale is of all selected weights together"),
        ({"gates": ez.HardConcrete(0.1)}, "gates is of all selected weights together"),
        ({"nonzeros": 500, "sparsity": None}, "prune.nonzeros is 500; only 288 weights"),
        ({"keep_per_layer": 50}, "keeps 196 weights, but 144 are to stay in all"),
    ],
)
def test_what_cannot_be_done_is_said_when_the_training_begins(settings, message):
    model = Pair()
    both = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model.first, model.second)]
    scheme = Scheme(**{"penalty": ez.L0(0.1), "sparsity": 0.5, **settings})
    with pytest.raises(ez.InputError, match=message):
        Sparsifier(scheme, model, both, 4)


def test_a_weight_that_no_optimizer_moves_or_two_do():
    model = Pair()
    first = torch.optim.SGD(model.first.parameters(), lr=0.1)
    with pytest.raises(ez.InputError, match=r"second\.0\.weight is in no parameter group"):
        Sparsifier(Scheme(sparsity=0.5), model, first, 4)
    everything = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ez.InputError, match=r"first\.0\.weight is moved by several optimizers"):
        Sparsifier(Scheme(sparsity=0.5), model, [first, everything], 4)
    Sparsifier(Scheme(sparsity=0.5, include=["first.*.weight"]), model, first, 4)


def test_a_penalty_may_be_a_table_as_in_a_recipe():
    table = Scheme(penalty={"l0": {"strength": 0.01}}, sparsity=0.5)  # pyright: ignore[reportArgumentType]
    assert table.recipe == Scheme(penalty=ez.L0(0.01), sparsity=0.5).recipe
