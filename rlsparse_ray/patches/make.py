"""From a base and a tuned model to a patch, in one pass over both."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import xxhash

from rlsparse_ray.patches.format import INDICES, VALUES, TensorRecord, index_dtype, metadata_of
from rlsparse_ray.patches.matching import match_tensors
from rlsparse_ray.patches.places import Source, locate_model, new_file
from rlsparse_ray.patches.spools import Piece, Spools
from rlsparse_ray.patches.windows import Raw, bits, read, width_of, windows
from rlsparse_ray.progress import Bar, Progress, no_bar
from rlsparse_ray.weights import Reader, ReadRequest, TensorSpec


@dataclass(frozen=True, slots=True)
class PatchReport:
    """What a patch holds, and what it saves."""

    patch: str
    """Where it is."""
    tensors: int
    tensors_changed: int
    numel: int
    """Parameters of the model."""
    changed: int
    """Of these, how many have other bits in the tuned model."""
    patch_bytes: int
    """Of the file."""
    dense_bytes: int
    """Of all tensors of the tuned model."""
    indices_bytes: int
    values_bytes: int
    indices_entropy_bytes: int
    """What an ideal code would need for the places alone, at each tensor's density: the sum over
    tensors of numel * H(density) / 8."""

    @property
    def density(self) -> float:
        """Changed / all."""
        return self.changed / max(1, self.numel)

    @property
    def patch_share(self) -> float:
        """Bytes of the patch / bytes of the tuned model."""
        return self.patch_bytes / max(1, self.dense_bytes)


def make_patch(
    base: Source,
    tuned: Source,
    out: Source,
    *,
    force: bool = False,
    bar: Bar = no_bar,
) -> PatchReport:
    """Write the patch that turns `base` into `tuned`, bit for bit.

    Both are read once, a window at a time. An entry is changed if its bits are others: -0 against
    +0 and a NaN against another one count, unlike under any criterion of a mask. The bytes of the
    patch follow from the weights, their order in the base's files and what the models are called.

    Args:
        base: a model's folder or file, or an address (hf://, s3://, gs://, az://).
        tuned: likewise.
        out: path or bucket address of the patch; ends in .safetensors.
        force: replace a file that is there.
        bar: told the bytes of both models as they are read.

    Raises:
        PatchError: the two have not the same tensors, or `out` cannot be written.
        CheckpointError: a model cannot be read.
    """
    models = locate_model(base, "base").open(), locate_model(tuned, "tuned").open()
    pairs = match_tensors(*models)
    total = sum(spec.nbytes for pair in pairs for spec in pair)
    with new_file(out, force=force) as scratch, Spools(scratch.parent) as spools:
        records: dict[str, TensorRecord] = bar(
            "patch make", total, lambda advance: _compare_all(pairs, spools, advance)
        )
        spools.join(scratch, metadata_of(*models, records))
        return _report(str(out), scratch.stat().st_size, total // 2, records, spools.pieces())


def _compare_all(
    pairs: Sequence[tuple[TensorSpec, TensorSpec]], spools: Spools, advance: Progress
) -> dict[str, TensorRecord]:
    def requests() -> Iterator[ReadRequest]:
        for base, tuned in pairs:
            for of_base, of_tuned in zip(windows(base), windows(tuned), strict=True):
                yield of_base
                yield of_tuned

    with Reader() as reader, closing(read(requests(), reader, hold=2)) as arrays:
        return {base.name: _compare(base, arrays, spools, advance) for base, _ in pairs}


def _compare(
    base: TensorSpec, arrays: Iterator[Raw], spools: Spools, advance: Progress
) -> TensorRecord:
    """Compare the windows of a tensor and keep what changed."""
    width, dtype = width_of(base), index_dtype(base.numel)
    index_type = np.dtype("<i4" if dtype == "I32" else "<i8")
    hashes = {key: xxhash.xxh3_64() for key in ("base", "tuned", INDICES, VALUES)}
    start = changed = 0
    for window in windows(base):
        sides = {"base": next(arrays), "tuned": next(arrays)}
        old, new = (bits(side, width) for side in sides.values())
        places = np.flatnonzero(old != new)
        indices = (places + start).astype(index_type)
        found = {INDICES: indices, VALUES: new[places]}
        for key, array in (sides | found).items():
            hashes[key].update(array.data)
        spools.write(base.name, INDICES, dtype, indices)
        spools.write(base.name, VALUES, base.dtype, found[VALUES])
        changed += places.size
        start += old.size
        advance(2 * window.nbytes)
    xxh3 = {key: digest.hexdigest() for key, digest in hashes.items()}
    return TensorRecord(
        dtype=base.dtype,
        shape=base.shape,
        base_xxh3=xxh3["base"],
        tuned_xxh3=xxh3["tuned"],
        indices_xxh3=xxh3[INDICES] if changed else None,
        values_xxh3=xxh3[VALUES] if changed else None,
    )


def _report(
    patch: str,
    nbytes: int,
    dense: int,
    records: Mapping[str, TensorRecord],
    pieces: Mapping[str, Piece],
) -> PatchReport:
    changed = {name: pieces[name + VALUES] for name in records if name + VALUES in pieces}
    places = sum(_entropy_bits(p.entries, records[name].numel) for name, p in changed.items())
    return PatchReport(
        patch=patch,
        tensors=len(records),
        tensors_changed=len(changed),
        numel=sum(record.numel for record in records.values()),
        changed=sum(piece.entries for piece in changed.values()),
        patch_bytes=nbytes,
        dense_bytes=dense,
        indices_bytes=sum(pieces[name + INDICES].nbytes for name in changed),
        values_bytes=sum(piece.nbytes for piece in changed.values()),
        indices_entropy_bytes=math.ceil(places / 8),
    )


def _entropy_bits(changed: int, numel: int) -> float:
    """Bits that tell which entries changed: numel * H(changed / numel).

    >>> _entropy_bits(1, 2), _entropy_bits(2, 2)
    (2.0, 0.0)
    """
    shares = (changed / numel, 1 - changed / numel)
    return sum(-numel * p * math.log2(p) for p in shares if p) + 0.0
