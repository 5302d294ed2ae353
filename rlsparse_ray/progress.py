"""How long work says how far it is, and to whom; of terminals it knows nothing."""

from collections.abc import Callable
from typing import Any

Progress = Callable[[int], None]
"""Told what has been done since the last call: bytes, where nothing else is said."""

Bar = Callable[[str, int, Callable[[Progress], Any]], Any]
"""Runs work of so many bytes under a title; `console.with_progress` is one."""


def silent(_done: int) -> None:
    """The progress of work that nobody watches."""


def no_bar(_title: str, _total: int, work: Callable[[Progress], Any]) -> Any:
    """The bar of work that nobody watches."""
    return work(silent)
