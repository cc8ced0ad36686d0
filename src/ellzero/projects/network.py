"""A project for a network and data of the user's own."""

from __future__ import annotations

from pathlib import Path

from ellzero.errors import InputError
from ellzero.projects.filling import MODULE, OF_ACCURACY, Filling


def network(data: Path | None, target: str | None) -> Filling:
    """The project; the user's data are read by a function that is written there.

    Raises:
        InputError: data or a target are given.
    """
    if data is not None or target is not None:
        raise InputError(
            "--for network reads no data of its own: load yours in the function data() of "
            f"{MODULE}.py; --data goes with images and tables"
        )
    return Filling(
        about=f"A network and data of your own, the two functions of {MODULE}.py.",
        model={"channels": 32},
        model_comment=f"The function network() of {MODULE}.py, and its arguments.",
        data={"name": f"{MODULE}:data"},
        data_comment=f"The function data() of {MODULE}.py, and its arguments.",
        budget=OF_ACCURACY,
        strength="1e-4",
    )
