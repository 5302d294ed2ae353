"""However a run on Ray goes, the store ends the same: with workers or the driver killed, with bad
checkpoints among good ones, done at once or in two goes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlsparse_ray.cluster import extract
from rlsparse_ray.errors import RlsparseError
from rlsparse_ray.storage.lease import LEASE
from rlsparse_ray.store import MARKER, Store
from rlsparse_ray.upkeep.checks import verify
from rlsparse_ray.upkeep.gc import collect
from tests.builders import (
    assert_same_store,
    contents,
    extract_directly,
    id_of,
    plan_of,
    ray_environment,
    small_model,
    tree,
    tuned_from,
    weights,
    write_corpus,
    write_model,
)

RLSPARSE = Path(sys.executable).with_name("rlsparse")
BASES, TUNED = 3, 4
DEADLINE = 120


class Run:
    """`rlsparse extract` in a process of its own, with a Ray of its own."""

    def __init__(self, corpus: Path, store: Path, *options: str) -> None:
        command = [RLSPARSE, "extract", corpus, "--store", store, *options]
        self.store = store
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ray_environment(),
            cwd=store.parent,
            start_new_session=True,
        )
        self.driver = psutil.Process(self.process.pid)
        self.family: dict[int, psutil.Process] = {}

    def children(self) -> list[psutil.Process]:
        """Ray's processes, and every one of them that ever was."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found = self.driver.children(recursive=True)
            self.family |= {child.pid: child for child in found}
            return found
        return []

    def finished_slices(self) -> int:
        """How many results are staged; some of those of committed pairs are gone again."""
        return sum(1 for _ in self.store.glob("staging/*/*.arrow"))

    def wait_for(self, what: str, condition) -> None:
        """Poll until it holds; the run must not end before."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert self.process.poll() is None, f"ended before {what}: {self.process.communicate()}"
            assert time.monotonic() < end, f"no {what} in {DEADLINE} s"
            time.sleep(0.005)

    def workers(self) -> list[psutil.Process]:
        """Worker processes that are doing a slice now."""
        return [child for child in self.children() if "ray::slice_task" in _title(child)]

    def finish(self) -> tuple[int, str, str]:
        """Exit code and outputs."""
        out, err = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, out, err

    def close(self) -> None:
        """Nothing of it survives."""
        self.children()
        for process in [self.driver, *self.family.values()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(self.family.values(), timeout=10)
        self.process.communicate()


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""


@pytest.fixture
def start():
    runs: list[Run] = []

    def start(*words) -> Run:
        runs.append(Run(*words))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """12 pairs on 3 bases with 33 slices each, so that a run can be hit in its middle."""
    folder = tmp_path_factory.mktemp("big")
    pairs = []
    for number in range(BASES):
        base = {f"layers.{n}.mlp.weight": weights(1000 * number + n, (40, 50)) for n in range(33)}
        write_model(folder / f"base{number}", base)
        for seed in range(TUNED):
            name = f"run-{number}-{seed}"
            write_model(folder / name, tuned_from(base, 100 * seed), shards=1 + seed % 2)
            pairs.append({"name": name, "base": f"base{number}", "tuned": name})
    corpus = write_corpus(folder / "corpus.yaml", pairs, slice_bytes=4000)
    plan = extract_directly(corpus, folder / "undisturbed")
    assert len(plan.slices) == 33 * BASES
    return corpus


@pytest.fixture(scope="module")
def undisturbed(big):
    return big.parent / "undisturbed"


def test_the_command_gives_what_one_process_gives(example, tmp_path, start):
    code, out, err = start(example.corpus, tmp_path / "store").finish()
    assert (code, err) == (0, "")
    assert out == f"3 extracted; 1.6 MiB read; store: {tmp_path / 'store'}\n"
    assert_same_store(example.store, tmp_path / "store")


def test_a_killed_worker_changes_nothing(big, undisturbed, tmp_path, start):
    run = start(big, tmp_path / "store")
    run.wait_for("finished slice", lambda: run.finished_slices() > 4)
    killed: list[psutil.Process] = []

    def kill_one() -> bool:
        for worker in run.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.send_signal(signal.SIGKILL)
                killed.append(worker)
                return True
        return False

    run.wait_for("worker at work", kill_one)
    assert len(Store.open(tmp_path / "store").committed()) < BASES * TUNED
    code, out, err = run.finish()
    assert (code, err) == (0, "")
    # Ray says before that a worker died
    assert out.splitlines()[-1].startswith("12 extracted; ")
    assert not killed[0].is_running()
    assert_same_store(undisturbed, tmp_path / "store")


def test_a_killed_driver_is_run_again(big, undisturbed, tmp_path, start, local_ray):
    store = tmp_path / "store"
    run = start(big, store)
    # every slice of a base is done then, and not yet every pair of it committed
    run.wait_for("committed pair", lambda: any(store.glob("pairs/*/pairs.parquet")))
    run.wait_for("further slice", lambda: run.finished_slices() > 2 * TUNED)
    run.children()
    os.kill(run.process.pid, signal.SIGKILL)
    run.close()
    before, done = tree(store), len(Store.open(store).committed())
    assert 1 <= done < BASES * TUNED
    assert any(path.startswith("staging/") for path in before)

    plan = plan_of(big)
    outcome = extract(plan, str(store))
    assert (outcome.failed, len(outcome.unchanged)) == ({}, done)
    assert 0 < outcome.nbytes <= plan.nbytes * (BASES - 1) / BASES
    assert_same_store(undisturbed, store)
    for path in before.keys() & tree(store).keys():
        assert before[path] == (store / path).read_bytes()


def test_nothing_is_done_twice(example, tmp_path, local_ray):
    plan = plan_of(example.corpus)
    progress: list[int] = []
    first = extract(plan, str(tmp_path / "s"), progress=progress.append)
    assert (sorted(first.committed), first.nbytes) == (["grpo-0", "grpo-1", "sft"], plan.nbytes)
    assert sum(progress) == plan.nbytes
    before = tree(tmp_path / "s")
    again = extract(plan, str(tmp_path / "s"))
    assert (again.committed, again.unchanged, again.nbytes) == ([], ["grpo-0", "grpo-1", "sft"], 0)
    assert tree(tmp_path / "s") == before


def test_pairs_that_come_later_cost_their_own_bytes(example, tmp_path, local_ray):
    plan = plan_of(example.corpus)
    grpo_1, sft = id_of(plan, "grpo-1"), id_of(plan, "sft")
    first = extract(plan.without([grpo_1, sft]), str(tmp_path / "s"))
    second = extract(plan, str(tmp_path / "s"))
    assert first.committed == second.unchanged == ["grpo-0"]
    # base and one model, then base and two
    assert (4 * first.nbytes, 4 * second.nbytes) == (2 * plan.nbytes, 3 * plan.nbytes)
    assert_same_store(example.store, tmp_path / "s")


def broken(folder: Path) -> Path:
    """Three pairs: one whose weights end early, one without a shard, and a good one."""
    base = small_model(vocabulary=30, width=16)
    write_model(folder / "base", base)
    for name, shards in (("cut", 1), ("lost", 2), ("good", 2)):
        write_model(folder / name, tuned_from(base, 1), shards=shards)
    (folder / "lost" / "model-00002-of-00002.safetensors").unlink()
    file = folder / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    pairs = [{"name": n, "base": "base", "tuned": n} for n in ("cut", "lost", "good")]
    return write_corpus(folder / "corpus.yaml", pairs, slice_bytes=4000)


def test_bad_checkpoints_fail_their_pairs_alone(tmp_path, rlsparse, local_ray):
    corpus, store = broken(tmp_path), tmp_path / "store"
    answer = rlsparse("extract", corpus, "--store", store)
    assert answer.code == 1
    assert answer.out.startswith("1 extracted, 2 failed; ")
    cut, lost = answer.err.splitlines()
    assert cut.startswith(f"failed: cut: {tmp_path}/cut/model.safetensors: file is ")
    assert cut.endswith("download it again")
    assert lost.startswith(f"failed: lost: {tmp_path}/lost: shard model-00002-of-00002.safetensors")
    assert lost.endswith("download it again")
    assert [pair_id.rsplit("-", 1)[0] for pair_id in Store.open(store).committed()] == ["good"]
    assert verify(store) == []


def test_a_shard_that_changes_during_the_run(big, tmp_path, local_ray):
    """Other slices of its pair are done by then: no reader sees them, and they go as garbage."""
    corpus = write_corpus(
        tmp_path / "corpus.yaml",
        [
            {"name": f"run-0-{n}", "base": str(big.parent / "base0"), "tuned": str(folder)}
            for n, folder in enumerate([big.parent / "run-0-0", tmp_path / "bad"])
        ],
        slice_bytes=4000,
    )
    base = {f"layers.{n}.mlp.weight": weights(n, (40, 50)) for n in range(33)}
    write_model(tmp_path / "bad", tuned_from(base, 100), shards=2)
    plan = plan_of(corpus)
    os.utime(tmp_path / "bad" / "model-00002-of-00002.safetensors", ns=(1, 1))
    outcome = extract(plan, str(tmp_path / "store"))
    assert outcome.committed == ["run-0-0"]
    assert outcome.failed.keys() == {"run-0-1"}
    assert "bad/model-00002-of-00002.safetensors: changed between plan" in outcome.failed["run-0-1"]
    good = id_of(plan, "run-0-0")
    alone = {p: c for p, c in contents(big.parent / "undisturbed").items() if good in p}
    assert verify(tmp_path / "store") == []
    collect(str(tmp_path / "store"), hours=0)
    found = {p: c for p, c in contents(tmp_path / "store").items() if p not in (MARKER, LEASE)}
    assert found == alone


def test_a_store_that_cannot_be_written_stops_the_run(example, tmp_path, local_ray, monkeypatch):
    """What the worker says reaches the user as it is, without Ray's traceback."""
    store = Store.create(tmp_path / "s")
    for pair in example.plan.pairs:
        store.files.write(f"staging/{pair.pair_id}", b"a file where a folder should be")
    with pytest.raises(RlsparseError, match=r"store .*: check the disk and run again$") as caught:
        extract(example.plan, str(tmp_path / "s"))
    assert "Traceback" not in str(caught.value)


def test_an_address_without_a_cluster(example, tmp_path, start):
    run = start(example.corpus, tmp_path / "s", "--address", "127.0.0.1:nowhere")
    code, out, err = run.finish()
    assert (code, out) == (2, "")
    assert err.startswith("error: Ray at 127.0.0.1:nowhere: ")
