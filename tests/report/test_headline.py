"""The numbers on top of the page say what they are of, and no more than is known."""

import html
import json
import re
import shutil
from xml.etree import ElementTree

import pyarrow as pa
import pytest

from rlsparse_ray import sql
from rlsparse_ray.report import Chart
from rlsparse_ray.report.answers import Answers
from rlsparse_ray.report.catalogue import figure_named
from rlsparse_ray.report.headline import Facts, facts_of, headline_html
from rlsparse_ray.report.tables import doubts_of
from tests.builders import overlap_directly
from tests.sql.conftest import REFRESHES, _write, _write_refresh
from tests.sql.test_family_queries import make_zoo

ZOO, _ = make_zoo()
ONE_BASE = [p for p in ZOO if p.name.startswith("grpo-")]
for _pair in ZOO:
    _pair.row["lineage_score"] = 0.99


def write(place, pairs):
    for p in pairs:
        _write(place, p)
    (place / "store.json").write_text(json.dumps({"format": "rlsparse_ray", "schema_version": 1}))


def words(place):
    """The text of the top of the page of a store."""
    with sql.connect(place) as con:
        answers = Answers(con, str(place))
        text = headline_html(answers("headline"), facts_of(answers), doubts_of(answers))
    return html.unescape(re.sub(r"<[^>]*>", " ", text))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Five runs on one base, with their overlaps."""
    folder = tmp_path_factory.mktemp("top")
    write(folder, ONE_BASE)
    overlap_directly(folder)
    return folder


@pytest.fixture
def copy(place, tmp_path):
    return shutil.copytree(place, tmp_path / "store")


def test_what_is_known_without_a_refresh(place, copy):
    assert "No pair looks unrelated or was compared in part." in words(place)
    assert "Whether any failed is not on record: no refresh ran." in words(place)
    _write_refresh(copy, REFRESHES[1])
    said = words(copy)
    assert "No failure in the last refresh, and no pair looks unrelated" in said
    assert "no refresh ran" not in said


def test_an_unknown_lineage_is_a_doubt(tmp_path):
    pairs = [p for p in make_zoo()[0] if p.name.startswith("two-")]
    write(tmp_path, pairs)
    overlap_directly(tmp_path)
    assert "2 of unknown lineage" in words(tmp_path)


def test_why_there_is_no_lift(tmp_path):
    write(tmp_path, ONE_BASE[:1])
    assert "there are no two runs to compare" in words(tmp_path)
    _write(tmp_path, next(p for p in ZOO if p.name == "two-0"))
    assert "not counted yet: rlsparse overlap does" in words(tmp_path)
    overlap_directly(tmp_path)
    assert "no two of the runs that were counted have the same base" in words(tmp_path)


def test_runs_that_share_nothing_have_no_lift(tmp_path):
    pairs = [p for p in make_zoo()[0] if p.name.startswith("two-")]
    for k, p in enumerate(pairs):
        for t in p.tensors:
            t.level[k::2], t.bucket[k::2] = 0, 0
    write(tmp_path, pairs)
    overlap_directly(tmp_path)
    assert "no two runs on one base share a changed weight" in words(tmp_path)


def test_runs_that_came_after_the_overlaps(copy, place):
    assert "overlaps not counted" not in words(place)
    for late in [p for p in ZOO if p.name.startswith("dpo-")][:2]:
        _write(copy, late)
    # each of the five has none with these two, which are on the same base
    assert "7 with overlaps not counted" in words(copy)


def test_a_run_under_two_names_is_one(copy, place):
    twin = make_zoo()[0][0]
    twin.pair_id, twin.row["name"], twin.row["lineage_score"] = "twin-0", "twin", 0.99
    _write(copy, twin)
    overlap_directly(copy)
    said = words(copy)
    assert "training runs   5  in 6 pairs of models" in said
    assert "1 of a tuned model that counts already" in said
    # 10 pairs of the five, none with the twin
    assert said.count("10 pairs of runs") == words(place).count("10 pairs of runs") == 3


def test_a_sample_is_called_one(place, tmp_path):
    write(tmp_path, ONE_BASE)
    overlap_directly(tmp_path, fraction=0.05)
    assert words(tmp_path).count("estimated from a sample of 5\u202f% of the blocks") == 3
    assert "sample" not in words(place)


def test_pairs_that_share_nothing_are_counted(tmp_path):
    pairs = [p for p in make_zoo()[0] if p.name.startswith("grpo-")][:3]
    for t in pairs[0].tensors:
        t.level[:], t.bucket[:] = 0, 0
    write(tmp_path, pairs)
    overlap_directly(tmp_path)
    said = words(tmp_path)
    assert said.count("2 that share nothing are left out") == 2
    assert said.count("2 that cannot share more than by chance are left out") == 1


@pytest.mark.parametrize(("low", "included"), [(0.97, True), (1.01, False)])
def test_an_interval_with_chance_in_it_says_so(low, included):
    row = {"measure": "lift_magnitude", "over": "pairs of runs", "runs": 9, "n": 12}
    row |= {"pairs_without": 0, "value": 1.08, "low": low, "high": 1.2, "sample_fraction": 1.0}
    said = headline_html(pa.Table.from_pylist([row]), Facts(18, 10**6, 12, 0), {})
    assert f"95 % interval {low}× to 1.20×" in said
    assert ("which includes 1×: that chance may explain all of it" in said) == included


def at_zero(name, rows, folder):
    """The labels of the triangles of a picture, which stand for a lift of 0."""
    table = pa.Table.from_pylist(rows)
    path = folder / "zero.svg"
    Chart(figure_named(name).draw(table, {}), table).write(path)
    marks = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}path")
    labels = [m.get("aria-label") for m in marks if m.get("aria-roledescription") == "point"]
    return [label for label in labels if "lift: 0" in label or "share nothing" in label]


def test_pairs_that_share_nothing_are_drawn_at_the_edge(tmp_path):
    found = [
        {f"lift_{b}": lift for b in ("uniform", "tensor", "margins", "magnitude")}
        | {"lift_shift": None, "excess_share_magnitude": lift - 1, "sample_fraction": 1.0}
        for lift in (2.0, 4.0, 0.0)
    ]
    say = figure_named("rounding").summary
    said = say(pa.Table.from_pylist(found))
    assert said.startswith("3 pairs of runs: 2.83 times")
    assert "leave out 1 that share nothing" in said
    assert "leave out" not in say(pa.Table.from_pylist(found[:2]))
    drawn = at_zero("rounding", found, tmp_path)
    assert len(drawn) == 4 and all("share nothing: 1" in label for label in drawn), drawn


def test_masks_that_an_update_avoids_are_drawn_at_the_edge(tmp_path):
    figure = figure_named("principal")
    masks = [
        {"line": f"a: {mask}", "name": "a", "mask": mask, "changed": 9, "shared": 9 * lift}
        | {"lift_uniform": float(lift), "lift_magnitude": float(lift)}
        for mask, lift in (("principal", 0), ("low-magnitude", 2))
    ]
    assert "1 mask has no changed weight at all" in figure.summary(pa.Table.from_pylist(masks))
    assert "at all" not in figure.summary(pa.Table.from_pylist(masks[1:]))
    for some in (masks, masks[:1]):
        drawn = at_zero("principal", some, tmp_path)
        assert len(drawn) == 2 and all("principal" in label for label in drawn), drawn


def test_nothing_is_said_of_bf16(place):
    assert "bf16" not in words(place)


def ticks(rows, folder):
    """By relation and what chance knows, where the bar stands; and the lines of the picture."""
    path = folder / "relations.svg"
    table = pa.Table.from_pylist(rows)
    Chart(figure_named("relations").draw(table, {}), table).write(path)
    found = {}
    for mark in ElementTree.parse(path).iter():
        if mark.get("aria-roledescription") == "tick":
            parts = dict(p.split(": ", 1) for p in mark.get("aria-label").split("; "))
            value = next(v for k, v in parts.items() if k.startswith("way from"))
            found[parts["relation"], parts["knows"]] = value
    texts = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return found, {line for text in texts for line in text.itertext()}


def related(relation, uniform, magnitude):
    columns = ("relation", "excess_share_uniform", "excess_share_magnitude")
    return dict(zip(columns, (relation, uniform, magnitude), strict=True))


def test_both_bars_of_a_relation_are_of_the_same_pairs(tmp_path):
    seeds = [related("another seed", 0.8, 0.6), related("another seed", 0.2, None)]
    found, lines = ticks([*seeds, related("unknown seed", 0.5, None)], tmp_path)
    assert [(*key, value) for key, value in found.items()] == [
        ("another seed", "densities only", "80%"),
        ("another seed", "rounding too", "60%"),
    ]
    assert {"another seed", "n = 1"} <= lines
    assert "unknown seed" not in lines
    found, lines = ticks([seeds[1], related("unknown seed", 0.5, None)], tmp_path)
    assert set(found.values()) == {"20%", "50%"}
    assert {"another seed", "unknown seed", "n = 1"} <= lines


@pytest.mark.parametrize(
    ("differs", "relation"),
    [
        ("", "no label differs"),
        ("algorithm, seed", "another algorithm, seed"),
        ("seed, unknown dataset", "another seed, unknown dataset"),
        ("unknown seed", "unknown seed"),
    ],
)
def test_what_is_unknown_is_not_called_another(differs, relation):
    sides = {"name_a": ["a"], "name_b": ["b"], "pair_a": ["1"], "pair_b": ["2"]}
    shaped = figure_named("relations").shape(pa.table({"differs": [differs]} | sides))
    assert shaped["relation"].to_pylist() == [relation]
