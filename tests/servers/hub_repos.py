"""What the test hub serves: repositories made of plain folders.

    ROOT/org/name/REVISION/...files...

Every REVISION folder is one commit, and a branch of that name; `main` is the folder of that name.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".parquet")


@dataclass(frozen=True)
class Blob:
    """A file as git and git-lfs see it."""

    path: Path
    size: int
    oid: str
    """Git's object id: of the file, or of its LFS pointer."""
    sha256: str
    """Of the content; empty for a file that git keeps itself."""

    @property
    def etag(self) -> str:
        """What the hub gives as the ETag (X-Linked-ETag for LFS files)."""
        return self.sha256 or self.oid

    @property
    def lfs(self) -> dict[str, Any] | None:
        """The `lfs` object of listings."""
        if not self.sha256:
            return None
        return {"sha256": self.sha256, "oid": self.sha256, "size": self.size, "pointerSize": 134}


@dataclass
class Settings:
    """What a repository is besides its files."""

    refs: dict[str, str] = field(default_factory=dict)
    """More names of revisions: branch, tag or refs/pr/1 -> name of the folder."""
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    """Tokens that may read it if it is private or gated."""
    card: dict[str, Any] = field(default_factory=dict)
    """`cardData`: base_model, base_model_relation, license, ..."""
    tags: list[str] = field(default_factory=list)
    library: str = "transformers"
    downloads: int = 0
    """Of all time."""
    likes: int = 0
    created: str = "2026-01-01"
    """Day on which it was made."""
    updated: str = "2026-01-01"
    """Day of the last commit."""


class Repository:
    """One repository; made anew for each request, so that the folder is always what counts."""

    def __init__(self, root: Path, name: str, settings: Settings) -> None:
        self.name = name
        self.settings = settings
        self._folder = root / name

    @property
    def commits(self) -> dict[str, Path]:
        """The folder of each commit."""
        return {self._sha(p.name): p for p in sorted(self._folder.iterdir()) if p.is_dir()}

    @property
    def refs(self) -> dict[str, str]:
        """Commit of each branch, tag and special ref."""
        names = {path.name: path.name for path in self.commits.values()}
        return {ref: self._sha(name) for ref, name in {**names, **self.settings.refs}.items()}

    def commit(self, revision: str) -> str | None:
        """The commit that a ref, a sha or the beginning of one (7 digits or more) names."""
        refs = self.refs
        if revision in refs:
            return refs[revision]
        found = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return found[0] if found else None

    def files(self, sha: str) -> dict[str, Blob]:
        """The files of a commit by their paths, sorted."""
        folder = self.commits[sha]
        paths = (path for path in folder.rglob("*") if path.is_file())
        return {
            path.relative_to(folder).as_posix(): _blob(path, *_stamp(path))
            for path in sorted(paths)
        }

    def info(self, sha: str, *, blobs: bool) -> dict[str, Any]:
        """The answer of /api/models/NAME."""
        settings, files = self.settings, self.files(sha)
        return {
            "_id": hashlib.sha1(self.name.encode()).hexdigest()[:24],
            "id": self.name,
            "modelId": self.name,
            "author": self.name.partition("/")[0],
            "sha": sha,
            "lastModified": f"{settings.updated}T00:00:00.000Z",
            "createdAt": f"{settings.created}T00:00:00.000Z",
            "private": settings.private,
            "gated": "auto" if settings.gated else False,
            "disabled": False,
            "downloads": settings.downloads // 10,
            "downloadsAllTime": settings.downloads,
            "likes": settings.likes,
            "tags": [*settings.tags, *_card_tags(settings.card)],
            "library_name": settings.library,
            "cardData": settings.card,
            "config": _short_config(files.get("config.json")),
            "siblings": [_sibling(name, blob, blobs) for name, blob in files.items()],
        }

    def tree(self, sha: str, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
        """The answer of /api/models/NAME/tree/REVISION/FOLDER, before paging."""
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, blob in self.files(sha).items():
            if not name.startswith(prefix):
                continue
            steps = name.removeprefix(prefix).split("/")
            for depth in range(1, len(steps) if recursive else min(2, len(steps))):
                path = prefix + "/".join(steps[:depth])
                entries[path] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
            if recursive or len(steps) == 1:
                entries[name] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": name}
                if blob.lfs:
                    entries[name]["lfs"] = blob.lfs
        return list(entries.values())

    def _sha(self, revision_folder: str) -> str:
        """Rests on names alone: a file replaced in place is a commit that changed."""
        return hashlib.sha1(f"{self.name}@{revision_folder}".encode()).hexdigest()


class Repositories:
    """All repositories under a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings: dict[str, Settings] = {}
        self.renamed: dict[str, str] = {}
        """Old name -> new name; one-part names too."""

    def get(self, name: str) -> Repository | None:
        """A repository by its present name."""
        if name.count("/") != 1 or not (self.root / name).is_dir():
            return None
        return Repository(self.root, name, self.settings.get(name, Settings()))

    def __iter__(self) -> Iterator[Repository]:
        for path in sorted(self.root.glob("*/*")):
            if repository := self.get(path.relative_to(self.root).as_posix()):
                yield repository

    def blob(self, sha256: str) -> Blob | None:
        """The LFS file with a content."""
        for repository in self:
            for sha in repository.commits:
                for blob in repository.files(sha).values():
                    if blob.sha256 == sha256:
                        return blob
        return None


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


@cache
def _blob(path: Path, size: int, mtime_ns: int, inode: int) -> Blob:
    """Hashed once as long as the file is the same."""
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if not path.name.endswith(LFS_SUFFIXES):
        return Blob(path, size, _git_oid(path.read_bytes()), "")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return Blob(path, size, _git_oid(pointer.encode()), sha256)


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sibling(name: str, blob: Blob, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    sibling = {"rfilename": name, "size": blob.size, "blobId": blob.oid}
    return {**sibling, "lfs": blob.lfs} if blob.lfs else sibling


def _card_tags(card: dict[str, Any]) -> list[str]:
    """The tags that the hub derives from the card, by which descendants are found."""
    relation = card.get("base_model_relation", "finetune")
    bases = _listed(card.get("base_model"))
    return [
        *(tag for tag in _listed(card.get("tags")) if isinstance(tag, str)),
        *(f"{key}:{x}" for x in bases for key in ("base_model", f"base_model:{relation}")),
        *(f"dataset:{name}" for name in _listed(card.get("datasets"))),
        *(f"license:{name}" for name in _listed(card.get("license"))),
    ]


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _short_config(blob: Blob | None) -> dict[str, Any]:
    if blob is None:
        return {}
    config = json.loads(os.fsdecode(blob.path.read_bytes()))
    return {key: config[key] for key in ("architectures", "model_type") if key in config}
