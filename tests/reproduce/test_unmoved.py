"""Variants that came out as their main run, bit by bit."""

import os

import pytest

from rlsparse_ray.reproduce.evidence import find_unmoved
from rlsparse_ray.reproduce.layout import Layout
from rlsparse_ray.reproduce.study import Study, Variant
from tests.reproduce.rows import SCALE

WEIGHTS = b"weights of four layers"


@pytest.mark.parametrize(
    ("main", "variant", "equal"),
    [
        ({"model": WEIGHTS}, {"model": WEIGHTS}, True),
        ({"model": WEIGHTS}, {"model": WEIGHTS[:-1] + b"S"}, False),
        ({"model": WEIGHTS}, {"model": WEIGHTS + b" more"}, False),
        ({"a": WEIGHTS, "b": b"x"}, {"a": WEIGHTS, "b": b"x"}, True),
        ({"a": WEIGHTS, "b": b"x"}, {"a": WEIGHTS, "b": b"y"}, False),
        ({"a": WEIGHTS, "b": b"x"}, {"a": WEIGHTS}, False),
        ({}, {}, False),
    ],
)
def test_every_byte_counts(tmp_path, main, variant, equal):
    for name, files in (("main", main), ("variant", variant)):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(name)
        for stem, content in files.items():
            file = folder / f"{stem}.safetensors"
            file.write_bytes(content)
            os.utime(file, (0, 0))  # equal times say nothing
    study = Study(SCALE, (), (), (Variant("clipping", False, True, "variant", "main"),))
    assert find_unmoved(Layout(tmp_path), study) == ({"variant"} if equal else set())
