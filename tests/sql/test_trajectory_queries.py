"""The queries about trajectories against sets of parameters counted one by one.

The store is extracted from real checkpoints on disk, so the whole way is under test: weights that
move by ULPs in either direction, go back, or drift in steps that a tolerance does not see.
"""

import os
from itertools import pairwise

import numpy as np
import pytest

from rlsparse_ray import sql
from rlsparse_ray.errors import QueryError
from tests.builders import BF16, extract_directly, weights, write_model

STEPS = (0, 5, 12, 20, 40)
SHAPES = {
    "model.layers.0.self_attn.q_proj.weight": (300, 257),  # two blocks, the last of odd length
    "model.layers.0.mlp.up_proj.weight": (33, 17),
    "model.norm.weight": (19,),
}
TOLERANCE = np.float32(1e-5)


def walk(seed, start_of):
    """Checkpoints of one run: at each, some weights move by ULPs and some go back to the start."""
    rng = np.random.default_rng(seed)
    start = {name: start_of(k, shape) for k, (name, shape) in enumerate(SHAPES.items())}
    models = [start]
    for _ in STEPS[1:]:
        model = {}
        for name, now in models[-1].items():
            bits = now.view(np.int16).copy()
            moved = rng.random(bits.shape) < 0.15
            bits[moved] += rng.choice([-2, -1, 1, 1], size=int(moved.sum())).astype(np.int16)
            back = rng.random(bits.shape) < 0.1
            bits[back] = start[name].view(np.int16)[back]
            model[name] = bits.view(BF16)
        models.append(model)
    return models


def positive(seed, shape):
    """Around 2^-9, where a ULP is about the tolerance; no zero, so that a step is a step."""
    return np.asarray(np.abs(weights(seed, shape, 0.004).astype(np.float32)) + 1e-4, BF16)


RUNS = {"a": walk(1, positive), "b": walk(2, lambda k, shape: weights(50 + k, shape))}
SPANS = {"a": [1, 2], "b": [1]}


def make_trajectories(folder):
    """A store with the runs as trajectories, and a plain pair."""
    text = "version: 1\ntrajectories:\n"
    for name, models in RUNS.items():
        text += f"  - name: {name}\n    spans: {SPANS[name]}\n    checkpoints:\n"
        for step, model in zip(STEPS, models, strict=True):
            written = write_model(folder / f"{name}-{step}", model)
            # files of one shape, written in one tick of the clock, would be taken for one model
            os.utime(written / "model.safetensors", (step, len(text)))
            text += f"      - {{model: ./{name}-{step}, step: {step}}}\n"
    write_model(folder / "plain", RUNS["a"][2])
    text += "pairs:\n  - {name: a, base: ./a-0, tuned: ./plain}\n"
    (folder / "corpus.yaml").write_text(text)
    extract_directly(folder / "corpus.yaml", folder / "store")
    return folder / "store"


@pytest.fixture(scope="module")
def con(tmp_path_factory):
    place = make_trajectories(tmp_path_factory.mktemp("trajectories"))
    with sql.connect(place, threads=1) as con:
        yield con


def changed(one, other, criterion):
    """Mask over all parameters of the model, from the stored values."""
    masks = []
    for name in SHAPES:
        x, y = one[name].astype(np.float32).ravel(), other[name].astype(np.float32).ravel()
        masks.append(x != y if criterion == "exact" else np.abs(y - x) > TOLERANCE)
    return np.concatenate(masks)


def sets(name, criterion):
    """(step, I_k, U_before, U_k, F_k) of each checkpoint after the first."""
    models = RUNS[name]
    touched = np.zeros(changed(models[0], models[0], criterion).shape, bool)
    for k, (before, now) in enumerate(pairwise(models), start=1):
        moved = changed(before, now, criterion)
        yield STEPS[k], moved, touched, touched | moved, changed(models[0], now, criterion)
        touched = touched | moved


def as_sparsity(mask):
    return sum(1 for bit in mask if not bit) / len(mask)


def spans_of(name, k, criterion):
    return {
        span: as_sparsity(changed(RUNS[name][k - span], RUNS[name][k], criterion))
        for span in SPANS[name]
        if span <= k
    }


def trajectory(name, criterion):
    for k, (step, moved, _, touched, kept) in enumerate(sets(name, criterion), start=1):
        never = sum(1 for t, f in zip(touched, kept, strict=True) if not t and not f)
        back = sum(1 for t, f in zip(touched, kept, strict=True) if t and not f)
        drifted = sum(1 for t, f in zip(touched, kept, strict=True) if f and not t)
        yield {
            "trajectory": name,
            "step": step,
            "numel": len(moved),
            "numel_left_out": 0,
            "changed_from_start": int(kept.sum()),
            "sparsity_from_start": as_sparsity(kept),
            "changed_consecutive": int(moved.sum()),
            "sparsity_consecutive": as_sparsity(moved),
            "sparsity_by_span": spans_of(name, k, criterion),
            "never_touched": never,
            "touched_and_back": back,
            "kept": int(kept.sum()),
            "drifted": drifted,
            "never_touched_share": never / len(moved),
            "touched_and_back_share": back / len(moved),
            "kept_share": kept.sum() / len(moved),
        }


def locality(name, criterion):
    for step, moved, before, _, _ in list(sets(name, criterion))[1:]:
        again = sum(1 for m, u in zip(moved, before, strict=True) if m and u)
        yield {
            "trajectory": name,
            "step": step,
            "numel": len(moved),
            "numel_left_out": 0,
            "moved": int(moved.sum()),
            "touched_before": int(before.sum()),
            "moved_again": again,
            "temporal_locality": again / moved.sum(),
            "density_of_touched_before": before.sum() / len(moved),
            "lift_uniform": again / moved.sum() / (before.sum() / len(moved)),
        }


def summary(name, criterion):
    each = list(sets(name, criterion))
    step, _, _, touched, final = each[-1]
    last = list(trajectory(name, criterion))[-1]
    copied = ("numel", "numel_left_out", "never_touched", "touched_and_back", "kept", "drifted")
    shares = ("never_touched_share", "touched_and_back_share", "kept_share")
    updates = sum(int(moved.sum()) for _, moved, _, _, _ in each)
    outside = sum(int((moved & ~final).sum()) for _, moved, _, _, _ in each)
    yield {"trajectory": name, "last_step": step, "intervals": len(each)} | {
        **{column: last[column] for column in (*copied, *shares)},
        "ever_touched": int(touched.sum()),
        "ever_touched_outside_final_share": (touched & ~final).sum() / touched.sum(),
        "updates_outside_final_share": outside / updates,
        "mean_consecutive_density": np.mean([m.mean() for _, m, _, _, _ in each]),
        "mean_temporal_locality": np.mean(
            [row["temporal_locality"] for row in locality(name, criterion)]
        ),
    }


ORACLES = {
    "trajectory": trajectory,
    "trajectory_summary": summary,
    "temporal_locality": locality,
}


@pytest.mark.parametrize("criterion", ["exact", "abs:1e-5"])
@pytest.mark.parametrize("query", ORACLES)
def test_query_agrees_with_the_oracle(con, query, criterion):
    expected = [row for name in RUNS for row in ORACLES[query](name, criterion)]
    found = sql.run_query(con, query, {"criterion": criterion}).to_pylist()
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        assert got.keys() == want.keys()
        for column, value in want.items():
            if column == "sparsity_by_span":
                assert dict(got[column]) == pytest.approx(value, rel=1e-12)
            elif isinstance(value, str | int):
                assert got[column] == value, column
            else:
                assert got[column] == pytest.approx(float(value), rel=1e-12), column


def test_the_example_has_something_of_everything():
    last = {c: list(trajectory("a", c))[-1] for c in ("exact", "abs:1e-5")}
    for row in last.values():
        assert min(row["never_touched"], row["touched_and_back"], row["kept"]) > 500
    assert last["exact"]["drifted"] == 0
    assert last["abs:1e-5"]["drifted"] > 100


@pytest.mark.parametrize("query", ORACLES)
def test_one_trajectory(con, query):
    rows = sql.run_query(con, query, {"trajectory": "b"}).to_pylist()
    assert {row["trajectory"] for row in rows} == {"b"}
    with pytest.raises(QueryError, match="no trajectory named c; there are: a, b"):
        sql.run_query(con, query, {"trajectory": "c"})


def test_a_criterion_without_masks_has_sparsities_only(con):
    rows = sql.run_query(con, "trajectory", {"criterion": "abs:1e-4"}).to_pylist()
    assert len(rows) == 8
    assert all(row["sparsity_from_start"] is not None for row in rows)
    assert all(row["never_touched"] is None and row["kept_share"] is None for row in rows)
    with pytest.raises(QueryError, match="no pair keeps masks of abs:1e-4"):
        sql.run_query(con, "temporal_locality", {"criterion": "abs:1e-4"})


def test_the_three_shares_add_up_to_one(con):
    for criterion in ("exact", "abs:1e-5"):
        for row in sql.run_query(con, "trajectory", {"criterion": criterion}).to_pylist():
            parts = (row["never_touched"], row["touched_and_back"], row["kept"])
            assert sum(parts) == row["numel"]


def test_sets_tensor_by_tensor(con):
    rows = sql.run_sql(
        con, "FROM trajectory_tensors('a', 'exact') WHERE step = 40 ORDER BY numel"
    ).to_pylist()
    sizes = sorted(int(np.prod(shape)) for shape in SHAPES.values())
    assert [row["numel"] for row in rows] == sizes
    *_, (_, moved, _, touched, kept) = sets("a", "exact")
    totals = {c: sum(row[c] for row in rows) for c in ("moved", "touched", "kept")}
    assert totals == {
        "moved": int(moved.sum()),
        "touched": int(touched.sum()),
        "kept": int(kept.sum()),
    }


@pytest.fixture
def without(con):
    """Forgets one pair, as if it had failed, until the end of the test."""
    con.execute("CREATE OR REPLACE TEMP TABLE kept_pairs AS FROM all_pairs")
    yield lambda name: con.execute("DELETE FROM all_pairs WHERE name = $1", [name])
    con.execute("DELETE FROM all_pairs")
    con.execute("INSERT INTO all_pairs FROM kept_pairs")


def nothing_known(con, column):
    rows = sql.run_query(con, "trajectory", {"trajectory": "a"}).to_pylist()
    return [row["step"] for row in rows if row[column] is None]


def test_without_an_interval_there_are_no_sets(con, without):
    """The union of what is there would only be too small."""
    without("a@5-12")
    assert nothing_known(con, "never_touched") == [12, 20, 40]
    assert nothing_known(con, "sparsity_consecutive") == [12]
    assert nothing_known(con, "sparsity_from_start") == []
    assert sql.run_query(con, "trajectory_summary", {"trajectory": "a"}).num_rows == 0


def test_without_a_mask_against_the_start_the_union_goes_on(con, without):
    before = sql.run_query(con, "temporal_locality", {"trajectory": "a"}).to_pylist()
    without("a@0-20")
    assert nothing_known(con, "never_touched") == [20]
    assert sql.run_query(con, "temporal_locality", {"trajectory": "a"}).to_pylist() == before
    assert sql.run_query(con, "trajectory_summary", {"trajectory": "a"}).num_rows == 1


def test_without_the_final_mask_there_is_no_end(con, without):
    without("a@0-40")
    (row,) = sql.run_query(con, "trajectory_summary", {"trajectory": "a"}).to_pylist()
    for column in ("kept", "never_touched_share", "updates_outside_final_share"):
        assert row[column] is None
    assert row["ever_touched"] > 0


def test_a_run_counts_once(con):
    names = sql.run_sql(con, "SELECT name FROM runs ORDER BY name")["name"].to_pylist()
    assert names == ["a", "a@0-40", "b@0-40"]


EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """The run `a`, whose embedding gets 4 rows between the start and the first checkpoint."""
    folder = tmp_path_factory.mktemp("grown")
    small, rows = weights(90, (100, 16)), weights(91, (4, 16))
    large = [np.concatenate([small, rows])]
    for k in range(3):
        bits = large[-1].view(np.int16).copy()
        bits[np.random.default_rng(k).random(bits.shape) < 0.9] += 1
        large.append(bits.view(BF16))
    text = "version: 1\ntrajectories:\n  - name: a\n    spans: [1, 2]\n    checkpoints:\n"
    for place, (step, model) in enumerate(zip(STEPS[:4], RUNS["a"], strict=False)):
        written = write_model(
            folder / f"a-{step}", model | {EMBEDDING: large[place] if place else small}
        )
        os.utime(written / "model.safetensors", (step, len(text)))
        text += f"      - {{model: ./a-{step}, step: {step}}}\n"
    (folder / "corpus.yaml").write_text(text)
    extract_directly(folder / "corpus.yaml", folder / "store")
    with sql.connect(folder / "store", threads=1) as con:
        yield con


@pytest.mark.parametrize("query", ["trajectory", "temporal_locality"])
def test_what_changes_its_shape_is_left_out_at_every_checkpoint(grown, query):
    """Every number of every row is that of the other tensors, and the rest is counted."""
    found = sql.run_query(grown, query).to_pylist()
    wanted = list(ORACLES[query]("a", "exact"))[: len(found)]
    assert len(found) == {"trajectory": 3, "temporal_locality": 2}[query]
    left_out = {5: 1600, 12: 1664, 20: 1664}
    for got, want in zip(found, wanted, strict=True):
        assert got["numel_left_out"] == left_out[got["step"]]
        for column, value in want.items():
            if column == "sparsity_by_span":
                assert dict(got[column]) == pytest.approx(value, rel=1e-12)
            elif column != "numel_left_out":
                near = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
                assert got[column] == near, column


def test_a_summary_counts_what_changes_its_shape(grown):
    (row,) = sql.run_query(grown, "trajectory_summary").to_pylist()
    assert (row["last_step"], row["numel_left_out"]) == (20, 1664)
    assert row["numel"] == sum(int(np.prod(shape)) for shape in SHAPES.values())
    locality_ = [r["temporal_locality"] for r in locality("a", "exact")][:2]
    assert row["mean_temporal_locality"] == pytest.approx(np.mean(locality_), rel=1e-12)
