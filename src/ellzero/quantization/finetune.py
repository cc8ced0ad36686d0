"""The quantized weights of a network: what they hold, and the training of their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ellzero.codebook import MAX_VALUES, Codebook, find_codebook, round_half, round_values
from ellzero.data.data import Data
from ellzero.errors import InputError
from ellzero.quantization.tuning import Trained, Tuning, tune
from ellzero.record import Evaluation
from ellzero.selection import Selection
from ellzero.training.evaluation import evaluate


class Quantized(Mapping[str, Codebook]):
    """The quantized weights of one network: by name, the codebook that each holds now.

    Made by `quantize`. Like masks it stands beside the network; the weights are the truth.

    Args:
        model: the network.
        weights: those of its weights that are quantized.
        errors: by name, what `quantize` changed: `|q - w|^2 / |w|^2`.

    Example:
        >>> import torch, ellzero as ez
        >>> quantized = ez.quantize(torch.nn.Linear(8, 8), bits=3)
        >>> {name: len(codebook.values) for name, codebook in quantized.items()}
        {'weight': 8}
    """

    def __init__(self, model: nn.Module, weights: Selection, errors: Mapping[str, float]) -> None:
        self.model, self.weights, self.errors = model, weights, dict(errors)

    def __getitem__(self, name: str) -> Codebook:
        book = find_codebook(self.weights[name])
        if book is None:
            raise InputError(
                f"{name} has more than {MAX_VALUES} distinct values: it was changed after it was "
                "quantized. Quantize it again"
            )
        return book

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def bits(self) -> dict[str, int]:
        """Bits by name, as many as the distinct values take, which may be fewer than asked for."""
        return {name: book.bits for name, book in self.items()}

    def finetune(
        self,
        data: Data,
        *,
        epochs: int = 5,
        learning_rate: float = 3e-3,
        batch_size: int = 128,
        seed: int = 0,
        progress: bool = True,
    ) -> Evaluation:
        """Train the values of the codebooks, in place; which weight holds which value stays.

        A value's gradient is the sum over its weights (Han et al., 2016). Of uniform values only
        the step is trained. Zeros stay zero, biases as they are, and the network is in evaluation
        mode throughout, for it is trained as it will be shipped. Adam, at a rate that falls to 0 by
        a cosine. The epoch with the best score on validation data is kept, or what was there
        before.

        Args:
            data: its train part trains, its validation part chooses the epoch.
            epochs: passes over the training data.
            learning_rate: of the values' relative change: 3e-3 moves a value by about 0.3 % a step.
            batch_size: examples a step.
            seed: of the order of the examples.
            progress: show on standard error how far it is: a bar on a terminal, elsewhere a line
                every 30 seconds.

        Returns:
            Score and loss on validation data of what was kept.

        Raises:
            InputError: a setting out of range; data that do not fit; only frozen weights.

        References:
            Han, Mao, Dally: Deep Compression, ICLR 2016, https://arxiv.org/abs/1510.00149
        """
        how = Tuning(epochs, learning_rate, batch_size, seed)
        books = [_Values(n, self[n]) for n, w in self.weights.items() if w.requires_grad]
        if not any(len(book.book.values) for book in books):
            raise InputError("no quantized weight can be trained: all are frozen, or zero")
        data.check_fit(self.model)

        def ended() -> tuple[Evaluation, dict[str, Tensor]]:
            write(self.weights, {book.name: book.rounded() for book in books})
            return evaluate(self.model, data, "validation"), self._copies()

        best, kept = evaluate(self.model, data, "validation"), self._copies()
        trained = Trained(
            self.model,
            [book.factor for book in books],
            lambda: {book.name: book.weight() for book in books},
            "codebooks",
        )
        try:
            return tune(
                trained, data, how, best=best, ended=ended, keep=kept.update, progress=progress
            )
        finally:
            write(self.weights, kept)

    def _copies(self) -> dict[str, Tensor]:
        return {name: w.detach().clone() for name, w in self.weights.items()}


class _Values:
    """A codebook in training: a factor for each value, or one for the step of uniform ones."""

    def __init__(self, name: str, book: Codebook) -> None:
        self.name, self.book = name, book
        count = len(book.values) if book.scale is None else 1
        self.factor = torch.ones(count, dtype=book.values.dtype, device=book.values.device)
        self.factor.requires_grad_()

    def weight(self) -> Tensor:
        """The weight as it stands, for autograd."""
        return self.book.expand(self.book.values * self.factor)

    @torch.no_grad()
    def rounded(self) -> Tensor:
        """The weight with values of 16 bits."""
        integers, scale = self.book.integers, self.book.scale
        if integers is None or scale is None:
            return self.book.expand(round_values(self.book.values * self.factor))
        return self.book.expand(integers * round_half(scale * self.factor))


@torch.no_grad()
def write(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Give some weights other values, in place."""
    for name, value in values.items():
        weights[name].copy_(value)
