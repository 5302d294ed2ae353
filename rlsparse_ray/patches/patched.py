"""The files of a patched model, written, or compared with what is there."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import IO, Protocol, Self

import xxhash

from rlsparse_ray.errors import PatchError
from rlsparse_ray.patches.entries import EntryStream
from rlsparse_ray.patches.format import Patch
from rlsparse_ray.patches.windows import Raw, ranges_of, read, width_of, windows
from rlsparse_ray.progress import Progress
from rlsparse_ray.weights import Checkpoint, FileRef, Reader, ReadRequest, TensorSpec
from rlsparse_ray.weights.choice import SAFETENSORS, WEIGHTS
from rlsparse_ray.weights.places import Folder

_OTHER_WEIGHTS = (*WEIGHTS, ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".npz")
_INDEX = "model.safetensors.index.json"


class _Sink(Protocol):
    def write(self, data: memoryview, /) -> int | None: ...


class PatchedModel:
    """What `apply_patch` makes of a base: the same shards, and its other files."""

    def __init__(self, folder: Folder, model: Checkpoint, patch: Patch) -> None:
        self.model, self._patch = model, patch
        self._tensors: dict[FileRef, list[TensorSpec]] = {}
        for spec in model.tensors:
            self._tensors.setdefault(spec.file, []).append(spec)
        for file in self._tensors:
            if not file.path.endswith(SAFETENSORS):
                raise PatchError(
                    f"{file.path}: a patched model is written as safetensors: convert the base "
                    "(from_pretrained, then save_pretrained), and make the patch from that"
                )
        weights = {file.path.rpartition("/")[2]: file for file in self._tensors}
        others = {n: f for n, f in folder.files.items() if n not in weights}
        self.left_out = tuple(name for name in others if _is_left_out(name))
        self.files = weights | {n: f for n, f in others.items() if n not in self.left_out}
        """By name; those with weights first."""
        self.nbytes = sum(file.size for file in self.files.values())

    def write(self, folder: Path, advance: Progress) -> None:
        """Write every file to a new folder.

        Raises:
            PatchError: the patch is damaged, or a tensor did not become that of the tuned model.
            CheckpointError: the base or the patch cannot be read.
            OSError: a file cannot be written.
        """
        self._pass_to(lambda name: (folder / name).open("xb", buffering=0), advance)

    def is_in(self, folder: Path, advance: Progress) -> bool:
        """Whether the folder holds every file, to the byte.

        Raises: as `write`.
        """
        found = {path.name: path.stat().st_size for path in folder.iterdir()}
        if found != {name: file.size for name, file in self.files.items()}:
            return False
        try:
            self._pass_to(lambda name: _Comparison(folder / name), advance)
        except _OtherBytesError:
            return False
        return True

    def _pass_to(
        self,
        sink_of: Callable[[str], AbstractContextManager[_Sink]],
        advance: Progress,
    ) -> None:
        names = [spec.name for specs in self._tensors.values() for spec in specs]
        with (
            Reader() as reader,
            closing(read(self._requests(), reader)) as arrays,
            closing(EntryStream(self._patch, names, reader)) as entries,
        ):
            for name, file in self.files.items():
                with sink_of(name) as sink:
                    for _ in ranges_of(self._plain(file)):
                        _pass(next(arrays), sink, advance)
                    for spec in self._tensors.get(file, ()):
                        for array in self._patched(spec, arrays, entries):
                            _pass(array, sink, advance)

    def _requests(self) -> Iterator[ReadRequest]:
        for file in self.files.values():
            yield from ranges_of(self._plain(file))
            for spec in self._tensors.get(file, ()):
                yield from windows(spec)

    def _plain(self, file: FileRef) -> ReadRequest:
        """What stays as it is: a header, or a whole file without tensors."""
        specs = self._tensors.get(file)
        return ReadRequest(file, 0, specs[0].offset if specs else file.size)

    def _patched(
        self, spec: TensorSpec, arrays: Iterator[Raw], entries: EntryStream
    ) -> Iterator[Raw]:
        """The windows of a tensor of the tuned model; at the end, its hash must be right."""
        digest, width, start = xxhash.xxh3_64(), width_of(spec), 0
        for _ in windows(spec):
            array = next(arrays)
            entries.put(spec.name, array, start, width)
            digest.update(array.data)
            yield array
            start += array.nbytes // width
        wanted = self._patch.tensors[spec.name].tuned_xxh3
        if digest.hexdigest() != wanted:
            raise PatchError(
                f"{self._patch.source}: tensor {spec.name} of {self.model.source} became one with "
                f"XXH3 {digest.hexdigest()} instead of {wanted}: did the base change meanwhile? "
                "Run again; if it stays so, make the patch again"
            )


def _pass(array: Raw, sink: _Sink, advance: Progress) -> None:
    view = array.data
    while view:
        # an unbuffered file may take a part only
        view = view[sink.write(view) or 0 :]
    advance(array.nbytes)


class _OtherBytesError(Exception):
    pass


class _Comparison:
    """Takes what would be written to a file, and raises where the file has something else."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._file: IO[bytes] = self._path.open("rb")
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()

    def write(self, data: memoryview, /) -> int:
        if self._file.read(len(data)) != data:
            raise _OtherBytesError
        return len(data)


def _is_left_out(name: str) -> bool:
    """Weights in another format, or again: they would be the base's beside the tuned model's."""
    is_index = name.endswith(".index.json") and name != _INDEX
    return is_index or name.endswith(_OTHER_WEIGHTS)
