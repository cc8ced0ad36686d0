"""Settings for all tests: one torch thread, no deadlines on machines that are busy, and Ctrl-C."""

import signal

import torch
from hypothesis import settings

torch.set_num_threads(1)
# tests that were started in the background were told to ignore it, and so were their children
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("ellzero", deadline=None, derandomize=True)
settings.load_profile("ellzero")
