"""What makes the command line pleasant: colours, hints, quiet, completion, exit codes, JSON."""

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys

import pytest
import typer

from rlsparse_ray import console, sql
from rlsparse_ray.cli import app
from rlsparse_ray.report import FIGURES

GROUP = typer.main.get_command(app)
VERBS = dict(GROUP.commands) | {
    f"patch {name}": verb for name, verb in GROUP.commands["patch"].commands.items()
}
del VERBS["patch"]
START = [sys.executable, "-c", "from rlsparse_ray.cli import main; main()"]
COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


def on_terminal(*words, **environment):
    """The exit code and everything that a command writes on a terminal."""
    ours, theirs = pty.openpty()
    plain = {key: v for key, v in os.environ.items() if key not in ("NO_COLOR", "RLSPARSE_STORE")}
    process = subprocess.Popen(
        [*START, *map(str, words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=plain | {"TERM": "xterm-256color", "COLUMNS": "100"} | environment,
    )
    os.close(theirs)
    seen = bytearray()
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.05)[0]:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    return process.wait(), bytes(seen)


def test_every_verb_speaks_json():
    silent = [n for n, verb in VERBS.items() if "json" not in {p.name for p in verb.params}]
    assert silent == []


def test_exit_codes_are_in_the_help(rlsparse):
    words = " ".join(rlsparse("--help").out.split())
    for code in ("0 done", "1 done, but", "2 not done", "3 nothing is wrong", "130 interrupted"):
        assert code in words


def test_a_terminal_gets_colours_unless_it_says_no(example):
    ask = ("query", "sparsity_by_pear", "--store", example.store)
    code, seen = on_terminal(*ask)
    assert code == 2 and COLOUR.search(seen)
    code, seen = on_terminal(*ask, NO_COLOR="1")
    assert code == 2 and b"did you mean 'sparsity_by_pair'?" in seen
    colours = {found for found in COLOUR.findall(seen) if re.search(rb"[34]\d|38", found)}
    assert colours == set()


def test_a_terminal_is_led_on_and_a_pipe_is_not(example, rlsparse):
    _, seen = on_terminal("plan", example.corpus)
    assert b"next:" in seen and b"rlsparse extract " in seen
    _, seen = on_terminal("--quiet", "plan", example.corpus)
    assert b"next:" not in seen and b"3 pairs" in seen
    _, seen = on_terminal("plan", example.corpus, RLSPARSE_QUIET="1")
    assert b"next:" not in seen
    assert rlsparse("plan", example.corpus).err == ""


def test_quiet_takes_progress_but_no_problem(rlsparse, example, monkeypatch):
    monkeypatch.setenv("RLSPARSE_PROGRESS_SECONDS", "0")
    loud = rlsparse("verify", "--store", example.store)
    assert loud.code == 0 and loud.err.startswith("verify: ")
    quiet = rlsparse("--quiet", "verify", "--store", example.store)
    assert (quiet.code, quiet.out, quiet.err) == (0, loud.out, "")
    wrong = rlsparse("-q", "verify", "--store", example.store / "nowhere")
    assert wrong.code == 2 and "no store there" in wrong.err
    # the next command is not quiet any more
    assert rlsparse("verify", "--store", example.store).err.startswith("verify: ")


def test_commands_to_come_next_can_be_pasted(example, tmp_path):
    odd = tmp_path / "models of $USER"
    shutil.copytree(example.corpus.parent, odd)
    odd /= example.corpus.name
    _, seen = on_terminal("plan", odd)
    assert f"rlsparse extract '{odd}' --store ./store".encode() in seen.replace(b"\r\n", b"")


def test_an_answer_without_rows_says_what_that_means(rlsparse, example):
    answer = rlsparse("query", "failed_pairs", "--store", example.store)
    assert answer.out.splitlines()[-1] == "no rows"
    assert "No row: no refresh ran" in answer.err
    assert (
        json.loads(rlsparse("query", "failed_pairs", "--store", example.store, "--json").out) == []
    )


def test_a_wrong_pair_gets_the_nearest(rlsparse, example):
    ask = ("query", "sparsity_by_kind", "--store", example.store, "-p", "pair=grpo0")
    answer = rlsparse(*ask)
    assert answer.code == 2
    assert "no pair named grpo0; FROM pairs lists them, the nearest is grpo-0" in answer.err


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("rlsparse que", {"query"}),
        ("rlsparse query overlap_", {n for n in sql.queries() if n.startswith("overlap_")}),
        ("rlsparse plot ", {figure.name for figure in FIGURES}),
    ],
)
def test_completion(typed, found):
    words = typed.split(" ")
    done = subprocess.run(
        [sys.executable, "-c", "from rlsparse_ray.cli import app; app(prog_name='rlsparse')"],
        env=os.environ
        | {
            "_RLSPARSE_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == found


def test_units():
    assert console.duration(59.4) == "59 s"
    assert console.duration(90_061) == "1 day, 1:01:01"
    assert console.count(0, "pair") == "0 pairs"


def test_a_sum_in_sql_is_a_number_like_others(rlsparse, example):
    # DuckDB adds integers up in 128 bits, which Arrow has as a decimal
    text = "SELECT sum(numel * 1000000) AS weights, 0.5::DECIMAL(3, 1) AS half FROM pairs"
    line = rlsparse("sql", text, "--store", example.store).out.splitlines()[-2]
    assert re.fullmatch(r" \d{1,3}(,\d{3}){3,} +0\.5 *", line)
