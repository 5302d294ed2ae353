"""The bookkeeping of an extraction: order, commits when everything is there, failures."""

import pytest

from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.lineage import Lineage
from rlsparse_ray.plan import Slice
from rlsparse_ray.runs import Ledger, LineageCheck, Outcome, largest_first
from rlsparse_ray.slices import SliceReport
from tests.builders import plan_of, tuned_from, weights, write_corpus, write_model


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Two bases, the second one with a large tensor in its middle; two tuned models each."""
    folder = tmp_path_factory.mktemp("runs")
    pairs = []
    for number, middle in enumerate((40, 400)):
        rows = (40, 30, middle, 20)
        base = {f"layers.{n}.mlp.weight": weights(n, (r, 50)) for n, r in enumerate(rows)}
        write_model(folder / f"base{number}", base)
        for seed in (0, 1):
            name = f"run-{number}-{seed}"
            write_model(folder / name, tuned_from(base, seed))
            pairs.append({"name": name, "base": f"base{number}", "tuned": name})
    return plan_of(write_corpus(folder / "corpus.yaml", pairs, slice_bytes=4000))


GOOD = Lineage(1.0, 0.4, 0.01, ("layers.0.mlp.weight",))
UNRELATED = Lineage(0.1, 0.0, 1.4, ("layers.0.mlp.weight",))


def taken(ledger):
    found = []
    while ledger.waits:
        found.append(ledger.take())
    return found


def test_the_largest_slice_is_not_the_last(plan):
    ordered = list(largest_first(plan.slices))
    assert sorted(ordered, key=id) == sorted(plan.slices, key=id)
    bases = [piece.pair_ids[0].split("-")[1] for piece in ordered]
    assert bases == ["1"] * 4 + ["0"] * 4
    sizes = [piece.nbytes for piece in ordered]
    assert sizes[:4] == sorted(sizes[:4], reverse=True)
    assert sizes[4:] == sorted(sizes[4:], reverse=True)


def test_every_pair_is_checked_once_before_its_first_slice(plan):
    seen, checked = set(), []
    for work in taken(Ledger(plan, Outcome())):
        if isinstance(work, LineageCheck):
            assert work.pair.pair_id not in seen
            checked.append(work.pair.pair_id)
        else:
            seen |= set(work.pair_ids)
            assert seen <= set(checked)
    assert sorted(checked) == sorted(pair.pair_id for pair in plan.pairs)


@pytest.mark.parametrize("check_last", [True, False])
def test_a_commit_waits_for_every_slice_and_for_the_lineage(plan, check_last):
    outcome = Outcome()
    ledger = Ledger(plan, outcome)
    works = sorted(taken(ledger), key=lambda work: isinstance(work, LineageCheck) == check_last)
    commits = []
    for count, work in enumerate(works):
        if isinstance(work, Slice):
            found = ledger.done(work, SliceReport(work.nbytes, {}))
        else:
            found = ledger.judged(work, GOOD)
        if found:
            assert count >= 8 - 1
        commits += found
    assert {c.pair.pair_id for c in commits} == {pair.pair_id for pair in plan.pairs}
    assert outcome.nbytes == plan.nbytes
    for commit in commits:
        numbers = [key.split("-")[1] for key in commit.keys]
        assert numbers == ["00000", "00001", "00002", "00003"]
        assert commit.lineage_score == 1.0


def test_a_failed_pair_is_left_out_of_what_follows(plan):
    outcome = Outcome()
    ledger = Ledger(plan, outcome)
    commits, read = [], 0
    bad = None
    while ledger.waits:
        work = ledger.take()
        if isinstance(work, LineageCheck):
            commits += ledger.judged(work, GOOD)
        elif work is not None:
            read += work.nbytes
            bad = bad or work.pair_ids[0]
            failed = {bad: "broken"} if bad in work.pair_ids else {}
            commits += ledger.done(work, SliceReport(work.nbytes, failed))
    assert list(outcome.failed.values()) == ["broken"]
    assert ledger.dropped == {bad}
    assert len(commits) == 3
    assert bad not in {commit.pair.pair_id for commit in commits}
    assert read + ledger.skipped == plan.nbytes
    assert ledger.skipped > 0


def test_a_pair_that_fails_its_check_has_no_slices_of_its_own(plan):
    outcome = Outcome()
    ledger = Ledger(plan, outcome)
    commits = []
    while ledger.waits:
        work = ledger.take()
        if isinstance(work, LineageCheck):
            commits += ledger.judged(work, CheckpointError("gone"))
        assert not isinstance(work, Slice)
    assert commits == []
    assert (set(outcome.failed.values()), len(outcome.failed)) == ({"gone"}, 4)
    assert ledger.skipped == plan.nbytes


def test_of_several_failures_the_first_is_told(plan):
    ledger = Ledger(plan, Outcome())
    check = ledger.take()
    for message in ("cut", "no answer"):
        ledger.judged(check, CheckpointError(message))
    assert ledger.dropped == {check.pair.pair_id}
    assert list(ledger.outcome.failed.values()) == ["cut"]


def test_a_doubt_does_not_stop_a_pair(plan):
    outcome = Outcome()
    ledger = Ledger(plan, outcome)
    check = ledger.take()
    assert ledger.judged(check, UNRELATED) == []
    assert outcome.doubts == {check.pair.entry.name: UNRELATED.doubt}
    assert outcome.ok
