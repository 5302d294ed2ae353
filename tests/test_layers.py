"""The layers stay apart: maths knows no files and no Ray, weights know no maths, one package knows
Ray; and no module outgrows a reader."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rlsparse_ray

PACKAGE = Path(rlsparse_ray.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400

FORBIDDEN = {
    "compare": (
        *("ray", "pyarrow", "duckdb", "pathlib", "os", "io", "typer"),
        *(f"rlsparse_ray.{m}" for m in ("store", "files", "weights", "tables", "plan", "cluster")),
    ),
    "weights": (
        *("ray", "torch", "numba", "ml_dtypes", "pyarrow", "duckdb"),
        *(f"rlsparse_ray.{m}" for m in ("compare", "store", "tables", "plan", "cluster")),
    ),
}
"""By folder: what it may not import, modules inside these included."""

ALLOWED = {"unpickle.py": ("torch",)}
"""By file: torch's pickles are parsed by torch's own rules, and only there."""


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_the_package_is_found():
    assert {"placement.py", "cpu.py", "reader.py"} <= {path.name for path in MODULES}


def test_one_package_imports_ray():
    users = [p for p in MODULES if any(inside(m, ("ray",)) for m in imported(p))]
    assert users
    assert {user.parent for user in users} == {PACKAGE / "cluster"}


def test_only_entry_points_import_cluster():
    users = {p for p in MODULES if "rlsparse_ray.cluster" in imported(p)}
    entries = {PACKAGE / "__init__.py", PACKAGE / "upkeep" / "refresh.py"}
    assert {u for u in users if u.parent.name not in ("cli", "demo", "reproduce")} <= entries


def test_help_needs_nothing_heavy():
    code = "import sys, rlsparse_ray.cli; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"ray", "torch", "numba", "duckdb", "transformers", "pydantic", "yaml"}
    assert heavy & set(done.stdout.split()) == set()


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_layers_do_not_know_each_other(folder):
    files = sorted((PACKAGE / folder).rglob("*.py"))
    assert len(files) >= 4
    for file in files:
        unwanted = {m for m in imported(file) if inside(m, FORBIDDEN[folder])}
        assert {m for m in unwanted if not inside(m, ALLOWED.get(file.name, ()))} == set(), file


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_module_is_too_long(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES
