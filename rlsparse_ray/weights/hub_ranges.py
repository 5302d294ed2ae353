"""Reads ranges of the hub's files, from the local cache or from where the hub says they are.

urllib3 on the resolved address reads two to three times faster than httpx2 or HfFileSystem do
(0.77 s a GB on 4 threads, against 1.8 and 2.1 to 2.4).
"""

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np
import urllib3
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.disk import disk_errors
from rlsparse_ray.weights.hub_cache import cached_file, not_cached
from rlsparse_ray.weights.hub_errors import asked_pause
from rlsparse_ray.weights.hub_patience import Patience, is_transient
from rlsparse_ray.weights.hub_resolve import LOCATIONS, Location
from rlsparse_ray.weights.hub_settings import is_offline
from rlsparse_ray.weights.spec import FileRef

_PIECE = 256 << 10
"""Bytes taken from a connection at a time; 1.33 GB/s on 8 threads, 1.2 with 1 MiB."""

_CONNECTIONS = 16
"""Kept open to each host; more threads than that open some anew."""

_TIMEOUT = urllib3.Timeout(connect=10, read=30)
"""Seconds; without a byte for that long a connection counts as lost."""

_EXPIRED = frozenset({401, 403, 404, 410})
"""Answers to an address whose signature expired, or whose object was replaced."""


class HubRanges:
    """Reads ranges of files of the hub. Thread-safe."""

    def __init__(self) -> None:
        self._direct = urllib3.PoolManager(maxsize=_CONNECTIONS, timeout=_TIMEOUT)
        self._proxies = {
            scheme: urllib3.ProxyManager(proxy, maxsize=_CONNECTIONS, timeout=_TIMEOUT)
            for scheme, proxy in getproxies().items()
            if scheme in ("http", "https")
        }

    def close(self) -> None:
        """Close the connections."""
        for pool in (self._direct, *self._proxies.values()):
            pool.clear()

    def read_into(self, file: FileRef, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `file` from `offset` on.

        Raises:
            CheckpointError: no access, not the file of the plan, or no answer in time.
        """
        view = buffer.cast("B")
        if path := cached_file(file):
            _read_local(path, offset, view)
        elif is_offline():
            raise not_cached(file)
        else:
            self._fetch(file, offset, view)

    def _fetch(self, file: FileRef, offset: int, view: memoryview) -> None:
        """Ask until all is there, each time only for what is missing."""
        patience = Patience(file.path)
        refused: Location | None = None
        done = 0
        while done < len(view):
            location = LOCATIONS.get(file, refused)
            try:
                response = self._ask(location, offset + done, len(view) - done)
            except HTTPError as error:
                patience.wait(f"{_host(location)} cannot be reached ({error})")
                continue
            with response:
                status = response.status
                if is_transient(status):
                    pause = asked_pause(response.headers)
                    patience.wait(f"{_host(location)} answers {status}", pause)
                elif status in _EXPIRED and refused is None:
                    refused = location
                else:
                    _check(response, file, location, offset + done, len(view) - done)
                    got = _take(response, view[done:])
                    if got == 0:
                        patience.wait(f"{_host(location)} sends no bytes")
                    done += got
                    refused = None

    def _ask(self, location: Location, offset: int, nbytes: int) -> BaseHTTPResponse:
        url = urlsplit(location.url)
        proxy = None if proxy_bypass(url.hostname or "") else self._proxies.get(url.scheme)
        return (proxy or self._direct).request(
            "GET",
            location.url,
            headers={**location.headers, "Range": f"bytes={offset}-{offset + nbytes - 1}"},
            preload_content=False,
            redirect=False,
            retries=False,
        )


def _read_local(path: Path, offset: int, view: memoryview) -> None:
    with disk_errors(str(path)), path.open("rb") as stream:
        stream.seek(offset)
        got = stream.readinto(view)
    if got < len(view):
        raise CheckpointError(
            f"{path}: ends at byte {offset + got}, but {len(view)} bytes from {offset} on were "
            "promised: it was cut while it was read; run again"
        )


def _check(
    response: BaseHTTPResponse, file: FileRef, location: Location, offset: int, nbytes: int
) -> None:
    """Whether an answer holds the bytes from `offset` on of the file that was planned."""
    told = response.headers.get("Content-Range", "")
    first, _, size = told.removeprefix("bytes ").partition("/")
    if response.status == 206 and first.startswith(f"{offset}-") and size in (str(file.size), "*"):
        return
    if response.status == 200 and nbytes == file.size:
        return
    if response.status == 200:
        raise CheckpointError(
            f"{file.path}: {_host(location)} sends whole files where ranges are asked for: "
            "check HF_ENDPOINT, or download the model into the local cache first"
        )
    if response.status in (206, 416):
        raise CheckpointError(
            f"{file.path}: changed between plan and read ({file.size} bytes then; bytes from "
            f"{offset} on were answered with {response.status} {told}): plan again"
        )
    raise CheckpointError(
        f"{file.path}: {_host(location)} answers {response.status}, though the hub had just "
        "given that address: run again, or see whether a proxy is in between"
    )


def _take(response: BaseHTTPResponse, view: memoryview) -> int:
    """Bytes that came before the end of the body, or before the connection was lost."""
    target = np.frombuffer(view, np.uint8)
    done = 0
    while done < len(view):
        try:
            piece = response.read(min(_PIECE, len(view) - done), decode_content=False)
        except HTTPError:
            break
        if not piece:
            break
        # numpy copies without the GIL, which the other reading threads need
        target[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    return done


def _host(location: Location) -> str:
    return urlsplit(location.url).netloc
