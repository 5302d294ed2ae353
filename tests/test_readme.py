"""The README does what it says: every command in it runs, and its words are the software's."""

import re
import subprocess
from pathlib import Path

import pytest

from rlsparse_ray import sql
from rlsparse_ray.tables import NAMED_SCHEMAS, SCHEMAS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BIN = ROOT / ".venv" / "bin"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [
    line.removeprefix("$ ")
    for block in blocks("console")
    for line in block.splitlines()
    if line.startswith("$ ")
]


def run(command):
    return subprocess.run(
        ["bash", "-c", f'PATH="{BIN}:$PATH"; {command}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_the_two_commands_come_first():
    assert COMMANDS[:2] == ["make demo", "make test"]


def test_the_gate_runs_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "make test"])
def test_command(command):
    done = run(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_the_demo_leaves_a_report_with_every_figure_that_a_command_fills():
    with sql.connect(ROOT / "rlsparse-demo" / "store") as con:
        measured = sql.run_query(con, "rank_by_pair")["name"].to_pylist()
        runs = con.execute("SELECT name FROM runs WHERE trajectory IS NULL").fetchall()
    assert sorted(measured) == sorted(name for (name,) in runs) != []
    page = (ROOT / "rlsparse-demo" / "report.html").read_text()
    assert "Where the numbers are from" in page
    assert "Nothing here yet" not in page


def test_sql_block():
    (block,) = blocks("sql")
    lines = [line for line in block.splitlines() if not line.startswith(".read")]
    setup = (ROOT / "queries" / "setup.sql").read_text()
    import duckdb

    con = duckdb.connect()
    store = ROOT / "rlsparse-demo" / "store"
    con.execute(lines[0].replace("rlsparse-demo/store", str(store)))
    con.execute(setup)
    assert con.execute("\n".join(lines[1:])).fetchall()


def test_python_blocks(monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(ROOT)
    model = AutoModelForCausalLM.from_pretrained("rlsparse-demo/models/tiny-a")
    names = {"model": model}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["subnetwork"].size == names["control"].size
    assert 0 < names["mask"].float().mean() < 1
    assert isinstance(names["optimizer"], torch.optim.Optimizer)
    assert "sparsity" in names["table"].column_names


def test_tables_are_listed():
    listed = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert listed == {*SCHEMAS, *NAMED_SCHEMAS, "overlaps", "refreshes", "spectra"}


def test_the_tree_names_every_module():
    tree = README.split("## Where things are")[1]
    modules = {p.name for p in (ROOT / "rlsparse_ray").iterdir() if p.suffix in (".py", "")}
    quiet = {"__init__.py", "__pycache__", "errors.py", "blocks.py", "yaml_lines.py"}
    assert {m for m in modules - quiet if m not in tree} == set()
