"""Settings for all tests: one torch thread, no deadlines on machines that are busy, and Ctrl-C."""

import atexit
import os
import shutil
import signal
import tempfile

import torch
from hypothesis import settings

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
