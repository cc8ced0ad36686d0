"""For all tests: one torch thread, no deadlines on machines that are busy, Ctrl-C, a browser."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from browser import chromium

torch.set_num_threads(1)
# the runs of tests, and of processes that they start, are none to be remembered
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="ellzero-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)
# tests that were started in the background were told to ignore these, and so were their children
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
settings.register_profile("ellzero", deadline=None, derandomize=True)
settings.load_profile("ellzero")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser for pages, see browser.py; it takes some seconds to start."""
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver
