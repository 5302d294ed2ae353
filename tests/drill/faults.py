"""The faults: each block does the damage at its begin and mends it at its end."""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.drill.nodes import Nodes
from tests.servers.s3 import S3Server

RETRY_SECONDS = 8
"""RLSPARSE_RETRY_SECONDS of every process of the drill."""

WORKERS = 2


@dataclass(frozen=True)
class Stage:
    """What a fault can get at."""

    nodes: Nodes
    s3: S3Server
    store: Path
    driver: subprocess.Popen[str]


@dataclass(frozen=True)
class Fault:
    """A fault, and whether the run that it hits is expected to end well all the same."""

    name: str
    survives: bool
    strike: Callable[[Stage], AbstractContextManager[None]]
    last: bool = False
    """Nothing of the cluster is left."""


@contextmanager
def _none(stage: Stage) -> Iterator[None]:
    yield


@contextmanager
def _worker(stage: Stage) -> Iterator[None]:
    end = time.monotonic() + 60
    while not (found := stage.nodes.workers("ray::slice_task")):
        assert time.monotonic() < end, "no worker at work in 60 s"
    found[0].kill()
    yield


@contextmanager
def _node(stage: Stage) -> Iterator[None]:
    stage.nodes.kill_node()
    yield
    stage.nodes.add()


@contextmanager
def _driver(stage: Stage) -> Iterator[None]:
    stage.driver.send_signal(signal.SIGKILL)
    yield


@contextmanager
def _head(stage: Stage) -> Iterator[None]:
    stage.nodes.kill_head()
    yield


@contextmanager
def _disk(stage: Stage) -> Iterator[None]:
    ballast = stage.store.parent / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 << 10))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
    yield
    ballast.unlink()


@contextmanager
def _away_shortly(stage: Stage) -> Iterator[None]:
    with stage.s3.proxy.unavailable():
        time.sleep(RETRY_SECONDS / 4)
    yield


@contextmanager
def _away(stage: Stage) -> Iterator[None]:
    with stage.s3.proxy.unavailable():
        yield


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("none", True, _none),
        Fault("worker killed", True, _worker),
        Fault("node killed", True, _node),
        Fault("S3 away for 2 s", True, _away_shortly),
        Fault("driver killed", False, _driver),
        Fault("disk full", False, _disk),
        Fault("S3 away for long", False, _away),
        Fault("head killed", False, _head, last=True),
    )
}


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 32 MiB at `folder`; only root can mount it."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def can_mount() -> bool:
    """Whether the disk can be filled here."""
    return os.geteuid() == 0
