"""How long a service that fails for the moment is asked again: one policy for buckets and hub.

It fails for the moment if it answers 408, 429 or 5xx, or if the connection cannot be made or
breaks. Everything else (401, 403, 404, another ETag) stays as it is and is an error at once.
Pauses that the hub asks for come on top: see `rlsparse_ray.weights.hub_patience`.
"""

import os
from math import isfinite

from rlsparse_ray.errors import RlsparseError

VARIABLE = "RLSPARSE_RETRY_SECONDS"

LONGEST_WAIT = 10.0
"""Seconds between two tries at most; the waits grow from 0.1 s."""


def retry_seconds() -> float:
    """Seconds after which a service that keeps failing is given up: RLSPARSE_RETRY_SECONDS or 120.

    Raises:
        RlsparseError: the variable is not a number of seconds.
    """
    text = os.environ.get(VARIABLE, "120")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if seconds < 0 or not isfinite(seconds):
        raise RlsparseError(f"{VARIABLE}={text!r} is no number of seconds: unset it or give one")
    return seconds
