"""A training loop of one's own with its calls in a wrong order: an error, or a warning."""

import warnings

import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.regularizers.regularizer import MANY
from small import blobs, convnet, mlp, nonzero_weights

X, Y = blobs(60, 1)


def loss(model: nn.Module) -> torch.Tensor:
    return nn.functional.cross_entropy(model(X), Y)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def test_add_gradient_before_backward_is_warned_of():
    model = mlp()
    regularizer = ez.Regularizer(model, ez.L0(1e-4))
    with pytest.warns(ez.EllzeroWarning, match="call it after loss.backward"):
        regularizer.add_gradient()


def test_add_gradient_after_zero_grad_is_warned_of():
    model = mlp()
    regularizer, optimizer = ez.Regularizer(model, ez.L0(1e-4)), sgd(model)
    loss(model).backward()
    optimizer.zero_grad()
    with pytest.warns(ez.EllzeroWarning, match="call it after loss.backward"):
        regularizer.add_gradient()


@pytest.mark.parametrize(
    ("form", "use", "remedy"),
    [
        ("decoupled", lambda r, o: r.step(o), r"call regularizer.step\(optimizer\) after"),
        ("loss", lambda r, o: r.loss(), r"add regularizer.loss\(\) to the loss"),
    ],
)
def test_terms_that_a_loop_never_takes_are_warned_of_once(form, use, remedy):
    model = mlp()
    penalty = ez.L1(1e-4, form=form) + ez.L2(1e-4)
    regularizer, optimizer = ez.Regularizer(model, penalty), sgd(model)
    loss(model).backward()
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        for _ in range(2 * MANY):
            regularizer.add_gradient()
    (warning,) = given
    with pytest.raises(ez.EllzeroWarning, match=remedy):
        raise ez.EllzeroWarning(warning.message)

    regularizer = ez.Regularizer(model, penalty)
    use(regularizer, optimizer)
    for _ in range(2 * MANY):  # warnings are errors here
        regularizer.add_gradient()


def test_a_network_that_trained_without_a_hold_is_not_saved_with_its_masks(tmp_path):
    model = mlp()
    optimizer = sgd(model)
    masks = ez.prune(model, sparsity=0.75)
    assert nonzero_weights(model) == 36
    loss(model).backward()
    optimizer.step()
    with pytest.raises(ez.InputError, match=r"not zero any more .* masks.hold\(optimizer\)"):
        ez.save(model, tmp_path / "a.safetensors", masks=masks)
    assert not list(tmp_path.iterdir())
    masks.apply()
    ez.save(model, tmp_path / "a.safetensors", masks=masks)
    assert nonzero_weights(ez.load(tmp_path / "a.safetensors", mlp())) == 36


def test_a_save_within_a_hold_keeps_the_zeros(tmp_path):
    model = mlp()
    optimizer = sgd(model)
    masks = ez.prune(model, sparsity=0.75)
    with masks.hold(optimizer):
        loss(model).backward()
        optimizer.step()
        ez.save(model, tmp_path / "a.safetensors", masks=masks)
    assert nonzero_weights(ez.load(tmp_path / "a.safetensors", mlp())) == 36


def test_a_hold_of_what_is_no_optimizer_or_another_ones():
    model = mlp()
    masks = ez.prune(model, sparsity=0.5)
    with pytest.raises(ez.InputError, match="Sequential is no optimizer; expected one of torch"):
        masks.hold(model)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ez.InputError, match=r"0\.weight is in no parameter group of the optimizer"):
        masks.hold(sgd(mlp())).__enter__()


def test_two_holds_at_once_hold_as_one_does():
    model = mlp()
    optimizer = sgd(model)
    masks = ez.prune(model, sparsity=0.75)
    with masks.hold(optimizer), masks.hold(optimizer):
        loss(model).backward()
        optimizer.step()
    assert nonzero_weights(model) == 36


def test_an_optimizer_that_was_made_before_a_layer_was_replaced():
    model = mlp()
    optimizer = sgd(model)
    model[0] = nn.Linear(6, 16)
    masks = ez.prune(model, sparsity=0.5)
    with pytest.raises(ez.InputError, match=r"0\.weight is in no parameter group of the optimizer"):
        masks.hold(optimizer).__enter__()


def test_a_regularizer_and_masks_that_were_made_before_a_layer_was_replaced():
    model = mlp()
    regularizer = ez.Regularizer(model, ez.L0(1e-4))
    masks = ez.prune(model, sparsity=0.5)
    model[0] = nn.Linear(6, 16)
    loss(model).backward()
    for use in (regularizer.add_gradient, masks.apply):
        with pytest.raises(ez.InputError, match=r"0\.weight of Sequential is another parameter"):
            use()


def test_pruning_weights_that_are_all_equal_is_exact_and_warned_of():
    model = mlp()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    with pytest.warns(ez.EllzeroWarning, match="1 of 2 layers have no weight left"):
        assert ez.prune(model, sparsity=0.5).nonzeros == 72


def test_pruning_weights_that_are_all_zero_is_warned_of():
    model = mlp()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        assert ez.prune(model, sparsity=0.5).nonzeros == 0
    assert "72 weights were to be kept, but only 0 are nonzero" in str(given[0].message)


@pytest.mark.parametrize(
    "use", [lambda m: ez.Regularizer(m, ez.L0(1e-4)), lambda m: ez.prune(m, sparsity=0.5)]
)
def test_a_network_without_weights_to_select(use):
    with pytest.raises(ez.InputError, match="no weights selected in Sequential: 0 parameters"):
        use(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (convnet(), "is of another network than Sequential: "),
        (mlp(4), r"2.weight is \(3, 16\), expected \(4, 16\)"),
        (None, r"holds weights only; give it the network: ez.load\(path, model\)"),
        (nn.Linear, "the network is the class Linear; expected an object of it"),
    ],
)
def test_weights_loaded_into_another_network(model, expected, tmp_path):
    ez.save(mlp(), tmp_path / "a.safetensors")
    with pytest.raises(ez.InputError, match=expected):
        ez.load(tmp_path / "a.safetensors", model)


def test_a_state_dict_is_no_file():
    with pytest.raises(ez.InputError, match="path is OrderedDict; expected the path of a file"):
        ez.load(mlp().state_dict())  # pyright: ignore[reportArgumentType]


def test_compact_before_prune_takes_nothing_away():
    before = ez.trace(mlp(), X[:1])
    small = ez.compact(before).model
    assert [tuple(p.shape) for p in small.parameters()] == [
        tuple(p.shape) for p in before.parameters()
    ]
