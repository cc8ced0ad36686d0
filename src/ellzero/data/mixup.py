"""Mixup: a network is trained on pairs of examples laid over each other."""

from __future__ import annotations

import torch
from torch import Tensor

from ellzero.data.batch import Batch
from ellzero.data.data import Data
from ellzero.data.inputs import all_of, of_first
from ellzero.errors import InputError


def mixed(batch: Batch, alpha: float) -> tuple[Batch, Batch, Tensor]:
    """A batch laid over itself in another order: `x = m x_i + (1 - m) x_j`, of the first input.

    `m` is drawn from the beta distribution Beta(alpha, alpha), one for the batch, and `j` from all
    permutations, both by torch's global generators. The loss is `m L(y_i) + (1 - m) L(y_j)`.

    Args:
        batch: preprocessed training examples.
        alpha: above 0; the smaller, the closer is `m` to 0 or 1.

    Returns:
        The mixed inputs with the targets `y_i`; the same inputs with the targets `y_j`; `m`, 0-d
        on the CPU.

    Source:
        Zhang et al.: mixup: Beyond Empirical Risk Minimization, https://arxiv.org/abs/1710.09412

    Example:
        >>> import torch
        >>> one, other, m = mixed(Batch(torch.eye(3), torch.arange(3)), alpha=0.2)
        >>> torch.equal(one.inputs, m * torch.eye(3) + (1 - m) * torch.eye(3)[other.targets])
        True
    """
    first = all_of(batch.inputs)[0]
    concentration = torch.tensor(float(alpha))
    # not validated, for that would look at numbers; 0-d on the CPU, so that no device is waited for
    beta = torch.distributions.Beta(concentration, concentration, validate_args=False)
    share = beta.sample()
    order = torch.randperm(len(first), device=first.device)
    other = batch.each(lambda x: x.index_select(0, order))
    inputs = of_first(lambda x: share * x + (1 - share) * all_of(other.inputs)[0], batch.inputs)
    one = Batch(inputs, batch.targets, batch.weights)
    return one, Batch(inputs, other.targets, other.weights), share


def require_mixable(data: Data) -> None:
    """Refuse data of which there is nothing in between.

    Raises:
        InputError: a first input of integers, such as tokens; a loss that the network computes
            itself, of one target for each example.
    """
    first = all_of(data.example)[0]
    if not first.is_floating_point():
        raise InputError(
            f"mixup lays inputs over each other, but the first one is {first.dtype}; leave it out"
        )
    if data.objective.is_models:
        raise InputError("mixup needs a loss of two targets, which loss='model' is not")
