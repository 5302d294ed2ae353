"""What is built can be installed: sdist and wheel hold all that the software reads, anywhere."""

import ast
import csv
import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

from rlsparse_ray.demo.tiny import TINY_RUNS
from rlsparse_ray.experiments.extras import TRAINERS
from tests.demo_store import make_demo

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("rlsparse_ray", "queries", "jobs", "tests", "benchmarks", "docs", "examples")
FILES = (
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "Makefile"),
    *("pyproject.toml", "constraints.txt", "cluster.yaml", "kuberay.yaml"),
    *("mkdocs.yml", "Dockerfile"),
)


TRAINING = ("training", "experiments", "demo", "reproduce")
"""The folders that may import what an extra brings: inside functions, but for experiments."""

BROUGHT = {"llvmlite": "numba", "pydantic-core": "pydantic", "tokenizers": "transformers"}
"""Distributions that are half of another one, and of no version of their own choice."""


def run(*words, cwd, timeout=300, **environment):
    # PYTHONPATH of the tests would show the checkout to what is installed
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=plain | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_runs_from_any_folder(installed, tmp_path):
    """In full but for SmolLM2, which `make demo` of tests/test_readme.py trains in the checkout.

    The package is the wheel's; what it depends on is borrowed from this environment, since to
    download it anew takes 95 s. That pyproject.toml lists all of it is tested below.
    """
    printed = run(installed / "rlsparse", "demo", "--fast", cwd=tmp_path, timeout=570)
    made = tmp_path / "rlsparse-demo"
    assert [path.name for path in tmp_path.iterdir()] == [made.name]
    assert f"report: {made.relative_to(tmp_path)}/report.html" in printed
    assert "tiny-b-grpo-seed1" in (made / "report.html").read_text()
    words = (installed / "rlsparse", "query", "sparsity_by_pair", "--format", "csv")
    answer = run(*words, "--store", made / "store", cwd=tmp_path)
    names = {row["name"] for row in csv.DictReader(answer.splitlines())}
    assert names >= {run.name for run in TINY_RUNS}


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


# what pyproject.toml lists


def listed(*extras):
    """The distributions that the project or one of the extras asks for."""
    project = PROJECT["project"]
    lines = [*project["dependencies"]]
    lines += [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {distribution(line) for line in lines}


def distribution(requirement):
    return re.match(r"[\w.-]+", requirement).group().lower().replace("_", "-")


def modules_imported(tree, functions):
    """Top-level modules that code imports, in functions or outside; not for the type checker."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.FunctionDef) and not functions:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]
        yield from modules_imported(node, functions)


def third_party(paths, *, functions):
    """The distributions of what is neither Python's nor this package's."""
    known = packages_distributions()
    trees = [ast.parse(path.read_text()) for path in paths]
    modules = {module for tree in trees for module in modules_imported(tree, functions)}
    modules -= {*sys.stdlib_module_names, "rlsparse_ray"}
    return {distribution(known[module][0]) for module in modules} - BROUGHT.keys()


def test_what_is_imported_is_listed():
    package = ROOT / "rlsparse_ray"
    modules = set(package.rglob("*.py"))
    training = {path for path in modules if path.relative_to(package).parts[0] in TRAINING}
    at_once = third_party(modules - training, functions=True)
    others = {path for path in training if path.parent.name != "experiments"}
    at_once |= third_party(others, functions=False)
    later = third_party(training, functions=True) - at_once
    for name, bringer in BROUGHT.items():
        assert name in {distribution(line) for line in requires(bringer)}
    assert at_once <= listed()
    assert later <= listed("train", "demo")
    assert {"numba", "ray"} <= at_once
    assert {"trl", "transformers"} <= later


def test_what_training_asks_for_is_what_its_extra_brings():
    assert set(TRAINERS) == listed("train", "demo") - listed() - {"rlsparse-ray"}
    assert "rlsparse-ray[train]" in PROJECT["project"]["optional-dependencies"]["demo"]


def run_without(modules, words, cwd):
    """The command where Python finds no such modules."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({modules})); "
        "from rlsparse_ray.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("verb", [("demo", "--fast"), ("reproduce", "--quick")], ids=" ".join)
def test_without_trainers_a_verb_names_them_at_once(verb, tmp_path):
    done = run_without(("datasets", "trl"), verb, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    said = " ".join(done.stderr.split())
    assert said.startswith("error: training needs packages that are not installed: datasets, trl.")
    assert "pip install 'rlsparse-ray[demo]'" in said
    assert list(tmp_path.iterdir()) == []


def test_without_trainers_a_reproduction_can_be_planned(tmp_path):
    done = run_without(TRAINERS, ("reproduce", "--quick", "--dry-run"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "about" in done.stdout
