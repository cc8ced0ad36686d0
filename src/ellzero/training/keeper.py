"""The keeper: what a run that is stopped goes back to."""

from __future__ import annotations

import time
from pathlib import Path

from ellzero.recipe import Recipe
from ellzero.training import checkpoint
from ellzero.training.checkpoint import Checkpoint
from ellzero.training.state import State


class Keeper:
    """The state at the end of the last epoch in memory, and now and then in the checkpoint's file.

    Whatever stops a run in mid-epoch, its weights have moved on by then, and to finish the epoch
    first could take hours. So each epoch's end is copied: one pass over the weights and what their
    optimizer knows of them, and as much memory. With Adam that takes 1 ms for LeNet-300-100, whose
    epoch on MNIST takes a second, and 0.2 s for 25 million weights, whose epoch takes minutes.
    Nothing is copied where there is no folder. Of several processes rank 0 has one; those of a
    sharded network help it to its copy, and what stops them waits for nobody.
    """

    def __init__(
        self, recipe: Recipe, folder: Path | None, seconds: float, *, helps: bool = False
    ) -> None:
        self._recipe, self._folder, self._helps = recipe, folder, helps
        self._last: Checkpoint | None = None
        self._seconds_before = seconds
        self._began = self._wrote = time.monotonic()

    def seconds(self) -> float:
        """What the run took over all its sessions."""
        return self._seconds_before + _since(self._began)

    def keep(self, state: State) -> None:
        """Remember the state, which is at the end of an epoch or at the beginning of a step."""
        if self._folder is not None or self._helps:
            state.seconds = self.seconds()
            self._last = checkpoint.take(state)

    def write(self) -> None:
        """Write the checkpoint of what was kept last, unless the file has it already."""
        if self._folder is not None and self._last is not None:
            checkpoint.write(self._last, self._folder, self._recipe)
            self._last = None
            self._wrote = time.monotonic()

    def write_if_due(self) -> None:
        """The same, once `checkpoint_seconds` of the recipe have passed since the last time."""
        if _since(self._wrote) >= self._recipe.checkpoint_seconds:
            self.write()


def _since(moment: float) -> float:
    """Seconds since a moment; none where the clock was moved back."""
    return max(0.0, time.monotonic() - moment)
