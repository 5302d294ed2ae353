"""Where a page or a figure can be written: files on this machine, of the formats that there are."""

import re
from pathlib import Path

from rlsparse_ray.errors import RlsparseError

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
"""How addresses begin; a path has lost one of the two slashes."""


def check_place(path: Path, thing: str, suffixes: tuple[str, ...]) -> None:
    """Know before the work whether a thing can be written there.

    Args:
        path: where to.
        thing: what it is, for the message.
        suffixes: those of its formats, the usual one first.

    Raises:
        RlsparseError: an address, a folder or another format.
    """
    if _ADDRESS.match(str(path)):
        raise RlsparseError(
            f"{path}: a {thing} is written to a file on this machine, not to an address; write it "
            f"to {path.name} and copy that"
        )
    if path.is_dir():
        raise RlsparseError(
            f"{path} is a folder: name the file, such as {path / thing}{suffixes[0]}"
        )
    if path.suffix not in suffixes:
        wrong = repr(path.suffix) if path.suffix else "a name without a suffix"
        raise RlsparseError(f"{path}: a {thing} is {', '.join(suffixes)}, not {wrong}")
