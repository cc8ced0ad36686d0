"""Preprocessing: standardization by the inputs it is given."""

import numpy as np
import pytest
import torch

import ellzero as ez


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2500, 3), (1500, 2, 100), (40, 3, 4, 5)])
def test_standardized_inputs_have_mean_0_and_deviation_1(shape, dtype):
    x = torch.randint(3, 100, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[:, 0] //= 2
    channels = ez.Preprocess.standardizing(x)(x).transpose(0, 1).flatten(1).double().numpy()
    np.testing.assert_allclose(channels.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(channels.std(1), 1, rtol=1e-6)
    together = ez.Preprocess.standardizing(x, per_channel=False)(x).double().numpy()
    assert abs(together.mean()) < 1e-6
    assert abs(together.std() - 1) < 1e-6
    assert together.std((0, *range(2, x.ndim))).min() < 0.9


def test_a_large_mean_does_not_spoil_the_deviation():
    x = 1e9 + torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    assert ez.Preprocess.standardizing(x).scale == (1.0,)


def test_a_constant_channel_becomes_zero():
    x = torch.tensor([[7, 1], [7, 3]])
    assert ez.Preprocess.standardizing(x)(x).tolist() == [[0, -1], [0, 1]]
