"""Processes of a distributed program on this machine, which run the functions of tests."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

TIMEOUT = 180.0
"""Seconds that a function may take, in all processes together."""


START = 180.0
"""Seconds that processes may take to start, on a machine that is busy."""


class RankError(AssertionError):
    """A process of a distributed program failed; the text has its traceback."""


class Ranks:
    """Processes that live on, as to import torch takes longer than most tests.

    Each call of a function gets a process group of its own, by gloo on the loopback. A process that
    fails or hangs ends them all; the next call starts them anew.

    Args:
        folder: an empty one, where the processes of a call meet.
    """

    def __init__(self, folder: Path) -> None:
        self._workers: list[tuple[Any, Connection]] = []
        self._folder = folder
        self._calls = 0

    def run(
        self, size: int, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT
    ) -> list[Any]:
        """What the function returns in each of so many processes, in the order of the ranks.

        Args:
            size: how many processes.
            function: one at the top of a module. `torch.distributed` is initialized where it runs.
            args: what it is called with, the same in each process. All that goes to and fro is
                pickled.
            timeout: seconds.

        Raises:
            RankError: one of them raised, ended, or took too long.
        """
        new = [_start() for _ in range(size - len(self._workers))]
        self._workers += new
        for _, pipe in new:
            assert pipe.poll(START), "a process took too long to start"
            pipe.recv_bytes()
        self._calls += 1
        workers = self._workers[:size]
        place = function.__code__.co_filename, function.__module__, function.__qualname__
        store = self._folder / f"store-{self._calls}"
        try:
            for rank, (_, pipe) in enumerate(workers):
                pipe.send_bytes(pickle.dumps((place, args, rank, size, store)))
            return _answers(workers, time.monotonic() + timeout)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes."""
        for process, pipe in self._workers:
            pipe.close()
            process.kill()
            process.join()
        self._workers = []


def _start() -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return process, pipe


def _answers(workers: list[tuple[Any, Connection]], deadline: float) -> list[Any]:
    """What the processes answer; the first failure ends the wait, for the others may hang."""
    answers: dict[int, Any] = {}
    ranks = {pipe: rank for rank, (_, pipe) in enumerate(workers)}
    while len(answers) < len(workers):
        open_pipes = [pipe for pipe, rank in ranks.items() if rank not in answers]
        ready = wait(open_pipes, max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankError(f"ranks {[ranks[pipe] for pipe in open_pipes]} took too long")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = ranks[pipe]
            try:
                is_right, answers[rank] = pickle.loads(pipe.recv_bytes())
            except EOFError:
                workers[rank][0].join()
                code = workers[rank][0].exitcode
                raise RankError(f"rank {rank} ended with exit code {code}") from None
            if not is_right:
                raise RankError(f"rank {rank} of {len(workers)} failed\n{answers[rank]}")
    return [answers[rank] for rank in range(len(workers))]


def _work(pipe: Connection) -> None:
    """Run functions until the pipe is closed."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed.fsdp  # slow to import, so once for all tests

    from ellzero.errors import EllzeroWarning

    torch.set_num_threads(1)
    pipe.send_bytes(b"started")
    warnings.simplefilter("error", EllzeroWarning)
    while True:
        try:
            place, args, rank, size, store = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):  # the pipe was closed
            return
        try:
            torch.distributed.init_process_group(
                "gloo",
                init_method=f"file://{store}",
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=TIMEOUT),
            )
            answer = pickle.dumps((True, _function(*place)(*args)))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        pipe.send_bytes(answer)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _function(path: str, module: str, name: str) -> Callable[..., Any]:
    """A function of a file, which need not be a module that can be imported by its name."""
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[module] = loaded
        spec.loader.exec_module(loaded)
    return getattr(sys.modules[module], name)
