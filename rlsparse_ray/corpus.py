"""The corpus file: which pairs to compare and what is known of their runs.

    version: 1
    settings: {criteria: [exact, "abs:1e-5"], slice_bytes: 1GiB}
    pairs:
      - {name: grpo-seed0, base: ./models/base, tuned: ./models/grpo-seed0, algorithm: GRPO}
    trajectories:
      - name: ppo
        checkpoints: [{model: ./models/base}, {model: ./ppo/12, step: 12}, ...]
    discover:
      - {base: hf://Qwen/Qwen2.5-7B, tags: [grpo, ppo], max_models: 20, deny: [someone, "*-test"]}

Every error says `path:line: what to write instead`. What each key means is in `entries`. Corpora of
public models ship with the package and are known by name: `paper`, `simpo`, ...
"""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rlsparse_ray.entries import (
    CheckpointEntry,
    Corpus,
    DiscoverRule,
    PairEntry,
    Settings,
    Trajectory,
)
from rlsparse_ray.errors import CorpusError
from rlsparse_ray.yaml_lines import Document, YamlSyntaxError, parse

__all__ = ["Corpus", "PairEntry", "Settings", "find_corpus", "load_corpus", "packaged_corpora"]


def packaged_corpora() -> dict[str, Path]:
    """The corpora of public models that ship with the package, by name."""
    folder = Path(__file__).parent / "corpora"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_corpus(name: str | os.PathLike[str]) -> Path:
    """The corpus file that `name` means: a file if there is one, else one that ships.

    Raises:
        CorpusError: a bare name, and neither a file nor a corpus of that name.
    """
    path = Path(name)
    known = packaged_corpora()
    if path.is_file() or path.suffix or path.name != os.fspath(name):
        return path
    if path.name in known:
        return known[path.name]
    close = difflib.get_close_matches(path.name, known, n=1)
    guess = f"did you mean {close[0]!r}?" if close else f"those that ship: {', '.join(known)}"
    raise CorpusError(f"{path}: no such file, and no corpus of that name ships: {guess}")


def load_corpus(path: str | os.PathLike[str]) -> Corpus:
    """Read and check a corpus file, or one that ships; relative folders in it become absolute.

    Raises:
        CorpusError: one line `path:line: message` for everything that is wrong.
    """
    path = find_corpus(path)
    document = _read(path)
    _raise_all(path, [*_duplicate_keys(document), *_duplicate_names(document)])
    try:
        corpus = Corpus.model_validate(document.data)
    except ValidationError as error:
        found = [(document.line(item["loc"]), _message(item)) for item in error.errors()]
        raise _corpus_error(path, found) from error
    folder = path.absolute().parent
    pairs = tuple(_with_absolute_paths(pair, folder) for pair in corpus.pairs)
    trajectories = tuple(_with_absolute_models(entry, folder) for entry in corpus.trajectories)
    return corpus.model_copy(update={"pairs": pairs, "trajectories": trajectories})


def _read(path: Path) -> Document:
    try:
        document = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 text: save it as UTF-8") from error
    except YamlSyntaxError as error:
        place = path if error.line is None else f"{path}:{error.line}"
        raise CorpusError(f"{place}: not valid YAML: {error}") from error
    if not isinstance(document.data, dict):
        what = "the file is empty" if document.data is None else "the file is not a mapping"
        raise CorpusError(f"{path}:1: {what}: write `version: 1` and `pairs:`")
    return document


def _raise_all(path: Path, found: list[tuple[int, str]]) -> None:
    if found:
        raise _corpus_error(path, found)


def _corpus_error(path: Path, found: list[tuple[int, str]]) -> CorpusError:
    return CorpusError("\n".join(f"{path}:{line}: {text}" for line, text in sorted(found)))


def _duplicate_keys(document: Document) -> Iterator[tuple[int, str]]:
    for line, key, first in document.duplicate_keys():
        yield line, f"key {key!r} is already on line {first}: remove one"


def _duplicate_names(document: Document) -> Iterator[tuple[int, str]]:
    for key, what in (("pairs", "pair"), ("trajectories", "trajectory")):
        entries = document.data.get(key)
        lines: dict[str, int] = {}
        for place, entry in enumerate(entries if isinstance(entries, list) else ()):
            name = str(entry["name"]) if isinstance(entry, dict) and "name" in entry else None
            line = document.line((key, place, "name"))
            if name in lines:
                yield line, f"{what} name {name!r} is already on line {lines[name]}: rename one"
            elif name is not None:
                lines[name] = line


_PLAIN = {
    "tuple_type": "write a list",
    "dict_type": "write a mapping",
    "model_type": "write a mapping",
    "string_too_short": "write at least one character",
    "too_short": "write at least one, or leave the key out",
}
"""Pydantic speaks of Python types where the file has YAML."""


def _message(item: ErrorDetails) -> str:
    loc, kind = item["loc"], item["type"]
    last = str(loc[-1]) if loc else ""
    if kind == "extra_forbidden":
        return _unknown_key(last, loc)
    if kind == "missing":
        return f"key {last!r} is missing" + (": write `version: 1`" if last == "version" else "")
    if loc == ("version",):
        return f"version {item['input']!r} is unknown: this rlsparse_ray reads version 1"
    where = ".".join(str(part) for part in loc)
    text = _PLAIN.get(kind, item["msg"].removeprefix("Value error, "))
    return f"{where}: {text}" if where else text


def _unknown_key(key: str, loc: tuple[int | str, ...]) -> str:
    model = _model_at(loc)
    # what must be there first
    known = sorted(model.model_fields, key=lambda name: not model.model_fields[name].is_required())
    close = difflib.get_close_matches(key, known, n=1)
    guess = f": did you mean {close[0]!r}?" if close else f": known are {', '.join(known)}"
    hint = " (free labels go under `labels:`)" if "labels" in known else ""
    return f"unknown key {key!r}{guess}{hint}"


def _model_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The model whose key the last part of `loc` would be."""
    if len(loc) == 1:
        return Corpus
    if loc[0] == "trajectories":
        return CheckpointEntry if len(loc) > 3 else Trajectory
    if loc[0] == "discover":
        return DiscoverRule
    return PairEntry if loc[0] == "pairs" else Settings


def _with_absolute_paths(pair: PairEntry, folder: Path) -> PairEntry:
    return pair.model_copy(
        update={"base": _absolute(pair.base, folder), "tuned": _absolute(pair.tuned, folder)}
    )


def _with_absolute_models(trajectory: Trajectory, folder: Path) -> Trajectory:
    models = (
        entry.model_copy(update={"model": _absolute(entry.model, folder)})
        for entry in trajectory.checkpoints
    )
    return trajectory.model_copy(update={"checkpoints": tuple(models)})


def _absolute(source: str, folder: Path) -> str:
    if "://" in source:
        return source
    return os.path.normpath(folder / Path(source).expanduser())
