"""A user's project, which the tests of a module share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from own_study import project_in


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project that all tests of a module share."""
    with project_in(tmp_path_factory.mktemp("project")) as folder:
        yield folder
