"""Every number of the chance baselines against slow numpy over a store with tensors of many blocks:
bits unpacked, strata and margins recounted, blocks rotated as arrays, blocks really drawn."""

import json
import math
from itertools import combinations

import duckdb
import numpy as np
import pytest

from rlsparse_ray import sql
from rlsparse_ray.blocks import BLOCK
from tests.sql.conftest import Pair, Store, Tensor, _row, _write

BASELINES = ("uniform", "tensor", "magnitude", "margins", "shift")
TURNS = (1, 2, 3, 5, 8)
COLUMNS = (
    "level",
    "key",
    "baseline",
    "numel",
    "changed_a",
    "changed_b",
    "shared",
    "expected",
    "lift",
    "excess",
    "standard_error",
    "o1",
    "o2",
    "jaccard",
    "phi",
    "pair_a",
    "pair_b",
    "blocks",
    "spread",
    "note",
)
SHAPES = {
    "layers.0.self_attn.q_proj": ((5, BLOCK), "attention"),  # 5 full blocks
    "layers.0.mlp.up_proj": ((2, 331, 500), "mlp"),  # 5 full and a short one, rows across blocks
    "layers.1.mlp.up_proj": ((131, 1024), "mlp"),  # 2 full blocks: one rotation
    "layers.1.mlp.down_proj": ((40, 25), "mlp"),
    "layers.1.input_layernorm": ((50,), "norm"),
    "layers.1.apart": ((2, 70_000), "other"),  # A and B share no block: no product anywhere
    "layers.1.still": ((3, 9), "other"),
    "embed_tokens": ((3 * BLOCK,), "embedding"),
    "empty": ((0, 4), "other"),
    "scale": ((), "other"),
}


def tensors(seed, base):
    """The tensors of one pair. Weights of low exponents change more often, and so do some rows;
    a fifth of the changes are those of every pair."""
    own, common = np.random.default_rng(seed), np.random.default_rng(0)
    found = []
    for name, (shape, kind) in SHAPES.items():
        layer = int(name[7]) if name.startswith("layers") else None
        t = Tensor(f"{name}.weight", shape, layer, name, kind)
        t.exponent = common.integers(-9, -3, t.numel)
        easy, busy = 0.04 * (-3 - t.exponent), 1 + np.sin(np.arange(t.numel) / 20_000)
        planted = common.random(t.numel) < 0.05
        changed = (own.random(t.numel) < easy * busy) | planted
        if kind == "other":
            half = np.arange(t.numel) < BLOCK
            changed &= (half if seed % 2 else ~half) & (name != "layers.1.still")
        t.level = np.where(changed, own.integers(1, 8, t.numel), 0)
        t.bucket = np.where(t.level > 0, 1, 0)
        t.base_xxh3 = f"{base}/{name}"
        found.append(t)
    return found


def pair(name, seed, base="b1"):
    its = tensors(seed, base)
    row = _row(its, {"name": name, "base_source": base, "tuned_source": name})
    return Pair(f"{name}-0", name, base, its, row)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Two runs of one base; one of another base; one whose base is the same in part."""
    pairs = [pair("one", 1), pair("two", 2), pair("alien", 3, "b2"), pair("partly", 4)]
    partly = {t.module: t for t in pairs[3].tensors}
    partly["embed_tokens"].base_xxh3 = "another"
    moved = partly["layers.1.mlp.up_proj"]  # as compared in another dtype
    moved.exponent = np.maximum(moved.exponent, -8)
    place = tmp_path_factory.mktemp("baselines") / "store"
    for p in pairs:
        _write(place, p)
    (place / "store.json").write_text(json.dumps({"format": "rlsparse_ray", "schema_version": 1}))
    return Store(place, pairs)


@pytest.fixture(scope="module")
def shell(many):
    return sql.connect(many.place, threads=1)


def ratio(a, b):
    return a / b if b else None


def by_strata(x, y, criterion):
    """None where the two do not have the same strata."""
    expected = 0.0
    for exponent in set(x.exponent.tolist()) | set(y.exponent.tolist()):
        if (x.exponent == exponent).sum() != (y.exponent == exponent).sum():
            return None
        a = x.mask(criterion)[x.exponent == exponent]
        b = y.mask(criterion)[y.exponent == exponent]
        expected += int(a.sum()) * int(b.sum()) / a.size
    return expected


def by_margins(x, y, criterion):
    a, b = (t.mask(criterion).reshape(-1, t.shape[-1]).astype(float) for t in (x, y))
    if not a.sum() * b.sum():
        return 0.0
    rows = sum(float(i.sum() * j.sum()) for i, j in zip(a, b, strict=True))
    columns = sum(float(i.sum() * j.sum()) for i, j in zip(a.T, b.T, strict=True))
    return rows * columns / (a.sum() * b.sum())


class Cell:
    """One tensor under one baseline: counts, expectation and what is observed and expected in each
    block; `weight` is what the tensor's expectation goes with."""

    def __init__(self, x, y, baseline, criterion):
        a, b = x.mask(criterion), y.mask(criterion)
        self.numel, self.undefined, self.aligned, self.turned = x.numel, None, True, [0] * 5
        full = x.numel // BLOCK
        if baseline == "shift" and full >= 2:
            self.numel = full * BLOCK
            a, b = a[: self.numel], b[: self.numel]
            self.aligned = BLOCK % x.shape[-1] == 0
        self.a, self.b, self.shared = int(a.sum()), int(b.sum()), int((a & b).sum())
        starts = range(0, self.numel, BLOCK)
        blocks = [(a[i : i + BLOCK], b[i : i + BLOCK]) for i in starts]
        self.seen = [int((p & q).sum()) for p, q in blocks]
        if baseline == "shift":
            self._rotate(a, b, full)
            return
        plain = ratio(self.a * self.b, self.numel) or 0.0
        self.expected = plain
        if baseline == "magnitude":
            self.expected = by_strata(x, y, criterion)
            self.undefined = "strata differ"
            if x.base_xxh3 != y.base_xxh3:
                self.expected, self.undefined = None, "bases differ"
        elif baseline == "margins" and len(x.shape) >= 2:
            self.expected = by_margins(x, y, criterion)
        self.weight = float(self.numel) if baseline == "uniform" else self.expected
        share = [int(p.sum()) * int(q.sum()) / p.size for p, q in blocks]
        share = share if sum(share) else [p.size for p, q in blocks]
        self.parts = [(self.weight or 0.0) * q / sum(share) for q in share]

    def _rotate(self, a, b, full):
        if full < 2:
            self.expected, self.undefined, self.parts = None, "fewer than 2 full blocks", []
            return
        a, b = a.reshape(full, BLOCK), b.reshape(full, BLOCK)
        offsets = [1 + (turn - 1) % (full - 1) for turn in TURNS]
        hits = [(a & np.roll(b, -offset, axis=0)).sum(axis=1) for offset in offsets]
        self.turned = [int(h.sum()) for h in hits]
        self.parts = np.mean(hits, axis=0).tolist()
        self.expected = self.weight = float(np.mean(self.turned))


def note(cells, defined):
    parts = []
    reasons = sorted({c.undefined for c in cells if c.expected is None})
    if reasons:
        left = len(cells) - len(defined)
        extent = f" in {left} of {len(cells)} tensors: left out" if defined else ": not defined"
        parts.append(", ".join(reasons) + extent)
    crooked = sum(not c.aligned for c in defined)
    if crooked:
        which = "" if crooked == len(defined) else f" of {crooked} of {len(defined)} tensors"
        parts.append(f"rows{which} do not divide a block: columns not aligned")
    return "; ".join(parts) or None


def numbers(cells, baseline):
    """A row of overlap_baselines but for its level, key, baseline and pairs."""
    defined = [c for c in cells if c.expected is not None]
    of = defined or cells
    n, a, b, shared = (sum(getattr(c, f) for c in of) for f in ("numel", "a", "b", "shared"))
    expected = sum(c.expected for c in defined) if defined else None
    if baseline == "uniform":
        expected = a * b / n if n else 0.0
    seen = np.array([s for c in of for s in c.seen], float)
    error = None
    if expected and len(seen) >= 2:
        parts = np.array([e for c in of for e in c.parts]) * expected / sum(c.weight for c in of)
        error = math.sqrt(((seen - shared / expected * parts) ** 2).sum()) / expected
    totals = [sum(c.turned[k] for c in of) for k in range(5)]
    several = baseline == "shift" and any(len(c.seen) > 2 for c in defined)
    return {
        "numel": n,
        "changed_a": a,
        "changed_b": b,
        "shared": shared,
        "expected": expected,
        "lift": shared / expected if expected else None,
        "excess": None if expected is None else shared - expected,
        "standard_error": error,
        "o1": ratio(shared, a),
        "o2": ratio(shared, b),
        "jaccard": ratio(shared, a + b - shared),
        "phi": ratio(n * shared - a * b, math.sqrt(a * (n - a) * b * (n - b))),
        "blocks": len(seen),
        "spread": float(np.std(totals, ddof=1)) if several else None,
        "note": note(cells, defined),
    }


def cells_of(x, y, criterion):
    """(baseline, level, key) to the cells that its row covers."""
    found = {}
    for key, s in x.compared.items():
        levels = {
            "total": "total",
            "kind": s.kind,
            "layer": "none" if s.layer is None else str(s.layer),
            "tensor": s.name,
        }
        for baseline in BASELINES:
            cell = Cell(s, y.compared[key], baseline, criterion)
            for level, value in levels.items():
                found.setdefault((baseline, level, value), []).append(cell)
    return found


def answer(shell, a, b, criterion="exact"):
    call = "FROM overlap_baselines($1, $2, criterion := $3)"
    table = shell.sql(call, params=[a, b, criterion]).to_arrow_table()
    assert tuple(table.column_names) == COLUMNS
    rows = table.to_pylist()
    found = {(r["baseline"], r["level"], r["key"]): r for r in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize(
    ("a", "b", "criterion"),
    [
        ("one", "two", "exact"),
        ("two", "one", "abs:1e-5"),
        ("one", "alien", "exact"),
        ("partly", "one", "exact"),
        ("one", "one", "exact"),
    ],
)
def test_every_number_is_the_oracles(many, shell, a, b, criterion):
    wanted = cells_of(many.pair(a), many.pair(b), criterion)
    found = answer(shell, a, b, criterion)
    assert found.keys() == wanted.keys()
    for key, cells in wanted.items():
        row = numbers(cells, key[0])
        for column, value in row.items():
            want = value
            if isinstance(value, float):
                # an error is the root of a difference of sums: half of the digits
                slack = {"standard_error": 1e-6, "excess": 1e-6}.get(column, 1e-12)
                want = pytest.approx(value, rel=1e-11, abs=slack)
            assert found[key][column] == want, (key, column)
        assert (found[key]["pair_a"], found[key]["pair_b"]) == (f"{a}-0", f"{b}-0")


def test_notes_say_what_is_left_out(shell):
    total = answer(shell, "partly", "one")["magnitude", "total", "total"]
    assert total["note"] == "bases differ, strata differ in 2 of 10 tensors: left out"
    alien = answer(shell, "alien", "one")["magnitude", "kind", "mlp"]
    assert (alien["note"], alien["expected"], alien["lift"]) == (
        "bases differ: not defined",
        None,
        None,
    )
    assert alien["numel"] == 331_000 + 131 * 1024 + 1000
    shift = answer(shell, "one", "two")["shift", "kind", "mlp"]
    assert shift["numel"] == 7 * BLOCK
    assert shift["note"] == (
        "fewer than 2 full blocks in 1 of 3 tensors: left out; "
        "rows of 1 of 2 tensors do not divide a block: columns not aligned"
    )


@pytest.mark.parametrize("baseline", BASELINES)
def test_standard_error_is_that_of_drawing_blocks(many, shell, baseline):
    """4,000 draws with Poisson weights over twenty copies of a tensor's blocks, enough of them for
    first order to hold; the spread of so many draws is itself known to about 1 %."""
    key = (baseline, "tensor", "layers.0.self_attn.q_proj.weight")
    cells = cells_of(many.pair("one"), many.pair("two"), "exact")[key]
    row = numbers(cells, baseline)
    seen = np.array(cells[0].seen * 20, float)
    parts = np.array(cells[0].parts * 20) * row["expected"] / cells[0].weight
    weights = np.random.default_rng(0).poisson(1.0, (4000, seen.size))
    lifts = (weights @ seen) / (weights @ parts)
    # twenty copies of the tensor: its error over the root of 20
    found = answer(shell, "one", "two")[key]["standard_error"]
    assert found / math.sqrt(20) == pytest.approx(lifts.std(), rel=0.06)


@pytest.mark.parametrize("shift", ["yes", "no"])
def test_lifts_are_the_totals(many, shell, shift):
    rows = sql.run_query(shell, "overlap_lifts", {"shift": shift}).to_pylist()
    names = sorted(p.name for p in many.pairs)
    assert {frozenset((r["name_a"], r["name_b"])) for r in rows} == {
        frozenset(two) for two in combinations(names, 2)
    }
    for row in rows:
        found = answer(shell, row["pair_a"], row["pair_b"])
        for baseline in BASELINES:
            total = found[baseline, "total", "total"]
            if (baseline, shift) == ("shift", "no"):
                assert row["lift_shift"] is None and "shift" not in (row["note"] or "")
                continue
            assert row[f"lift_{baseline}"] == (
                None if total["lift"] is None else pytest.approx(total["lift"], rel=1e-12)
            )
        uniform = found["uniform", "total", "total"]
        assert [row[c] for c in ("numel", "shared", "o1", "o2")] == [
            uniform[c] for c in ("numel", "shared", "o1", "o2")
        ]
        error = found["magnitude", "total", "total"]["standard_error"]
        assert row["standard_error_magnitude"] == (error and pytest.approx(error, rel=1e-9))


def test_query_has_the_level_asked_for(shell):
    given = {"a": "one", "b": "two"}
    rows = sql.run_query(shell, "overlap_baselines", given).to_pylist()
    assert [r["baseline"] for r in rows] == ["uniform", "tensor", "margins", "shift", "magnitude"]
    rows = sql.run_query(shell, "overlap_baselines", given | {"level": "layer"}).to_pylist()
    assert [r["key"] for r in rows[::5]] == ["0", "1", "none"]
    everything = sql.run_query(shell, "overlap_baselines", given | {"level": "*"}).num_rows
    assert everything == 5 * (1 + len({k for _, k in SHAPES.values()}) + 3 + len(SHAPES))


def test_one_against_all(shell):
    rows = shell.execute("FROM overlap_lifts('one', '*') ORDER BY pair_b").fetchall()
    assert [r[1] for r in rows] == ["alien-0", "partly-0", "two-0"]


def test_missing_blocks_are_an_error(damaged):
    part = "masks/pair_id=grpo-seed1-0/criterion=exact/part-00000.parquet"
    damaged.edit(part, lambda rows: rows[1:])
    con = sql.connect(damaged.place)
    with pytest.raises(duckdb.Error, match="lack blocks"):
        con.execute("FROM overlap_baselines('grpo-seed0', 'grpo-seed1')").fetchall()
