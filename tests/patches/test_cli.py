"""The verbs, as they are typed."""

import json

import pytest

from tests.patches.builders import files_of, tensors_of
from tests.patches.conftest import TUNED


def test_help(rlsparse):
    said = rlsparse("patch", "--help")
    assert said.code == 0
    for verb in ("make", "apply", "verify"):
        assert verb in said.out
        assert f"Example: rlsparse patch {verb}" in rlsparse("patch", verb, "--help").out


def test_make(rlsparse, scene):
    place = scene.out.with_suffix(".safetensors")
    said = rlsparse("patch", "make", scene.base, scene.tuned, "-o", place)
    assert (said.code, said.err) == (0, "")
    assert place.read_bytes() == scene.patch.read_bytes()
    for text in ("tuned model", "places, as an ideal code", "parameters changed (density 9."):
        assert text in said.out


def test_make_json(rlsparse, scene):
    said = rlsparse(
        "patch", "make", scene.base, scene.tuned, "-o", scene.patch, "--force", "--json"
    )
    (row,) = json.loads(said.out)
    assert row["patch"] == str(scene.patch)
    assert row["patch_bytes"] == scene.patch.stat().st_size
    assert row["density"] == row["changed"] / row["numel"]
    assert row["patch_share"] == row["patch_bytes"] / row["dense_bytes"]


def test_refusal(rlsparse, scene):
    said = rlsparse("patch", "make", scene.base, scene.tuned, "-o", scene.patch)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"error: {scene.patch}: exists: ")


def test_apply(rlsparse, scene):
    words = ("patch", "apply", scene.base, scene.patch, "-o", scene.out)
    said = rlsparse(*words)
    assert (said.code, said.err) == (0, "")
    assert f"{scene.out}: 6 files, " in said.out
    assert tensors_of(scene.out) == TUNED
    assert "there already" in rlsparse(*words).out
    (scene.out / "config.json").write_text("{}")
    assert rlsparse(*words).code == 2
    (row,) = json.loads(rlsparse(*words, "--force", "--json").out)
    assert (row["folder"], row["written"]) == (str(scene.out), True)
    assert files_of(scene.out) == files_of(scene.tuned)


def test_apply_says_what_it_left_out(rlsparse, scene):
    (scene.base / "pytorch_model.bin").write_bytes(b"1")
    said = rlsparse("patch", "apply", scene.base, scene.patch, "-o", scene.out)
    assert said.code == 0
    assert said.err.endswith("weights that are not patched: pytorch_model.bin\n")


def test_verify(rlsparse, scene):
    said = rlsparse("patch", "verify", scene.patch, "--base", scene.base, "--tuned", scene.tuned)
    assert (said.code, said.err) == (0, "")
    assert said.out.endswith("entries of 4 tensors against base and tuned: all is well\n")
    said = rlsparse("patch", "verify", scene.patch, "--json")
    assert (said.code, json.loads(said.out)) == (0, [])


@pytest.mark.parametrize("json_too", [False, True])
def test_verify_fails(rlsparse, scene, json_too):
    words = ["patch", "verify", scene.patch, "--base", scene.tuned]
    said = rlsparse(*words, *["--json"] * json_too)
    assert said.code == 1
    if json_too:
        assert {row["where"] for row in json.loads(said.out)} == {"base"}
        assert len(json.loads(said.out)) == 3
    else:
        assert said.out.endswith("against base: 3 problems\n")
        assert "that of the tuned model" in said.out
