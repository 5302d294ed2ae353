"""Jobs on a real Ray cluster: submitted by Ray's command and by its client, followed, stopped and
failed, with models on the disk and stores on the disk and in a bucket."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import obstore
import psutil
import pytest
import yaml
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from rlsparse_ray.store import Store
from rlsparse_ray.upkeep.checks import verify
from tests.builders import (
    assert_same_store,
    extract_directly,
    ray_environment,
    tuned_from,
    weights,
    write_corpus,
    write_model,
)

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
RUNTIME_ENV = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py"))
DEADLINE = 240
OURS = ("AWS_", "HF_", "RLSPARSE_")
"""How the variables begin that a job may only get from its runtime_env."""

LINE = r"extract: [\d.]+ [KM]?i?B of [\d.]+ MiB \([\d.]+%\), [\d.]+ [KMG]iB/s, [\d:]+ left"


@dataclass(frozen=True)
class Head:
    """A running head node with its job API."""

    address: str
    client: JobSubmissionClient
    environment: dict[str, str]

    def submit(self, script: str, *words: object, **variables: str) -> str:
        """Submit a script of jobs/; the nodes have the package, and the job these variables."""
        return self.client.submit_job(
            entrypoint=" ".join(map(str, ["python", ROOT / "jobs" / script, *words])),
            runtime_env={"env_vars": RUNTIME_ENV["env_vars"] | variables},
        )

    def wait(self, job: str) -> JobDetails:
        """How the job ended."""
        end = time.monotonic() + DEADLINE
        while not (info := self.client.get_job_info(job)).status.is_terminal():
            assert time.monotonic() < end, self.client.get_job_logs(job)
            time.sleep(0.1)
        return info

    def run(self, script: str, *words: object, **variables: str) -> tuple[JobDetails, str]:
        """How the job ended, and its log."""
        job = self.submit(script, *words, **variables)
        return self.wait(job), self.client.get_job_logs(job)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head node on free ports of 127.0.0.1, without our variables; nothing of it is left."""
    clean = {k: v for k, v in ray_environment().items() if not k.startswith(OURS)}
    environment = clean | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "disabled",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    with ExitStack() as stack:
        # sockets lie in it, whose paths may have 107 characters
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp"))
        stack.enter_context(_variables(RAY_AUTH_MODE="disabled"))
        gcs, dashboard, agent, remote = _free_ports(4)
        log = stack.enter_context((Path(folder) / "start.log").open("wb"))
        process = subprocess.Popen(
            [
                *(BIN / "ray", "start", "--head", "--block", "--num-cpus=2"),
                *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
                *(f"--port={gcs}", f"--dashboard-port={dashboard}"),
                *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={remote}"),
                *("--min-worker-port=0", "--max-worker-port=0"),
                *(f"--temp-dir={folder}", f"--object-store-memory={128 << 20}"),
            ],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        stack.callback(_stop, process, folder)
        address = f"http://127.0.0.1:{dashboard}"
        client = _connect(address, process, Path(folder) / "start.log")
        yield Head(address, client, environment | {"RAY_ADDRESS": address})


@contextlib.contextmanager
def _variables(**variables: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


def _connect(address: str, process: subprocess.Popen[bytes], log: Path) -> JobSubmissionClient:
    end = time.monotonic() + DEADLINE
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        with contextlib.suppress(ConnectionError, RuntimeError):
            client = JobSubmissionClient(address)
            client.list_jobs()
            return client
        time.sleep(0.2)


def _stop(process: subprocess.Popen[bytes], folder: str) -> None:
    """`ray start --block` ends its children on SIGTERM; whatever is left of them is killed."""
    family = _family(folder)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    for left in psutil.wait_procs({*family, *_family(folder)}, timeout=10)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()
    process.kill()
    process.wait()


def _family(folder: str) -> set[psutil.Process]:
    """Every process of the cluster: its folder is in the command, or a parent's command."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if folder in " ".join(process.cmdline()):
                found |= {process, *process.children(recursive=True)}
    return found


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs on one base with 150 slices, to be stopped in the middle."""
    folder = tmp_path_factory.mktemp("long")
    base = {f"layers.{n}.mlp.weight": weights(n, (40, 50)) for n in range(150)}
    write_model(folder / "base", base)
    pairs = []
    for seed in range(4):
        write_model(folder / f"run-{seed}", tuned_from(base, 1000 * seed))
        pairs.append({"name": f"run-{seed}", "base": "base", "tuned": f"run-{seed}"})
    return write_corpus(folder / "corpus.yaml", pairs, slice_bytes=4000)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_takes_the_arguments_of_its_verb(name):
    done = subprocess.run(
        [sys.executable, f"jobs/{name}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{name.removesuffix('.py')} [OPTIONS]" in done.stdout
    documented = (ROOT / "jobs" / name).read_text().split('"""')[1]
    assert re.search(rf"^ray job submit .*-- python jobs/{name} ", documented, re.MULTILINE)


def test_ray_job_submit(head, example, tmp_path):
    """The documented command, but for pip: the nodes have what pip would install.

    The package travels, so its kernels are compiled again: 19 s of a core for each worker.
    """
    runtime_env = tmp_path / "runtime_env.yaml"
    fast = {"env_vars": RUNTIME_ENV["env_vars"] | {"RLSPARSE_PROGRESS_SECONDS": "0"}}
    ready = {k: v for k, v in (RUNTIME_ENV | fast).items() if k != "pip"}
    runtime_env.write_text(yaml.safe_dump(ready))
    store = tmp_path / "store"
    script = f"find . -type f; python jobs/extract.py {example.corpus} --store {store}"
    done = subprocess.run(
        [
            BIN / "ray",
            "job",
            "submit",
            "--runtime-env",
            runtime_env,
            "--",
            "bash",
            "-c",
            script,
        ],
        env=head.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"3 extracted; 1.6 MiB read; store: {store}\n" in done.stdout
    assert re.search(f"^{LINE}$", done.stdout, re.MULTILINE)
    assert_same_store(example.store, store)
    carried = {line.split("/")[1] for line in done.stdout.splitlines() if line.startswith("./")}
    assert {"rlsparse_ray", "queries", "jobs", "pyproject.toml", "constraints.txt"} <= carried
    assert carried & {".git", ".venv", "tests", "rlsparse-demo"} == set()


def test_a_store_in_a_bucket(head, example, s3, tmp_path):
    """Credentials reach the driver and the workers by the job's env_vars, and by nothing else."""
    s3.create_bucket("jobs")
    command = ("extract.py", example.corpus, "--store", "s3://jobs/store")
    wrong = s3.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    info, log = head.run(*command, **wrong)
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 2), log
    assert "error: store s3://jobs/store" in log

    info, log = head.run(*command, **s3.environment)
    assert (info.status, info.driver_exit_code) == (JobStatus.SUCCEEDED, 0), log
    assert "3 extracted; 1.6 MiB read; store: s3://jobs/store\n" in log
    bucket = s3.store("jobs")
    for found in obstore.list(bucket, "store").collect():
        path = tmp_path / found["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(obstore.get(bucket, found["path"]).bytes())
    assert_same_store(example.store, tmp_path / "store")

    info, log = head.run("overlap.py", RLSPARSE_STORE="s3://jobs/store", **s3.environment)
    assert (info.status, info.driver_exit_code) == (JobStatus.SUCCEEDED, 0), log


def test_a_stopped_job_is_submitted_again(head, long, tmp_path):
    extract_directly(long, tmp_path / "undisturbed")
    store = tmp_path / "store"
    command = ("extract.py", long, "--store", store)
    job = head.submit(*command)
    end = time.monotonic() + DEADLINE
    while sum(1 for _ in store.glob("staging/*/*.arrow")) < 20:
        assert time.monotonic() < end, head.client.get_job_logs(job)
        time.sleep(0.02)
    assert head.client.stop_job(job)
    info = head.wait(job)
    assert info.status == JobStatus.STOPPED
    assert not Store.open(store).committed()
    done = len(list(store.glob("staging/*/*.arrow")))

    info, log = head.run(*command, RLSPARSE_PROGRESS_SECONDS="0")
    assert (info.status, info.driver_exit_code) == (JobStatus.SUCCEEDED, 0), log
    assert done >= 20
    assert len(re.findall(f"^{LINE}$", log, re.MULTILINE)) > 10
    assert_same_store(tmp_path / "undisturbed", store)
    assert verify(store) == []


def test_failures_are_told_apart(head, example, tmp_path):
    """2: nothing could be done, and the log says why; 1: some pairs failed, the others are kept."""
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("version: 1\npairz: []\n")
    info, log = head.run("extract.py", wrong, "--store", tmp_path / "none")
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 2), log
    assert f"error: {wrong}:2: " in log
    assert "Traceback" not in log

    folder = tmp_path / "models"
    shutil.copytree(example.corpus.parent, folder, ignore=shutil.ignore_patterns("store"))
    cut = folder / "sft" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-10])
    info, log = head.run("extract.py", folder / "corpus.yaml", "--store", tmp_path / "store")
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 1), log
    assert f"failed: sft: {cut}: file is " in log
    assert "2 extracted, 1 failed; " in log
    assert verify(tmp_path / "store") == []
