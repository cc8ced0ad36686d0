"""The scheme as a callback of PyTorch Lightning."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import torch

from ellzero.errors import InputError
from ellzero.frameworks.scheme import Scheme
from ellzero.frameworks.sparsifier import Sparsifier
from ellzero.pruning import Masks

try:
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
    from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
except ImportError as error:
    raise ImportError(
        f"{error}; ellzero.frameworks.lightning needs PyTorch Lightning: "
        "pip install 'ellzero[lightning]'"
    ) from error


class SparseTraining(pl.Callback):
    """Train with a penalty, prune, fine-tune: a callback of a `pytorch_lightning.Trainer`.

    The penalty's gradient is added once an optimizer step, after accumulation and unscaling and
    before clipping. Masks hold by hooks of the optimizers. All of it is in the trainer's
    checkpoints, so that `fit(ckpt_path=...)` goes on as if nothing had happened. When the network
    has come to the asked sparsity, callbacks that keep the best epoch or stop early
    (`ModelCheckpoint`, `EarlyStopping`) begin anew, for what they have seen was dense.

    Args:
        scheme: what is to be done, and when.

    Raises:
        InputError: (when the training begins) a trainer that does not know how many steps it will
            take; a strategy that shards the weights; float16 with a fused optimizer; gates with
            manual optimization or on several processes; what `Sparsifier` refuses.

    Example:
        >>> import ellzero as ez, pytorch_lightning as pl
        >>> from ellzero.frameworks import Scheme
        >>> from ellzero.frameworks.lightning import SparseTraining
        >>> scheme = Scheme(penalty=ez.L0(1e-5), sparsity=0.95, prune_at=0.6)
        >>> trainer = pl.Trainer(max_epochs=10, callbacks=[SparseTraining(scheme)], logger=False)
    """

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self._sparsifier: Sparsifier | None = None
        self._state: dict[str, Any] | None = None
        self._validation = ExitStack()

    @property
    def masks(self) -> Masks | None:
        """The masks of the network since it was pruned; None before."""
        return None if self._sparsifier is None else self._sparsifier.masks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _require_supported(trainer, pl_module, self.scheme)
        self._abort()
        steps = _steps_in_all(trainer, pl_module)
        self._sparsifier = Sparsifier(
            self.scheme, pl_module, trainer.optimizers, steps, state=self._state
        )
        self._state = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self._sparsifier is not None
        if self._sparsifier.begin_step(_steps_done(trainer, pl_module)):
            _forget_dense_epochs(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert self._sparsifier is not None
        self._sparsifier.add_gradient(optimizer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._sparsifier is not None:
            self._validation.enter_context(self._sparsifier.finalized())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation.close()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._sparsifier is not None:  # after `on_train_end`, in which averages are taken over
            self._sparsifier.finish()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._abort()

    def state_dict(self) -> dict[str, Any]:
        return {} if self._sparsifier is None else self._sparsifier.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict

    def _abort(self) -> None:
        self._validation.close()
        if self._sparsifier is not None:
            self._sparsifier.close()


def _steps_in_all(trainer: pl.Trainer, module: pl.LightningModule) -> int:
    """Optimizer steps of the whole training; with manual optimization its batches."""
    epochs = trainer.max_epochs
    steps: float = math.inf
    if module.automatic_optimization:
        steps = trainer.estimated_stepping_batches
    elif epochs is not None and trainer.max_steps == -1:
        steps = trainer.num_training_batches * epochs
    if not 0 < steps < math.inf:
        remedy = "max_epochs or max_steps" if module.automatic_optimization else "max_epochs alone"
        raise InputError(
            "the trainer does not know how many steps it will take, so it is unclear when to "
            f"prune; give it {remedy} and a loader with a length"
        )
    return int(steps)


def _steps_done(trainer: pl.Trainer, module: pl.LightningModule) -> int:
    """Optimizer steps before this batch; with manual optimization batches."""
    # of several optimizers each step counts in global_step
    automatic = module.automatic_optimization
    return trainer.global_step if automatic else trainer.fit_loop.total_batch_idx


def _require_supported(trainer: pl.Trainer, module: pl.LightningModule, scheme: Scheme) -> None:
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise InputError(
            f"the strategy {type(trainer.strategy).__name__} may hold the weights in shards; "
            "expected one device, or 'ddp'"
        )
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    for optimizer in trainer.optimizers:
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise InputError(
                f"{type(optimizer).__name__} is fused and unscales float16 gradients within its "
                "step, where no penalty can be added; give it fused=False, or take 'bf16-mixed'"
            )
    if scheme.gates is not None and not module.automatic_optimization:
        raise InputError(
            "gates put a draw into the weights once an optimizer step, and with manual "
            "optimization it is unknown when one begins; take a penalty"
        )
    if scheme.gates is not None and trainer.world_size > 1:
        raise InputError(
            f"gates on {trainer.world_size} processes would draw and learn on each by itself; "
            "take a penalty, or one process"
        )


def _forget_dense_epochs(trainer: pl.Trainer) -> None:
    """Let what keeps a best epoch, or waits for one, begin anew; files stay where they are."""
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor is not None:
            checkpoint.best_k_models = {}
            checkpoint.best_model_path = checkpoint.kth_best_model_path = ""
            checkpoint.best_model_score = checkpoint.current_score = None
            checkpoint.kth_value = _worst(checkpoint.mode)
    for stopping in trainer.early_stopping_callbacks:
        if isinstance(stopping, EarlyStopping):
            stopping.wait_count = 0
            stopping.best_score = _worst(stopping.mode)


def _worst(mode: str) -> torch.Tensor:
    return torch.tensor(math.inf if mode == "min" else -math.inf)
