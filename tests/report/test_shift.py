"""The shift baseline of a page: the numbers of the query, for as many runs as there is time."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from rlsparse_ray import sql
from rlsparse_ray.population.shift import count_shift
from rlsparse_ray.report import write_plot, write_report
from rlsparse_ray.report.answers import Answers
from rlsparse_ray.report.catalogue import figure_named
from rlsparse_ray.report.plot import complete
from rlsparse_ray.report.shift_column import affordable
from rlsparse_ray.report.theme import LIGHT
from rlsparse_ray.store import Store
from tests.builders import (
    BF16,
    extract_directly,
    overlap_directly,
    sparsely_changed,
    weights,
    write_corpus,
    write_model,
)
from tests.report.test_browser import drawn, labels, show, wait

SHAPES = {
    "large": {
        "model.embed_tokens.weight": (300, 512),  # two full blocks and a part of one
        "model.layers.0.mlp.up_proj.weight": (640, 512),  # five
        "model.layers.0.self_attn.q_proj.weight": (128, 512),  # one
        "model.norm.weight": (512,),
    },
    "small": {"model.embed_tokens.weight": (300, 512), "model.norm.weight": (512,)},
    "tiny": {"model.embed_tokens.weight": (30, 16)},
}
RUNS = {"large": 4, "small": 3, "tiny": 2}


def busy_columns(base, seed):
    """Changes in busy columns, the same in every run: what shift knows of."""
    rng = np.random.default_rng(seed)
    busy = np.random.default_rng(1).random(base.shape[-1]) ** 3
    factor = np.where(rng.random(base.shape) < busy, 1.04, 1.0)
    return np.asarray(base.astype(np.float32) * factor, BF16)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Runs of three bases, of which the smallest has no tensor of two blocks."""
    place = tmp_path_factory.mktemp("shift")
    pairs = []
    for number, (family, shapes) in enumerate(SHAPES.items()):
        base = {n: weights(number + i, shape) for i, (n, shape) in enumerate(shapes.items())}
        write_model(place / family, base)
        for seed in range(RUNS[family]):
            change = sparsely_changed if seed == 3 else busy_columns
            tuned = {n: change(a, 10 * seed + i) for i, (n, a) in enumerate(base.items())}
            write_model(place / f"{family}-{seed}", tuned)
            pairs.append({"name": f"{family}-{seed}", "base": family, "tuned": f"{family}-{seed}"})
    extract_directly(write_corpus(place / "corpus.yaml", pairs), place / "store")
    overlap_directly(place / "store")
    return place / "store"


@pytest.fixture(scope="module")
def matrix(store):
    """The rows of the figure."""
    with sql.connect(store) as con:
        return Answers(con, str(store)).rows(figure_named("overlap-matrix"))


@pytest.fixture(scope="module")
def asked(store):
    """By the names of two runs, what SQL has to say of shift in total."""
    with sql.connect(store) as con:
        lifts = sql.run_query(con, "overlap_lifts", {"shift": "yes"}).to_pylist()
        totals = sql.run_sql(
            con, "FROM overlap_baselines('*', '*') WHERE level = 'total' AND baseline = 'shift'"
        ).to_pylist()
    rows = {(row["pair_a"], row["pair_b"]): row for row in totals}
    found = {}
    for row in lifts:
        total = rows[row["pair_a"], row["pair_b"]]
        if row["lift_shift"] is not None:
            assert total["lift"] == pytest.approx(row["lift_shift"], rel=1e-12)
            found[row["name_a"], row["name_b"]] = total
    return found


def test_the_numbers_are_those_of_the_query(matrix, asked):
    found = {(r["name_a"], r["name_b"]): r for r in matrix.to_pylist()}
    counted = {names for names, row in found.items() if row["lift_shift"] is not None}
    assert counted == asked.keys()
    # two bases have a tensor of two blocks in common, the third has none with any
    assert len(counted) == 7 * 6 // 2 and not any("tiny" in "".join(names) for names in counted)
    for names, want in asked.items():
        row, expected = found[names], want["expected"]
        assert row["lift_shift"] == pytest.approx(want["lift"], rel=1e-12)
        smaller = min(want["changed_a"], want["changed_b"])
        share = (want["shared"] - expected) / (smaller - expected)
        assert row["excess_share_shift"] == pytest.approx(share, rel=1e-9)
    # columns that are busy in both runs are no news to shift, but are to uniform
    busy = found["large-0", "large-1"]
    assert busy["lift_uniform"] > 1.5 > busy["lift_shift"]


def test_any_pairs_of_runs_in_tiles(store, asked):
    with sql.connect(store) as con:
        names = dict(con.execute("SELECT pair_id, name FROM pairs").fetchall())
    ids = sorted(names)
    some = [(a, b) for a in ids[:3] for b in ids[4:]]
    found = count_shift(Store.open(store), some)
    assert len(found) > 3
    for (a, b), shift in found.items():
        assert shift.lift == pytest.approx(asked[names[a], names[b]]["lift"], rel=1e-12)
    assert count_shift(Store.open(store), []) == {}


def test_the_smallest_pairs_of_runs_come_first(store, matrix, monkeypatch):
    with sql.connect(store) as con:
        answer = sql.run_query(con, "overlap_excess")
        rows = answer.to_pylist()
        every = affordable(answer, 1e12)
        assert len(every) == len(rows) and affordable(answer, 0) == []
        sizes = {(r["pair_a"], r["pair_b"]): r["numel"] for r in rows}
        assert [sizes[pair] for pair in every] == sorted(sizes.values())
        # enough for the runs of the two smaller bases, two large ones, and to hold them together
        small = [pair for pair in every if sizes[pair] < 500_000]
        enough = sum(sizes[p] for p in small) / 16 + 30 * 16 * 2 + (300 * 512 + 512) * 7
        kept = affordable(answer, enough)
        assert 0 < len(kept) < len(every) and kept == every[: len(kept)]
        monkeypatch.setattr("rlsparse_ray.report.shift_column._BITS", enough)
        few = Answers(con, str(store)).rows(figure_named("overlap-matrix"))
    names = {(r["pair_a"], r["pair_b"]): (r["name_a"], r["name_b"]) for r in rows}
    left_out = {names[pair] for pair in every[len(kept) :]}
    for some, whole in zip(few.to_pylist(), matrix.to_pylist(), strict=True):
        out = (whole["name_a"], whole["name_b"]) in left_out
        assert some["lift_shift"] == (None if out else whole["lift_shift"])
    assert {name.partition("-")[0] for pair in left_out for name in pair} == {"large"}


def test_shift_is_offered_where_it_was_counted(store, full_store):
    figure = figure_named("overlap-matrix")
    with sql.connect(full_store) as con:
        without = Answers(con, str(full_store)).rows(figure)
    with sql.connect(store) as con:
        having = Answers(con, str(store)).rows(figure)
    assert without["lift_shift"].null_count == without.num_rows
    assert "shift" not in figure.offered(without).switches[0].options
    assert list(figure.offered(having).switches[0].options) == [
        *("magnitude", "margins", "shift", "tensor", "uniform")
    ]
    chart = complete(figure, having, {"baseline": "shift"}, str(store))
    assert "datum.lift_shift" in json.dumps(chart.spec)


def test_rounding_has_a_line_of_shift_if_all_runs_have_it(store):
    figure = figure_named("rounding")
    with sql.connect(store) as con:
        rows = Answers(con, str(store)).rows(figure)
    large = rows.filter([name.startswith("large") for name in rows["name_a"].to_pylist()])
    assert "lift_shift" not in json.dumps(figure.draw(rows, {}))
    assert "lift_shift" in json.dumps(figure.draw(large, {}))


def test_the_switch_turns_to_shift(browser, store, tmp_path):
    page = tmp_path / "report.html"
    write_report(store, page)
    show(browser, page)
    before = labels(browser, "overlap-matrix")
    browser.execute_script("document.querySelector('#overlap-matrix input[value=shift]').click()")
    wait(browser, "return document.getElementById('overlap-matrix').dataset.drawn === 'shift|lift'")
    assert labels(browser, "overlap-matrix") != before
    assert drawn(browser, "rounding") == ""
    assert browser.get_log("browser") == []


def test_numbers_stand_out_from_dark_cells(store, tmp_path):
    path = tmp_path / "matrix.svg"
    write_plot(store, "overlap-matrix", path, {"show": "o1"})
    groups = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}g")
    inks = [
        {text.get("fill") for text in group}
        for group in groups
        if group.get("class", "").startswith("mark-text role-mark")
    ]
    assert inks == [{LIGHT["ink"]}, {LIGHT["ground"]}]
