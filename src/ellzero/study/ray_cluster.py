"""Workers on a Ray cluster: each an actor on some node, which runs cells in a process there."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from ellzero.errors import BusyError, InputError, WriteError, is_number
from ellzero.recipe import Recipe
from ellzero.run_folder import locked
from ellzero.study.host import Host
from ellzero.study.mirror import Changes, contents
from ellzero.study.pool import KILL_SECONDS, POLL_SECONDS, WorkerDied
from ellzero.study.watch import Watch

SENT_ALONG = ("ELLZERO_DATA",)
"""Environment variables that the nodes get as well; the paths in them must be theirs, too."""


CONNECT_SECONDS = 10.0
"""For so long an address is tried."""


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster, and what a cell of a study takes of it.

    Args:
        address: as `ray.init` takes it: `auto` for the cluster that this machine is a node of,
            `ray://host:10001` for another one's.
        cpus: of a cell; its threads are as many.
        gpus: of a cell; a part of one may be shared.
        memory: of a cell, in bytes; None where Ray need not count it.

    Raises:
        InputError: a number of the wrong kind or out of range.

    Example:
        >>> import ellzero as ez
        >>> cluster = ez.RayCluster("auto", cpus=2)
        >>> study = ez.Study.read("studies/smoke.toml")  # doctest: +SKIP
        >>> results = ez.compare(study, "runs/smoke", cluster=cluster)  # doctest: +SKIP
    """

    address: str = "auto"
    cpus: float = 1
    gpus: float = 0
    memory: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("cpus", 1), ("gpus", 0), ("memory", 1)):
            value = getattr(self, name)
            if name == "memory" and value is None:
                continue
            if not is_number(value) or not least <= value < math.inf:
                raise InputError(f"{name} is {value!r}; expected a number >= {least}")

    @contextmanager
    def connected(self, home: Path, *, sends_code: bool) -> Iterator[None]:
        """Connect; where the program has connected already, that is taken as it is.

        Args:
            home: the study's folder, which is not sent along.
            sends_code: whether the nodes get what is in the current folder.

        Raises:
            InputError: the extra `ray` is not installed; no cluster at the address; a current
                folder that is too large to be sent.
        """
        if find_spec("ray") is None:
            raise InputError("a study on a cluster needs ray: pip install 'ellzero[ray]'")
        import ray

        if ray.is_initialized():
            yield
            return
        environment: dict[str, Any] = {
            "py_modules": [str(Path(__file__).parents[1])],  # all have this version of ellzero
            "env_vars": {name: os.environ[name] for name in SENT_ALONG if name in os.environ},
        }
        if sends_code:
            environment["working_dir"] = "."
            environment["excludes"] = _excluded(home)
        _require_listener(self.address)
        try:
            ray.init(
                self.address,
                runtime_env=environment,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"no study can be run on the Ray cluster {self.address!r}: {reason}"
            ) from None
        try:
            yield
        finally:
            ray.shutdown()

    def room(self) -> int:
        """How many cells fit on the nodes that are there now."""
        import ray

        needs = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        fits = [
            min(int(node["Resources"].get(name, 0) / need) for name, need in needs.items() if need)
            for node in ray.nodes()
            if node["Alive"]
        ]
        return sum(fits)

    def actor(self) -> Any:
        """A new `Host`, on whichever node has room, now or later."""
        import ray

        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory is not None:
            options["memory"] = int(self.memory)
        # its methods are called while `run` is at work
        return ray.remote(Host).options(**options, max_concurrency=8, max_restarts=0).remote()


class RayWorker:
    """A worker on some node of a cluster; on another one where a node is lost.

    Args:
        cluster: where.
        log: gets what cells print.
    """

    def __init__(self, cluster: RayCluster, log: IO[bytes]) -> None:
        self._cluster = cluster
        self._log = log
        self.watch: Watch | None = None
        self._actor: Any = None
        self._closed = False
        self._killed_because: str | None = None
        self._idle = threading.Event()
        self._idle.set()

    def run(self, folder: Path, recipe: Recipe) -> str | None:
        """Run one cell, or what comes before the worker is closed; what there is to warn of.

        Raises:
            WorkerDied: it was not closed and did not come to the cell's end.
        """
        self._idle.clear()
        self._killed_because = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder):
                return self._run(folder, recipe)
        except BusyError as error:
            return f"{folder} is left alone: {error}"
        except WriteError as error:  # a full disk here; the cell goes on nowhere
            self._let_go()
            return str(error)
        finally:
            self.watch = None
            self._idle.set()

    def _run(self, folder: Path, recipe: Recipe) -> str | None:
        import ray
        from ray.exceptions import RayError

        paths = {recipe.reference.file, recipe.train.file} - {None}
        networks = {str(path): Path(path).read_bytes() for path in paths if path is not None}
        try:
            if not self._is_hosted():
                return None
            self.watch = Watch(folder, time.monotonic())
            running = self._actor.run.options(name=folder.name).remote(
                str(folder), recipe.to_table(), contents(folder), networks
            )
            looking: Any = self._actor.changes.remote()
            is_over = False
            while not is_over:
                ready, _ = ray.wait([running, looking], timeout=POLL_SECONDS)
                is_over = running in ready
                if looking in ready or is_over:
                    changes: Any = ray.get(looking)
                    self._apply(changes, folder)
                    looking = None if is_over else self._actor.changes.remote()
            ended: Any = ray.get(running)
        except RayError as error:
            self._let_go()
            if self._closed:
                return None
            raise WorkerDied(self._killed_because or _death(error)) from None
        self._apply(ended.changes, folder)
        if ended.death is not None and not self._closed:
            raise WorkerDied(ended.death)
        return ended.warning

    def _is_hosted(self) -> bool:
        """Wait for a node with room, as long as that takes; False if closed before there is one."""
        import ray

        if self._actor is None:
            self._actor = self._cluster.actor()
        begun = self._actor.begin.remote()
        while not ray.wait([begun], timeout=POLL_SECONDS)[0]:
            if self._closed:
                return False
        ray.get(begun)
        return True

    def _apply(self, changes: Changes, folder: Path) -> None:
        self._log.write(changes.log)
        self._log.flush()
        changes.apply(folder)

    def rest(self) -> None:
        """Give its place on a node back, for a cell that has lost another one."""
        self._let_go()

    def close(self) -> None:
        """Let it end: at once if it is idle, else as an interrupted run."""
        self._closed = True
        if self._actor is not None:
            self._actor.close.remote()

    def terminate(self) -> None:
        """Ask its process to end in another way."""
        if self._actor is not None:
            self._actor.terminate.remote()

    def kill(self, because: str) -> None:
        """End it, and what it has started, without asking."""
        from ray import get
        from ray.exceptions import RayError

        self._killed_because = because
        if self._actor is not None and not self._idle.is_set():
            try:
                get(self._actor.kill.remote(because), timeout=KILL_SECONDS)
            except RayError:  # its node does not answer
                self._let_go()

    def wait(self, seconds: float) -> bool:
        """Whether it comes to the end of what it runs within this time."""
        return self._idle.wait(seconds)

    def release(self) -> None:
        """Give its place on a node back."""
        self._let_go()

    def _let_go(self) -> None:
        import ray

        actor, self._actor = self._actor, None
        if actor is not None:
            with suppress(Exception):  # the connection may be lost, and with it the actor
                ray.kill(actor)


def _require_listener(address: str) -> None:
    """Refuse an address at which nothing listens; Ray tries that for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return  # `auto`, or what Ray refuses itself
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no study can be run on the Ray cluster {address!r}: nothing answers there ({error})"
        ) from None


def _death(error: Exception) -> str:
    text = str(error).strip().replace("\n", " ")
    return f"its node or its process there was lost ({type(error).__name__}: {text[:200]})"


def _excluded(home: Path) -> list[str]:
    """What of the current folder the nodes do not get, as lines of a .gitignore."""
    excluded = [".?*", "/runs/"]  # `.*` would be the folder itself as well
    with suppress(ValueError):
        excluded.append(f"/{home.resolve().relative_to(Path.cwd())}/")
    return excluded
