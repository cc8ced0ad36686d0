"""TensorBoard: the metrics of each epoch as scalars, in a run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ellzero.errors import InputError
from ellzero.record import EpochMetrics
from ellzero.run_folder import TENSORBOARD, clear_events
from ellzero.training.plan import Step

PLACE = ("stage", "round", "epoch")
"""What says where an epoch is; all else of its metrics are scalars."""


class Board:
    """Writes each stage as a run of TensorBoard's: `tensorboard/train`, `tensorboard/finetune-2`.

    Tags are the names in metrics.jsonl, steps are epochs. A stage that begins again, or goes on in
    another process, is written anew from the history, so that no epoch is there twice.

    Args:
        folder: the run's; None: nothing is written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._root = None if folder is None else folder / TENSORBOARD
        self._writer: Any = None

    def begin(self, step: Step, history: Sequence[EpochMetrics]) -> None:
        """Write the epochs of a step that are done, in the place of what there is of it."""
        if self._root is None:
            return
        from torch.utils.tensorboard import SummaryWriter  # an extra

        self.close()
        path = self._root / (f"{step.stage}-{step.round}" if step.round else step.stage)
        clear_events(path)
        self._writer = SummaryWriter(str(path))
        for metrics in history:
            if (metrics.stage, metrics.round) == (step.stage, step.round):
                self.epoch(metrics)

    def epoch(self, metrics: EpochMetrics) -> None:
        """Write an epoch's figures."""
        if self._writer is None:
            return
        for name, figure in metrics.to_table().items():
            if name not in PLACE and figure is not None:
                self._writer.add_scalar(name, figure, metrics.epoch)
        self._writer.flush()

    def close(self) -> None:
        """End what is being written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_board(folder: Path | None) -> None:
    """Make sure that the metrics can be written for TensorBoard.

    Raises:
        InputError: there is no folder, or a link in its place; the package is not installed.
    """
    if folder is None:
        raise InputError(
            "tensorboard = true writes into the run's folder, and there is none; give folder=, or "
            "leave tensorboard out"
        )
    if (folder / TENSORBOARD).is_symlink():
        raise InputError(f"{folder / TENSORBOARD} is a link; nothing is written outside the folder")
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise InputError(
            "tensorboard = true needs the package tensorboard: pip install 'ellzero[tensorboard]'"
        ) from None
