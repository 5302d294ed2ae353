"""From a base and a patch to the tuned model, as a folder."""

from dataclasses import dataclass
from pathlib import Path

from rlsparse_ray.errors import PatchError
from rlsparse_ray.patches.format import open_patch
from rlsparse_ray.patches.hashing import check_base, model_nbytes
from rlsparse_ray.patches.matching import check_model
from rlsparse_ray.patches.patched import PatchedModel
from rlsparse_ray.patches.places import Source, locate_model, new_folder
from rlsparse_ray.progress import Bar, no_bar


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What was written."""

    folder: str
    files: tuple[str, ...]
    """Names; those with weights first."""
    left_out: tuple[str, ...]
    """Files of the base with weights that are not of the model, and so could not be patched."""
    nbytes: int
    """Of all files."""
    changed: int
    """Entries that were set."""
    written: bool
    """False: the folder was there already, and every byte in it is right."""


def apply_patch(
    base: Source,
    patch: Source,
    out: Source,
    *,
    force: bool = False,
    bar: Bar = no_bar,
) -> ApplyReport:
    """Write the tuned model: the base's files, its weights patched, everything else as it is.

    The base is read twice: first all of it is hashed, so that a wrong one is refused before
    anything is written; then it is patched, and the hash of every tensor must be the tuned model's.
    config.json and the tokenizer are the base's, for a patch holds weights only. Folders within
    the base's folder are not copied.

    Args:
        base: the model that the patch was made from: a folder, a file, or an address.
        patch: path or address of the patch.
        out: the new folder; it appears when it is complete.
        force: replace a folder that is there, if it holds such a model and nothing else.
        bar: told the bytes of the base as they are checked, and then as they are written.

    Raises:
        PatchError: the patch is damaged or of another base (the first tensor that differs is
            named), or `out` is taken or cannot be written.
        CheckpointError: the base or the patch cannot be read.
    """
    opened = open_patch(patch)
    located = locate_model(base, "base")
    model = located.open()
    check_model(model, opened, "base")
    patched = PatchedModel(located.folder, model, opened)
    folder = _folder(out)
    there = _is_there(folder, patched)
    bar("patch check", model_nbytes(model), lambda a: check_base(model, opened, a))
    same = there and bar("compare", patched.nbytes, lambda a: patched.is_in(folder, a))
    if there and not same and not force:
        raise PatchError(
            f"{folder}: exists and is not this model: remove it, name another folder, or pass "
            "--force"
        )
    if not same:
        with new_folder(folder) as scratch:
            bar("patch apply", patched.nbytes, lambda a: patched.write(scratch, a))
    return ApplyReport(
        folder=str(folder),
        files=tuple(patched.files),
        left_out=patched.left_out,
        nbytes=patched.nbytes,
        changed=sum(entries.indices.numel for entries in opened.entries.values()),
        written=not same,
    )


def _folder(out: Source) -> Path:
    if "://" in str(out):
        raise PatchError(f"{out}: a patched model is written to a local folder: name one")
    return Path(out).expanduser().absolute()


def _is_there(folder: Path, patched: PatchedModel) -> bool:
    """Whether there is something that may be the finished output; what cannot be is refused."""
    if not folder.exists():
        return False
    source = Path(patched.model.source)
    if folder.resolve() in (source.resolve(), *source.resolve().parents):
        raise PatchError(f"{folder}: the base is there: name another folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if not names <= patched.files.keys():
        other = min(names - patched.files.keys())
        raise PatchError(
            f"{folder}: exists and holds {other}, which is not of this model: remove it, or name "
            "another folder"
        )
    return bool(names)
