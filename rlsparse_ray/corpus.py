"""The corpus file: which pairs to compare and what is known of their runs.

    version: 1
    settings: {criteria: [exact, "abs:1e-5"], slice_bytes: 1GiB}
    pairs:
      - {name: grpo-seed0, base: ./models/base, tuned: ./models/grpo-seed0, algorithm: GRPO}

Every error says `path:line: what to write instead`.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from rlsparse_ray.compare.criteria import parse_criterion
from rlsparse_ray.errors import CorpusError
from rlsparse_ray.weights.spec import FLOAT_DTYPES
from rlsparse_ray.yaml_lines import Document, YamlSyntaxError, parse

_UNITS = {"": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}


def _bytes(value: Any) -> Any:
    """A size such as 1GiB, 512MB or 1000 in bytes."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{value!r} is no size: write bytes, or a unit such as 512MB or 1GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def _criterion(text: str) -> str:
    parse_criterion(text)
    return text


def _fraction(value: float) -> float:
    if value > 1:
        raise ValueError(f"a sparsity is between 0 and 1: write {value / 100:g}, not {value:g}")
    return value


def _float_dtype(value: str) -> str:
    if value not in FLOAT_DTYPES:
        raise ValueError(f"{value!r} is no float dtype: write one of {', '.join(FLOAT_DTYPES)}")
    return value


def _labels(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {str(key): _label(str(key), item) for key, item in value.items()}


def _label(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float | date):
        return str(value)
    raise ValueError(f"label {key!r} must be one text, number or truth value")


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        use_attribute_docstrings=True,
    )


_Text = Annotated[str, Field(min_length=1)]


class Settings(_Model):
    """What is compared, and how the work is cut."""

    criteria: tuple[Annotated[str, AfterValidator(_criterion)], ...] = ("exact", "abs:1e-5")
    """Criteria for which masks are kept; counts cover more. About a bit a parameter each."""
    slice_bytes: Annotated[int, BeforeValidator(_bytes), Field(gt=0)] = 256 * 2**20
    """Bytes of the base in a slice: smaller slices spread and resume better."""
    compare_dtype: Annotated[str, AfterValidator(_float_dtype)] | None = None
    """Dtype in which floats are compared; none: the narrower of the two, tensor by tensor."""

    @model_validator(mode="after")
    def _criteria_differ(self) -> Self:
        if not self.criteria:
            raise ValueError("no criteria: name one, e.g. exact, or leave the key out")
        parsed = [parse_criterion(text) for text in self.criteria]
        for place, text in enumerate(self.criteria):
            if parsed[place] in parsed[:place]:
                raise ValueError(f"criterion {text!r} is there twice: remove one")
        return self


class PairEntry(_Model):
    """A base model, a model tuned from it, and what is known of the run."""

    name: _Text
    """How tables and queries call the pair; unique in the corpus."""
    base: _Text
    """Folder of the model before; relative to the corpus file."""
    tuned: _Text
    """Folder of the model after; relative to the corpus file."""
    family: str | None = None
    """Model family, by which statistics are grouped."""
    algorithm: str | None = None
    """Training algorithm: SFT, DPO, GRPO, PPO, ..."""
    stage: str | None = None
    """Training stage: SFT, RL, ..."""
    dataset: str | None = None
    """What it was trained on."""
    seed: int | None = None
    """Seed of the run."""
    on_policy: bool | None = None
    """Whether the samples came from the policy itself."""
    kl: float | None = None
    """Coefficient of the KL penalty; 0 for none."""
    learning_rate: float | None = None
    """Peak learning rate."""
    steps: int | None = None
    """Optimizer steps."""
    source: str | None = None
    """Where the facts about the run come from."""
    reported_sparsity: Annotated[float, AfterValidator(_fraction), Field(ge=0)] | None = None
    """Sparsity that a paper reports, between 0 and 1, to check ours against."""
    labels: Annotated[dict[str, str], BeforeValidator(_labels)] = {}
    """Anything else; it reaches SQL as a map of texts."""


class Corpus(_Model):
    """A list of pairs."""

    version: Literal[1]
    """Version of this file format."""
    settings: Settings = Settings()
    """What is compared, and how the work is cut."""
    pairs: tuple[PairEntry, ...]
    """The pairs."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if not self.pairs:
            raise ValueError("no pairs: there is nothing to compare")
        names = [pair.name for pair in self.pairs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"pair name {twice!r} is used twice: give each pair its own")
        return self


def load_corpus(path: str | os.PathLike[str]) -> Corpus:
    """Read and check a corpus file; relative folders in it become absolute.

    Raises:
        CorpusError: one line `path:line: message` for everything that is wrong.
    """
    path = Path(path)
    document = _read(path)
    _raise_all(path, [*_duplicate_keys(document), *_duplicate_names(document)])
    try:
        corpus = Corpus.model_validate(document.data)
    except ValidationError as error:
        found = [(document.line(item["loc"]), _message(item)) for item in error.errors()]
        raise _corpus_error(path, found) from error
    folder = path.absolute().parent
    pairs = tuple(_with_absolute_paths(pair, folder) for pair in corpus.pairs)
    return corpus.model_copy(update={"pairs": pairs})


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
    pairs = document.data.get("pairs")
    lines: dict[str, int] = {}
    for place, pair in enumerate(pairs if isinstance(pairs, list) else ()):
        name = str(pair["name"]) if isinstance(pair, dict) and "name" in pair else None
        line = document.line(("pairs", place, "name"))
        if name in lines:
            yield line, f"pair name {name!r} is already on line {lines[name]}: rename one"
        elif name is not None:
            lines[name] = line


_PLAIN = {
    "tuple_type": "write a list",
    "dict_type": "write a mapping",
    "model_type": "write a mapping",
    "string_too_short": "write at least one character",
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
    in_pair = len(loc) == 3 and loc[0] == "pairs"
    model: type[BaseModel] = PairEntry if in_pair else Settings if loc[0] == "settings" else Corpus
    known = list(Corpus.model_fields if len(loc) == 1 else model.model_fields)
    close = difflib.get_close_matches(key, known, n=1)
    guess = f": did you mean {close[0]!r}?" if close else f": known are {', '.join(known)}"
    hint = " (free labels go under `labels:`)" if in_pair else ""
    return f"unknown key {key!r}{guess}{hint}"


def _with_absolute_paths(pair: PairEntry, folder: Path) -> PairEntry:
    return pair.model_copy(
        update={"base": _absolute(pair.base, folder), "tuned": _absolute(pair.tuned, folder)}
    )


def _absolute(source: str, folder: Path) -> str:
    if "://" in source:
        return source
    return os.path.normpath(folder / Path(source).expanduser())
