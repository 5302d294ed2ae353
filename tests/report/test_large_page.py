"""Pages of 200 and of 1,500 runs: under 10 MB, quick to make, and a browser draws them."""

import time
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from rlsparse_ray.report import FIGURES
from rlsparse_ray.report.answers import Answers
from rlsparse_ray.report.page import render
from rlsparse_ray.report.thinning import LINES
from rlsparse_ray.sql import connect
from tests.report.test_browser import show

MODULES = 9
LAYERS = 32
ROWS = {
    **dict.fromkeys(("sparsity", "runs", "tolerances"), 8),
    "layers": LAYERS * MODULES,
    "steps": 40,
    "principal": 6,
}
"""What a run of 32 layers has, by figure; one row for the others, and one for every two runs."""


class Grown(Answers):
    """The answers of a small store, made as long as those of many runs."""

    def __init__(self, con, store, runs):
        super().__init__(con, store)
        self.runs = [f"base-{n % 10}-algorithm-{n % 8}-seed{n:04}" for n in range(runs)]

    def rows(self, figure):
        rows = super().rows(figure)
        two = "name_a" in rows.column_names
        # as distinct as the rows of a run are
        a, b = np.triu_indices(len(self.runs), 1) if two else (None, None)
        count = len(a) if two else len(self.runs) * ROWS.get(figure.name, 1)
        names = pa.array(self.runs)
        columns = rows.take(pa.array(np.arange(count) % rows.num_rows))
        each = names.take(pa.array(np.arange(count) * len(self.runs) // count))
        new = dict.fromkeys(("run", "name", "line", "trajectory"), each)
        new |= {"name_a": names.take(pa.array(a)), "name_b": names.take(pa.array(b))} if two else {}
        new |= {"layer": pa.array(np.arange(count) // MODULES % LAYERS, pa.int32())}
        rng = np.random.default_rng(0)
        for place, field in enumerate(columns.schema):
            if field.name in new:
                columns = columns.set_column(place, field.name, new[field.name])
            elif pa.types.is_floating(field.type):
                columns = columns.set_column(place, field.name, pa.array(rng.random(count)))
        return columns


@pytest.fixture(scope="module", params=[200, 1500])
def made(request, full_store, tmp_path_factory):
    """How many runs, their page, and the seconds that it took."""
    with connect(full_store) as con:
        answers = Grown(con, str(full_store), request.param)
        start = time.process_time()
        text = render(answers, datetime(2026, 1, 1, tzinfo=UTC))
        seconds = time.process_time() - start
    path = tmp_path_factory.mktemp("large") / "report.html"
    path.write_text(text)
    return request.param, path, seconds


def test_it_is_small_and_quick(made):
    """1,500 runs take 8 seconds, a third of it to make up their rows; whole, 600 took 17."""
    _, page, seconds = made
    assert 2e6 < page.stat().st_size < 10e6
    assert seconds < 25


def test_a_browser_draws_it_and_it_says_what_is_left_out(browser, made):
    runs, page, _ = made
    show(browser, page)
    assert browser.get_log("browser") == []
    drawn = "return [...document.querySelectorAll('figure[data-drawn]')].map((f) => f.id)"
    assert set(browser.execute_script(drawn)) == {f.name for f in FIGURES}
    heights = "return [...document.querySelectorAll('canvas')].map((c) => c.height)"
    assert max(browser.execute_script(heights)) < 32_767
    # all rows of the runs are there, also of those without a line
    rows = browser.execute_script("return window.rlsparse.csv('runs').split('\\r\\n').length")
    assert rows == 1 + runs * ROWS["runs"] + 1
    said = browser.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('figure .left')]"
        ".map((p) => [p.closest('figure').id, p.textContent]))"
    )
    if runs == 200:
        assert "runs" not in said
        return
    assert {"rounding", "overlap-matrix", "relations", "layers", "runs", "ranks"} <= said.keys()
    assert f"Drawn are {LINES} of 1,500 runs" in said["runs"]
    assert "of 1,500 runs, taken evenly" in said["overlap-matrix"]


def test_a_figure_that_cannot_be_drawn_says_so_and_the_next_is_drawn(browser, full_page, tmp_path):
    name = FIGURES[0].name
    broken = tmp_path / "report.html"
    text = full_page.read_text()
    at = text.index(f'"{name}":{{"rows":"')
    spec = text.index('"layer":', at)
    broken.write_text(text[:spec] + '"layer":7,"was":' + text[spec + len('"layer":') :])
    show(browser, broken)
    words = browser.execute_script(
        "return document.getElementById(`chart-${arguments[0]}`).innerText", name
    )
    assert words.startswith("This figure could not be drawn: ")
    assert "rows are in the table and the CSV" in words
    drawn = "return document.querySelectorAll('figure[data-drawn]').length"
    assert browser.execute_script(drawn) == len(FIGURES) - 1
    assert name in str(browser.get_log("browser"))
