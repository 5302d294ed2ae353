"""The page as text: whole, alone, escaped, and quick to make."""

import json
import math
import re
import time
from html.parser import HTMLParser

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsparse_ray.errors import StoreError
from rlsparse_ray.report import FIGURES, write_report
from rlsparse_ray.report.packed import packed, script_json
from rlsparse_ray.report.tables import TABLES
from rlsparse_ray.sql import queries
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
    for thing in (*FIGURES, *TABLES):
        assert queries()[thing.query].text in words
    buttons = [a["data-of"] for t, a in tags.found if a.get("class") == "csv"]
    shown = {t.name for t in TABLES} - {"unsampled"}
    assert shown | {f.name for f in FIGURES} <= set(buttons)


def test_doubts_are_in_plain_sight(tags):
    words = "".join(tags.words)
    assert "Of the pairs: 1 failed, 1 may be no pair, 1 compared in part." in words
    assert "hf://org/gone: gone" in words


def test_the_numbers_of_the_top_are_those_of_the_query(tags, full_store):
    from rlsparse_ray.sql import connect, run_query

    with connect(full_store) as con:
        rows = {r["measure"]: r for r in run_query(con, "headline").to_pylist()}
    words = "".join(tags.words)
    row = rows["lift_magnitude"]
    assert f"{row['value']:.3g}×" in words
    assert f"95 % interval {row['low']:.3g}× to {row['high']:.3g}×" in words
    assert f"{row['n']} pairs of runs" in words


def test_no_store_no_page(tmp_path):
    with pytest.raises(StoreError):
        write_report(tmp_path / "nowhere", tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_many_pairs_stay_small():
    """200 runs: 19,900 pairs of runs with fourteen columns, as the page holds them."""
    import numpy as np

    rng = np.random.default_rng(0)
    names = [f"base-{n % 10}-algorithm-{n % 8}-seed{n}" for n in range(200)]
    a, b = np.triu_indices(200, 1)
    columns = {"name_a": [names[i] for i in a], "name_b": [names[i] for i in b]}
    columns |= {f"lift_{n}": rng.lognormal(size=len(a)) for n in range(12)}
    start = time.perf_counter()
    size = len(script_json(packed(pa.table(columns))))
    assert size < 3_500_000
    assert time.perf_counter() - start < 20
