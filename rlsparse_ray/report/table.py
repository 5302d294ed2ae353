"""Tables of a page: rows for people, with numbers that line up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

import pyarrow as pa

Form = Callable[[Any], str]


def text(value: Any) -> str:
    """A text, or a number that is a name."""
    return f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else str(value)


def count(value: Any) -> str:
    """A whole number with thousands."""
    return f"{value:,}"


def percent(value: Any) -> str:
    """A share, with two decimals."""
    return f"{value:.2%}".replace("%", " %")


def decimal(value: Any) -> str:
    """A number with four significant digits."""
    return f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page; `columns` has, by column, its heading and how values are written."""

    name: str
    section: str
    title: str
    caption: str
    query: str
    columns: Mapping[str, tuple[str, Form]]
    empty: str
    empty_is_good: bool = False
    shape: Callable[[pa.Table], pa.Table] = lambda answer: answer

    def rows(self, answer: pa.Table) -> pa.Table:
        """What of the answer of the query is shown."""
        return self.shape(answer).select(list(self.columns))

    def html(self, rows: pa.Table) -> str:
        """The rows in a region of their own, which scrolls where the page is narrow."""
        head = "".join(
            f'<th scope="col"{_numeric(form)}>{escape(label)}</th>'
            for label, form in self.columns.values()
        )
        body = "".join(f"<tr>{self._cells(row)}</tr>" for row in rows.to_pylist())
        return (
            f'<div class="rows" tabindex="0" role="region" aria-labelledby="{self.name}-title">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _cells(self, row: Mapping[str, Any]) -> str:
        cells = []
        for place, (column, (_, form)) in enumerate(self.columns.items()):
            value = row[column]
            words = "–" if value is None else escape(form(value))
            tag = 'th scope="row"' if place == 0 else "td"
            cells.append(f"<{tag}{_numeric(form)}>{words}</{tag[:2]}>")
        return "".join(cells)


def _numeric(form: Form) -> str:
    return "" if form is text else ' class="number"'
