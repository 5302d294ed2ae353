"""The waits between tries at the hub, as `rlsparse_ray.storage.retry` says."""

import random
import time
from math import ceil

from rlsparse_ray.errors import UnavailableError
from rlsparse_ray.storage.retry import LONGEST_WAIT, VARIABLE, retry_seconds

_FIRST_WAIT = 0.1
"""Seconds."""


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

    def wait(self, trouble: str, asked: float | None = None) -> None:
        """Sleep before the next try.

        Args:
            trouble: what happened, as the message will say it.
            asked: seconds that the place asks to wait (Retry-After), if it does.

        Raises:
            UnavailableError: the time is used up, or would be by the end of the wait.
        """
        self._tries += 1
        # eight threads that failed together should not come back together
        wait = self._wait * random.uniform(0.5, 1) if asked is None else asked
        spent = time.monotonic() - self._start
        if spent + wait > self._limit:
            raise UnavailableError(
                f"{self._place}: {trouble} ({self._tries} tries in {spent:.0f} s): run again "
                f"later, or set {VARIABLE} to {ceil(spent + wait)} or more"
            )
        time.sleep(wait)
        self._wait = min(2 * self._wait, LONGEST_WAIT)
