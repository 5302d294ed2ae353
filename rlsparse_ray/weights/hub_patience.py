"""The waits between tries at the hub, as `rlsparse_ray.storage.retry` says.

A pause that the hub itself asks for is kept beyond that. It counts requests in windows of 300 s:
500 questions of its API for whoever has no token, 1,000 for a free account. A plan asks one for
each model, so a large corpus comes to the end of a window and has to wait for the next one.
"""

import logging
import random
import threading
import time
from math import ceil

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.storage.retry import LONGEST_WAIT, VARIABLE, retry_seconds

_FIRST_WAIT = 0.1
"""Seconds."""

_LONGEST_PAUSE = 330.0
"""Seconds that the hub may ask for, whatever the limit: a window and some room."""

_PAUSES = 3
"""Pauses of one operation beyond the limit: others use up the windows too, but not all of them."""

_log = logging.getLogger(__name__)


def is_transient(status: int) -> bool:
    """Whether an answer may be another one in a moment.

    >>> is_transient(503), is_transient(404)
    (True, False)
    """
    return status in (408, 429) or status >= 500


class Patience:
    """The waits of one operation, each twice as long as the one before."""

    def __init__(self, place: str) -> None:
        """Start the clock; `place` is what the message calls that which is asked for."""
        self._place = place
        self._limit = retry_seconds()
        self._start = time.monotonic()
        self._wait = _FIRST_WAIT
        self._tries = 0
        self._pauses = 0
        self._paused = 0.0

    def wait(self, trouble: str, asked: float | None = None) -> None:
        """Sleep before the next try.

        Args:
            trouble: what happened, as the message will say it.
            asked: seconds that the place asks to wait (Retry-After), if it does.

        Raises:
            CheckpointError: the time is used up, or would be by the end of the wait.
        """
        self._tries += 1
        # threads and nodes that failed together should not come back together
        wait = self._wait * random.uniform(0.5, 1)
        if asked is not None:
            wait += asked * random.uniform(1, 1.1)
        if asked is not None and asked <= _LONGEST_PAUSE and self._pauses < _PAUSES:
            self._pauses += 1
            self._paused += wait
            _announce(trouble, wait)
        else:
            self._check(trouble, wait)
        time.sleep(wait)
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    def _check(self, trouble: str, wait: float) -> None:
        spent = time.monotonic() - self._start
        counted = spent - self._paused
        if counted + wait > self._limit:
            raise CheckpointError(
                f"{self._place}: {trouble} ({self._tries} tries in {spent:.0f} s): run again "
                f"later, or set {VARIABLE} to {ceil(counted + wait)} or more"
            )


class _Notice:
    """Until when it has been said that everything waits."""

    def __init__(self) -> None:
        self.until = 0.0
        self.lock = threading.Lock()


_notice = _Notice()

_WORTH_SAYING = 10.0
"""Seconds."""


def _announce(trouble: str, wait: float) -> None:
    """Say that it waits, once for all the threads that do."""
    now = time.monotonic()
    with _notice.lock:
        if wait < _WORTH_SAYING or now < _notice.until:
            return
        _notice.until = now + wait
    _log.warning("%s: waiting %.0f s, as it asks", trouble, wait)
