"""What several test files share: a small store, a Ray, and the command line in this process."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from rlsparse_ray.corpus import load_corpus
from rlsparse_ray.errors import CorpusError
from rlsparse_ray.plan import Plan
from tests.builders import extract_directly, small_corpus
from tests.servers.hub import HubServer, hub_server
from tests.servers.s3 import S3Server, s3_server

# on a busy machine an example may take a hundred times as long
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

# with busy cores two torch threads are up to five times slower than one
torch.set_num_threads(1)

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables that keep a user's own machine offline."""


@pytest.fixture(scope="session", autouse=True)
def _unsynced() -> Iterator[None]:
    """No waits for the disk in this process: 2 to 7 ms for each of thousands of files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlsparse_ray.storage.local_files._sync", lambda path: None)
        yield


@dataclass(frozen=True)
class Example:
    """A corpus and the store that an undisturbed extraction of it gives. Nobody may change it."""

    corpus: Path
    store: Path
    plan: Plan


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = tmp_path_factory.mktemp("example")
    corpus = small_corpus(folder)
    return Example(corpus, folder / "store", extract_directly(corpus, folder / "store"))


@pytest.fixture(scope="session")
def local_ray(hub_session: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for every test that runs it in this process; starting it takes seconds.

    Its workers have the environment that it is started in, so they know the hub from the start.
    """
    import ray

    from rlsparse_ray.cluster.session import ALONE

    cache = {"HF_HUB_CACHE": str(tmp_path_factory.mktemp("hub-cache"))}
    patch = pytest.MonkeyPatch()
    for name, value in {**hub_session.environment, **cache}.items():
        patch.setenv(name, value)
    for name in OFFLINE:
        patch.delenv(name, raising=False)

    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=128 << 20,
        resources={ALONE: 1},
        log_to_driver=False,
        logging_level="ERROR",
    )
    patch.undo()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for all tests; use `s3`."""
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path_factory.mktemp("s3")) as server:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def s3(s3_session: S3Server) -> Iterator[S3Server]:
    """The S3 server, its environment set, nothing in the proxy's log and no rule left."""
    s3_session.proxy.forget()
    yield s3_session
    s3_session.proxy.forget()


@pytest.fixture(scope="session")
def hub_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """One hub for all tests; use `hub`."""
    with hub_server(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def hub(
    hub_session: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """The hub without repositories, tokens, log and rules; the local cache is empty."""
    from rlsparse_ray.weights.hub_resolve import LOCATIONS

    hub_session.forget()
    for name, value in hub_session.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", *OFFLINE):
        monkeypatch.delenv(name, raising=False)
    LOCATIONS.clear()
    yield hub_session
    hub_session.proxy.forget()


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()


@pytest.fixture
def rlsparse(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Callable[..., Answer]:
    """Runs the `rlsparse` command in this process."""
    from rlsparse_ray.cli import main

    monkeypatch.delenv("RLSPARSE_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["rlsparse", *map(str, words)])
        capsysbinary.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsysbinary.readouterr()
        return Answer(code, out, err.decode())

    return run


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "corpus.yaml"
        path.write_text(text)
        return load_corpus(path)

    return load


@pytest.fixture
def refused(load, tmp_path):
    """The text is refused with exactly these `line: message`s."""

    def refused(text, *lines):
        with pytest.raises(CorpusError) as caught:
            load(text)
        assert str(caught.value).split("\n") == [f"{tmp_path}/corpus.yaml:{line}" for line in lines]

    return refused
