"""Noise that the processes of a training share, so that replicas of a network stay alike."""

from __future__ import annotations

import torch
from torch import Tensor

from ellzero import processes
from ellzero.sharding import local, part_of
from ellzero.tensors import is_distributed


class SharedNoise:
    """Uniform noise; where several processes train together, all draw the same.

    In one process it comes from torch's global generator. In several (`torch.distributed` is
    initialized) it comes from a generator of its own, with a seed that the global generator of rank
    0 gives at the first draw; then no step needs a message. What a process draws for a sharded
    tensor is its part of the noise for the whole one, so it does not depend on their number.
    """

    def __init__(self) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}

    def like(self, tensor: Tensor) -> Tensor:
        """Noise in [0, 1) for the part of a tensor that is here.

        The first draw after `renew` is one that all processes have to make.
        """
        if processes.world_size() == 1:
            return torch.rand_like(local(tensor))
        generator = self._generator(local(tensor).device)
        if not is_distributed(tensor):
            return torch.empty_like(tensor).uniform_(generator=generator)
        noise = torch.empty(tensor.shape, dtype=tensor.dtype, device=generator.device)
        return local(part_of(noise.uniform_(generator=generator), tensor))

    def renew(self) -> None:
        """Take a new seed at the next draw."""
        self._generators.clear()

    def _generator(self, device: torch.device) -> torch.Generator:
        if not self._generators:
            # all processes draw, so that their global generators stay alike if they are
            self._seed = processes.agreed(int(torch.randint(1 << 62, ())))
        if device not in self._generators:
            generator = torch.Generator(device)
            self._generators[device] = generator.manual_seed(self._seed + len(self._generators))
        return self._generators[device]
