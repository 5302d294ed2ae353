"""Figures for papers: every one, in every format, and what is said of wrong names."""

import json
import os
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from rlsparse_ray import open_store, sql
from rlsparse_ray.errors import QueryError, RlsparseError
from rlsparse_ray.population.consensus import consensus
from rlsparse_ray.report import FIGURES, write_plot
from rlsparse_ray.report.answers import Answers
from rlsparse_ray.report.catalogue import figure_named
from rlsparse_ray.report.drawing import WIDTH
from rlsparse_ray.report.plot import complete
from rlsparse_ray.report.theme import CATEGORIES
from rlsparse_ray.report.thinning import LINES

STARTS = {".pdf": b"%PDF-", ".svg": b"<svg", ".png": b"\x89PNG"}


@pytest.mark.parametrize("name", [f.name for f in FIGURES])
def test_every_figure_is_drawn(full_store, tmp_path, name):
    path = tmp_path / f"{name}.svg"
    write_plot(full_store, name, path)
    tree = ET.fromstring(path.read_bytes())
    assert float(tree.attrib["width"]) > WIDTH
    texts = {e.text for e in tree.iter("{http://www.w3.org/2000/svg}text") if e.text}
    assert len(texts) > 3 and not {"undefined", "NaN", "null"} & texts


@pytest.mark.parametrize("suffix", STARTS)
def test_every_format(full_store, tmp_path, suffix):
    path = tmp_path / "new" / f"figure{suffix}"
    write_plot(full_store, "tolerances", path)
    assert path.read_bytes().startswith(STARTS[suffix])


def test_every_choice_is_drawn_differently(full_store):
    with sql.connect(full_store) as con:
        answers = Answers(con, str(full_store))
        for figure in FIGURES:
            rows = answers.rows(figure)
            drawn = {json.dumps(figure.draw(rows, c)) for c in figure.choices()}
            idle = sum("o1" in c.values() for c in figure.choices())
            assert len(drawn) == len(list(figure.choices())) - max(0, idle - 1), figure.name


def test_a_choice_and_a_filter(full_store):
    figure = figure_named("layers")
    with sql.connect(full_store) as con:
        rows = Answers(con, str(full_store)).rows(figure)
    chart = complete(figure, rows, {"run": "other"}, "s")
    assert {row["run"] for row in chart.whole()["data"]["values"]} == {"other"}
    figure = figure_named("overlap-matrix")
    with sql.connect(full_store) as con:
        rows = Answers(con, str(full_store)).rows(figure)
    choices = {"show": "excess_share", "baseline": "margins"}
    assert "datum.excess_share_margins" in json.dumps(complete(figure, rows, choices, "s").whole())


@pytest.mark.parametrize(
    ("name", "choices", "says"),
    [
        ("overlap-matrix", {"baseline": "uniform"}, "Chance knows: uniform: densities only"),
        ("overlap-matrix", {"show": "o1"}, "Show: share in common (o1)"),
        ("layers", {"run": "other"}, "Run: other"),
    ],
)
def test_a_picture_says_what_was_chosen(full_store, tmp_path, name, choices, says):
    path = tmp_path / "figure.svg"
    write_plot(full_store, name, path, choices)
    texts = {e.text for e in ET.fromstring(path.read_bytes()).iter() if e.text}
    assert says in texts
    # and nothing that changes nothing
    assert "o1" not in choices.values() or not any("Chance knows" in text for text in texts)


def test_a_picture_of_many_runs_says_which_it_draws(full_store):
    figure = figure_named("runs")
    with sql.connect(full_store) as con:
        rows = Answers(con, str(full_store)).rows(figure).slice(0, 1)
    many = pa.concat_tables([rows] * (LINES + 100))
    names = pa.array([f"run-{n:04}" for n in range(many.num_rows)])
    many = many.set_column(many.schema.get_field_index("run"), "run", names)
    chart = complete(figure, many, {}, "s")
    assert chart.rows.num_rows == LINES
    assert chart.spec["title"]["text"][0].startswith(f"Drawn: {LINES} of {LINES + 100} runs")


def test_large_trajectories_are_left_out(full_store, monkeypatch):
    figure = figure_named("trajectories")
    with sql.connect(full_store) as con:
        whole = Answers(con, str(full_store)).rows(figure)
        asked = sql.run_query(con, "trajectory").select(list(figure.columns))
        monkeypatch.setattr("rlsparse_ray.report.run_figures._BITS", 0)
        none = Answers(con, str(full_store)).rows(figure)
    assert whole.num_rows and whole.equals(asked)
    assert none.num_rows == 0 and none.column_names == whole.column_names


@pytest.mark.parametrize(
    ("name", "choices", "says"),
    [
        ("overlap-matrx", {}, "did you mean 'overlap-matrix'"),
        ("zzz", {}, "there are: rounding, overlap-matrix"),
        ("layers", {"run": "nobody"}, "no run 'nobody'; there are: "),
        ("layers", {"colour": "red"}, "no choice 'colour'; it has: run"),
        ("overlap-matrix", {"baseline": "none"}, "there are: magnitude, margins, tensor, uniform"),
    ],
)
def test_wrong_names(full_store, tmp_path, name, choices, says):
    with pytest.raises(QueryError, match=says):
        write_plot(full_store, name, tmp_path / "x.svg", choices)
    assert list(tmp_path.iterdir()) == []


def test_another_format(full_store, tmp_path):
    with pytest.raises(RlsparseError, match=r"\.pdf, \.svg, \.png, not '\.gif'"):
        write_plot(full_store, "sparsity", tmp_path / "x.gif")


def test_nothing_to_draw_says_what_makes_it(example, tmp_path):
    with pytest.raises(QueryError, match="no data yet: rlsparse overlap --store"):
        write_plot(example.store, "rounding", tmp_path / "x.pdf")


def test_equal_charts_give_equal_bytes(full_store, tmp_path):
    for name in ("one", "other"):
        write_plot(full_store, "overlap-matrix", tmp_path / f"{name}.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()


def test_a_reader_sees_the_old_file_or_the_new_one(full_store, tmp_path):
    place, link = tmp_path / "figures" / "figure.svg", tmp_path / "latest.svg"
    write_plot(full_store, "runs", place)
    link.symlink_to(place)
    before = place.read_bytes()
    with place.open("rb") as reader:
        write_plot(full_store, "sparsity", link)
        assert reader.read() == before
    assert link.is_symlink() and place.read_bytes().endswith(b"</svg>")
    assert place.read_bytes() != before
    assert [path.name for path in place.parent.iterdir()] == ["figure.svg"]


def test_a_pipe_takes_a_figure(full_store, tmp_path):
    pipe = tmp_path / "pipe.svg"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_bytes)
        write_plot(full_store, "runs", pipe)
        assert read.result().startswith(b"<svg")
    assert list(tmp_path.iterdir()) == [pipe]


def test_from_python(full_store):
    with open_store(full_store) as store:
        chart = store.plot("overlap-matrix", show="o1")
        assert chart._repr_svg_().startswith("<svg") and "datum.o1" in json.dumps(chart.spec)
        with pytest.raises(QueryError, match="did you mean 'rounding'"):
            store.plot("roundin")


def test_the_ninth_algorithm_looks_unlike_the_first():
    names = [f"algorithm-{n}" for n in range(len(CATEGORIES["light"]))]
    columns = {"algorithm": [*names, None], "criterion": ["exact"] * (len(names) + 1)}
    table = pa.table(columns)
    encoding = figure_named("tolerances").draw(table, {})["layer"][0]["encoding"]
    colours, dashes = encoding["color"]["scale"], encoding["strokeDash"]["scale"]
    assert colours["domain"] == dashes["domain"] == [*names, "unnamed"]
    assert dashes["range"][-1] not in dashes["range"][:-1]


def test_the_consensus_is_that_of_the_verb(full_store, monkeypatch):
    with sql.connect(full_store) as con:
        answers = Answers(con, str(full_store))
        rows = answers.rows(figure_named("consensus")).to_pylist()
        groups = answers("consensus_groups").to_pylist()
        monkeypatch.setattr("rlsparse_ray.report.consensus_figure._BITS", groups[0]["bits"])
        few = Answers(con, str(full_store)).rows(figure_named("consensus"))
    for group in groups:
        ids = ", ".join(f"'{i}'" for i in group["members"])
        found = consensus(full_store, f"pair_id IN ({ids})").histogram.to_pylist()
        mine = [r for r in rows if r["group"] == group["name"]]
        assert [r["parameters"] for r in mine] == [r["parameters"] for r in found]
        numel = sum(r["parameters"] for r in found)
        for got, want in zip(mine, found, strict=True):
            assert got["share_magnitude"] == pytest.approx(want["expected_magnitude"] / numel)
            assert got["share_uniform"] == pytest.approx(want["expected_uniform"] / numel)
    assert len(groups) > 1 and set(few["group"].to_pylist()) == {groups[0]["name"]}


def domain(spec, channel):
    """The scale of a channel in the first mark."""
    return spec["layer"][0]["encoding"][channel]["scale"]["domain"]


def test_steps_have_a_place_for_every_bucket():
    steps = pa.table({"ulp_low": [-1, 9, None], "ulp_high": [-1, 16, None]})
    shown = domain(figure_named("steps").draw(steps, {}), "x")
    up = ["+1", "+2", "+3–4", "+5–8", "+9–16"]
    assert shown == [*(f"−{label[1:]}" for label in reversed(up)), *up, "NaN, Inf"]


@pytest.mark.parametrize(("farthest", "reach"), [(1.2, 1), (1 / 3, 2), (33.4, 4)])
def test_colours_of_lifts_reach_as_far_as_the_lifts(farthest, reach):
    lifts = {f"lift_{b}": [1.02, farthest, None] for b in ("magnitude", "uniform")}
    runs = pa.table({"name_a": ["a", "a", "b"], "name_b": ["b", "c", "c"], **lifts})
    spec = figure_named("overlap-matrix").draw(runs, {"show": "lift", "baseline": "magnitude"})
    assert domain(spec, "color") == [-reach, 0, reach]
