"""Opens a model in a folder, on the disk, in a bucket or on the hub: headers only, no weights."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.choice import (
    ADAPTER_CONFIG,
    SAFETENSORS,
    Part,
    choose_parts,
    is_adapter,
    parse_object,
    read_whole,
)
from rlsparse_ray.weights.header import Header, read_header
from rlsparse_ray.weights.places import Folder
from rlsparse_ray.weights.refusals import refuse_packed, refuse_quantised
from rlsparse_ray.weights.spec import Adapter, Checkpoint
from rlsparse_ray.weights.tying import tied_embeddings

_CONFIG = "config.json"

_AT_ONCE = 8
"""Headers read at the same time: each is a round trip or two to where the model is."""


@dataclass(frozen=True, slots=True)
class Located:
    """A model that was found, before any of its headers is read."""

    folder: Folder
    only: str | None
    """Name of the one file to read; None: the folder's files decide."""

    @property
    def bare(self) -> Checkpoint | None:
        """What `open` gives but for the tensors, where a commit tells which model it is.

        None: there are no commits there, so the headers have to be read.
        """
        if self.folder.revision is None:
            return None
        place, subfolder = _place(self.folder, self.only), _subfolder(self.folder, self.only)
        return Checkpoint(place, self.folder.revision, (), None, subfolder)

    def open(self) -> Checkpoint:
        """Read the headers; see `open_folder`."""
        return open_folder(self.folder, self.only)


def open_folder(folder: Folder, only: str | None = None) -> Checkpoint:
    """Open a model: safetensors, else pickled weights, sharded or single; or a LoRA adapter.

    Without a commit sha the revision is a fingerprint of file names, sizes, headers, config.json
    and `Folder.identity` of each file.

    Args:
        folder: where the model is.
        only: name of the one file to read; None: the folder's files decide.

    Raises:
        CheckpointError: naming the folder or file, what is wrong and the fix.
    """
    config_bytes = read_whole(folder, _CONFIG)
    config = parse_object(folder.files[_CONFIG].path, config_bytes) if config_bytes else {}
    if config_bytes is not None:
        refuse_quantised(folder.files[_CONFIG].path, _quantisation(config))
    parts = choose_parts(folder, only)
    adapter = _adapter_config(folder) if is_adapter(parts) else None
    headers = _read_headers(folder, parts)
    place = _place(folder, only)
    tensors = [tensor for header in headers for tensor in header.tensors]
    if not tensors:
        raise CheckpointError(f"{place}: holds no tensor: nothing to compare")
    refuse_packed(tensors)
    return Checkpoint(
        source=place,
        revision=folder.revision or _fingerprint(folder, parts, headers, config_bytes, adapter),
        tensors=tuple(sorted(tensors, key=lambda t: (t.file.path, t.offset, t.nbytes, t.name))),
        tied_embeddings=tied_embeddings(config),
        subfolder=_subfolder(folder, only),
        adapter=adapter,
    )


def _read_headers(folder: Folder, parts: Sequence[Part]) -> list[Header]:
    def read(part: Part) -> Header:
        if part.file.path.endswith(SAFETENSORS):
            header = read_header(lambda *span: folder.read(part.file, *span), part.file)
        else:
            # torch takes 2 s to import
            from rlsparse_ray.weights.pickled import read_pickled  # noqa: PLC0415

            header = read_pickled(folder, part.file)
        part.check(frozenset(tensor.name for tensor in header.tensors))
        return header

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="rlsparse-header") as pool:
        headers = list(pool.map(read, parts))
    _refuse_twice(headers)
    return headers


def _refuse_twice(headers: Sequence[Header]) -> None:
    """An index forbids it; a value head beside the model might do it."""
    places: dict[str, str] = {}
    for tensor in (tensor for header in headers for tensor in header.tensors):
        other = places.setdefault(tensor.name, tensor.file.path)
        if other != tensor.file.path:
            raise CheckpointError(
                f"{tensor.file.path}: tensor {tensor.name} is in {other} too: remove one of them"
            )


def _adapter_config(folder: Folder) -> Adapter:
    raw = read_whole(folder, ADAPTER_CONFIG)
    if raw is None:
        raise CheckpointError(
            f"{folder.source}: a LoRA adapter without {ADAPTER_CONFIG}, so nothing says how it "
            "is scaled: download that file too, or merge the adapter into its base "
            "(peft: merge_and_unload(), then save_pretrained())"
        )
    parse_object(folder.files[ADAPTER_CONFIG].path, raw)
    return Adapter(raw.decode("utf-8"))


def _place(folder: Folder, only: str | None) -> str:
    return f"{folder.source}/{only}" if only else folder.source


def _subfolder(folder: Folder, only: str | None) -> str:
    """A commit does not tell which of its files was meant; a fingerprint does."""
    if only is None or folder.revision is None:
        return folder.subfolder
    return f"{folder.subfolder}/{only}" if folder.subfolder else only


def _quantisation(config: dict[str, Any]) -> Any:
    """Models with several towers may keep it under `text_config`."""
    key, text_config = "quantization_config", config.get("text_config")
    if config.get(key) is not None:
        return config[key]
    return text_config.get(key) if isinstance(text_config, dict) else None


def _fingerprint(
    folder: Folder,
    parts: Sequence[Part],
    headers: Sequence[Header],
    config_bytes: bytes | None,
    adapter: Adapter | None,
) -> str:
    digest = hashlib.sha256()
    for part, header in sorted(zip(parts, headers, strict=True), key=lambda item: _name(item[0])):
        # repr keeps the fields apart, so that no two folders give the same text
        digest.update(repr((_name(part), part.file.size, len(header.raw))).encode())
        digest.update(header.raw)
        digest.update(folder.identity(part.file))
    digest.update(repr(config_bytes).encode())
    if adapter is not None:
        digest.update(adapter.config.encode())
    return digest.hexdigest()[:16]


def _name(part: Part) -> str:
    return part.file.path.rpartition("/")[2]
