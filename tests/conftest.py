"""Settings for all tests: one torch thread, and no deadlines on machines that are busy."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("ellzero", deadline=None, derandomize=True)
settings.load_profile("ellzero")
