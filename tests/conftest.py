"""What several test files share: a small store, a Ray, and the command line in this process."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from rlsparse_ray.corpus import load_corpus
from rlsparse_ray.errors import CorpusError
from rlsparse_ray.plan import Plan
from tests.builders import extract_directly, small_corpus

# with busy cores two torch threads are up to five times slower than one
torch.set_num_threads(1)


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
def local_ray() -> Iterator[None]:
    """One Ray for every test that runs it in this process; starting it takes seconds."""
    import ray

    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=128 << 20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


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
