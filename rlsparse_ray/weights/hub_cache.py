"""The local cache of huggingface_hub: what is in it is not fetched again."""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.hub_address import HubAddress, parse_address
from rlsparse_ray.weights.hub_errors import ask_hub
from rlsparse_ray.weights.hub_room import room_for
from rlsparse_ray.weights.hub_settings import cache_folder, endpoint, is_offline
from rlsparse_ray.weights.spec import FileRef

_AT_ONCE = 4
"""Files downloaded at the same time; each has several connections of its own."""

_log = logging.getLogger(__name__)

_said: list[FileRef] = []
"""The file of which this process has said that it is not cached."""


def cached_file(file: FileRef) -> Path | None:
    """Where a file of the hub is in the local cache; None if it is not there, whole."""
    address = parse_address(file.path)
    found = try_to_load_from_cache(
        address.repository, address.path, cache_folder(), address.revision
    )
    if not isinstance(found, str) or Path(found).stat().st_size != file.size:
        return None
    return Path(found)


def cached_commit(address: HubAddress) -> str:
    """The commit that a revision was when it was downloaded.

    Raises:
        CheckpointError: the cache does not know the repository, or not that revision.
    """
    folder = _folder_of(address)
    revision = address.revision or "main"
    ref = folder / "refs" / revision
    if ref.is_file():
        return ref.read_text().strip()
    commits = sorted(path.name for path in (folder / "snapshots").glob("*"))
    found = [sha for sha in commits if len(revision) >= 7 and sha.startswith(revision)]
    if found:
        return found[0]
    there = f"only {', '.join(commits)}" if commits else "nothing of this repository"
    raise CheckpointError(
        f"{address}: the local cache {cache_folder()} has {there}, and HF_HUB_OFFLINE forbids "
        f"asking the hub: unset it, name one of those commits, or run first: {_download(address)}"
    )


def cached_files(address: HubAddress, sha: str) -> dict[str, FileRef]:
    """The files of a commit that are in the local cache, by their paths in the repository."""
    root = _folder_of(address) / "snapshots" / sha
    paths = (path for path in root.rglob("*") if path.is_file())
    return {
        name: _file_ref(HubAddress(address.repository, sha, name), path)
        for path in sorted(paths)
        for name in [path.relative_to(root).as_posix()]
    }


def not_cached(file: FileRef) -> CheckpointError:
    """What to do about a file that only the hub has, when it may not be asked."""
    return CheckpointError(
        f"{file.path}: not in the local cache {cache_folder()}, and HF_HUB_OFFLINE forbids "
        f"fetching it: unset it, or run first: {_download(parse_address(file.path))}"
    )


def cache_files(files: Iterable[FileRef]) -> None:
    """Download whole files into the local cache, so that later reads of them are local.

    Files of other places, and files that are there already, are left alone. One for which the
    cache has no room is left where it is, and read by ranges; the first time a process says so.

    Raises:
        CheckpointError: one cannot be had.
    """
    wanted = {file for file in files if file.scheme == "hf" and cached_file(file) is None}
    if not wanted:
        return
    if is_offline():
        raise not_cached(min(wanted, key=lambda file: file.path))
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="rlsparse-cache") as pool:
        list(pool.map(_cache, sorted(wanted, key=lambda file: file.path)))


def _cache(file: FileRef) -> None:
    try:
        with room_for(file, cache_folder()) as fits:
            if fits:
                _download_whole(file)
            else:
                _leave(file, f"{file.size / 1e9:.1f} GB do not fit")
    except OSError as error:
        _leave(file, str(error))


def _download_whole(file: FileRef) -> None:
    address = parse_address(file.path)
    ask_hub(
        lambda: hf_hub_download(
            address.repository,
            address.path,
            revision=address.revision,
            cache_dir=cache_folder(),
            endpoint=endpoint(),
        ),
        address,
    )


def _leave(file: FileRef, why: str) -> None:
    if not _said:
        _said.append(file)
        _log.warning(
            "%s: %s: cannot be kept in %s, so it is read by ranges, and others like it: make "
            "room, or set HF_HUB_CACHE to a folder on a larger disk",
            file.path,
            why,
            cache_folder(),
        )


def _folder_of(address: HubAddress) -> Path:
    name = repo_folder_name(repo_id=address.repository, repo_type="model")
    return cache_folder() / name


def _file_ref(address: HubAddress, path: Path) -> FileRef:
    # the cache keeps contents under their ETags and links to them; sha256 for LFS files
    etag = path.resolve().name if path.is_symlink() else ""
    return FileRef(str(address), path.stat().st_size, etag, etag if len(etag) == 64 else "")


def _download(address: HubAddress) -> str:
    revision = f" --revision {address.revision}" if address.revision else ""
    return f"hf download {address.repository}{f' {address.path}' if address.path else ''}{revision}"
