"""Is a patch whole, is a model its base, and does it become the tuned model?"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import xxhash

from rlsparse_ray.errors import CheckpointError, PatchError
from rlsparse_ray.patches.entries import DamagedEntriesError, EntryStream, chunks
from rlsparse_ray.patches.format import Patch, open_patch
from rlsparse_ray.patches.hashing import model_nbytes, wrong_base
from rlsparse_ray.patches.matching import check_model
from rlsparse_ray.patches.places import Source, locate_model
from rlsparse_ray.patches.windows import Raw, read, width_of, windows
from rlsparse_ray.progress import Bar, Progress, no_bar
from rlsparse_ray.weights import Checkpoint, Reader, TensorSpec


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    where: str
    """patch, base or tuned."""
    tensor: str
    """Empty: the whole file or model."""
    problem: str


@dataclass(slots=True)
class VerifyReport:
    """What was checked, and what is wrong."""

    patch: str
    tensors: int = 0
    """Of the model, changed or not."""
    changed: int = 0
    """Entries."""
    against: tuple[str, ...] = ()
    """Of base and tuned, those that were given."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_patch(
    patch: Source,
    *,
    base: Source | None = None,
    tuned: Source | None = None,
    bar: Bar = no_bar,
) -> VerifyReport:
    """Check a patch: its header, the order and range of its indices, and every hash.

    Args:
        patch: path or address.
        base: then every tensor of it is hashed and patched in memory, each entry must change a
            bit, and the result must have the tuned model's hash.
        tuned: then every tensor of it is hashed, and the patch must change nothing of it.
        bar: told the bytes that are read.

    Raises:
        PatchError: a path where nothing is.
        CheckpointError: a model cannot be read.
    """
    locate_model(patch, "patch")
    given = {"base": base, "tuned": tuned}
    models = {s: locate_model(m, s).open() for s, m in given.items() if m is not None}
    report = VerifyReport(str(patch), against=tuple(models))
    try:
        opened = open_patch(patch)
    except (PatchError, CheckpointError) as error:
        report.problems.append(Problem("patch", "", str(error)))
        return report
    report.tensors = len(opened.tensors)
    report.changed = sum(entries.indices.numel for entries in opened.entries.values())
    total = opened.nbytes + sum(map(model_nbytes, models.values()))

    def check(advance: Progress) -> None:
        report.problems += _of_entries(opened, advance)
        # entries that are wrong by themselves say nothing of a model
        if report.ok:
            for side, model in models.items():
                report.problems += _of_model(opened, model, side, advance)

    bar("patch verify", total, check)
    return report


def _of_entries(patch: Patch, advance: Progress) -> Iterator[Problem]:
    names = list(patch.entries)
    with Reader() as reader:
        while names:
            try:
                for chunk in chunks(patch, names, reader):
                    advance(chunk.indices.nbytes + chunk.values.nbytes)
                names = []
            except DamagedEntriesError as error:
                yield Problem("patch", error.tensor, str(error))
                names = names[names.index(error.tensor) + 1 :]


def _of_model(patch: Patch, model: Checkpoint, side: str, advance: Progress) -> Iterator[Problem]:
    try:
        check_model(model, patch, side)
    except PatchError as error:
        yield Problem(side, "", str(error))
        return
    requests = (request for spec in model.tensors for request in windows(spec))
    names = [spec.name for spec in model.tensors]
    with (
        Reader() as reader,
        closing(read(requests, reader)) as arrays,
        closing(EntryStream(patch, names, reader)) as entries,
    ):
        for spec in model.tensors:
            problem = _of_tensor(patch, spec, side, arrays, entries)
            if problem:
                yield Problem(side, spec.name, problem)
            advance(spec.nbytes)


def _of_tensor(
    patch: Patch, spec: TensorSpec, side: str, arrays: Iterator[Raw], entries: EntryStream
) -> str:
    """What is wrong with a tensor of a model; empty if nothing is."""
    name, width = spec.name, width_of(spec)
    record = patch.tensors[name]
    before, after = xxhash.xxh3_64(), xxhash.xxh3_64()
    start = changed = 0
    for _ in windows(spec):
        array = next(arrays)
        before.update(array.data)
        changed += entries.put(name, array, start, width)
        after.update(array.data)
        start += array.nbytes // width
    xxh3 = before.hexdigest()
    if side == "tuned":
        if xxh3 != record.tuned_xxh3:
            return f"XXH3 {xxh3} instead of {record.tuned_xxh3}"
        return f"{changed} values of the patch are not its own" if changed else ""
    if problem := wrong_base(patch, name, xxh3):
        return problem
    if after.hexdigest() != record.tuned_xxh3:
        return f"patched, XXH3 {after.hexdigest()} instead of {record.tuned_xxh3}"
    same = (patch.entries[name].indices.numel if name in patch.entries else 0) - changed
    return f"{same} entries of the patch change nothing" if same else ""
