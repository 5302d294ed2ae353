"""What a long command says on the way where nothing can be drawn over."""

import os
import pty
import re
import sys
import time

import pyarrow as pa
import pytest

from rlsparse_ray.console import Format, show, text, with_progress
from rlsparse_ray.errors import RlsparseError


def lines(capsys, *steps):
    """What is printed about 1,000 bytes that are done in `steps`, 0.1 s apart."""

    def work(advance):
        for number, nbytes in enumerate(steps):
            time.sleep(0.1 * (number > 0))
            advance(nbytes)
        return "result"

    assert with_progress("extract", 1000, work) == "result"
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_speed_is_that_of_this_run(capsys, monkeypatch):
    """The first call tells what was there before."""
    monkeypatch.setenv("RLSPARSE_PROGRESS_SECONDS", "0")
    first, last = lines(capsys, 600, 0, 300)
    assert first == "extract: 600 B of 1000 B (60.0%)"
    found = re.fullmatch(
        r"extract: 900 B of 1000 B \(90\.0%\), ([\d.]+) (K?i?B)/s, 0:00:0\d left", last
    )
    unit = 1024 if found[2] == "KiB" else 1
    rounding = 0.05 * unit
    assert 0 < float(found[1]) * unit <= 300 / 0.2 + rounding


def test_a_short_run_says_nothing(capsys, monkeypatch):
    monkeypatch.delenv("RLSPARSE_PROGRESS_SECONDS", raising=False)
    assert lines(capsys, 0, 400, 500) == []


def test_a_wrong_distance(capsys, monkeypatch):
    monkeypatch.setenv("RLSPARSE_PROGRESS_SECONDS", "often")
    with pytest.raises(RlsparseError, match="PROGRESS_SECONDS='often' is not a number of seconds"):
        lines(capsys, 1)


@pytest.mark.parametrize(
    ("column", "shown"),
    [
        ("shared_standard_error", "12.3"),
        ("excess_share_magnitude", "1230.00 %"),
        ("sparsity_low", "1230.00 %"),
        ("o1_by_chance_share", "1230.00 %"),
        ("density", "1230.00 %"),
        ("lift_uniform", "12.30x"),
    ],
)
def test_a_share_is_a_word_of_a_column(column, shown):
    assert text(column, 12.3) == shown


def test_parquet_is_not_for_a_terminal(monkeypatch):
    _, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(RlsparseError, match=r"> answer\.parquet.*csv"):
            show(pa.table({"x": [1]}), Format.parquet)
        show(pa.table({"x": [1]}), Format.json)


def test_whole_and_expected_counts_are_written_alike():
    assert (text("parameters", 107_096), text("expected_tensor", 96_280.4)) == ("107,096", "96,280")
