"""What is built can be installed: sdist and wheel hold all that the software reads, anywhere."""

import email
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.demo_store import make_demo

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("rlsparse_ray", "queries", "jobs", "tests", "benchmarks", "docs", "examples")
FILES = (
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "Makefile"),
    *("pyproject.toml", "constraints.txt", "cluster.yaml", "kuberay.yaml"),
    *("mkdocs.yml", "Dockerfile"),
)


def run(*words, cwd, **environment):
    # PYTHONPATH of the tests would show the checkout to what is installed
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=plain | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_in(folder):
    """What git would see: no caches."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of the checkout, and the wheel of the unpacked sdist: what `build` makes."""
    folder = tmp_path_factory.mktemp("built")
    backend = folder / "backend"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(
        *pip,
        "install",
        "--quiet",
        "--target",
        backend,
        *PROJECT["build-system"]["requires"],
        cwd=ROOT,
    )
    hatch = (sys.executable, "-m", "hatchling", "build", "--directory", folder)
    run(*hatch, "--target", "sdist", cwd=ROOT, PYTHONPATH=str(backend))
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    run(*hatch, "--target", "wheel", cwd=unpacked, PYTHONPATH=str(backend))
    (wheel,) = folder.glob("*.whl")
    return unpacked, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """An environment with the wheel; what it depends on is borrowed from this one."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder)
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", built[1], cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # a path alone: .pth files over there, and with them the checkout, are not followed
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def test_the_sdist_is_the_checkout(built):
    unpacked = built[0]
    for folder in FOLDERS:
        assert files_in(ROOT / folder) - files_in(unpacked / folder) == set()
    assert [name for name in FILES if not (unpacked / name).is_file()] == []


def test_the_wheel_holds_the_package_and_the_queries(built):
    names = zipfile.ZipFile(built[1]).namelist()
    expected = {f"rlsparse_ray/{path}" for path in files_in(ROOT / "rlsparse_ray")}
    expected |= {f"rlsparse_ray/queries/{path}" for path in files_in(ROOT / "queries")}
    assert {name for name in names if ".dist-info/" not in name} == expected
    for needed in (
        *("queries/setup.sql", "queries/audits/mask_popcount.sql", "corpora/paper.yaml"),
        *("demo/bases/", "reproduce/scales/"),
    ):
        assert any(name.startswith(f"rlsparse_ray/{needed}") for name in names), needed


def test_metadata(built):
    archive = zipfile.ZipFile(built[1])
    (place,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    metadata = email.message_from_string(archive.read(f"{place}/METADATA").decode())
    assert metadata["Name"] == "rlsparse-ray"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# rlsparse_ray")
    extras = set(PROJECT["project"]["optional-dependencies"])
    assert {"demo", "train", "dev"} <= extras == set(metadata.get_all("Provides-Extra"))
    assert f"{place}/licenses/LICENSE" in archive.namelist()


def test_versions_agree(built):
    version = PROJECT["project"]["version"]
    assert f'__version__ = "{version}"' in (ROOT / "rlsparse_ray" / "__init__.py").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"rlsparse_ray-{version}-" in built[1].name


def test_commands_run_from_any_folder(installed, tmp_path):
    command = installed / "rlsparse"
    assert PROJECT["project"]["version"] in run(command, "--version", cwd=tmp_path)
    for verb in (("plan", "paper"), ("demo",), ("extract",), ("reproduce",)):
        assert "Usage: rlsparse" in run(command, *verb, "--help", cwd=tmp_path)
    assert "tiny" in run(command, "reproduce", "--dry-run", cwd=tmp_path)


def test_a_store_is_asked_from_any_folder(installed, tmp_path):
    demo = make_demo(tmp_path)
    words = (installed / "rlsparse", "query", "sparsity_by_pair", "--format", "csv")
    answer = run(*words, "--store", demo / "store", cwd=tmp_path)
    assert "tiny-a-grpo-seed0" in answer


def test_nothing_is_read_from_the_checkout(installed, tmp_path):
    code = """
import rlsparse_ray
from rlsparse_ray import corpus, sql
from rlsparse_ray.demo import models
from rlsparse_ray.reproduce import scale_file
print(rlsparse_ray.__file__, models.__file__, scale_file.__file__, sql.queries_dir())
print(*corpus.packaged_corpora().values(), sep="\\n")
"""
    lines = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert len(lines) == 4 + len(list((ROOT / "rlsparse_ray" / "corpora").glob("*.yaml")))
    assert [line for line in lines if not line.startswith(str(installed.parent))] == []
