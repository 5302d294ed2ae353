"""The page as text: whole, alone, escaped, and quick to make."""

import json
import math
import re
import shlex
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsparse_ray.errors import StoreError
from rlsparse_ray.report import FIGURES, write_report
from rlsparse_ray.report.answers import Answers
from rlsparse_ray.report.catalogue import figure_named
from rlsparse_ray.report.packed import packed, script_json
from rlsparse_ray.report.page import render
from rlsparse_ray.report.tables import TABLES
from rlsparse_ray.report.thinning import RUNS, TWO_RUNS, thinned
from rlsparse_ray.sql import connect, queries, run_query
from tests.report.conftest import HOSTILE


def unpacked(data):
    columns = {
        name: c if isinstance(c, list) else [c["texts"][i] for i in c["at"]]
        for name, c in data["columns"].items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


texts = st.none() | st.text()
numbers = st.none() | st.integers(-(2**53), 2**53)


@given(st.lists(st.tuples(texts, numbers)))
def test_packed_rows_come_back(rows):
    table = pa.table(
        {
            "text": pa.array([t for t, _ in rows], pa.string()),
            "number": pa.array([n for _, n in rows], pa.int64()),
        }
    )
    text = script_json(packed(table))
    assert not set("<>&\u2028\u2029") & set(text)
    assert unpacked(json.loads(text)) == table.to_pylist()


@given(st.lists(st.floats() | st.none()))
def test_floats_keep_six_digits_and_stay_json(values):
    data = packed(pa.table({"x": pa.array(values, pa.float64())}))
    for got, want in zip(json.loads(script_json(data))["columns"]["x"], values, strict=True):
        if want is None or not math.isfinite(want):
            assert got is None
        else:
            assert got == pytest.approx(want, rel=5.1e-6)


class Tags(HTMLParser):
    """Every element and its attributes; the text outside scripts."""

    def __init__(self):
        super().__init__()
        self.found, self.words = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def text(full_page):
    return full_page.read_text()


@pytest.fixture(scope="module")
def tags(text):
    parser = Tags()
    parser.feed(text)
    return parser


def test_nothing_is_outside_the_file(tags, text):
    style = text[text.index("<style>") : text.index("</style>")]
    places = [a.get(k) for t, a in tags.found for k in ("src", "href") if a.get(k)]
    assert {place[0] for place in places if not place.startswith("data:")} == {"#"}
    assert "@import" not in style and "url(" not in style


def test_only_our_scripts_run(tags, text):
    assert [a for t, a in tags.found if t == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
        {},
    ]
    assert HOSTILE not in text
    assert "{{" not in re.sub(r"<script.*?</script>", "", text, flags=re.S).replace("{{js}}", "")


def test_ids_are_there_once_and_links_lead_to_them(tags):
    ids = [a["id"] for _, a in tags.found if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for t, a in tags.found if t == "a"}
    assert links <= set(ids)
    assert {f.name for f in FIGURES} | {t.name for t in TABLES} <= set(ids)


def test_every_figure_has_its_sql_and_a_download(tags):
    words = "".join(tags.words)
    # less the tables that have no row in this store
    shown = [t for t in (*FIGURES, *TABLES) if t.name not in ("repeated", "uncounted")]
    for thing in shown:
        assert queries()[thing.query].text in words
    buttons = [a["data-of"] for t, a in tags.found if a.get("class") == "csv"]
    assert {thing.name for thing in shown} <= set(buttons)


def test_doubts_are_in_plain_sight(tags):
    words = "".join(tags.words)
    doubts = ("1 failed in the last refresh", "1 may be no pair", "19 of unknown lineage")
    assert f"Of the pairs: {', '.join(doubts)}, 1 compared in part." in words
    assert "hf://org/gone: gone" in words


def test_the_numbers_of_the_top_are_those_of_the_query(tags, full_store):
    with connect(full_store) as con:
        rows = {r["measure"]: r for r in run_query(con, "headline").to_pylist()}
    words = "".join(tags.words)
    row = rows["lift_magnitude"]
    assert f"{row['value']:.2f}×" in words
    assert f"95 % interval {row['low']:.2f}× to {row['high']:.2f}×" in words
    assert f"{row['n']} pairs of runs" in words


def test_no_store_no_page(tmp_path):
    with pytest.raises(StoreError):
        write_report(tmp_path / "nowhere", tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


RNG = np.random.default_rng(0)


def pairs_of_runs(runs):
    a, b = np.triu_indices(runs, 1)
    names = pa.array([f"run-{n:03}" for n in range(runs)])
    return pa.table(
        {
            "name_a": names.take(pa.array(a)),
            "name_b": names.take(pa.array(b)),
            **{f"lift_{n}": RNG.lognormal(size=len(a)) for n in range(12)},
        }
    )


@pytest.mark.parametrize("runs", [3, 40, 300])
def test_runs_stay_whole_and_as_many_as_fit(runs):
    rows = pairs_of_runs(runs)
    found = thinned(rows, TWO_RUNS, held=200_000)
    kept = {*found.rows["name_a"].to_pylist(), *found.rows["name_b"].to_pylist()}
    assert (found.kept, found.of) == (len(kept), runs)
    # every two of the runs that stayed, and the first and the last of them all
    assert found.rows.num_rows == math.comb(len(kept), 2)
    assert {"run-000", f"run-{runs - 1:03}"} <= kept
    assert found.whole == (runs <= 40)
    if not found.whole:
        assert 100_000 < len(script_json(packed(found.rows))) < 200_000


def test_at_most_so_many_lines():
    rows = pa.table({"run": [f"run-{n % 9}" for n in range(90)], "x": range(90)})
    found = thinned(rows, RUNS, most=5)
    assert found.names() == {"run": ["run-0", "run-2", "run-4", "run-6", "run-8"]}
    assert found.rows.num_rows == 50
    assert found.words().startswith("5 of 9 runs, ")


def test_a_long_table_ends_with_what_is_left_out(full_store, monkeypatch):
    monkeypatch.setattr("rlsparse_ray.report.page.ROWS", 2)
    with connect(full_store) as con:
        text = render(Answers(con, str(full_store)), datetime(2026, 1, 1, tzinfo=UTC))
        pairs = run_query(con, "provenance").num_rows
    at = text.index('<figure id="pairs"')
    figure = text[at : text.index("</figure>", at)]
    assert figure.count("<tr>") == 1 + 2
    assert f"{pairs - 2} more rows: the command under SQL gives all." in figure


def test_commands_can_be_pasted(full_store, tmp_path):
    odd = tmp_path / "sp ace"
    odd.symlink_to(full_store)
    write_report(odd, tmp_path / "report.html")
    parser = Tags()
    parser.feed((tmp_path / "report.html").read_text())
    commands = [w for w in parser.words if w.startswith("rlsparse ") and "--store" in w]
    assert len(commands) > 20
    for command in commands:
        words = shlex.split(command)
        assert words[words.index("--store") + 1] == str(odd), command


def test_a_sample_is_said():
    rows = pa.table(
        {
            **{c: pa.array([0.5, 0.6]) for c in ("excess_share_magnitude", "lift_magnitude")},
            "lift_uniform": [2.0, 8.0],
            "sample_fraction": [1.0, 0.25],
        }
    )
    say = figure_named("rounding").summary
    assert "in a sample of 25.00% of the blocks" in say(rows)
    assert "sample" not in say(rows.slice(0, 1))
    assert say(rows.slice(0, 1)).startswith("1 pair of runs: 2 times ")
