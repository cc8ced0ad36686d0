"""Errors and warnings: one base class of each, and the kinds a caller may tell apart."""

import difflib
import sys
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeGuard


class EllzeroError(Exception):
    """Base class of every error that ellzero raises on purpose.

    Example:
        >>> import ellzero as ez
        >>> try:
        ...     ez.L0(-1.0)
        ... except ez.EllzeroError as error:
        ...     print(error)
        L0: strength is -1.0; expected a finite number >= 0
    """


class InputError(EllzeroError, ValueError):
    """An argument, a recipe, a file or a data set that cannot be used as it is.

    It is a `ValueError` too, so that pydantic reports where in a recipe it arose.

    Example:
        >>> import ellzero as ez
        >>> issubclass(ez.InputError, ValueError)
        True
    """


class BusyError(InputError):
    """Another process is at work in a folder, which is its own as long as it holds the lock.

    Example:
        >>> issubclass(BusyError, InputError)
        True
    """


class WriteError(EllzeroError, OSError):
    """A file that could not be written: no space, no permission. What it held before is whole.

    The system's error is the cause.

    Example:
        >>> import ellzero as ez
        >>> issubclass(ez.WriteError, OSError)
        True
    """


class BudgetError(EllzeroError):
    """No pruned network stayed within the budget; the message names the best one found.

    Example:
        >>> import ellzero as ez
        >>> issubclass(ez.BudgetError, ez.EllzeroError)
        True
    """


class DivergenceError(EllzeroError):
    """The loss or a weight became NaN or infinite; the last good checkpoint is kept.

    Example:
        >>> import ellzero as ez
        >>> issubclass(ez.DivergenceError, ez.EllzeroError)
        True
    """


class UserCodeError(EllzeroError):
    """The user's own function or module failed; the error it raised is the cause.

    Example:
        >>> import ellzero as ez
        >>> issubclass(ez.UserCodeError, ez.EllzeroError)
        True
    """


class EllzeroWarning(UserWarning):
    """Category of every warning of ellzero: a result that means less than it seems to.

    Example:
        >>> import warnings, ellzero as ez
        >>> warnings.simplefilter("error", ez.EllzeroWarning)  # stop at them
        >>> warnings.simplefilter("default", ez.EllzeroWarning)
    """


def warn(text: str, category: type[EllzeroWarning] = EllzeroWarning) -> None:
    """Warn, at the place outside of ellzero (and of torch, which calls it back) that led to it.

    In a program of several processes (`torch.distributed`) rank 0 alone warns.
    """
    distributed: Any = sys.modules.get("torch.distributed")
    if (
        distributed
        and distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_rank() > 0
    ):
        return
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in (
        "ellzero",
        "torch",
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)


def nearest(name: str, known: Sequence[str], count: int = 3) -> str:
    """The known names closest to `name`, as the end of an error message.

    Example:
        >>> nearest("epocs", ["epochs", "rounds"])
        'did you mean epochs?'
        >>> nearest("zzz", ["epochs", "rounds"])
        'known: epochs, rounds'
    """
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"known: {shown}" if known else "there are none"


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number, numpy's scalars among them; a bool is none.

    Example:
        >>> is_number(0.5), is_number(True), is_number("0.5")
        (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)
