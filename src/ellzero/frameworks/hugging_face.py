"""The scheme as a Trainer of Hugging Face's transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ellzero.errors import InputError
from ellzero.frameworks.scheme import Scheme
from ellzero.frameworks.sparsifier import Sparsifier
from ellzero.pruning import Masks

try:
    from accelerate.utils import DistributedType
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise ImportError(
        f"{error}; ellzero.frameworks.hugging_face needs transformers and accelerate: "
        "pip install 'ellzero[transformers]'"
    ) from error

STATE = "sparse_training.pt"
"""The file of a checkpoint that has the masks and what the regularizer learned."""

UNSHARDED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
)

_Base = Trainer if TYPE_CHECKING else object


class SparseTraining(_Base):
    """Train with a penalty, prune, fine-tune: a mixin for any `transformers.Trainer`.

    The penalty's gradient is added once an optimizer step, after accumulation and before clipping,
    where the Trainer has no event of its own. Masks hold by hooks of the optimizer. Checkpoints
    have all of it, so that `train(resume_from_checkpoint=...)` goes on as if nothing had happened.
    When the network has been pruned, the best metric is looked for anew, for what was measured
    before was dense: `load_best_model_at_end` and `EarlyStoppingCallback` see pruned networks only.

    Args:
        scheme: what is to be done, and when; all other arguments are the Trainer's.

    Raises:
        InputError: (at once) float16, whose gradients are scaled where the penalty is added;
            optimizers that move weights within the backward pass. (When the training begins)
            sharded weights; gates on several processes; what `Sparsifier` refuses; a checkpoint of
            another trainer.

    Example:
        >>> from transformers import Seq2SeqTrainer
        >>> class SparseSeq2SeqTrainer(SparseTraining, Seq2SeqTrainer):
        ...     pass
    """

    def __init__(self, *args: Any, scheme: Scheme, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scheme = scheme
        self.sparsifier: Sparsifier | None = None
        self._resumed_from: str | None = None
        if self.args.fp16:
            raise InputError(
                "with fp16 the gradients are scaled where the penalty is added; take bf16=True"
            )
        if any(kind in self.args.optim for kind in ("lomo", "layerwise")):
            raise InputError(
                f"optim is {self.args.optim!r}, which moves the weights within the backward pass, "
                "before a penalty can be added; take another one, such as 'adamw_torch'"
            )
        self.add_callback(_Events(self))

    @property
    def masks(self) -> Masks | None:
        """The masks of the network since it was pruned; None before."""
        return None if self.sparsifier is None else self.sparsifier.masks

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        if resume_from_checkpoint is True and self.args.output_dir is not None:
            last = get_last_checkpoint(self.args.output_dir)
            resume_from_checkpoint = True if last is None else last  # which the Trainer refuses
        self._resumed_from = resume_from_checkpoint or None  # pyright: ignore[reportAttributeAccessIssue]
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except BaseException:
            self._close()
            raise

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:  # the last batch of an optimizer step
            assert self.sparsifier is not None
            self.sparsifier.add_gradient()
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        if self.sparsifier is None:
            return super().evaluation_loop(*args, **kwargs)
        with self.sparsifier.finalized():
            return super().evaluation_loop(*args, **kwargs)

    def _begin(self) -> None:
        """Bind the scheme to the network and the optimizer that the Trainer has made."""
        self._close()
        kind = self.accelerator.distributed_type
        if kind not in UNSHARDED:
            raise InputError(
                f"{kind} may hold the weights in shards; expected one process, or plain "
                "data-parallel ones"
            )
        if self.scheme.gates is not None and self.args.world_size > 1:
            raise InputError(
                f"gates on {self.args.world_size} processes would draw and learn on each by "
                "itself; take a penalty, or one process"
            )
        state = None
        if self._resumed_from is not None:
            file = Path(self._resumed_from) / STATE
            if not file.is_file():
                raise InputError(
                    f"{file} does not exist; expected a checkpoint of a training with this class"
                )
            state = torch.load(file, map_location="cpu", weights_only=True)
        assert isinstance(self.model, torch.nn.Module)
        assert isinstance(self.optimizer, torch.optim.Optimizer)
        steps = self.state.max_steps
        self.sparsifier = Sparsifier(self.scheme, self.model, self.optimizer, steps, state=state)

    def _close(self) -> None:
        if self.sparsifier is not None:
            self.sparsifier.close()


class SparseTrainer(SparseTraining, Trainer):
    """`transformers.Trainer` that trains with a penalty, prunes and fine-tunes.

    Args:
        scheme: what is to be done, and when; all other arguments are the Trainer's.

    Raises:
        InputError: as `SparseTraining`.

    Example:
        >>> import ellzero as ez
        >>> from ellzero.frameworks import Scheme
        >>> from transformers import BertConfig, BertForMaskedLM, TrainingArguments
        >>> model = BertForMaskedLM(
        ...     BertConfig(
        ...         hidden_size=16,
        ...         num_hidden_layers=1,
        ...         num_attention_heads=2,
        ...         intermediate_size=32,
        ...         vocab_size=50,
        ...     )
        ... )
        >>> scheme = Scheme(
        ...     penalty=ez.L0(1e-6),
        ...     sparsity=0.8,
        ...     include=["bert.encoder.*.weight"],
        ...     exclude=["*LayerNorm*"],
        ... )
        >>> trainer = SparseTrainer(model, TrainingArguments(report_to=[]), scheme=scheme)
    """


class _Events(TrainerCallback):
    """The Trainer's events, as far as there are any."""

    def __init__(self, trainer: SparseTraining) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer._begin()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self._trainer.sparsifier is not None
        if self._trainer.sparsifier.begin_step(state.global_step):
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer.sparsifier is not None and args.should_save:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            torch.save(self._trainer.sparsifier.state_dict(), folder / STATE)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer.sparsifier is not None:
            self._trainer.sparsifier.finish()
