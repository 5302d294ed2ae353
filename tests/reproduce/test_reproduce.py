"""The whole way, on real runs: killed, gone on with, and told on a page."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

from rlsparse_ray.cluster import Resources
from rlsparse_ray.corpus import load_corpus
from rlsparse_ray.plan import make_plan
from rlsparse_ray.reproduce.answer import as_json
from rlsparse_ray.reproduce.claims import CLAIMS, judge
from rlsparse_ray.reproduce.evidence import gather
from rlsparse_ray.reproduce.layout import Layout
from rlsparse_ray.reproduce.page import write_page
from rlsparse_ray.reproduce.phases import Outcome, reproduce
from rlsparse_ray.reproduce.scale_file import load_scale
from rlsparse_ray.reproduce.study import make_study
from rlsparse_ray.upkeep.checks import verify
from tests.builders import assert_same_store, ray_environment
from tests.test_comfort import COLOUR, on_terminal

QUICK = make_study(load_scale("quick"))
RUNS = [run.name for run in (*QUICK.full, *QUICK.masked)]


def command(out, *more):
    start = [sys.executable, "-c", "from rlsparse_ray.cli import main; main()"]
    return [*start, "reproduce", "--quick", "--out", str(out), *map(str, more)]


def done(out):
    """When which runs were made."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("models/*/run.json")}


def kill_after(out, runs):
    """Start, and kill -9 when so many runs are made; back when its workers have gone too, who may
    still end what they were at."""
    process = subprocess.Popen(
        command(out), env=ray_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while len(done(out)) < runs:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in started if child.name() == "ray::train"]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive


def written(outcome, docs):
    """The findings as a program gets them; the page is in the folder `docs`."""
    write_page(outcome, "quick", docs / "reproduction.md")
    return json.loads(json.dumps(as_json(outcome)))


@pytest.fixture(scope="module")
def made(tmp_path_factory, local_ray):
    """The quick scale, killed after three runs and gone on with; nobody may change it.

    It goes on in the Ray of the tests, whose start and imports are there already.
    """
    out = tmp_path_factory.mktemp("reproduce") / "out"
    kill_after(out, 3)
    before, layout = done(out), Layout(out)
    assert 3 <= len(before) < len(QUICK.full)
    killed = layout.session()
    told = []
    outcome = reproduce(QUICK, layout, resources=Resources("cpu"), report=told.append)
    return out, before, written(outcome, out.parent / "docs"), told, killed


@pytest.fixture(scope="module")
def rebuilt(made):
    """The same once more in a process of its own, from a terminal, when the store is elsewhere."""
    out, *_ = made
    (out / "store").rename(out.parent / "again")
    code, seen = on_terminal("reproduce", "--quick", "--out", out, **ray_environment())
    assert code == 0
    return out.parent / "again", " ".join(COLOUR.sub(b"", seen).decode().split())


def pairs_of(layout):
    """The ids of the pairs as their files are now, by name."""
    return {p.entry.name: p.pair_id for p in make_plan(load_corpus(layout.corpus)).pairs}


@pytest.mark.timeout(600)
def test_it_goes_on_where_it_was_killed(made):
    out, before, found, told, _ = made
    after = done(out)
    assert sorted(after) == sorted(RUNS) and found["failed"] == {}
    assert {name: after[name] for name in before} == before
    assert f"full runs: {len(QUICK.full) - len(before)} of {len(QUICK.full)} to train" in told
    assert any(
        line.startswith(f"run {len(QUICK.full)} of {len(QUICK.full)}, ") and "seconds left" in line
        for line in told
    )
    assert verify(out / "store") == []


@pytest.mark.timeout(600)
def test_the_time_of_the_session_that_was_killed_counts(made):
    *_, found, _, killed = made
    assert 0 < killed["seconds"] < found["session"]["seconds"]


@pytest.mark.timeout(600)
def test_the_store_is_that_of_an_undisturbed_run_and_the_page_the_same(made, rebuilt):
    out, _, found, *_ = made
    again, told = rebuilt
    for store in (again, out / "store"):
        (store / "lease.json").unlink()
    assert_same_store(again, out / "store")
    assert f"full runs: 0 of {len(QUICK.full)} to train" in told
    docs, page = out.parent / "docs", out.parent / "docs-again"
    layout = Layout(out)
    records = {run.name: layout.record(run, "cpu") for run in (*QUICK.full, *QUICK.masked)}
    asked = gather(layout, QUICK, records, pairs_of(layout).values(), {})
    outcome = Outcome(asked, tuple(judge(asked)), records, layout.session())
    assert written(outcome, page) == found
    files = sorted(path.relative_to(docs) for path in docs.rglob("*.*"))
    assert len(files) > 4
    for file in files:
        assert (docs / file).read_bytes() == (page / file).read_bytes()


@pytest.mark.timeout(600)
def test_a_terminal_is_told_what_next(made, rebuilt):
    out, *_ = made
    _, told = rebuilt
    page = f"rlsparse reproduce --scale quick --out {out} --page reproduction.md"
    assert "learned nothing and do not count: nano-sft-addition-seed0" in told
    assert told.endswith(f"next: rlsparse report --store {out}/store {page}")


@pytest.mark.timeout(600)
def test_what_runs_were_before_does_not_count(made):
    """The store keeps the pairs of a run that fails now, or of which the files are others now."""
    out, *_ = made
    lost, changed, kept = "tiny-a-grpo-addition-seed1", "nano-sft-addition-seed0", RUNS[0]
    layout = Layout(out)
    names, pairs = set(RUNS) - {lost}, pairs_of(layout)
    pairs[changed] = "of other files"
    found = gather(layout, QUICK, names, pairs.values(), {lost: "it failed"})
    assert found.result(kept) and not found.result(lost) and not found.result(changed)
    assert found.overlap_excess
    for row in found.overlap_excess:
        assert not {lost, changed} & {row["name_a"], row["name_b"]}


@pytest.mark.timeout(600)
def test_what_is_found(made):
    out, _, found, *_ = made
    assert [row["number"] for row in found["findings"]] == [claim.number for claim in CLAIMS]
    by_number = {row["number"]: row for row in found["findings"]}
    judged = {n for n, row in by_number.items() if row["verdict"] != "not tested"}
    assert judged >= {"1a", "1b", "2a", "2b", "2c", "4a", "4c", "5e", "6a", "6b", "6c", "7"}
    # no weight changed where it was frozen
    trained = {row["trained"]: row for row in by_number["4c"]["rows"]}
    assert [trained[m]["changed where frozen"] for m in ("subnetwork", "complement")] == ["0", "0"]
    assert "nano-sft-addition-seed0" in found["learned_nothing"]
    assert found["session"]["machine"]["cores"] == os.cpu_count()
    assert (out / "corpus.yaml").is_file()


@pytest.mark.timeout(600)
def test_the_page_says_it_all(made):
    out, _, found, *_ = made
    docs = out.parent / "docs"
    page = (docs / "reproduction.md").read_text()
    for row in found["findings"]:
        assert f"## {row['number']}. {row['claim']}: {row['verdict']}\n" in page
        assert f"- Threshold: {row['rule']}." in page
        assert row["measured"].replace("|", "\\|") in page
    for run in RUNS:
        assert f"| {run} |" in page
    pictures = [line.rpartition("(")[2].rstrip(")") for line in page.splitlines() if "![" in line]
    assert len(pictures) == 5
    for picture in pictures:
        assert ElementTree.parse(docs / picture).getroot().tag.endswith("svg")


FAILING = """\
version: 1
device: cpu
bases:
  - name: nano
    family: nano
    scratch: {hidden: 32, intermediate: 64, layers: 1, steps: 1, batch: 8}
main:
  - base: nano
    datasets: [addition, multiplication]
    seeds: [0]
    algorithms: {SFT: {steps: 1, batch: 8}}
subnetworks:
  - {base: nano, dataset: addition, algorithms: [SFT], seeds: [0], masks: [random]}
  - {base: nano, dataset: multiplication, algorithms: [SFT], seeds: [0], masks: [random]}
"""


@pytest.mark.timeout(600)
def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, rlsparse, local_ray):
    (tmp_path / "scale.yaml").write_text(FAILING)
    out = tmp_path / "out"
    ended = rlsparse("reproduce", "--scale", tmp_path / "scale.yaml", "--out", out, "--json")
    assert ended.code == 1
    lost = "nano-sft-multiplication-seed0"
    failed = [line for line in ended.err.splitlines() if line.startswith("failed:")]
    assert len(failed) == 2
    assert f"{lost}: ValueError: dataset 'multiplication' is not one of addition," in failed[0]
    assert f"{lost}-random: it needs the mask of {lost}, which failed" in failed[1]
    assert sorted(done(out)) == ["nano-sft-addition-seed0", "nano-sft-addition-seed0-random"]
    found = json.loads(ended.out)
    assert found["learned_nothing"] == ["nano-sft-addition-seed0"]
    assert sorted(found["failed"]) == [lost, f"{lost}-random"]


def test_a_plan_trains_nothing(tmp_path, rlsparse):
    ended = rlsparse("reproduce", "--dry-run", "--out", tmp_path / "out")
    assert ended.code == 0 and not (tmp_path / "out").exists()
    tiny = make_study(load_scale("tiny"))
    assert f"{len(tiny.full) + len(tiny.masked)} runs, about " in ended.out
    assert (
        f"{len(RUNS)} runs, about 23 seconds of"
        in rlsparse("reproduce", "--quick", "--dry-run").out
    )
    assert rlsparse("reproduce", "--quick", "--scale", "small").code == 2


def test_the_job_takes_the_arguments_of_the_verb(tmp_path):
    job = Path(__file__).parents[2] / "jobs" / "reproduce.py"
    ended = subprocess.run(
        [sys.executable, job, "--quick", "--dry-run", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0 and f"{len(RUNS)} runs" in ended.stdout
