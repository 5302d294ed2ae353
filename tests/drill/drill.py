"""One fault in the middle of an extraction, the run after it, and what was done twice."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlsparse_ray.upkeep.checks import verify
from tests.builders import assert_same_store, ray_environment
from tests.drill.faults import RETRY_SECONDS, WORKERS, Fault, Stage, small_disk
from tests.drill.nodes import Nodes, nodes
from tests.drill.scene import SLOW, Scene, make_scene, sent_bytes
from tests.servers.s3 import s3_server

RLSPARSE = Path(sys.executable).with_name("rlsparse")
HIT_AFTER = 5
"""Finished slices, of 32, after which the fault comes."""
DEADLINE = 300.0


@dataclass(frozen=True)
class Result:
    """What a fault cost. Slices are counted by the bytes that the server sent."""

    fault: str
    exit_codes: tuple[int, ...]
    """Of the run that was hit, and of the one after it if there had to be one."""
    finished: int
    """Slices that were finished before the fault."""
    lost: int
    """Slices that were begun and not finished when it came."""
    redone: int
    """Slices of which bytes were sent more than once."""
    redone_bytes: int
    finished_again: int
    """Bytes of slices finished before the fault that were sent after it: none if all is well."""
    seconds: float
    """From the start of the first run to the end of the last."""


class Drill:
    """A cluster, a bucket and a store that is known to be right; faults one after another."""

    def __init__(self, scene: Scene, cluster: Nodes) -> None:
        self.scene = scene
        self.cluster = cluster

    def face(self, fault: Fault) -> Result:
        """Let the fault happen, run again if it stopped the run, and check the store.

        Raises:
            AssertionError: the store is not what an undisturbed run gives, an audit finds
                something, or a run ended otherwise than it should.
        """
        with ExitStack() as stack:
            folder = self.scene.folder / fault.name.replace(" ", "-")
            if fault.name == "disk full":
                stack.enter_context(small_disk(folder))
            else:
                folder.mkdir()
            return self._face(fault, folder / "store", stack)

    def _face(self, fault: Fault, store: Path, stack: ExitStack) -> Result:
        proxy, plan = self.scene.s3.proxy, self.scene.plan
        proxy.forget()
        proxy.rules.append(SLOW)
        began = time.monotonic()
        driver = stack.enter_context(self._run(store))
        self._wait_for_slices(driver, store)
        finished, mark = self.scene.finished(store), len(proxy.log)
        begun = self.scene.begun(sent_bytes(plan, proxy.log))
        with fault.strike(Stage(self.cluster, self.scene.s3, store, driver)):
            said = driver.communicate(timeout=DEADLINE)
        codes = [driver.returncode]
        assert (codes == [0]) == fault.survives, f"{fault.name}: exit {codes[0]}: {said}"
        if not fault.survives:
            if fault.last:
                self.cluster = stack.enter_context(nodes(WORKERS))
            with self._run(store) as again:
                said = again.communicate(timeout=DEADLINE)
                codes.append(again.returncode)
            assert again.returncode == 0, f"{fault.name}: run again: {said}"
        seconds = time.monotonic() - began
        assert_same_store(self.scene.undisturbed, store)
        assert verify(store) == []
        sent, after = sent_bytes(plan, proxy.log), sent_bytes(plan, proxy.log[mark:])
        return Result(
            fault=fault.name,
            exit_codes=tuple(codes),
            finished=len(finished),
            lost=len([piece for piece in begun if piece not in finished]),
            redone=sum(self.scene.most(piece, sent) > 1 for piece in plan.slices),
            redone_bytes=self.scene.nbytes(plan.slices, sent, beyond=1),
            finished_again=self.scene.nbytes(finished, after),
            seconds=seconds,
        )

    @contextmanager
    def _run(self, store: Path) -> Iterator["subprocess.Popen[str]"]:
        command = [RLSPARSE, "extract", self.scene.corpus, "--store", store]
        process = subprocess.Popen(
            [*map(str, command), "--address", self.cluster.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ray_environment(),
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def _wait_for_slices(self, driver: "subprocess.Popen[str]", store: Path) -> None:
        end = time.monotonic() + DEADLINE
        while not (store / "store.json").exists() or len(self.scene.finished(store)) < HIT_AFTER:
            assert driver.poll() is None, f"ended before its middle: {driver.communicate()}"
            assert time.monotonic() < end, f"not {HIT_AFTER} slices in {DEADLINE} s"
            time.sleep(0.05)


@contextmanager
def drill(folder: Path) -> Iterator[Drill]:
    """The whole stage: server, models, the undisturbed store, and a cluster of 1 + 2 nodes."""
    with ExitStack() as stack:
        s3 = stack.enter_context(s3_server(folder / "s3"))
        # whoever is started from here on finds the server, and gives up on it soon
        os.environ.update(s3.environment, RLSPARSE_RETRY_SECONDS=str(RETRY_SECONDS))
        scene = make_scene(s3, folder)
        yield Drill(scene, stack.enter_context(nodes(WORKERS)))
