"""Which files of a folder are the model: the same rules wherever the folder is."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.places import Folder
from rlsparse_ray.weights.refusals import nothing_to_read, refuse_unmerged, some
from rlsparse_ray.weights.spec import FileRef

ADAPTER_CONFIG = "adapter_config.json"
SAFETENSORS = ".safetensors"
WEIGHTS = (SAFETENSORS, ".bin", ".pt", ".pth")
"""How the names of files with weights end."""

_MODELS = ("model.safetensors", "pytorch_model.bin")
"""By precedence; each may have an index of shards in its place."""
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_VALUE_HEADS = ("value_head.safetensors", "value_head.bin")
"""What PPO trainers put beside the model (LLaMA-Factory's names)."""
_NOT_WEIGHTS = ("training_args.", "optimizer.", "scheduler.", "scaler.", "rng_state")
"""Beginnings of what trainers leave in pickles beside a model."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file with weights."""

    file: FileRef
    index: str = ""
    """Name of the index that lists it; empty if there is none."""
    mapped: frozenset[str] = frozenset()
    """Tensors that the index places there."""

    def check(self, stored: frozenset[str]) -> None:
        """Compare the index with the tensors that the file holds.

        Raises:
            CheckpointError: they disagree.
        """
        if not self.index:
            return
        fix = "download index and shards from one revision"
        if lacking := self.mapped - stored:
            raise CheckpointError(
                f"{self.file.path}: lacks {some(lacking)}, which {self.index} places there: {fix}"
            )
        if extra := stored - self.mapped:
            raise CheckpointError(
                f"{self.file.path}: holds {some(extra)}, which {self.index} does not place "
                f"there: {fix}"
            )


def split_source(address: str) -> tuple[str, str | None]:
    """The folder of a remote address, and the file if it ends in the name of one.

    A bucket, and a repository of the hub, are folders whatever their names end in.

    >>> split_source("s3://bucket/run/policy.pt"), split_source("hf://org/policy.pt")
    (('s3://bucket/run', 'policy.pt'), ('hf://org/policy.pt', None))
    """
    scheme, _, rest = address.partition("://")
    folder, _, name = rest.rpartition("/")
    depth = len(folder.split("/")) if folder else 0
    if name.endswith(WEIGHTS) and depth >= (2 if scheme == "hf" else 1):
        return f"{scheme}://{folder}", name
    return address, None


def choose_parts(folder: Folder, only: str | None) -> tuple[Part, ...]:
    """The files with weights, and what an index says of each.

    Args:
        folder: the folder.
        only: the one file to read, if the corpus names a file.

    Raises:
        CheckpointError: there is none, or several that belong to no index, or a format that
            cannot be read as it is; the message says what to do.
    """
    if only is not None:
        return (_named(folder, only),)
    for model in _MODELS:
        if f"{model}.index.json" in folder.files:
            return (*_shards(folder, f"{model}.index.json"), *_value_head(folder))
        if model in folder.files:
            return (Part(folder.files[model]), *_value_head(folder))
    return (_unnamed(folder), *_value_head(folder))


def is_adapter(parts: Iterable[Part]) -> bool:
    """Whether the chosen file is that of a LoRA adapter."""
    return any(part.file.path.endswith(tuple(f"/{name}" for name in _ADAPTERS)) for part in parts)


def read_whole(folder: Folder, name: str) -> bytes | None:
    """A small file; None if it is not there."""
    file = folder.files.get(name)
    if file is None:
        return None
    return folder.read(file, 0, file.size) if file.size else b""


def parse_object(place: str, raw: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: it is none; `place` is what the message calls the file.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{place}: not valid JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{place}: not a JSON object: download it again")
    return value


def _named(folder: Folder, only: str) -> Part:
    if only not in folder.files:
        found = some(folder.files) or "nothing"
        raise CheckpointError(f"{folder.source}: no file {only} there (found {found})")
    refuse_unmerged(folder, [only])
    return Part(folder.files[only])


def _value_head(folder: Folder) -> list[Part]:
    found = next((name for name in _VALUE_HEADS if name in folder.files), None)
    return [Part(folder.files[found])] if found else []


def _shards(folder: Folder, index: str) -> list[Part]:
    place = folder.files[index].path
    weight_map = parse_object(place, read_whole(folder, index) or b"").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{place}: no weight_map in it: download it again")
    mapped: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        mapped.setdefault(str(shard), set()).add(tensor)
    return [
        Part(_shard(folder, index, shard, len(names), len(weight_map)), index, frozenset(names))
        for shard, names in sorted(mapped.items())
    ]


def _shard(folder: Folder, index: str, shard: str, mapped: int, total: int) -> FileRef:
    if "/" in shard:
        raise CheckpointError(
            f"{folder.files[index].path}: shard {shard!r} is not a plain file name"
        )
    if shard not in folder.files:
        raise CheckpointError(
            f"{folder.source}: shard {shard} is missing ({mapped} of {total} tensors): "
            "download it again"
        )
    return folder.files[shard]


def _unnamed(folder: Folder) -> Part:
    """No usual name: an adapter, or the only file of its kind."""
    for adapter in _ADAPTERS:
        if adapter in folder.files:
            return Part(folder.files[adapter])
    if found := _only_one(folder, "safetensors", (SAFETENSORS,), _MODELS[0]):
        return found
    # after safetensors: trainers leave their own shards beside the model that they export
    refuse_unmerged(folder, folder.files)
    if found := _only_one(folder, "pickled weight", WEIGHTS[1:], _MODELS[1]):
        return found
    raise nothing_to_read(folder)


def _only_one(folder: Folder, kind: str, ends: tuple[str, ...], model: str) -> Part | None:
    names = [name for name in folder.files if name.endswith(ends) and _is_model(name)]
    if len(names) > 1:
        raise CheckpointError(
            f"{folder.source}: {len(names)} {kind} files ({some(names)}) but no "
            f"{model}.index.json: add the index, or name one file in the corpus"
        )
    return Part(folder.files[names[0]]) if names else None


def _is_model(name: str) -> bool:
    return name not in _VALUE_HEADS and not name.startswith(_NOT_WEIGHTS)
