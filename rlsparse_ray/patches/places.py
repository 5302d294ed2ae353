"""Where models and patches are, and outputs that appear at once and complete, or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlsparse_ray.errors import PatchError
from rlsparse_ray.storage.buckets import is_object
from rlsparse_ray.storage.files import files_at
from rlsparse_ray.storage.local_files import PARTIAL
from rlsparse_ray.weights import Located, locate
from rlsparse_ray.weights.choice import SAFETENSORS

Source = str | os.PathLike[str]
"""A model or a patch: a path, or an address (hf://, s3://, gs://, az://)."""

_HINTS = {
    errno.ENOSPC: f"free some space (killed runs leave *{PARTIAL} beside the output) or write "
    "elsewhere",
    errno.EDQUOT: "your quota is used up: free some space or write elsewhere",
    errno.EROFS: "the file system is read-only: write elsewhere",
    errno.EACCES: "you may not write there: write elsewhere or change its permissions",
}


def locate_model(source: Source, what: str) -> Located:
    """Find a model or a patch; nothing is read yet.

    Raises:
        PatchError: a path where nothing is; `what` is what the message calls it.
        CheckpointError: an address where nothing is, or that cannot be reached.
    """
    text = os.fspath(source)
    if "://" not in text and not Path(text).expanduser().exists():
        raise PatchError(f"{what} {text}: no such file or folder: check the path")
    return locate(text)


@contextmanager
def new_file(out: Source, *, force: bool) -> Iterator[Path]:
    """A scratch path; what is written to it becomes `out` if the block ends well.

    Args:
        out: a path, or an address in a bucket, that ends in .safetensors.
        force: replace what is there.

    Raises:
        PatchError: there is such a file already, or it cannot be written.
        StoreError: a bucket that cannot be written.
    """
    text = os.fspath(out)
    if not text.endswith(SAFETENSORS):
        raise PatchError(f"{text}: the name of a patch ends in {SAFETENSORS}: add it")
    if "://" in text and not is_object(text):
        raise PatchError(f"{text}: cannot be written to: name a path or a bucket's address")
    folder, _, name = text.rpartition("/")
    files = files_at(folder or ("/" if text.startswith("/") else "."))
    with _output_errors(text):
        if files.size(name) is not None and not force:
            raise PatchError(f"{text}: exists: remove it, name another, or pass --force")
        scratch = files.scratch(name)
        try:
            yield scratch
            files.publish(scratch, name)
        finally:
            scratch.unlink(missing_ok=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A scratch folder; it becomes `out`, in place of what is there, if the block ends well.

    Raises:
        PatchError: it cannot be written.
    """
    scratch = out.with_name(f"{out.name}.{os.getpid()}{PARTIAL}")
    replaced = out.with_name(f"{out.name}.{os.getpid()}.replaced{PARTIAL}")
    with _output_errors(out):
        scratch.mkdir(parents=True)
        try:
            yield scratch
            if out.exists():
                out.rename(replaced)
            scratch.rename(out)
        finally:
            for left in (scratch, replaced):
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _output_errors(out: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "check the disk and run again")
        raise PatchError(f"{out}: {error}: {hint}") from error
