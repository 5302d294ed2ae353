"""All pairs of masks: the integers are those of plain SQL, and the files are the same however and
in whatever order they came to be."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import combinations

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from rlsparse_ray import sql
from rlsparse_ray.cluster import overlaps
from rlsparse_ray.errors import StoreError
from rlsparse_ray.masks import MaskWriter
from rlsparse_ray.population import overlap_units
from rlsparse_ray.population.overlap import overlap_unit
from rlsparse_ray.population.overlap_commit import commit_overlaps, commit_units
from rlsparse_ray.population.overlap_plan import begin, plan_overlaps
from rlsparse_ray.population.overlap_units import CountUnit, tiles
from rlsparse_ray.store import Store
from rlsparse_ray.upkeep.checks import verify
from tests.builders import (
    extract_directly,
    overlap_directly,
    ray_environment,
    small_corpus,
    small_model,
    tree,
    tuned_from,
    weights,
    write_corpus,
    write_model,
)


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    """Five pairs on one base, two on another with its tensors in another order, a stranger.

    Some tensors have several blocks, one is in some pairs only, and slices cut them differently.
    """
    folder = tmp_path_factory.mktemp("population")
    base = small_model() | {"model.big.weight": weights(9, (900, 400))}
    swapped = dict(reversed(base.items()))
    other = {name: weights(70 + n, a.shape) for n, (name, a) in enumerate(swapped.items())}
    other["model.layers.0.mlp.up_proj.weight"] = weights(5, (77, 97))
    models = {f"one-{n}": (base, "base", n) for n in range(5)}
    models |= {f"two-{n}": (other, "other", 10 + n) for n in range(2)}
    stranger = {"h.0.weight": weights(3, (9, 9))}
    models["stranger"] = (stranger, "stranger-base", 20)
    for name, model in (("base", base), ("other", other), ("stranger-base", stranger)):
        write_model(folder / name, model)
    pairs = []
    for name, (model, of, seed) in models.items():
        tuned = tuned_from(model, 100 * seed)
        if name == "one-3":
            del tuned["model.big.weight"]
        write_model(folder / name, tuned)
        pairs.append({"name": name, "base": of, "tuned": name})
    extract_directly(write_corpus(folder / "corpus.yaml", pairs, slice_bytes=300_000), folder / "s")
    return folder / "s"


@pytest.fixture
def copy(population, tmp_path):
    """A store of its own, with all pairs or some of them."""

    def make(name, keep=lambda pair: True):
        shutil.copytree(population, tmp_path / name)
        for row in (tmp_path / name / "pairs").iterdir():
            if not keep(row.name.removeprefix("pair_id=")):
                shutil.rmtree(row)
        return tmp_path / name

    return make


def files(store):
    return {p: b for p, b in tree(store).items() if p.startswith(("overlaps/", "staging/"))}


def in_sql(store, text):
    with sql.connect(store) as con:
        return sql.run_sql(con, text).to_pylist()


@pytest.mark.parametrize("criterion", ["exact", "abs:1e-5"])
def test_the_same_integers_as_sql_on_masks(copy, criterion):
    store = copy("a")
    plan = overlap_directly(store, criterion)
    # the stranger has no tensor in common with the other seven
    assert (len(plan.wanted), len(plan.incomparable), plan.known) == (21, 7, 0)
    columns = "pair_a, pair_b, tensor_key, numel, changed_a, changed_b, shared"
    end = "WHERE numel IS NOT NULL ORDER BY ALL"
    found = in_sql(store, f"SELECT {columns} FROM pair_overlaps {end}")
    want = in_sql(store, f"SELECT {columns} FROM overlap('*', '*', '{criterion}') {end}")
    assert len(want) > 200 and found == want
    assert verify(store) == []
    again = plan_overlaps(str(store), criterion)
    assert (again.wanted, again.known, again.units) == ((), 21, ())


def test_lifts_are_those_of_the_baselines(copy):
    store = copy("a")
    overlap_directly(store)
    names = ("lift_uniform", "lift_tensor", "lift_magnitude", "lift_margins")
    order = "ORDER BY pair_a, pair_b"
    found = in_sql(store, f"SELECT {', '.join(names)} FROM overlap_summary() {order}")
    want = in_sql(
        store,
        f"SELECT {', '.join(names)} FROM overlap_lifts('*', '*', 'exact') WHERE numel > 0 {order}",
    )
    for got, row in zip(found, want, strict=True):
        assert got == {k: v if v is None else pytest.approx(v, rel=1e-9) for k, v in row.items()}


def test_one_base_compared_in_two_dtypes_is_one_base(tmp_path):
    """bf16 weights have the same exponents in fp32."""
    base = {"model.layers.0.mlp.up_proj.weight": weights(2, (64, 64))}
    write_model(tmp_path / "base", base)
    store = tmp_path / "store"
    for name, settings in (("one", {}), ("two", {"compare_dtype": "F32"})):
        write_model(tmp_path / name, tuned_from(base, len(name) + len(settings)))
        pairs = [{"name": name, "base": "base", "tuned": name}]
        corpus = write_corpus(tmp_path / f"{name}.yaml", pairs, **settings)
        extract_directly(corpus, store)
    question = "SELECT lift_magnitude, all_magnitude FROM overlap_of_runs('exact')"
    before = in_sql(store, question)
    overlap_directly(store)
    assert before[0]["lift_magnitude"] is not None
    assert in_sql(store, question) == [
        {k: pytest.approx(v, rel=1e-12) for k, v in before[0].items()}
    ]


def test_new_pairs_cost_their_own_rows_in_any_order(copy):
    whole = copy("whole")
    overlap_directly(whole)
    ids = sorted(Store.open(whole).committed())
    for n, order in enumerate((ids, ids[::-1], ids[1::2] + ids[::2])):
        store = copy(f"grown-{n}", lambda pair: False)
        counted = 0
        for pair in order:
            shutil.copytree(whole / f"pairs/pair_id={pair}", store / f"pairs/pair_id={pair}")
            plan = overlap_directly(store)
            assert all(pair in wanted for wanted in plan.wanted)
            counted += len(plan.wanted)
        assert counted == 21
        assert files(store) == files(whole)


def test_criteria_share_a_file_in_any_order(copy):
    one, other = copy("one"), copy("other")
    for criterion in ("exact", "abs:1e-5"):
        overlap_directly(one, criterion)
    for criterion in ("abs:1e-5", "exact"):
        overlap_directly(other, criterion)
    assert files(one) == files(other)
    assert len(in_sql(one, "SELECT DISTINCT criterion FROM pair_overlaps")) == 2


def test_however_it_is_cut_into_units(copy, monkeypatch):
    whole = copy("whole")
    plan = overlap_directly(whole)
    for name, value in (("UNIT_BYTES", 1), ("MAX_ROWS", 1), ("MARGIN_BYTES", 1)):
        monkeypatch.setattr(overlap_units, name, value)
    monkeypatch.setattr("rlsparse_ray.population.mask_parts.BATCH", 2)
    cut = overlap_directly(copy("cut"))
    assert len(cut.units) > 4 * len(plan.units)
    assert files(copy("cut2")) == {}
    assert files(whole) == files(whole.parent / "cut")


def test_tiles_hold_every_pair_once():
    ids = [f"p{n:02d}" for n in range(23)]
    wanted = list(combinations(ids, 2))
    found = list(tiles(wanted, limit=8))
    assert max(len(tile.pairs) for tile in found) <= 8
    named = [(t.pairs[a], t.pairs[b]) for t in found for a, b in t.wanted]
    assert sorted(named) == wanted
    assert [t.pairs for t in tiles(wanted, limit=23)] == [tuple(ids)]


def test_tiles_give_the_same_files(copy, monkeypatch):
    whole, tiled = copy("whole"), copy("tiled")
    overlap_directly(whole)
    monkeypatch.setattr(
        "rlsparse_ray.population.overlap_plan.tiles", lambda wanted: tiles(wanted, limit=4)
    )
    overlap_directly(tiled)
    assert files(whole) == files(tiled)


def test_a_commit_asks_for_memory_by_its_rows(copy):
    store = copy("whole")
    plan = overlap_directly(store)
    wide = commit_units(plan)[0]
    for unit in commit_units(plan, size=1):
        (commit,) = unit.commits
        path = store / "overlaps" / f"pair_b={commit.pair_b}" / "overlaps.parquet"
        rows = pq.ParquetFile(path).metadata.num_rows
        assert rows <= commit.rows <= 7 * max(rows, 1)
        assert wide.memory >= unit.memory == (400 << 20) + 640 * commit.rows


def test_torch_gives_the_same_files(copy):
    whole, other = copy("whole"), copy("other")
    overlap_directly(whole)
    plan = plan_overlaps(str(other))
    for unit in plan.units:
        overlap_unit(unit, str(other), "cpu:0")
    for unit in commit_units(plan):
        commit_overlaps(unit, str(other))
    Store.open(other).files.remove(plan.staging)
    assert files(whole) == files(other)


def test_a_sample_is_told_and_gives_way_to_more(copy):
    store, whole = copy("sampled"), copy("whole")
    overlap_directly(store, fraction=0.4)
    overlap_directly(whole)
    rows = in_sql(store, "FROM pair_overlaps WHERE blocks < blocks_total")
    exact = {
        (r["pair_a"], r["pair_b"], r["tensor_key"]): r for r in in_sql(whole, "FROM pair_overlaps")
    }
    assert rows and verify(store) == []
    for row in rows:
        full = exact[row["pair_a"], row["pair_b"], row["tensor_key"]]
        assert (row["blocks"], row["sample_fraction"]) == (3, 0.4)
        scale = row["blocks"] / row["blocks_total"]
        for name in ("expected_tensor", "expected_margins"):
            assert row[name] == pytest.approx(scale * full[name], rel=1e-12)
        assert 0 < row["shared_standard_error"] < full["shared"]
        assert abs(row["shared"] / scale - full["shared"]) < 5 * row["shared_standard_error"]
    sampled = {(row["pair_a"], row["pair_b"]) for row in rows}
    for total in in_sql(store, "FROM overlap_summary()"):
        assert total["sample_fraction"] == 0.4
        # pairs of which every tensor is too small to be sampled are counted in full
        assert (total["standard_error"] > 0) == ((total["pair_a"], total["pair_b"]) in sampled)
    # a smaller sample is there already, a larger one replaces it
    assert overlap_directly(store, fraction=0.2).known == 21
    assert len(overlap_directly(store, fraction=0.9).wanted) == 21
    overlap_directly(store)
    assert files(store) == files(whole)
    assert overlap_directly(store, fraction=0.5).wanted == ()


def test_a_superseded_or_removed_pair_is_not_shown(copy):
    store = copy("a")
    overlap_directly(store)
    gone = sorted(Store.open(store).committed())[0]
    shutil.rmtree(store / f"pairs/pair_id={gone}")
    assert in_sql(store, f"FROM pair_overlaps WHERE '{gone}' IN (pair_a, pair_b)") == []
    assert overlap_directly(store).wanted == ()


def test_masks_that_lack_a_block(copy):
    store = copy("a")
    part = max(store.glob("masks/pair_id=one-0*/criterion=exact/*"), key=lambda p: p.stat().st_size)
    table = pq.ParquetFile(part).read()
    pq.write_table(table.slice(0, table.num_rows - 1), part)
    with pytest.raises(StoreError, match=r"lacks? block.*run rlsparse verify"):
        overlap_directly(store)
    part.write_bytes(b"not Parquet")
    with pytest.raises(StoreError, match=r"part-.*run rlsparse verify"):
        overlap_directly(store)


def test_nothing_to_compare(copy):
    store = copy("a")
    with pytest.raises(StoreError, match="no pair keeps masks of criterion abs:1e-4"):
        plan_overlaps(str(store), "abs:1e-4")
    for fraction in (0, 1.01, -1, float("nan")):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            plan_overlaps(str(store), "exact", fraction)


def test_finished_units_are_not_done_again(copy, local_ray):
    store, undisturbed = copy("a"), copy("b")
    overlap_directly(undisturbed)
    plan = plan_overlaps(str(store))
    begin(plan, Store.open(store))
    largest = max(plan.units, key=lambda unit: unit.nbytes)
    assert overlap_unit(largest, str(store)) == largest.nbytes > 0
    assert overlap_unit(largest, str(store)) == 0
    for unit in plan.units:
        overlap_unit(unit, str(store))
    # killed while it wrote: the next plan has the same units, and all of them are done
    commit_overlaps(commit_units(plan, size=1)[0], str(store))
    resumed = plan_overlaps(str(store))
    assert resumed.units == plan.units
    assert [overlap_unit(u, str(store)) for u in resumed.units] == [0] * len(plan.units)
    progress = []
    overlaps(resumed, str(store), progress=progress.append)
    assert sum(progress) == plan.nbytes
    assert files(store) == files(undisturbed)


def test_the_command(copy, rlsparse, local_ray):
    store = copy("a")
    answer = rlsparse("overlap", "--store", store)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(
        "exact: 8 masks; 21 overlaps counted, 7 left out: no tensor of the same name and shape\n"
    )
    assert "10 of 21 rows" in answer.out
    again = rlsparse("overlap", "--store", store, "--sample", "0.3").out
    assert again.startswith("exact: 8 masks, in 0.3 of the blocks; 0 overlaps counted, 21 already")
    assert rlsparse("overlap", "--store", store, "--sample", "2").code == 2
    assert rlsparse("overlap", "--store", store, "--criterion", "abs").code == 2


@pytest.mark.slow
def test_a_killed_run_is_run_again(copy, monkeypatch, local_ray):
    store, undisturbed = copy("a"), copy("b")
    overlap_directly(undisturbed)
    code = (
        "import sys\n"
        "from rlsparse_ray.population import overlap_units\n"
        "overlap_units.UNIT_BYTES = 1\n"
        "from rlsparse_ray.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "overlap", "--store", str(store)],
        env=ray_environment(),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    driver, family = psutil.Process(process.pid), []
    end = time.monotonic() + 120
    while len(list(store.glob("staging/overlaps/*/*.arrow"))) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    family = driver.children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(family, timeout=20)
    process.wait()
    staged = len(list(store.glob("staging/overlaps/*/*.arrow")))
    monkeypatch.setattr(overlap_units, "UNIT_BYTES", 1)
    plan = plan_overlaps(str(store))
    assert staged >= 2 and files(store) != files(undisturbed)
    overlaps(plan, str(store))
    assert files(store) == files(undisturbed)


def test_row_groups_and_short_blocks(tmp_path):
    """A tensor over several row groups, and tensors of a few parameters between."""
    store_path = tmp_path / "s"
    extract_directly(small_corpus(tmp_path), store_path)
    rng = np.random.default_rng(0)
    bits = {}
    for pair in sorted(Store.open(store_path).committed()):
        writer = MaskWriter(tmp_path / "part")
        for key, numel in (("a", 5), ("b", 65536 * 1100 + 77), ("c", 1), ("d", 65536 * 70)):
            raw = rng.integers(0, 256, -(-numel // 8), np.uint8)
            if numel % 8:
                raw[-1] &= (1 << numel % 8) - 1
            padded = np.zeros(-(-numel // 65536) * 8192, np.uint8)
            padded[: len(raw)] = raw
            changed = np.bitwise_count(padded).reshape(-1, 8192).sum(1).astype(np.int32)
            writer.add(key, 0, numel, changed, raw)
            bits[pair, key] = raw
        writer.close()
        (tmp_path / "part").rename(tmp_path / f"{pair}.parquet")
    from rlsparse_ray.compare.popcount import gather
    from rlsparse_ray.population.mask_parts import MaskStream, batches_of, runs_of
    from rlsparse_ray.storage.local_files import LocalFiles

    for pair in Store.open(store_path).committed():
        runs, starts = runs_of(LocalFiles(tmp_path), f"{pair}.parquet")
        assert [(r.tensor_key, r.row, r.blocks) for r in runs] == [
            ("a", 0, 1),
            ("b", 1, 1101),
            ("c", 1102, 1),
            ("d", 1103, 70),
        ]
        assert starts == [0, 1024]
        stream = MaskStream(LocalFiles(tmp_path))
        for run in [*runs, runs[1], runs[0]]:
            raw = bits[pair, run.tensor_key]
            for chosen in (np.arange(run.blocks), np.arange(run.blocks)[::37]):
                pieces = batches_of([run], chosen)
                assert np.concatenate(pieces).tolist() == chosen.tolist()
                found = stream.find([run], chosen)
                out = gather(found.addresses[:, None], 1024).view(np.uint8)[:, 0]
                padded = np.zeros((run.blocks, 8192), np.uint8)
                padded.reshape(-1)[: len(raw)] = raw
                assert np.array_equal(out, padded[chosen])


def test_units_count_blocks_once(copy):
    plan = plan_overlaps(str(copy("a")))
    seen = [
        (s.tensor_key, b)
        for u in plan.units
        if isinstance(u, CountUnit)
        for s in u.spans
        for b in range(s.first, s.stop)
    ]
    assert len(seen) == len(set(seen))
