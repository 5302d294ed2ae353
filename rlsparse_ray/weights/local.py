"""Opens a model in a local folder (or one .safetensors file): headers only, no weights."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.header import Header, read_header
from rlsparse_ray.weights.spec import Checkpoint, FileRef, TensorSpec

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_ADAPTER = "adapter_model.safetensors"

_ONE_VALUE_A_PARAMETER = frozenset({"fp8"})
"""Quantisation methods that keep one stored value a parameter, so that masks still make sense."""

_SAMPLES, _SAMPLE_BYTES = 64, 4096

_PACKED = (".qweight", ".qzeros", ".weight_packed", ".weight.absmax", ".SCB")

_UNPACK = "compare the unquantised model, or dequantise it and save it as bf16 safetensors"


def open_local(folder: str | os.PathLike[str]) -> Checkpoint:
    """Open a folder of safetensors files, sharded or single, or one such file.

    The revision is a fingerprint of file names, sizes, times, inodes, headers, samples of the
    content and config.json. So two models are never taken for one, even if an archive gave all
    files one time; a copy of a model is taken for another.

    Raises:
        CheckpointError: naming the folder or file, what is wrong and the fix.
    """
    path = Path(folder).expanduser().absolute()
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder: check the path in the corpus file")
    home = path if path.is_dir() else path.parent
    config_bytes = _read_optional(home / "config.json")
    config = _parse_object(home / "config.json", config_bytes) if config_bytes else {}
    _refuse_quantised(home, config)
    headers = _headers(path)
    tensors = [tensor for _, header in headers for tensor in header.tensors]
    _check_tensors(path, tensors)
    return Checkpoint(
        source=str(path),
        revision=_fingerprint(headers, config_bytes),
        tensors=tuple(sorted(tensors, key=lambda t: (t.file.path, t.offset))),
        tied_embeddings=_tied(config),
    )


def _headers(path: Path) -> list[tuple[FileRef, Header]]:
    if path.is_dir() and (path / _INDEX).exists():
        return _sharded_headers(path)
    return [_file_header(_single_file(path) if path.is_dir() else path)]


def _file_header(path: Path) -> tuple[FileRef, Header]:
    try:
        with path.open("rb", buffering=0) as stream:
            descriptor = stream.fileno()
            found = os.fstat(descriptor)
            file = FileRef(str(path), found.st_size, str(found.st_mtime_ns))
            return file, read_header(lambda offset, n: os.pread(descriptor, n, offset), file)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _sharded_headers(folder: Path) -> list[tuple[FileRef, Header]]:
    index = folder / _INDEX
    weight_map = _parse_object(index, index.read_bytes()).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map in it: download it again")
    headers = []
    for shard in sorted(set(map(str, weight_map.values()))):
        mapped = {name for name, file in weight_map.items() if file == shard}
        headers.append(_shard_header(folder, shard, mapped, len(weight_map)))
    return headers


def _shard_header(folder: Path, shard: str, mapped: set[str], total: int) -> tuple[FileRef, Header]:
    if Path(shard).name != shard:
        raise CheckpointError(f"{folder / _INDEX}: shard {shard!r} is not a plain file name")
    if not (folder / shard).exists():
        raise CheckpointError(
            f"{folder}: shard {shard} is missing ({len(mapped)} of {total} tensors): "
            "download it again"
        )
    file, header = _file_header(folder / shard)
    stored = {tensor.name for tensor in header.tensors}
    if lacking := mapped - stored:
        raise CheckpointError(
            f"{file.path}: lacks {_some(lacking)}, which {_INDEX} places there: "
            "download index and shards from one revision"
        )
    if extra := stored - mapped:
        raise CheckpointError(
            f"{file.path}: holds {_some(extra)}, which {_INDEX} does not place there: "
            "download index and shards from one revision"
        )
    return file, header


def _single_file(folder: Path) -> Path:
    if (folder / _SINGLE).exists():
        return folder / _SINGLE
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise CheckpointError(
            f"{folder}: {len(files)} safetensors files ({_some(f.name for f in files)}) but no "
            f"{_INDEX}: add the index, or name one file in the corpus"
        )
    if not files:
        raise _nothing_to_read(folder)
    if files[0].name == _ADAPTER:
        raise CheckpointError(
            f"{folder}: a LoRA adapter only: merge it into its base first "
            "(peft: merge_and_unload(), then save_pretrained())"
        )
    return files[0]


def _nothing_to_read(folder: Path) -> CheckpointError:
    load = "AutoModelForCausalLM.from_pretrained"
    if pickles := sorted([*folder.glob("pytorch_model*.bin"), *folder.glob("*.pt*")]):
        return CheckpointError(
            f"{folder}: no safetensors, only {_some(f.name for f in pickles)}: convert with "
            f'{load}(folder, dtype="auto").save_pretrained(new_folder)'
        )
    if ggufs := sorted(folder.glob("*.gguf")):
        return CheckpointError(
            f"{folder}: no safetensors, only {_some(f.name for f in ggufs)}: convert with "
            f'{load}(folder, gguf_file="{ggufs[0].name}").save_pretrained(new_folder)'
        )
    found = _some(sorted(f.name for f in folder.iterdir())) or "nothing"
    return CheckpointError(
        f"{folder}: no safetensors file (found {found}): a model folder holds {_SINGLE} or {_INDEX}"
    )


def _check_tensors(path: Path, tensors: list[TensorSpec]) -> None:
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensor: nothing to compare")
    for tensor in tensors:
        if tensor.name.endswith(_PACKED) or ".quant_state." in tensor.name:
            raise CheckpointError(
                f"{tensor.file.path}: tensor {tensor.name}: packed quantised weights, "
                f"which have no value a parameter: {_UNPACK}"
            )


def _refuse_quantised(folder: Path, config: dict[str, Any]) -> None:
    quantisation = _setting(config, "quantization_config")
    if quantisation is None:
        return
    named = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    method = str(named or "unnamed method")
    if method not in _ONE_VALUE_A_PARAMETER:
        raise CheckpointError(
            f"{folder / 'config.json'}: quantised weights (quant_method {method}) "
            f"cannot be compared: {_UNPACK}"
        )


def _tied(config: dict[str, Any]) -> bool | None:
    value = _setting(config, "tie_word_embeddings")
    return None if value is None else bool(value)


def _setting(config: dict[str, Any], key: str) -> Any:
    """A key of config.json; models with several towers keep it under `text_config`."""
    if config.get(key) is not None:
        return config[key]
    text_config = config.get("text_config")
    return text_config.get(key) if isinstance(text_config, dict) else None


def _fingerprint(headers: list[tuple[FileRef, Header]], config_bytes: bytes | None) -> str:
    digest = hashlib.sha256()
    for file, header in sorted(headers, key=lambda item: Path(item[0].path).name):
        path = Path(file.path)
        # repr keeps the fields apart, so that no two folders give the same text
        facts = (path.name, file.size, file.stamp, path.stat().st_ino, len(header.raw))
        digest.update(repr(facts).encode())
        digest.update(header.raw)
        digest.update(_samples(path, file.size))
    digest.update(repr(config_bytes).encode())
    return digest.hexdigest()[:16]


def _samples(path: Path, size: int) -> bytes:
    """Evenly spaced pieces of a file, 256 KiB at most: a file rewritten in place is noticed."""
    step = max(_SAMPLE_BYTES, size // _SAMPLES)
    with path.open("rb", buffering=0) as stream:
        descriptor = stream.fileno()
        return b"".join(os.pread(descriptor, _SAMPLE_BYTES, at) for at in range(0, size, step))


def _read_optional(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _parse_object(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object: download it again")
    return value


def _some(names: Iterable[str], most: int = 3) -> str:
    names = sorted(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
