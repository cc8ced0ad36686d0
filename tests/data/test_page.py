"""The code of docs/data.md runs, and gives data that a network can be trained on."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import ellzero as ez
from small import recipe

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


class Words(nn.Module):
    """The sum of the words that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Linear(20, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        there = nn.functional.one_hot(input_ids, 20) * attention_mask.unsqueeze(-1)
        return self.words(there.sum(1).float())


def test_the_code_of_the_page_runs():
    pytest.importorskip("torchmetrics")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    given: dict[str, object] = {}
    kinds = []
    models = [Words(), nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 2)]
    for block, model in zip(blocks, models, strict=True):
        exec(block, given)
        data = given["data"]
        assert isinstance(data, ez.Data)
        told = recipe(reference={"epochs": 1}, train={"epochs": 1}, finetune={"epochs": 1})
        result = ez.compress(model, data, told)
        assert result.record.status == "done"
        kinds.append((data.is_classification, data.scores_accuracy))
    assert kinds == [(True, True), (True, True), (True, False), (True, True)]
