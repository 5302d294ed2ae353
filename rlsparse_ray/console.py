"""How answers look: tables for people, JSON, CSV and Parquet for programs."""

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from rlsparse_ray.errors import RlsparseError
from rlsparse_ray.store import write_parquet

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
notes = Console(stderr=True, highlight=False)
"""For what is no part of an answer and no problem: progress, and what to do next."""
for _console in (out, err, notes):
    if not _console.is_terminal:
        # a pipe has no width: a line a row, whatever its length
        _console.width = 10_000

_PERCENT = {"sparsity", "density", "share"}
"""Words of the names of columns, between underscores: shared_standard_error is no share."""
_LIFTS = ("lift",)
_WRAP = 60
"""Characters beyond which a text is wrapped."""


class Format(StrEnum):
    """How an answer is printed."""

    table = "table"
    json = "json"
    csv = "csv"
    parquet = "parquet"


def suggest(*commands: Sequence[str]) -> None:
    """Name the commands that people mostly want next, word by word, to people: on a terminal."""
    if notes.is_terminal:
        lines = ["next:", *(f"  {shlex.join(words)}" for words in commands)]
        notes.print(escape("\n".join(lines)), soft_wrap=True)


def count(number: int, thing: str) -> str:
    """A number of things.

    >>> count(1, "pair"), count(2000, "pair")
    ('1 pair', '2,000 pairs')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Time in units that people read.

    >>> duration(0.25), duration(42), duration(3725)
    ('0.2 s', '42 s', '1:02:05')
    """
    return (
        f"{seconds:.{1 if seconds < 10 else 0}f} s"
        if seconds < 60
        else str(timedelta(seconds=round(seconds)))
    )


def show(answer: pa.Table, form: Format, title: str | None = None) -> None:
    """Print an answer; Parquet goes to standard output as bytes.

    Raises:
        RlsparseError: Parquet is asked for and standard output is a terminal.
    """
    if form is Format.parquet and sys.stdout.isatty():
        raise RlsparseError(
            "Parquet is bytes and this is a terminal: write it to a file with `> answer.parquet`, "
            "or take --format table, csv or json"
        )
    if form is Format.json:
        print(json.dumps(answer.to_pylist(), default=str, indent=2))
    elif form is Format.csv:
        pyarrow.csv.write_csv(_flat(answer), sys.stdout.buffer)
    elif form is Format.parquet:
        write_parquet(answer, sys.stdout.buffer)
    else:
        print_table(answer, title)


def print_table(answer: pa.Table, title: str | None = None) -> None:
    """Print a table for people: shares in percent, lifts with a times sign, sizes in units.

    Columns that do not fit side by side go into further blocks below, each with the first column
    again. Columns without any value are named at the end instead.
    """
    empty = [name for name in answer.column_names if answer[name].null_count == answer.num_rows]
    shown = answer if answer.num_rows == 0 else answer.drop_columns(empty)
    columns = [_Column(shown, name) for name in shown.column_names]
    if title:
        out.print(f"[italic]{escape(title)}[/]")
    for block in _blocks(columns, out.width):
        table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in block:
            wraps = column.width == _WRAP
            table.add_column(
                column.header, justify=column.justify, vertical="bottom", no_wrap=not wraps
            )
        for cells in zip(*(column.cells for column in block), strict=True):
            table.add_row(*cells)
        out.print(table)
    if answer.num_rows == 0:
        out.print("no rows")
    elif empty:
        out.print(f"[dim]no value in: {', '.join(empty)}[/]")


class _Column:
    """The cells of a column as text, and its name broken at underscores to be no wider."""

    def __init__(self, answer: pa.Table, name: str) -> None:
        kind = answer.schema.field(name).type
        self.justify: Literal["left", "right"] = "right" if _is_number(kind) else "left"
        self.cells = [escape(text(name, value)) for value in answer[name].to_pylist()]
        self.header = _broken(name, max([8, *map(len, self.cells)]))
        self.width = min(_WRAP, max(map(len, [*self.header.split("\n"), *self.cells])))


def _broken(name: str, width: int) -> str:
    lines = [""]
    for word in name.split("_"):
        joined = f"{lines[-1]}_{word}" if lines[-1] else word
        if lines[-1] and len(joined) > width:
            lines[-1] += "_"
            lines.append(word)
        else:
            lines[-1] = joined
    return "\n".join(lines)


def _blocks(columns: list[_Column], width: int) -> list[list[_Column]]:
    """Columns in blocks that fit `width` characters, each beginning with the first column."""
    blocks: list[list[_Column]] = []
    for column in columns:
        used = sum(c.width + 3 for c in blocks[-1]) if blocks else 0
        if blocks and (used + column.width <= width or len(blocks[-1]) < 2):
            blocks[-1].append(column)
        else:
            blocks.append([*columns[:1], column] if blocks else [column])
    return blocks


def text(column: str, value: Any) -> str:
    """One cell.

    >>> text("sparsity", 0.8142), text("lift_uniform", 12.08), text("mask_bytes", 2048)
    ('81.42 %', '12.08x', '2.0 KiB')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, Decimal) and value == int(value):
        value = int(value)  # the sum of integers in SQL
    if isinstance(value, int):
        return size(value) if "bytes" in column else f"{value:,}"
    if isinstance(value, float):
        return _real(column, value)
    return str(value)


def _real(column: str, value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if set(column.split("_")) & _PERCENT or column in ("o1", "o2", "jaccard"):
        return f"{100 * value:.2f} %"
    if column.startswith(_LIFTS):
        return f"{value:.3f}x" if value < 10 else f"{value:.2f}x"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def size(nbytes: int) -> str:
    """Bytes in units of 1,024.

    >>> size(0), size(1536), size(3 * 2**30)
    ('0 B', '1.5 KiB', '3.0 GiB')
    """
    power = 0 if nbytes < 1024 else min(4, int(math.log2(nbytes)) // 10)
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{nbytes} B" if power == 0 else f"{nbytes / 1024**power:.1f} {unit}"


def flops(count: float) -> str:
    """Floating-point operations in units of 1,000.

    >>> flops(0), flops(2.5e9), flops(3e15)
    ('0 flop', '2.5 Gflop', '3.0 Pflop')
    """
    power = 0 if count < 1000 else min(5, int(math.log10(count)) // 3)
    return f"{count:.0f} flop" if power == 0 else f"{count / 1000**power:.1f} {' KMGTP'[power]}flop"


def with_progress(
    what: str,
    total: int,
    work: Callable[[Callable[[int], None]], Any],
    shown: Callable[[int], str] = size,
) -> Any:
    """Run `work`, giving it a function to call with the bytes it has done, or what `shown` shows.

    On a terminal a bar shows them; elsewhere, as in the log of a job, a line comes now and then.
    """
    if not notes.is_terminal:
        return work(_Lines(what, total, shown).advance)
    with _byte_progress(what) if shown is size else _share_progress(what) as bar:
        task = bar.add_task(what, total=total)
        return work(lambda nbytes: bar.advance(task, nbytes))


def _byte_progress(what: str) -> Progress:
    return Progress(
        TextColumn(f"[bold]{what}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=notes,
    )


def _share_progress(what: str) -> Progress:
    return Progress(
        TextColumn(f"[bold]{what}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=notes,
    )


class _Lines:
    """Progress as lines on standard error, RLSPARSE_PROGRESS_SECONDS apart at least."""

    def __init__(self, what: str, total: int, shown: Callable[[int], str] = size) -> None:
        self.what, self.total, self.done, self.shown = what, total, 0, shown
        self.apart = _seconds_apart()
        self.said = time.monotonic()
        self.start: tuple[float, int] | None = None

    def advance(self, nbytes: int) -> None:
        now = time.monotonic()
        self.done += nbytes
        if self.start is None:
            # the first call counts what was done before, which says nothing of the speed
            self.start = now, self.done
        elif now - self.said >= self.apart:
            self.said = now
            notes.print(self._line(now - self.start[0], self.done - self.start[1]))

    def _line(self, seconds: float, nbytes: int) -> str:
        share = self.done / self.total if self.total else 1.0
        line = f"{self.what}: {self.shown(self.done)} of {self.shown(self.total)} ({share:.1%})"
        if not nbytes:
            return line
        left = timedelta(seconds=round((self.total - self.done) * seconds / nbytes))
        return f"{line}, {self.shown(int(nbytes / seconds))}/s, {left} left"


def _seconds_apart() -> float:
    said = os.environ.get("RLSPARSE_PROGRESS_SECONDS", "30")
    try:
        return float(said)
    except ValueError:
        raise RlsparseError(
            f"RLSPARSE_PROGRESS_SECONDS={said!r} is not a number of seconds: unset it or give one"
        ) from None


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _flat(answer: pa.Table) -> pa.Table:
    """Lists and maps as JSON text, which CSV can hold."""
    columns = [
        pa.array([None if v is None else json.dumps(v, default=str) for v in column.to_pylist()])
        if pa.types.is_nested(column.type)
        else column
        for column in answer.columns
    ]
    return pa.table(columns, names=answer.column_names)
