"""Which training code made a run, as a hash. Imports no torch."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_DECIDE = ("experiments", "training", "demo/smollm.py", "fused.py", "naming.py")
"""Modules that decide the weights of a run; a new one in the two folders is among them at once."""
DO_NOT = (
    "experiments/corpus_entries.py",
    "experiments/defaults.py",  # what it gives are the fields of a run
    "experiments/extras.py",
    "experiments/fingerprint.py",
    "training/stored.py",  # what it reads is a mask, of which a record has the fingerprint
)
"""Those in the folders that do not."""


@functools.cache
def training_code() -> str:
    """Hash the modules that decide a run: 16 hex digits, in 0.2 s.

    Comments, docstrings and layout do not count, so that a better sentence trains nothing anew.
    """
    return code_hash(modules())


def modules() -> Iterator[Path]:
    """The files of the modules that decide a run, in a fixed order."""
    left_out = set(map(_ROOT.joinpath, DO_NOT))
    for place in map(_ROOT.joinpath, _DECIDE):
        found = sorted(place.rglob("*.py")) if place.is_dir() else [place]
        yield from (path for path in found if path not in left_out)


def code_hash(files: Iterable[Path]) -> str:
    """Hash what modules do, and their names."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\n{_without_words(path.read_text())}\n".encode())
    return digest.hexdigest()[:16]


class _NoWords(ast.NodeTransformer):
    """Takes out every statement that is a string alone: docstrings of anything."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return None
        return self.generic_visit(node)


def _without_words(source: str) -> str:
    return ast.dump(_NoWords().visit(ast.parse(source)))
