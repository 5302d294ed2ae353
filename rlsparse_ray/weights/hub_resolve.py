"""Where the bytes of the hub's files are: a process asks once for each, until a signature expires.

The hub counts these questions: 3,000 in five minutes for whoever has no token.
"""

import threading
from collections import defaultdict
from dataclasses import dataclass
from urllib.parse import urlsplit

from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.hub_address import parse_address
from rlsparse_ray.weights.hub_errors import ask_hub
from rlsparse_ray.weights.hub_settings import endpoint
from rlsparse_ray.weights.spec import FileRef


@dataclass(frozen=True, eq=False)
class Location:
    """Where a file can be read for a while."""

    url: str
    headers: dict[str, str]
    """To be sent with every request; the token is there only if the host is the hub's own."""


_Key = tuple[FileRef, str, str | None]
"""A file, the hub that was asked, and whose token asked."""


class Locations:
    """The locations of files. Thread-safe; one thread resolves a file while the others wait."""

    def __init__(self, most: int = 4096) -> None:
        """Keep `most` of them, some 2 KB each."""
        self._most = most
        self._known: dict[_Key, Location] = {}
        self._locks: defaultdict[_Key, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()

    def get(self, file: FileRef, refused: Location | None = None) -> Location:
        """The location of a file.

        Args:
            file: a file of the hub.
            refused: a location that does not work any more: another one is found if it is the
                one that is known.

        Raises:
            CheckpointError: no access, or the file is not the one of the plan.
        """
        key = (file, endpoint(), get_token())
        with self._lock:
            lock = self._locks[key]
        with lock:
            known = self._known.get(key)
            if known is None or known is refused:
                known = _resolve(file)
                with self._lock:
                    self._keep(key, known)
            return known

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._known.clear()
            self._locks.clear()

    def _keep(self, key: _Key, location: Location) -> None:
        """Keep one, and drop the one that was found first where that is one too many."""
        self._known[key] = location
        if len(self._known) > self._most:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._locks.pop(oldest, None)


LOCATIONS = Locations()
"""Those that this process knows: a worker reads the same files slice after slice."""


def _resolve(file: FileRef) -> Location:
    address = parse_address(file.path)
    host = endpoint()
    url = hf_hub_url(address.repository, address.path, revision=address.revision, endpoint=host)
    found = ask_hub(lambda: get_hf_file_metadata(url, endpoint=host), address)
    if file.stamp and found.etag != file.stamp:
        raise CheckpointError(
            f"{file.path}: changed between plan and read (ETag {file.stamp} then, {found.etag} "
            "now): plan again"
        )
    at_home = urlsplit(found.location)[:2] == urlsplit(host)[:2]
    headers = build_hf_headers(token=None if at_home else False, library_name="rlsparse-ray")
    return Location(found.location, {**headers, "Accept-Encoding": "identity"})
