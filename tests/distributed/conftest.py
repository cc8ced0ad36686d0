"""Processes for the tests of distributed programs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ranks import Ranks


@pytest.fixture(scope="session")
def run_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Any]]]:
    """`run_in(2, function, *args)`: what a function at the top of a module returns on each rank."""
    ranks = Ranks(tmp_path_factory.mktemp("ranks"))
    yield ranks.run
    ranks.close()
