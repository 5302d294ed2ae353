"""Addresses on the hub: hf://org/repo[@revision][/folder], as HfFileSystem reads them."""

import re
from dataclasses import dataclass
from urllib.parse import unquote

from rlsparse_ray.errors import CheckpointError

_ADDRESS = re.compile(
    r"""
    hf://(?:models/)?
    (?P<repository>[^/@]+(?:/[^/@]+)?+)                                # gpt2, org/repo
    (?:@(?P<revision>refs/(?:convert/[\w.-]+|pr/\d+)(?=/|$)|[^/]+))?+  # main, refs/pr/1, v1%2F2
    (?:/(?P<path>.*))?
    """,
    re.VERBOSE,
)

_OTHER_KINDS = ("datasets", "spaces", "buckets", "kernels")


@dataclass(frozen=True, slots=True)
class HubAddress:
    """What an address names."""

    repository: str
    revision: str | None
    """Branch, tag, refs/pr/1 or commit sha; None: the default branch."""
    path: str
    """Of a folder or file within the repository; empty for its root."""

    def __str__(self) -> str:
        """The address; the revision's slashes are quoted where they would be taken for a path's."""
        revision = "" if self.revision is None else f"@{_quoted(self.revision)}"
        return f"hf://{self.repository}{revision}" + (f"/{self.path}" if self.path else "")


def parse_address(address: str) -> HubAddress:
    """Take an address apart.

    >>> parse_address("hf://allenai/tulu@refs/pr/1/step-10")
    HubAddress(repository='allenai/tulu', revision='refs/pr/1', path='step-10')
    >>> parse_address("hf://gpt2")
    HubAddress(repository='gpt2', revision=None, path='')

    Raises:
        CheckpointError: it is no address of a model.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise CheckpointError(
            f"{address}: no address on the hub: write hf://org/repo@revision/folder, of which "
            "@revision and /folder may be left out"
        )
    repository, revision = found["repository"], found["revision"]
    if repository.partition("/")[0] in _OTHER_KINDS:
        raise CheckpointError(f"{address}: only models have weights: write hf://org/repo")
    return HubAddress(
        repository=repository,
        revision=None if revision is None else unquote(revision),
        path=(found["path"] or "").strip("/"),
    )


def _quoted(revision: str) -> str:
    special = re.fullmatch(r"refs/(?:convert/[\w.-]+|pr/\d+)", revision)
    return revision if special else revision.replace("/", "%2F")
