"""The page: one HTML file with its data, its drawing code and nothing to fetch."""

import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import vl_convert

from rlsparse_ray import __version__, sql
from rlsparse_ray.console import count
from rlsparse_ray.report.answers import Answers
from rlsparse_ray.report.catalogue import SECTIONS
from rlsparse_ray.report.figure import Figure, Filter, Switch, values_of
from rlsparse_ray.report.headline import facts_of, headline_html
from rlsparse_ray.report.packed import packed, script_json
from rlsparse_ray.report.place import check_place
from rlsparse_ray.report.table import Table
from rlsparse_ray.report.tables import TABLES, doubts_of
from rlsparse_ray.report.theme import config
from rlsparse_ray.report.thinning import Thinned, thinned
from rlsparse_ray.storage.local_files import write_file

ROWS = 1_000
"""Rows of a table that a page has, the first ones; a browser is slow to lay out more."""
TITLE = "Which weights did training change, and is that more than chance?"


def write_report(store: str | Path, path: Path, now: datetime | None = None) -> int:
    """Write the page of a store, whole or not at all.

    Args:
        store: a folder or an address.
        path: the HTML file; its folder is made.
        now: the time that the page shows, this moment unless given.

    Returns:
        Its size in bytes.

    Raises:
        RlsparseError: the path is an address or a folder, or ends neither in .html nor in .htm.
        StoreError: not a store, or one without a committed pair.
        QueryError: what DuckDB has to say.
    """
    if not path.exists() or path.is_file() or path.is_dir():
        # a pipe or a device takes a page whatever its name is
        check_place(path, "report", (".html", ".htm"))
    with sql.connect(store) as con:
        text = render(Answers(con, str(store)), now or datetime.now(UTC))
    data = text.encode()
    write_file(path, data)
    return len(data)


def render(answers: Answers, now: datetime) -> str:
    """The text of the page, from the answers of the queries by their names."""
    body = _Body(answers)
    titles = dict.fromkeys([*SECTIONS, *(table.section for table in TABLES)])
    sections = [
        _section(title, "".join([*map(body.figure, SECTIONS.get(title, ())), *body.tables(title)]))
        for title in titles
    ]
    facts = facts_of(answers)
    parts = {
        "title": escape(TITLE),
        "store": escape(answers.store),
        "made": escape(f"{now:%Y-%m-%d %H:%M} UTC"),
        "version": escape(__version__),
        "headline": headline_html(answers("headline"), facts, doubts_of(answers)),
        "contents": "".join(f'<li><a href="#{_anchor(t)}">{escape(t)}</a></li>' for t in titles),
        "sections": "".join(sections),
        "css": _asset("page.css"),
        "data": script_json(body.data()),
        "vega": _vega(),
        "js": _asset("page.js"),
    }
    page = _asset("page.html")
    # one pass over the template, so that a name which looks like a place in it stays a name
    head, *pieces = page.split("{{")
    return head + "".join(
        parts[name] + rest_ for name, rest_ in (piece.split("}}", 1) for piece in pieces)
    )


class _Body:
    """Figures and tables as HTML, and what of them the browser needs to know."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._store = shlex.quote(answers.store)
        self._rows: dict[str, pa.Table] = {}
        self._keys: dict[Any, str] = {}
        self._figures: dict[str, Any] = {}

    def figure(self, figure: Figure) -> str:
        """One figure with its switches, its table, its SQL and its download."""
        rows = self._answers.rows(figure)
        if not rows.num_rows:
            return _frame(figure, _empty(figure.fills.format(store=self._store)))
        summary = figure.summary(rows)
        held = thinned(rows, figure.units)
        drawn = figure.drawn(held.rows)
        figure = figure.offered(held.rows)
        same = (figure.query, figure.ask, figure.count, figure.columns, figure.shape, figure.units)
        key = self._keys.setdefault(same, figure.name)
        self._rows[key] = held.rows
        self._figures[figure.name] = {
            "rows": key,
            "filters": [f.column for f in figure.filters],
            "specs": {"|".join(c.values()): figure.draw(drawn.rows, c) for c in figure.choices()},
            "drawn": None if drawn.whole else drawn.names(),
        }
        controls = "".join(_radios(figure.name, s) for s in figure.switches)
        controls += "".join(_select(figure.name, f, held.rows) for f in figure.filters)
        chart = (
            f'<div class="scroll" role="group" aria-labelledby="{figure.name}-title" '
            f'style="max-height:{figure.height}px">'
            f'<div class="chart" id="chart-{figure.name}" role="img" '
            f'aria-label="{escape(f"{figure.title}. {summary}")}"><div></div></div></div>'
        )
        status = '<p class="status" aria-live="polite"></p>'
        return _frame(
            figure,
            (f'<div class="controls">{controls}</div>' if controls else "")
            + f'<p class="summary">{escape(summary)}</p>{_left_out(held, drawn)}{chart}{status}'
            + _foot(figure.name, figure.query, held.rows.num_rows, self._store, is_figure=True),
        )

    def tables(self, section: str) -> Iterator[str]:
        """The tables of a section."""
        for table in TABLES:
            if table.section == section:
                yield self._table(table)

    def _table(self, table: Table) -> str:
        rows = table.rows(self._answers(table.query))
        if not rows.num_rows:
            return _frame(
                table, _empty(table.empty.format(store=self._store), good=table.empty_is_good)
            )
        total = rows.num_rows
        self._rows[table.name] = rows = rows.slice(0, ROWS)
        self._figures[table.name] = {"rows": table.name, "filters": [], "specs": {}}
        foot = _foot(table.name, table.query, rows.num_rows, self._store, is_figure=False)
        return _frame(table, table.html(rows) + _more(total - rows.num_rows) + foot)

    def data(self) -> Mapping[str, Any]:
        """Rows by key, what is drawn of them by figure, and the styles."""
        return {
            "rows": {key: packed(rows) for key, rows in self._rows.items()},
            "figures": self._figures,
            "config": {mode: config(mode) | {"aria": False} for mode in ("light", "dark")},
        }


def _section(title: str, inside: str) -> str:
    anchor = _anchor(title)
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
        f'<h2 id="{anchor}-title">{escape(title)}</h2>{inside}</section>'
    )


def _frame(thing: Figure | Table, inside: str) -> str:
    name = thing.name
    return (
        f'<figure id="{name}" aria-labelledby="{name}-title"><figcaption>'
        f'<h3 id="{name}-title">{escape(thing.title)}</h3>'
        f"<p>{escape(thing.caption)}</p></figcaption>{inside}</figure>"
    )


def _empty(what: str, good: bool = False) -> str:
    said = escape(what)
    if what.startswith("rlsparse "):
        said = f"Nothing here yet. This fills it: <code>{said}</code>"
    elif not good:
        said = f"Nothing to draw: {said}."
    return f'<p class="empty">{said}</p>'


def _left_out(held: Thinned, drawn: Thinned) -> str:
    said = []
    if not held.whole:
        said.append(
            f"This page, its CSV too, has {held.words()}; the sentence above is of all of them, "
            "and the command under SQL gives all."
        )
    if not drawn.whole:
        said.append(f"Drawn are {drawn.words()}; the table and the CSV have the others too.")
    return f'<p class="summary left">{escape(" ".join(said))}</p>' if said else ""


def _more(rows: int) -> str:
    return f"<p>{count(rows, 'more row')}: the command under SQL gives all.</p>" if rows else ""


def _radios(figure: str, switch: Switch) -> str:
    idle = escape(" ".join(switch.idle))
    buttons = "".join(
        f'<label><input type="radio" name="{figure}-{switch.name}" value="{escape(value)}"'
        f"{' checked' if place == 0 else ''}><span>{escape(label)}</span></label>"
        for place, (value, label) in enumerate(switch.options.items())
    )
    return (
        f'<fieldset data-switch="{switch.name}" data-idle="{idle}">'
        f"<legend>{escape(switch.label)}</legend>{buttons}</fieldset>"
    )


def _select(figure: str, choice: Filter, rows: pa.Table) -> str:
    options = "".join(
        f'<option value="{escape(str(v))}">{escape(str(v))}</option>'
        for v in values_of(rows, choice.column)
    )
    return (
        f'<label class="select" for="{figure}-{choice.column}">{escape(choice.label)} '
        f'<select id="{figure}-{choice.column}" data-filter="{choice.column}">{options}'
        "</select></label>"
    )


def _foot(name: str, query: str, rows: int, store: str, *, is_figure: bool) -> str:
    table = (
        f'<details class="as-table"><summary>Table ({count(rows, "row")})</summary>'
        '<div class="rows" tabindex="0" role="region" aria-label="Table of the figure"></div>'
        "</details>"
    )
    commands = [f"rlsparse query {query} --store {store}"]
    if is_figure:
        commands.append(f"rlsparse plot {name} --store {store} -o {name}.pdf")
    lines = "".join(f"<p><code>{escape(command)}</code></p>" for command in commands)
    return (
        f'<div class="foot"><button type="button" class="csv" data-of="{name}">'
        f"Download CSV</button>{table if is_figure else ''}<details><summary>SQL</summary>{lines}"
        f'<pre tabindex="0"><code>{escape(sql.queries()[query].text)}</code></pre></details></div>'
    )


def _anchor(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-")


def _asset(name: str) -> str:
    return (files("rlsparse_ray.report") / name).read_text()


@cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script; nothing in it ends the element it stands in."""
    given = "window.vegaEmbed = vegaEmbed;"
    return json_safe(str(vl_convert.javascript_bundle(given)))


def json_safe(script: str) -> str:
    """JavaScript whose texts cannot end a <script>: in them `<\\/` is `</`."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
