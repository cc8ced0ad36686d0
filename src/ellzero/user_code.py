"""The user's own code, by the name that a recipe gives it: `package.module:attribute`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any

from ellzero.errors import InputError, UserCodeError, nearest

_IMPORTING: ContextVar[bool] = ContextVar("importing", default=True)


@contextmanager
def importing(allowed: bool) -> Iterator[None]:
    """Whether names of the user's own code are imported inside; else they stay names."""
    token = _IMPORTING.set(allowed)
    try:
        yield
    finally:
        _IMPORTING.reset(token)


def may_import() -> bool:
    """Whether names are imported here: yes, but inside `importing(False)`."""
    return _IMPORTING.get()


def imported(who: str, name: str, kind: str = "function") -> Callable[..., Any]:
    """The function or class of that name, from the current folder or an installed package.

    Args:
        who: what asks for it, as messages begin: `model 'my_project:network'`.
        name: `package.module:attribute`.
        kind: what it should be, for messages: `function` or `class`.

    Raises:
        InputError: no such module; nothing of that name in it that can be called; inside
            `importing(False)`.
        UserCodeError: the module itself failed.

    Example:
        >>> imported("data 'fractions:Fraction'", "fractions:Fraction")(1, 2)
        Fraction(1, 2)
    """
    if not may_import():
        raise InputError(f"{who} is code, which is not imported where a recipe is only shown")
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise InputError(f"{who}: {name!r} is no name of a {kind}; expected package.module:{kind}")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a console script does not look in the user's folder
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        parts = module_name.split(".")
        if error.name in {".".join(parts[: n + 1]) for n in range(len(parts))}:
            raise InputError(
                f"{who}: there is no module {error.name!r} in this folder or among the installed "
                f"packages; work in the folder that holds {parts[0]}.py, or name it in PYTHONPATH"
            ) from None
        raise UserCodeError(f"{who}: importing it failed: {error}") from error
    except Exception as error:
        raise UserCodeError(f"{who}: importing it failed: {error}") from error
    target = getattr(module, attribute, None)
    if not callable(target):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise InputError(
            f"{who}: {module_name} has no {kind} {attribute!r}; {nearest(attribute, known)}"
        )
    return target


def require_own_code(who: str, name: str, folder: Path) -> None:
    """Make sure that a run's code is not that of another project with a module of the same name.

    Args:
        who: what names it, as messages begin.
        name: `package.module:attribute`.
        folder: the run's.

    Raises:
        InputError: the module that is imported is another one; as `imported` raises.
    """
    imported(who, name)
    top = name.partition(":")[0].partition(".")[0]
    file = sys.modules[top].__file__
    if file is not None:
        require_own(who, Path(file), (f"{top}.py", f"{top}/__init__.py"), folder)


def require_own(who: str, taken: Path, names: Sequence[str], folder: Path) -> None:
    """Make sure that a file is not one of another project that has the same name.

    Args:
        who: what names it, as messages begin.
        taken: the file, as it is found from here.
        names: paths that it may have in the run's project, which is the nearest folder above the
            run that holds one of them.
        folder: the run's.

    Raises:
        InputError: the project's is another file.
    """
    paths = ((above, above / name) for above in folder.resolve().parents for name in names)
    project, own = next(((a, path) for a, path in paths if path.exists()), (None, taken))
    if project is not None and not own.samefile(taken):
        raise InputError(
            f"{who}: {taken.resolve()} would be taken, but the run's project has its own {own}; "
            f"work in {project}"
        )


def name_of(cls: type) -> str:
    """The name by which `imported` finds a class: `package.module:Class`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def require_importable(cls: type) -> None:
    """Make sure that another process, too, finds a class by its name.

    Raises:
        InputError: a class of the program itself, or one that is made within a function.
    """
    by_name = getattr(sys.modules.get(cls.__module__), cls.__qualname__, None)
    if cls.__module__ == "__main__" or by_name is not cls:
        raise InputError(
            f"{name_of(cls)} cannot be imported by another process; put {cls.__name__} into a "
            f"module of its own, such as my_module.py, and name it my_module:{cls.__name__}"
        )
