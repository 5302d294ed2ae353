"""What the pickle of a checkpoint says: names, shapes and storages. No data, no foreign code.

The pickle is parsed by torch's own weights-only unpickler, which calls nothing but the functions
that rebuild tensors; the storages it asks for are on the meta device and hold nothing.
"""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import IO, Any

import torch
from torch._weights_only_unpickler import Unpickler

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.spec import FileRef, TensorSpec

DAMAGED = (
    UnpicklingError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
)
"""What unpickling raises when the pickle is not what torch.save writes."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which trainers keep the state dict."""

_DTYPES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.int64: "I64",
    torch.uint64: "U64",
}

_SAVE = (
    "load it with torch and save its weights alone "
    '(safetensors.torch.save_file(state_dict, "model.safetensors"))'
)


@dataclass(slots=True)
class Storages:
    """The storages that a pickle asked for."""

    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each, by its key in the file."""

    def make(self, saved: tuple[Any, ...]) -> torch.storage.TypedStorage:
        """A storage without data, which knows its key and where in the stored one it begins."""
        _, kind, key, _, numel, *view = saved
        dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
        nbytes, begin = numel * dtype.itemsize, 0
        if self.sizes.setdefault(str(key), nbytes) != nbytes:
            raise ValueError(f"storage {key} has two sizes")
        if view and view[0] is not None:
            _, first, numel = view[0]
            begin, nbytes = first * dtype.itemsize, numel * dtype.itemsize
        storage = _Storage(nbytes, device="meta")  # type: ignore[no-untyped-call]
        storage.key, storage.begin, storage.end = str(key), begin, begin + nbytes
        return torch.storage.TypedStorage(  # type: ignore[no-untyped-call]
            wrap_storage=storage, dtype=dtype, _internal=True
        )

    def load(self, stream: IO[bytes], path: str) -> Any:
        """Parse one pickle.

        Raises:
            CheckpointError: it refers to code that weights do not need.
            One of DAMAGED: it is broken.
        """
        unpickler = _Unpickler(stream, self)
        try:
            loaded = unpickler.load()  # type: ignore[no-untyped-call]
        except UnpicklingError as error:
            refused = re.search(r"GLOBAL (\S+)|``(torch\S*)`` must be imported", str(error))
            if refused is None:
                raise
            raise _forbidden(path, refused[1] or refused[2]) from error
        # once torch.distributed is imported, the unpickler allows its tensors
        for value in (loaded, *(loaded.values() if isinstance(loaded, dict) else ())):
            kind = value if isinstance(value, type) else type(value)
            if kind.__module__.startswith("torch.distributed"):
                raise _forbidden(path, f"{kind.__module__}.{kind.__name__}")
        return loaded


class _Unpickler(Unpickler):
    def __init__(self, stream: IO[bytes], storages: Storages) -> None:
        super().__init__(stream, encoding="utf-8")
        self._storages = storages

    def persistent_load(self, pid: tuple[Any, ...]) -> torch.storage.TypedStorage:
        return self._storages.make(pid)


class _Storage(torch.UntypedStorage):
    key: str
    begin: int
    end: int


def _forbidden(path: str, name: str) -> CheckpointError:
    if name.startswith("torch.distributed"):
        return CheckpointError(
            f"{path}: a shard of a distributed model ({name}): merge it first with the tool of "
            "the trainer that wrote it (verl: python -m verl.model_merger merge --backend fsdp "
            "--local_dir FOLDER --target_dir NEW)"
        )
    return CheckpointError(
        f"{path}: its pickle calls {name}, which weights do not need and which could be any code, "
        f"so it was not run: if you trust who made the file, {_SAVE}"
    )


def tensor_specs(
    loaded: Any, starts: Mapping[str, int], sizes: Mapping[str, int], file: FileRef
) -> tuple[TensorSpec, ...]:
    """Where each tensor of a state dict lies; tensors may share bytes.

    Args:
        loaded: what the pickle holds: a state dict, or one under the key of a trainer.
        starts: first byte of each storage in the file.
        sizes: bytes of each storage.
        file: the file.

    Raises:
        CheckpointError: a tensor is not one run of bytes, or something that is no number or text
            lies beside the tensors; the message names it.
    """
    specs = [
        _spec(name, value, starts, sizes, file)
        for name, value in _state_dict(loaded, file.path).items()
        if isinstance(value, torch.Tensor)
    ]
    return tuple(sorted(specs, key=lambda t: (t.offset, t.nbytes, t.name)))


def _state_dict(loaded: Any, path: str) -> dict[str, Any]:
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, no state dict: {_SAVE}")
    wrapper = next((key for key in _WRAPPERS if isinstance(loaded.get(key), dict)), None)
    for name, value in loaded.items():
        tensor = isinstance(value, torch.Tensor) and isinstance(name, str)
        if not tensor and name != wrapper and not _is_plain(value):
            raise CheckpointError(
                f"{path}: entry {name!r} is neither a tensor nor plain numbers and text, so what "
                f"belongs to the model is not clear: {_SAVE}"
            )
    if wrapper is None:
        return loaded
    if tensors := [name for name, value in loaded.items() if isinstance(value, torch.Tensor)]:
        raise CheckpointError(
            f"{path}: tensors beside {wrapper!r} ({tensors[0]}, ...), so what belongs to the "
            f"model is not clear: {_SAVE}"
        )
    return _state_dict(loaded[wrapper], path)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bytes | int | float | torch.dtype)


def _spec(
    name: str,
    tensor: torch.Tensor,
    starts: Mapping[str, int],
    sizes: Mapping[str, int],
    file: FileRef,
) -> TensorSpec:
    where = f"{file.path}: tensor {name}"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        kind = type(tensor).__name__ if tensor.layout == torch.strided else tensor.layout
        raise CheckpointError(f"{where}: a {kind}, not a plain dense tensor: {_SAVE}")
    storage = tensor.untyped_storage()
    if not isinstance(storage, _Storage):
        raise CheckpointError(f"{where}: its values are not stored in the file: {_SAVE}")
    if not tensor.is_contiguous() or tensor.is_neg() or tensor.is_conj():
        raise CheckpointError(
            f"{where}: not stored row after row (shape {list(tensor.shape)}, strides "
            f"{list(tensor.stride())}): make it contiguous() and save it again"
        )
    begin = storage.begin + int(tensor.storage_offset()) * tensor.itemsize
    nbytes = tensor.numel() * tensor.itemsize
    if nbytes and begin + nbytes > min(storage.end, sizes[storage.key]):
        raise CheckpointError(f"{where}: ends outside its storage: write or download it again")
    dtype = _DTYPES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.").upper())
    offset = starts[storage.key] + (begin if nbytes else 0)
    return TensorSpec(name, dtype, tuple(tensor.shape), file, offset, nbytes)
