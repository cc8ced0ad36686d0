"""Study folders written by hand: records, metrics and answers with the figures a test needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import ellzero as ez


def study(folder: Path, **changes: Any) -> ez.Study:
    """A study of magnitude and l1 with three strengths, three seeds; its file in the folder."""
    table = {
        "seeds": [0, 1, 2],
        "sparsities": [0.9],
        "methods": {"magnitude": {}, "l1": {"strengths": [1e-3, 1e-5, 1e-4]}},
    }
    made = ez.Study.parse({**table, **changes})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(made.to_toml())
    return made


def run(
    folder: Path,
    name: str,
    *,
    score: float = 0.5,
    loss: float = 1.0,
    nonzeros: int = 100,
    wrong: float | None = 10.0,
    status: str = "done",
    seconds: float = 1.0,
    trained: int = 0,
    tuned: int = 0,
    right: Sequence[int] | None = None,
    **more: Any,
) -> Path:
    """One run of the study: what it reached, and epochs of training and fine-tuning."""
    cell = folder / "cells" / name
    cell.mkdir(parents=True)
    record: dict[str, Any] = {"format": 1, "status": status, "folder": str(cell), **more}
    if status == "done":
        validation = {"score": score, "loss": loss}
        record |= {
            "weights": 1000,
            "nonzeros": nonzeros,
            "compressed": {"validation": validation},
            "reference": {"validation": {"score": 0.99, "loss": 0.01}},
            "test_error_percent": wrong,
            "seconds": seconds,
        }
    (cell / "record.json").write_text(json.dumps(record))
    # the pruned network, before it is fine-tuned, is a row without a training loss
    rows: list[dict[str, Any]] = [{"stage": "train", "train_loss": 0.7, "seconds": 0.25}] * trained
    rows += [{"stage": "finetune", "train_loss": None, "seconds": 0.25}]
    rows += [{"stage": "finetune", "train_loss": 0.5, "seconds": 0.25}] * tuned
    (cell / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if right is not None:
        answers = torch.tensor(right, dtype=torch.bool)
        save_file({"compressed": answers}, cell / "answers.safetensors")
    return cell
