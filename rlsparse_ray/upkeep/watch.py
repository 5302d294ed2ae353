"""How far extractions are, as their store shows it: from any machine that sees the store.

A run leaves one small file for as long as it lives, staging/extraction-HOST-PID-HEX.json, with the
slices and bytes of every pair; finished slices and committed pairs are files already. It writes the
file anew every BEAT seconds: one that is older than STALE was left by a run that died. Ages are by
the clock of each machine against that of the store, so clocks should agree to a few seconds.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from rlsparse_ray.errors import StoreError
from rlsparse_ray.plan import Plan
from rlsparse_ray.storage.files import store_errors
from rlsparse_ray.storage.local_files import Entry
from rlsparse_ray.store import Store

BEAT = 20.0
STALE = 180.0
"""Seconds; a bucket that is away is asked for 120."""

_FIRST, _LAST = "staging/extraction-", ".json"


@dataclass(frozen=True, slots=True)
class Run:
    """An extraction that was announced."""

    name: str
    """Machine, process and a random part."""
    beat: float
    """When it last said that it lives, in seconds since 1970."""

    @property
    def path(self) -> str:
        """Its file, relative to the store."""
        return f"{_FIRST}{self.name}{_LAST}"

    @property
    def lives(self) -> bool:
        """Whether that is not too long ago."""
        return time.time() - self.beat < STALE


@dataclass(frozen=True, slots=True)
class Share:
    """What a run has to do of a pair. Bytes are estimated: slices of a pair count alike."""

    slices: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How far runs are, all together."""

    pairs: int
    committed: int
    slices: int
    """Counted once for every pair in them."""
    done: int
    nbytes: int
    nbytes_done: int


@contextmanager
def announced(store: Store, plan: Plan, seconds: float = BEAT) -> Iterator[Run]:
    """Tell those who look what a run is going to do, and every so many seconds that it lives.

    Raises:
        StoreError: the store cannot be written.
    """
    run = Run(f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}", time.time())
    data = json.dumps({i: [s.slices, s.nbytes] for i, s in _shares(plan).items()}).encode()
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(seconds):
            # the run itself finds out if the store is away
            with suppress(StoreError, OSError):
                store.files.write(run.path, data)

    with store_errors(store.root):
        store.files.write(run.path, data)
    thread = threading.Thread(target=beat, name="rlsparse-beat", daemon=True)
    thread.start()
    try:
        yield run
    finally:
        ended.set()
        thread.join()
        # else it is seen to be stale
        with suppress(StoreError, OSError):
            store.files.remove(run.path)


def forget_finished(store: Store) -> None:
    """Remove the announcements of runs all of whose pairs are committed.

    They are over, or killed ones whose work another run has finished; one that lives is heard of
    again, or ends.

    Raises:
        StoreError: the store cannot be read or written.
    """
    with store_errors(store.root):
        runs = runs_of(store.files.entries("staging"))
        committed = store.committed() if runs else set()
        for run in runs:
            if work_of(store, [run]).keys() <= committed:
                store.files.remove(run.path)


def runs_of(staged: Mapping[str, Entry]) -> list[Run]:
    """The runs that a listing of staging/ shows, those that have died among them."""
    return [
        Run(path[len(_FIRST) : -len(_LAST)], entry.modified)
        for path, entry in staged.items()
        if path.startswith(_FIRST) and path.endswith(_LAST)
    ]


def work_of(store: Store, runs: list[Run]) -> dict[str, Share]:
    """What runs have to do, by pair_id; a pair of several counts once."""
    found: dict[str, Share] = {}
    for run in runs:
        # None: it is over since it was listed
        raw = store.files.read(run.path)
        if raw is not None:
            found |= {i: Share(*share) for i, share in json.loads(raw).items()}
    return found


def finished_slices(staged: Mapping[str, Entry]) -> Counter[str]:
    """The finished slices that a listing of staging/ shows, by pair_id."""
    return Counter(
        parts[1]
        for path in staged
        if len(parts := path.split("/")) == 3 and parts[2].startswith("slice-")
        if path.endswith(".arrow")
    )


def standing(store: Store, work: Mapping[str, Share], staged: Mapping[str, Entry]) -> Standing:
    """How far `work` is.

    Args:
        store: the store.
        work: what there is to do.
        staged: a listing of staging/ made before: a pair that is committed in between counts with
            what was staged of it.

    Raises:
        StoreError: the store cannot be read.
    """
    with store_errors(store.root):
        committed = store.committed() & work.keys()
    slices = finished_slices(staged)
    done = {
        i: share.slices if i in committed else min(slices[i], share.slices)
        for i, share in work.items()
    }
    return Standing(
        pairs=len(work),
        committed=len(committed),
        slices=sum(share.slices for share in work.values()),
        done=sum(done.values()),
        nbytes=sum(share.nbytes for share in work.values()),
        nbytes_done=sum(s.nbytes * done[i] // s.slices for i, s in work.items()),
    )


class Watch:
    """The extractions that live when it is made, looked at until they are over or have died.

    Making it takes a request, and one more a run; each look takes two. A listing takes one for
    every thousand files.

    Raises:
        StoreError: the store cannot be read.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        with store_errors(store.root):
            runs = runs_of(store.files.entries("staging"))
            self.runs = [run for run in runs if run.lives]
            """Those that live."""
            self.work = work_of(store, self.runs)

    def look(self) -> Standing:
        """How far they are now; takes those that are over out of `runs`."""
        with store_errors(self._store.root):
            staged = self._store.files.entries("staging")
        mine = {run.name for run in self.runs}
        self.runs = [run for run in runs_of(staged) if run.lives and run.name in mine]
        return standing(self._store, self.work, staged)

    def follow(self, advance: Callable[[int], None], seconds: float = 5.0) -> Standing:
        """Call `advance` with the bytes that are new, every few seconds until none lives.

        Returns:
            How far they were in the end.
        """
        known = 0
        while True:
            found = self.look()
            # slices of a pair may be removed and done again
            advance(max(0, found.nbytes_done - known))
            known = max(known, found.nbytes_done)
            if not self.runs:
                return found
            time.sleep(seconds)


def _shares(plan: Plan) -> dict[str, Share]:
    slices: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for piece in plan.slices:
        pair_ids = piece.pair_ids
        slices.update(pair_ids)
        nbytes.update(dict.fromkeys(pair_ids, piece.nbytes // len(pair_ids)))
    return {i: Share(count, nbytes[i]) for i, count in slices.items()}
