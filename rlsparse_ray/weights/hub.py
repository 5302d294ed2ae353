"""Opens a model on the Hugging Face hub: its commit and files, in one request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoSibling

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.hub_address import HubAddress, parse_address
from rlsparse_ray.weights.hub_cache import cached_commit, cached_files
from rlsparse_ray.weights.hub_errors import ask_hub
from rlsparse_ray.weights.hub_ranges import HubRanges
from rlsparse_ray.weights.hub_settings import endpoint, is_offline
from rlsparse_ray.weights.spec import FileRef

_TIMEOUT = 30.0
"""Seconds for a listing; huggingface_hub itself would wait for ever."""


@dataclass(frozen=True)
class HubFolder:
    """A folder of a repository at one commit."""

    source: str
    revision: str
    subfolder: str
    files: Mapping[str, FileRef]
    _ranges: HubRanges = field(default_factory=HubRanges, repr=False, compare=False)

    def read(self, file: FileRef, offset: int, nbytes: int) -> bytes:
        """A range of a file, from the local cache or the hub. Thread-safe.

        Raises:
            CheckpointError: it cannot be read; the message names the file and the fix.
        """
        data = bytearray(nbytes)
        self._ranges.read_into(file, offset, memoryview(data))
        return bytes(data)

    def identity(self, file: FileRef) -> bytes:
        """The ETag, which rests on the content."""
        return file.stamp.encode()


def open_hub(address: str) -> HubFolder:
    """Resolve a revision to its commit, and list the files.

    A renamed repository goes by its new name from here on. With HF_HUB_OFFLINE the local cache
    alone is asked.

    Args:
        address: hf://org/repo[@revision][/folder].

    Raises:
        CheckpointError: no such thing, no access, or no answer; the message says what to do.
    """
    asked = parse_address(address)
    found, files = _cached(asked) if is_offline() else _listed(asked)
    return HubFolder(
        source=str(HubAddress(found.repository, None, found.path)),
        revision=str(found.revision),
        subfolder=found.path,
        files=MappingProxyType(_within(found, files)),
    )


def _cached(asked: HubAddress) -> tuple[HubAddress, dict[str, FileRef]]:
    sha = cached_commit(asked)
    return HubAddress(asked.repository, sha, asked.path), cached_files(asked, sha)


def _listed(asked: HubAddress) -> tuple[HubAddress, dict[str, FileRef]]:
    api = HfApi(endpoint=endpoint(), library_name="rlsparse-ray")
    info = ask_hub(
        lambda: api.model_info(
            asked.repository, revision=asked.revision, files_metadata=True, timeout=_TIMEOUT
        ),
        asked,
    )
    if not info.sha or info.siblings is None:
        raise CheckpointError(f"{asked}: {endpoint()} gives no commit and files: is it a hub?")
    at = HubAddress(info.id, info.sha, asked.path)
    return at, {sibling.rfilename: _file_ref(at, sibling) for sibling in info.siblings}


def _file_ref(at: HubAddress, sibling: RepoSibling) -> FileRef:
    path = str(HubAddress(at.repository, at.revision, sibling.rfilename))
    if sibling.size is None or sibling.blob_id is None:
        raise CheckpointError(f"{path}: {endpoint()} does not tell its size: is it a hub?")
    content = sibling.lfs.sha256 if sibling.lfs else ""
    # the hub's ETag is the sha256 of an LFS file, and git's object id of any other
    return FileRef(path, sibling.size, content or sibling.blob_id, content)


def _within(at: HubAddress, files: Mapping[str, FileRef]) -> dict[str, FileRef]:
    """The files of the folder by their plain names, sorted."""
    prefix = f"{at.path}/" if at.path else ""
    inside = {
        name.removeprefix(prefix): file for name, file in files.items() if name.startswith(prefix)
    }
    if not inside:
        folders = sorted({name.rpartition("/")[0] for name in files} - {""})
        there = f"its folders are {', '.join(folders)}" if folders else "it has no folders"
        raise CheckpointError(f"{at}: no such folder in the repository: {there}")
    return {name: inside[name] for name in sorted(inside) if "/" not in name}
