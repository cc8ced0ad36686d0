"""Run and study folders written by hand: records, metrics and answers as a test needs them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import ellzero as ez
from ellzero.record import EpochMetrics, FinishedRecord, Stage
from ellzero.run_folder import RunFolder


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


def table(
    *, score: float = 0.5, loss: float = 1.0, nonzeros: int = 100, **entries: Any
) -> dict[str, Any]:
    """The record of a run that is done, as it stood in the first files of this format."""
    figures = {
        "format": 1,
        "status": "done",
        "started": "2026-01-02T03:04:05+00:00",
        "folder": "somewhere",
        "versions": {},
        "recipe": {},
        "weights": 1000,
        "nonzeros": nonzeros,
        "sparsity": 1 - nonzeros / 1000,
        "nonzero_ratio": 1000 / nonzeros,
        "reference": {"validation": {"score": 0.99, "loss": 0.01}},
        "compressed": {"validation": {"score": score, "loss": loss}, "epoch": 1},
        "validation_score": score,
        "outcomes": [],
        "layers": [],
        "float32_bytes": 4 * 1010,
        "seconds": 1.0,
    }
    return figures | entries


def finished(**entries: Any) -> RunFolder:
    """A run that is done, without a folder."""
    return RunFolder(Path("nowhere"), "done", FinishedRecord.model_validate(table(**entries)))


def metrics(stage: Stage, **entries: Any) -> EpochMetrics:
    """The metrics of an epoch."""
    figures = {"round": 0, "epoch": 1, "train_loss": 0.7, "penalty": 0.0, "validation_loss": 0.8}
    figures |= {"validation_score": 0.5, "nonzeros": 100, "learning_rate": 0.1, "seconds": 0.25}
    return EpochMetrics(**{"stage": stage, **figures, **entries})


def run(
    folder: Path,
    name: str,
    *,
    wrong: float | None = 10.0,
    status: str = "done",
    trained: int = 0,
    tuned: int = 0,
    right: Sequence[int] | None = None,
    **entries: Any,
) -> Path:
    """One run of the study: what it reached, and epochs of training and fine-tuning."""
    cell = folder / "cells" / name
    cell.mkdir(parents=True)
    if status == "done":
        record = table(folder=str(cell), test_error_percent=wrong, **entries)
    else:
        record = {"format": 1, "status": status, "folder": str(cell), **entries}
    (cell / "record.json").write_text(json.dumps(record))
    # the pruned network, before it is fine-tuned, is a row without a training loss
    rows = [metrics("train")] * trained
    rows += [metrics("finetune", epoch=0, train_loss=None)]
    rows += [metrics("finetune")] * tuned
    (cell / "metrics.jsonl").write_text("".join(f"{json.dumps(row.to_table())}\n" for row in rows))
    if right is not None:
        answers = torch.tensor(right, dtype=torch.bool)
        save_file({"compressed": answers}, cell / "answers.safetensors")
    return cell
