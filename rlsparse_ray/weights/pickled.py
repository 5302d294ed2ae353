"""Reads where the tensors of a .bin, .pt or .pth file lie; the weights themselves are not touched.

Since torch 1.6 such a file is a zip archive: `data.pkl` with names and shapes, and one record of
plain bytes a storage. Older ones are a row of pickles (`pickled_legacy`).
"""

import io
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights.header import MAX_HEADER, Header, refuse_pointer
from rlsparse_ray.weights.pickled_legacy import MAGIC, read_legacy
from rlsparse_ray.weights.places import Folder
from rlsparse_ray.weights.range_file import RangeFile
from rlsparse_ray.weights.spec import FileRef
from rlsparse_ray.weights.unpickle import DAMAGED, Storages, tensor_specs

_AGAIN = "download it again"

_ALIGNMENT = 64
"""torch.save begins the bytes of every storage at a multiple of this."""
_HAS_DESCRIPTOR = 0x08
_DESCRIPTOR, _DESCRIPTOR_64 = 16, 24
_LOCAL_HEADER = 30
_32_BITS = 0xFFFFFFFF


def read_pickled(folder: Folder, file: FileRef) -> Header:
    """Parse the pickle of one file, with nothing but torch's weights-only rules.

    Raises:
        CheckpointError: naming the file, the tensor or the forbidden name, and the fix.
    """
    stream: BinaryIO = io.BufferedReader(RangeFile(folder, file))
    first = stream.read(len(MAGIC))
    refuse_pointer(first, file.path)
    stream.seek(0)
    try:
        if first.startswith(MAGIC):
            return read_legacy(stream, file)
        if first.startswith(b"PK"):
            return _read_zip(stream, folder, file)
    except CheckpointError:
        raise
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{file.path}: a cut or damaged archive ({error}): {_AGAIN}"
        ) from error
    except DAMAGED as error:
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise CheckpointError(
            f"{file.path}: its pickle does not hold plain tensors ({reason}): {_AGAIN}, or save "
            "the weights anew with torch.save and its defaults"
        ) from error
    raise CheckpointError(
        f"{file.path}: {file.size} bytes that torch.save has not written: {_AGAIN}, or name the "
        "file with the weights in the corpus"
    )


def _read_zip(stream: BinaryIO, folder: Folder, file: FileRef) -> Header:
    with zipfile.ZipFile(stream) as archive:
        records = {record.filename: record for record in archive.infolist()}
        prefix = _prefix(records, file)
        _check_records(archive, records, prefix, file)
        raw = archive.read(f"{prefix}/data.pkl")
        ends = _ends(records, archive.start_dir)
    storages = Storages()
    loaded = storages.load(io.BytesIO(raw), file.path)
    starts = {}
    for key, nbytes in storages.sizes.items():
        record = records.get(f"{prefix}/data/{key}")
        if record is None or record.file_size != nbytes:
            size = "none" if record is None else f"{record.file_size} bytes"
            raise CheckpointError(
                f"{file.path}: storage {key} takes {nbytes} bytes, the archive has {size}: {_AGAIN}"
            )
        starts[key] = _start(record, ends[record.header_offset], folder, file)
    return Header(raw, tensor_specs(loaded, starts, storages.sizes, file))


def _prefix(records: Mapping[str, zipfile.ZipInfo], file: FileRef) -> str:
    """The folder in the archive: `archive`, or the name that the file had when it was saved."""
    prefix = next((name[:-9] for name in records if name.endswith("/data.pkl")), None)
    if prefix is None:
        raise CheckpointError(
            f"{file.path}: a zip archive without data.pkl, not written by torch.save: {_AGAIN}"
        )
    if f"{prefix}/constants.pkl" in records:
        raise CheckpointError(
            f"{file.path}: a TorchScript program, not weights: save what "
            "torch.jit.load(file).state_dict() gives"
        )
    return prefix


def _check_records(
    archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo], prefix: str, file: FileRef
) -> None:
    for name, record in records.items():
        if record.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{file.path}: record {name} is compressed, so its ranges cannot be read: load "
                "the file with torch and save it again"
            )
    if records[f"{prefix}/data.pkl"].file_size > MAX_HEADER:
        raise CheckpointError(f"{file.path}: data.pkl is over {MAX_HEADER} bytes: {_AGAIN}")
    order = f"{prefix}/byteorder"
    if order in records and archive.read(order) != b"little":
        raise CheckpointError(
            f"{file.path}: written on a big-endian machine: load it with torch and save it again"
        )


def _ends(records: Mapping[str, zipfile.ZipInfo], directory: int) -> dict[int, int]:
    """Where the record that begins at a byte ends: where the next one begins."""
    begins = sorted(record.header_offset for record in records.values())
    return dict(zip(begins, [*begins[1:], directory], strict=True))


def _start(record: zipfile.ZipInfo, end: int, folder: Folder, file: FileRef) -> int:
    """First byte of a record's data.

    The directory at the end of the archive gives where a record begins, with a header of unknown
    length. Reading that of each takes a request a tensor. But what lies behind the data is known,
    and torch aligns its records, so that their begin can be told, and told to be right.
    """
    start = end - record.file_size
    if record.flag_bits & _HAS_DESCRIPTOR:
        large = max(record.file_size, record.header_offset) >= _32_BITS
        start -= _DESCRIPTOR_64 if large else _DESCRIPTOR
    shortest = record.header_offset + _LOCAL_HEADER + len(record.orig_filename.encode())
    if start % _ALIGNMENT == 0 and shortest <= start < shortest + 2 * _ALIGNMENT:
        return start
    header = folder.read(file, record.header_offset, _LOCAL_HEADER)
    if not header.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{file.path}: no header of {record.filename}: {_AGAIN}")
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return record.header_offset + _LOCAL_HEADER + name + extra
