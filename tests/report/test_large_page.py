"""A page of 200 runs: under 10 MB, and a browser draws it."""

import itertools
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from rlsparse_ray.report.answers import Answers
from rlsparse_ray.report.page import render
from rlsparse_ray.sql import connect
from tests.report.test_browser import show

RUNS = [f"base-{n % 10}-algorithm-{n % 8}-seed{n}" for n in range(200)]
MODULES = 9
LAYERS = 32
ROWS = {
    **dict.fromkeys(("rounding", "overlap-matrix", "relations"), 200 * 199 // 2),
    **dict.fromkeys(("sparsity", "runs", "tolerances"), 200 * 8),
    "layers": 200 * LAYERS * MODULES,
    "steps": 200 * 40,
    "principal": 200 * 6,
}
"""What 200 runs of 32 layers have, by figure; 200 rows for the others."""


class Grown(Answers):
    """The answers of a small store, made as long as those of 200 runs."""

    def rows(self, figure):
        rows = super().rows(figure)
        count = ROWS.get(figure.name, 200)
        rng = np.random.default_rng(0)
        columns = rows.take(pa.array(np.arange(count) % rows.num_rows))
        pairs = list(itertools.islice(itertools.combinations(RUNS, 2), count))
        each = [RUNS[n * len(RUNS) // count] for n in range(count)]
        names = {"run": each, "name": each, "trajectory": each, "group": each}
        if len(pairs) == count and "name_a" in columns.column_names:
            names |= {"name_a": [a for a, _ in pairs], "name_b": [b for _, b in pairs]}
        for place, field in enumerate(columns.schema):
            if field.name in names and field.name in columns.column_names:
                values = pa.array(names[field.name], pa.string())
            elif field.name == "layer":
                values = pa.array(np.arange(count) // MODULES % LAYERS, field.type)
            elif pa.types.is_floating(field.type):
                values = pa.array(rng.random(count), field.type)
            else:
                continue
            columns = columns.set_column(place, field.name, values)
        return columns


@pytest.fixture(scope="module")
def page(full_store, tmp_path_factory):
    with connect(full_store) as con:
        text = render(Grown(con, str(full_store)), datetime(2026, 1, 1, tzinfo=UTC))
    path = tmp_path_factory.mktemp("large") / "report.html"
    path.write_text(text)
    return path


def test_it_is_small(page):
    assert 2e6 < page.stat().st_size < 10e6


def test_a_browser_draws_it(browser, page):
    show(browser, page)
    assert browser.get_log("browser") == []
    options = browser.execute_script("return document.querySelector('#layers-run').options.length")
    assert options == len(RUNS)
