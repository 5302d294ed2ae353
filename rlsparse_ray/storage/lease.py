"""A lease on a store: one refresh, overlap pass or garbage collection at a time, on any machine.

Of named masks each has a lease of its own while it is made.

STORE/lease.json says who holds it and until when. It is taken by creating the file, or by
replacing a lease that is over, and only if the file still has the bytes that were read: of
several that try, one succeeds. A thread renews it; that of a process that died ends by itself.
Ends are compared with the clock of each machine, so clocks should agree to a few seconds.

`rlsparse extract` takes none: its files are named and filled by what they are made from, so
several at once do the same work twice at worst. What needs a lease rewrites or removes files.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rlsparse_ray.errors import StoreError
from rlsparse_ray.progress import Progress, silent
from rlsparse_ray.storage.files import Files, store_errors
from rlsparse_ray.store import Store

LEASE = "lease.json"
"""Where it lies, relative to the store."""

_POLL = 1.0
"""Seconds between two tries while waiting."""


class LeaseError(StoreError):
    """The lease is held by another one, or was lost to one."""


def lease_seconds() -> float:
    """How long a lease lasts that is not renewed: RLSPARSE_LEASE_SECONDS, 60 unless set.

    Raises:
        StoreError: it is no number above 0.
    """
    raw = os.environ.get("RLSPARSE_LEASE_SECONDS", "60")
    try:
        seconds = float(raw)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise StoreError(f"RLSPARSE_LEASE_SECONDS={raw}: give a number of seconds above 0")
    return seconds


@dataclass(frozen=True, slots=True)
class Claim:
    """What the file says."""

    holder: str
    """Who: machine, process and a random part, so that no two are the same."""
    purpose: str
    """The verb: refresh, overlap or gc; or a mask that is made."""
    since: float
    """When it was taken, in seconds since 1970."""
    until: float
    """When it ends unless it is renewed; 0 once it was given back."""

    def encode(self) -> bytes:
        """The bytes of the file."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @property
    def over(self) -> bool:
        """Whether another one may take it."""
        return self.until <= time.time()

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).isoformat(" ", "seconds")
        return f"rlsparse {self.purpose} of {self.holder} since {since}"


class Lease:
    """A lease that this process holds, until it is lost or given back; see `hold`."""

    def __init__(self, files: Files, path: str, claim: Claim, seconds: float) -> None:
        self._files = files
        self._path = path
        self._claim = claim
        self._seconds = seconds
        self._valid_until = time.monotonic() + seconds
        self._lost = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="rlsparse-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """To be called before anything is written that two at once must not write.

        Raises:
            LeaseError: the lease was taken over, or could not be renewed in time.
        """
        if self._lost:
            raise LeaseError(self._lost)
        if time.monotonic() > self._valid_until:
            raise LeaseError(
                f"store {self._files.root}: the lease could not be renewed for {self._seconds:g} "
                "s: nothing more is written; what is finished is kept: run again"
            )

    def guard(self, progress: Progress = silent) -> Progress:
        """The progress that ends the work, before the next commit, once the lease is lost."""

        def checked(nbytes: int) -> None:
            self.check()
            progress(nbytes)

        return checked

    def close(self) -> None:
        """Give it back: the next one need not wait."""
        self._ended.set()
        self._thread.join()
        # else it ends by itself
        with suppress(StoreError, OSError):
            given_back = replace(self._claim, until=0.0)
            self._files.replace(self._path, given_back.encode(), self._claim.encode())

    def _renew(self) -> None:
        while not self._lost and not self._ended.wait(self._seconds / 3):
            asked = time.monotonic()
            new = replace(self._claim, until=time.time() + self._seconds)
            try:
                if self._files.replace(self._path, new.encode(), self._claim.encode()):
                    self._claim, self._valid_until = new, asked + self._seconds
                else:
                    self._lost = self._lost_to()
            except (StoreError, OSError):
                # asked again while it is valid: `check` says when it is not any more
                continue

    def _lost_to(self) -> str:
        found = _read(self._files, self._path)
        return (
            f"store {self._files.root}: the lease was lost to {found or 'one who removed it'}: "
            "nothing more is written; what is finished is kept: run again"
        )


@contextmanager
def hold(
    root: str | Path, purpose: str, *, wait: float = 0.0, path: str = LEASE
) -> Iterator[Lease]:
    """Hold the lease of a store within the block.

    Args:
        root: an existing store.
        purpose: the verb that wants it, for those who find it taken.
        wait: seconds to wait for it if another one holds it.
        path: where the lease lies, relative to the store, if it is of a part of it.

    Raises:
        LeaseError: another one holds it: who, since when and until when.
        StoreError: there is no store.
    """
    files, seconds = Store.open(root).files, lease_seconds()
    holder = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    end = time.monotonic() + wait
    with store_errors(root):
        while True:
            now = time.time()
            claim = Claim(holder, purpose, now, now + seconds)
            found = _take(files, path, claim)
            if found is None:
                break
            if time.monotonic() >= end:
                left = max(0.0, found.until - time.time())
                raise LeaseError(
                    f"store {root}: in use by {found}: wait for it (--wait SECONDS), or run again "
                    f"later; if it has died, its lease ends in {left:.0f} s"
                )
            time.sleep(min(_POLL, seconds / 3))
        lease = Lease(files, path, claim, seconds)
    try:
        yield lease
    finally:
        lease.close()


def _take(files: Files, path: str, claim: Claim) -> Claim | None:
    """None if the lease is ours now, else whose it is."""
    while not files.create(path, claim.encode()):
        found = _read(files, path)
        # equal: the answer to our own request was lost, and it was repeated
        if found == claim:
            return None
        if found is not None and not found.over:
            return found
        if found is not None and files.replace(path, claim.encode(), found.encode()):
            return None
    return None


def _read(files: Files, path: str) -> Claim | None:
    raw = files.read(path)
    if raw is None:
        return None
    try:
        return Claim(**json.loads(raw))
    except (ValueError, TypeError) as error:
        raise StoreError(f"{files.root}/{path}: damaged ({error}): remove it") from error
