"""Scale files found by name or path, read and checked."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rlsparse_ray.errors import ScaleError
from rlsparse_ray.reproduce import scale as models
from rlsparse_ray.reproduce.scale import Scale
from rlsparse_ray.yaml_lines import Document, YamlSyntaxError, parse

SCALES = Path(__file__).parent / "scales"


def packaged_scales() -> dict[str, Path]:
    """The scales that ship with the package, by name."""
    return {path.stem: path for path in sorted(SCALES.glob("*.yaml"))}


def load_scale(name: str) -> Scale:
    """Read and check a scale that ships, or a file.

    Raises:
        ScaleError: there is none, or a line `path:line: message` for everything that is wrong.
    """
    path = packaged_scales().get(name, Path(name))
    document = _read(path)
    wrong = [
        (line, f"key {key!r} is already on line {first}: remove one")
        for line, key, first in document.duplicate_keys()
    ]
    if not wrong:
        try:
            return Scale.model_validate(document.data)
        except ValidationError as error:
            wrong = [(document.line(e["loc"]), _message(e)) for e in error.errors()]
    raise ScaleError("\n".join(f"{path}:{line}: {text}" for line, text in sorted(wrong)))


def _read(path: Path) -> Document:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = list(packaged_scales())
        why = f"no such file, and no scale of that name: {', '.join(names)}"
        raise ScaleError(f"{path}: {why}{_guess(str(path), names, '; ')}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ScaleError(f"{path}: cannot be read: {error}") from error
    except YamlSyntaxError as error:
        raise ScaleError(f"{path}:{error.line or 1}: not valid YAML: {error}") from error


def _message(item: ErrorDetails) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key {where}{_guess(str(item['loc'][-1]), sorted(set(_keys())), ': ')}"
    text = item["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def _guess(word: str, known: Sequence[str], mark: str) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"{mark}did you mean {close[0]!r}?" if close else ""


def _keys() -> Iterator[str]:
    for model in vars(models).values():
        if isinstance(model, type) and issubclass(model, BaseModel):
            yield from model.model_fields
