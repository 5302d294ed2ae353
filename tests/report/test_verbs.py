"""`rlsparse report` and `rlsparse plot`, as they are typed."""

import json

import pytest
from typer.testing import CliRunner

from rlsparse_ray.cli import app
from rlsparse_ray.errors import QueryError, RlsparseError
from rlsparse_ray.report import FIGURES


def run(*words):
    return CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)


def test_report(example, tmp_path):
    path = tmp_path / "pages" / "corpus.html"
    done = run("report", "--store", example.store, "-o", path)
    assert done.exit_code == 0
    assert path.read_text().startswith("<!doctype html>")
    assert path.stat().st_size < 2 << 20
    assert done.output.strip().startswith(str(path))


def test_plot(example, tmp_path):
    path = tmp_path / "steps.svg"
    done = run("plot", "steps", "--store", example.store, "-o", path, "-p", "run=sft")
    assert done.exit_code == 0 and done.output.strip() == str(path)
    assert path.read_text().startswith("<svg")
    with pytest.raises(QueryError, match="no run 'nobody'"):
        run("plot", "steps", "--store", example.store, "-o", path, "-p", "run=nobody")


def test_plot_without_a_file_takes_the_name(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("plot", "sparsity", "--store", example.store).exit_code == 0
    assert (tmp_path / "sparsity.pdf").read_bytes().startswith(b"%PDF")


def test_plot_lists_the_figures():
    listed = json.loads(run("plot", "--json").output)
    assert [row["figure"] for row in listed] == [f.name for f in FIGURES]
    choices = {row["figure"]: row["choices"] for row in listed}
    assert "baseline=magnitude|margins|shift|tensor|uniform" in choices["overlap-matrix"]
    assert choices["layers"] == "run=..."
    assert "rounding" in run("plot").output


def test_plot_needs_a_store(monkeypatch):
    monkeypatch.delenv("RLSPARSE_STORE", raising=False)
    done = run("plot", "sparsity")
    assert done.exit_code == 2 and "--store" in done.output


@pytest.mark.parametrize("verb", [("report",), ("plot", "sparsity")])
@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("", "is a folder: name the file, such as .*/(report.html|figure.pdf)"),
        ("s3://bucket/r.html", "not to an address; write it to r.html and copy that"),
        ("x.docx", "x.docx: a (report|figure) is .*, not '.docx'"),
        ("plain", "plain: a (report|figure) is .*, not a name without a suffix"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch, verb, place, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RlsparseError, match=says):
        run(*verb, "--store", tmp_path / "nowhere", "-o", place or tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_device_takes_a_report(example):
    assert run("report", "--store", example.store, "-o", "/dev/null").exit_code == 0
