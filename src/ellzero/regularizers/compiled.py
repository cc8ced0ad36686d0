"""The penalty's gradient as one kernel a weight, made by TorchInductor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ellzero.blocks import whole
from ellzero.errors import InputError
from ellzero.penalties import Term
from ellzero.penalties.penalty import wide

Terms = Sequence[tuple[Term, float]]
"""Terms of a penalty, each with the factor of its strength."""


class CompiledGradient:
    """Adds the gradient of terms to gradients; compiled at the first call, which takes seconds.

    The graph is plain tensor arithmetic, so it is traced and compiled as it is. `torch.compile`
    would have to look at Python again at each call, which takes longer than the kernel of a small
    network; what it would look for, tensors of other kinds than before, is compared here.
    """

    def __init__(self) -> None:
        self._kernels: list[tuple[list[object], Callable[..., object]]] = []

    def __call__(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        terms: list[Terms],
        ramped: float | None,
    ) -> None:
        """Add; `ramped` is None where no ramp changes the strengths from step to step.

        Raises:
            InputError: there is no compiler.
        """
        inputs = weights + gradients
        if ramped is not None:
            # a number would be compiled in, and anew with every other one
            inputs.append(torch.tensor(ramped, dtype=torch.float64, device="cpu"))
        # a kernel reads and writes memory as it was told, so all of this must be as it was
        like = [terms, *((t.dtype, t.device, t.shape, t.stride()) for t in inputs)]
        kernel = next((kernel for made_for, kernel in self._kernels if made_for == like), None)
        if kernel is None:
            kernel = _kernel(inputs, terms)
            self._kernels.append((like, kernel))
        kernel(*inputs)


def _kernel(inputs: list[Tensor], terms: list[Terms]) -> Callable[..., object]:
    # imported here, for that takes seconds
    from torch._inductor import compile as compile_graph
    from torch.fx.experimental.proxy_tensor import make_fx

    def add_gradients(*tensors: Tensor) -> tuple[()]:
        count = len(terms)
        ramped = tensors[2 * count :]
        pairs = zip(tensors[:count], tensors[count : 2 * count], terms, strict=True)
        for w, gradient, acting in pairs:
            total = sum(term.gradient(wide(w)) * scale for term, scale in acting)
            gradient.add_(total * ramped[0] if ramped else total)
        return ()

    examples: list[Any] = [tensor.detach() for tensor in inputs]
    with whole():
        graph = make_fx(add_gradients, tracing_mode="fake")(*examples)
    try:
        kernel: Any = compile_graph(graph, examples)
    except RuntimeError as error:
        raise no_compiler(inputs[0].device, error) from None
    return kernel


def no_compiler(device: torch.device, error: Exception) -> InputError:
    """The error for people where PyTorch's compiler fails."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    needed = "a C++ compiler" if device.type == "cpu" else "Triton"
    return InputError(f"cannot compile for {device}, which needs {needed}: {reason}")
