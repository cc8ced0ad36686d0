"""Augmentation: what it does, that training examples alone are changed, and how it is read."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ellzero as ez
from ellzero.data.augment import Augment
from ellzero.errors import InputError
from small import images, recipe

SIGNAL = torch.tensor([[[1.0, 2.0, 4.0, 8.0, 16.0]]])
CPU = torch.device("cpu")


def outcomes(augment: Augment, x: torch.Tensor, draws: int = 300) -> torch.Tensor:
    """What becomes of one example in so many draws, (draws, ...)."""
    torch.manual_seed(0)
    return augment(x.expand(draws, *x.shape[1:]))


def rows(values: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in values.flatten(1).tolist()}


# what each does


def test_a_shift_moves_by_whole_steps_and_fills_with_zeros():
    assert rows(outcomes(Augment(shift=2), SIGNAL)) == {
        (4, 8, 16, 0, 0),
        (2, 4, 8, 16, 0),
        (1, 2, 4, 8, 16),
        (0, 1, 2, 4, 8),
        (0, 0, 1, 2, 4),
    }


def test_a_flip_mirrors_the_last_axis_of_about_half():
    image = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3)
    changed = outcomes(Augment(flip=True), image, draws=400)
    assert changed.dtype == torch.uint8
    assert rows(changed) == {(0, 1, 2, 3, 4, 5), (2, 1, 0, 5, 4, 3)}
    mirrored = (changed[:, 0, 0, 0] == 2).sum()
    assert abs(int(mirrored) - 200) < 50  # five deviations of a fair coin


def test_a_shift_of_an_image_moves_each_axis_for_itself():
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[..., 2, 2] = 200
    places = outcomes(Augment(shift=1), image).flatten(1).argmax(1)
    assert {divmod(int(place), 5) for place in places} == {
        (row, column) for row in (1, 2, 3) for column in (1, 2, 3)
    }


def test_a_crop_shows_a_window_of_a_ramp():
    ramp = torch.arange(101.0).view(1, 1, -1)
    changed = outcomes(Augment(crop=0.4), ramp).squeeze(1)
    # a window of a ramp is a ramp: as steep as the window is wide, within the first
    steps = changed.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=0, atol=1e-4)
    assert (changed[:, 0] >= 0).all()
    assert (changed[:, -1] <= 100).all()
    widths = (changed[:, -1] - changed[:, 0]) / 100
    assert 0.6 <= widths.min() < 0.62
    assert 0.98 < widths.max() <= 1
    middles = (changed[:, -1] + changed[:, 0]) / 2
    assert middles.min() < 40
    assert middles.max() > 60


def test_a_crop_keeps_the_proportions_of_an_image():
    rise = torch.arange(21.0).view(1, 1, -1, 1) + 1000 * torch.arange(21.0)
    changed = outcomes(Augment(crop=0.5), rise, draws=50)[:, 0]
    down, across = changed[:, 10, 10] - changed[:, 9, 10], changed[:, 10, 10] - changed[:, 10, 9]
    torch.testing.assert_close(across, 1000 * down, rtol=1e-2, atol=0)


def test_speed_stretches_about_the_middle():
    ramp = torch.arange(1.0, 102.0).view(1, 1, -1)
    changed = outcomes(Augment(speed=0.2), ramp).squeeze(1)
    assert changed[:, 50].sub(51).abs().max() < 1e-4
    inner = changed[:, 10:91]
    speeds = inner.diff(dim=1)
    torch.testing.assert_close(speeds, speeds[:, :1].expand_as(speeds), rtol=0, atol=1e-3)
    assert 0.8 - 1e-4 <= speeds.min() < 0.81
    assert 1.19 < speeds.max() <= 1.2 + 1e-4
    fast = speeds[:, 0] > 1.05  # it ends before the second does
    assert fast.any()
    assert (changed[fast][:, [0, -1]] == 0).all()


def test_between_two_values_lies_their_mean():
    # at half the speed, places -0.5, 0.5 of two values 2, 4 about the middle 0.5: 0.25 and 0.75
    x = torch.tensor([[[2.0, 4.0]]])
    augment = Augment(speed=0.5)
    torch.manual_seed(3)
    changed = augment(x)
    torch.manual_seed(3)
    speed = 0.5 + torch.rand(1, 1, 1).item()
    expected = np.interp([0.5 - speed / 2, 0.5 + speed / 2], [-1, 0, 1, 2], [0, 2, 4, 0])
    np.testing.assert_allclose(changed.flatten(), expected, rtol=1e-6)


def test_gain_multiplies_each_example_by_one_number():
    changed = outcomes(Augment(gain=0.5), SIGNAL)
    factors = changed / SIGNAL
    torch.testing.assert_close(factors, factors[..., :1].expand_as(factors))
    assert 0.5 <= factors.min() < 0.52
    assert 1.48 < factors.max() <= 1.5


def test_noise_is_normal_of_a_deviation_up_to_the_given_one():
    silence = torch.zeros(1, 1, 4000)
    changed = outcomes(Augment(noise=2.0), silence)
    deviations = changed.std(2).flatten()
    assert deviations.max() < 2.2
    assert abs(float(deviations.mean()) - 1) < 0.15  # uniform from 0 to 2
    assert changed.mean().abs() < 0.01
    whole_numbers = outcomes(Augment(noise=2.0), silence.to(torch.uint8))
    assert whole_numbers.equal(changed)


def test_nothing_asked_is_nothing_done():
    assert Augment()(SIGNAL) is SIGNAL


def test_axes_say_where_time_is():
    frames = torch.arange(12.0).view(1, 4, 3)
    changed = outcomes(Augment(shift=1, axes=(1,)), frames)
    later = torch.cat([torch.zeros(1, 1, 3), frames[:, :-1]], 1)
    assert any(example.equal(later[0]) for example in changed)
    assert {tuple(example.sum(1).eq(0).tolist()) for example in changed} == {
        (False, False, False, False),
        (True, False, False, False),
        (False, False, False, True),
    }


@given(
    st.integers(0, 3),
    st.booleans(),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
    st.sampled_from([(2, 1, 7), (3, 2, 5, 4), (1, 1, 1)]),
)
def test_what_is_read_lies_between_what_was_there(shift, flip, crop, speed, shape):
    x = 1 + torch.arange(float(np.prod(shape))).view(shape)
    changed = Augment(shift=shift, flip=flip, crop=crop, speed=speed)(x)
    assert changed.shape == x.shape
    assert (changed >= 0).all()
    for example, source in zip(changed, x, strict=True):
        assert example.max() <= source.max() * (1 + 1e-6)


def test_the_global_seed_decides():
    augment = Augment(shift=1, flip=True, crop=0.1, speed=0.1, gain=0.1, noise=0.1)
    x = torch.randn(8, 2, 9)
    first, again, other = ((torch.manual_seed(seed), augment(x))[1] for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)
    assert not first[0].equal(augment(x[:1])[0])


# where it acts


def test_training_batches_alone_are_changed():
    x = torch.ones(6, 1, 4)
    y = torch.arange(6) % 2
    data = ez.Data(
        (x, y), (x, y), (x, y), augment=lambda batch: batch * 3, preprocess=ez.Preprocess(2.0)
    )
    ((inputs, _),) = data.train.batches(6, CPU, shuffle=True)
    assert (inputs == 6).all()  # changed first, then preprocessed
    for part in data.parts:
        ((inputs, _),) = part.batches(6, CPU)
        assert (inputs == 2).all()
    ((inputs, _),) = data.validation.batches(6, CPU, shuffle=True)
    assert (inputs == 2).all()
    assert (x == 1).all()


def test_a_dataset_and_batches_are_changed_too():
    x, y = torch.ones(6, 1, 4), torch.arange(6) % 2
    dataset = torch.utils.data.TensorDataset(x, y)
    for examples in (dataset, torch.utils.data.DataLoader(dataset, 3)):
        data = ez.Data(examples, (x, y), augment=lambda batch: batch * 3)
        assert all((inputs == 3).all() for inputs, _ in data.train.batches(3, CPU, shuffle=True))


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda x: x[:-1], r"augment made \(5, 1, 4\) of train inputs of \(6, 1, 4\)"),
        (lambda x: x.tolist(), "augment made list of train inputs"),
    ],
)
def test_an_augmentation_that_loses_examples_is_refused(augment, message):
    x, y = torch.ones(6, 1, 4), torch.arange(6) % 2
    data = ez.Data((x, y), (x, y), augment=augment)
    with pytest.raises(InputError, match=message):
        next(iter(data.train.batches(6, CPU, shuffle=True)))


def test_a_run_with_augmentation_is_the_same_again_and_differs_from_one_without():
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(72, 2))

    weights = []
    for augment in (Augment(shift=1, noise=5.0), Augment(shift=1, noise=5.0), None):
        result = ez.compress(network(), images(augment=augment), recipe())
        weights.append(result.model.state_dict()["1.weight"])
    first, again, without = weights
    assert first.equal(again)
    assert not first.equal(without)


# how it is read


def test_a_table_of_a_recipe_is_read():
    augment = Augment.parse({"shift": 3, "noise": 1}, ("shift", "noise"), axes=(1,))
    assert augment == Augment(shift=3, noise=1, axes=(1,))
    assert Augment.parse(augment, ()) is augment
    assert Augment.parse(None, ("shift",)) is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"shfit": 3}, "augment has no 'shfit' for this data; did you mean shift"),
        ({"flip": True}, "augment has no 'flip' for this data"),
        ({"axes": (1,)}, "augment has no 'axes'"),
        ("flip", "augment is 'flip'; expected a table, of shift, gain"),
        ({"shift": 1.5}, "augment.shift is 1.5; expected a whole number >= 0"),
        ({"shift": True}, "augment.shift is True"),
        ({"shift": -1}, "augment.shift is -1"),
        ({"gain": 1.0}, "augment.gain is 1.0; expected a number >= 0 and < 1"),
        ({"gain": "much"}, "augment.gain is 'much'"),
        ({"gain": float("nan")}, "augment.gain is nan"),
    ],
)
def test_wrong_tables_are_explained(table, message):
    with pytest.raises(InputError, match=message):
        Augment.parse(table, ("shift", "gain"))


@pytest.mark.parametrize("value", [float("inf"), -0.1])
def test_noise_is_finite(value):
    with pytest.raises(InputError, match=r"augment\.noise"):
        Augment(noise=value)


def test_a_flip_is_true_or_false():
    with pytest.raises(InputError, match=r"augment\.flip is 1; expected true or false"):
        Augment(flip=1)  # pyright: ignore[reportArgumentType]


def test_rows_of_features_have_no_place_to_shift():
    with pytest.raises(InputError, match=r"inputs of shape \(2, 3\) have no place or time"):
        Augment(shift=1)(torch.ones(2, 3))
