"""The penalty's gradient as one kernel a weight, of all small ones on a GPU, by TorchInductor.

Torch promises nothing about the interface that is used here, its tracer and its compiler without
`torch.compile`; nothing else in ellzero uses it. The versions that were tested are in `TESTED`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ellzero.chunks import is_joined, whole
from ellzero.errors import InputError
from ellzero.penalties import Term
from ellzero.penalties.penalty import wide
from ellzero.regularizers.together import Terms
from ellzero.schedules import Schedule

TESTED = "2.11 (with a GPU) and 2.13.0"
"""Versions of torch whose tracer and compiler have been tested here."""

MISSING = ("InvalidCxxCompiler", "TritonMissing")
"""Torch's errors where there is no compiler; by name, as their module is no public interface."""


class NotTracedError(Exception):
    """This version of torch has no such tracer or compiler, or they cannot take the gradient."""


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
        progress: float | None,
    ) -> None:
        """Add; `ramped` is None where no ramp changes the strengths from step to step.

        `progress` is None where no number of a term follows a schedule.

        Raises:
            InputError: there is no compiler.
            NotTracedError: torch's own interface does not do it; nothing was added.
        """
        # a number would be compiled in, and anew with every other one
        numbers = [] if ramped is None else [ramped]
        if progress is not None:
            numbers += [schedule(progress) for _, _, schedule in _scheduled(terms)]
        inputs = weights + gradients
        inputs += [torch.tensor(n, dtype=torch.float64, device="cpu") for n in numbers]
        # a kernel reads and writes memory as it was told, so all of this must be as it was
        like = [terms, *((t.dtype, t.device, t.shape, t.stride()) for t in inputs)]
        kernel = next((kernel for made_for, kernel in self._kernels if made_for == like), None)
        if kernel is None:
            kernel = _kernel(inputs, terms, is_ramped=ramped is not None)
            self._kernels.append((like, kernel))
        kernel(*inputs)


def _scheduled(terms: list[Terms]) -> list[tuple[Term, str, Schedule]]:
    """The numbers of the terms that follow a schedule, each once."""
    distinct = dict.fromkeys(term for acting in terms for term, _ in acting)
    return [(term, *scheduled) for term in distinct for scheduled in term.schedules.items()]


def _with_numbers(term: Term, numbers: dict[str, Tensor]) -> Term:
    """A term with traced numbers in it, which cannot be checked as `replace` would check them."""
    changed = copy.copy(term)
    for name, number in numbers.items():
        object.__setattr__(changed, name, number)
    return changed


def _kernel(inputs: list[Tensor], terms: list[Terms], *, is_ramped: bool) -> Callable[..., object]:
    def add_gradients(*tensors: Tensor) -> tuple[()]:
        count = len(terms)
        numbers = list(tensors[2 * count :])
        ramped = numbers.pop(0) if is_ramped else None
        traced: dict[Term, dict[str, Tensor]] = {}
        for (term, name, _), number in zip(_scheduled(terms), numbers, strict=True):
            traced.setdefault(term, {})[name] = number
        joined: list[tuple[Tensor, Any]] = []
        pairs = zip(tensors[:count], tensors[count : 2 * count], terms, strict=True)
        for w, gradient, acting in pairs:
            now = [(_with_numbers(term, traced.get(term, {})), scale) for term, scale in acting]
            total: Any = sum(term.gradient(wide(w)) * scale for term, scale in now)
            total = total if ramped is None else total * ramped
            if is_joined(gradient) and gradient.dtype == total.dtype:
                joined.append((gradient, total))
            else:
                gradient.add_(total)
        if joined:  # one kernel of them all
            torch._foreach_add_(*map(list, zip(*joined, strict=True)))  # pyright: ignore[reportPrivateImportUsage]
        return ()

    examples: list[Any] = [tensor.detach() for tensor in inputs]
    try:
        # imported here, for that takes seconds
        from torch._inductor import compile as compile_graph
        from torch.fx.experimental.proxy_tensor import make_fx

        with whole():
            graph = make_fx(add_gradients, tracing_mode="fake")(*examples)
        return compile_graph(graph, examples)  # pyright: ignore[reportReturnType]
    except Exception as error:
        # Inductor wraps whatever goes wrong within it
        if type(getattr(error, "inner_exception", error)).__name__ in MISSING:
            raise no_compiler(inputs[0].device, error) from None
        raise NotTracedError(
            f"torch {torch.__version__} cannot compile the penalty's gradient ({_first_line(error)}"
            f"); it is computed without, in the plain form. Tested with torch {TESTED}"
        ) from error


def no_compiler(device: torch.device, error: Exception) -> InputError:
    """The error for people where PyTorch's compiler fails."""
    needed = "a C++ compiler" if device.type == "cpu" else "Triton"
    return InputError(f"cannot compile for {device}, which needs {needed}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
