"""Outputs judged as they are given, and small ones whose figures are known by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import ellzero as ez

IGNORED = -100


class Given(nn.Module):
    """A network whose inputs are its outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def judged(outputs: Tensor, targets: Tensor, *weights: Tensor, **options: Any) -> ez.Evaluation:
    """Score and loss of outputs, against targets, by weights of the examples."""
    examples = (outputs, targets, *weights)
    return ez.evaluate(Given(), ez.Data(examples, examples, **options))


# three sequences of two tokens over three words; the second label of the last does not count
TOKENS = torch.tensor(
    [[[2.0, 0, 0], [0, 1, 0]], [[0, 0, 3], [1, 0, 0]], [[0, 2, 0], [9, 9, 9]]]
)  # fmt: skip
WORDS = torch.tensor([[0, 1], [0, 0], [1, IGNORED]])

# two examples of three labels, each of which is there or not
LABELS = torch.tensor([[1, 0, 1], [0, 1, 1]])
LABEL_LOGITS = torch.tensor([[2.0, 1.0, -1.0], [-3.0, 0.5, 0.0]])
