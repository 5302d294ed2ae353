"""`verify --deep` against damage that files and tables by themselves do not show."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rlsparse_ray import tables
from rlsparse_ray.store import Store, write_parquet, xxh3_of
from rlsparse_ray.upkeep.deep import choose, deep_verify
from rlsparse_ray.weights import open_local
from tests.builders import extract_directly, tuned_from, weights, write_corpus, write_model

ALL = 99


@pytest.fixture
def extracted(tmp_path):
    """Two pairs of one base, and their store. Tensors are larger than what fingerprints sample."""
    base = {f"layers.{i}.mlp.up_proj.weight": weights(i, (600, 700)) for i in range(3)}
    base["layers.0.input_layernorm.weight"] = weights(9, (600,))
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "one", tuned_from(base, 1))
    write_model(tmp_path / "two", tuned_from(base, 2) | {"extra.weight": weights(3, (5, 5))})
    pairs = [{"name": name, "base": "base", "tuned": name} for name in ("one", "two")]
    extract_directly(write_corpus(tmp_path / "corpus.yaml", pairs), tmp_path / "store")
    return tmp_path


def report_of(folder, tensors=ALL, seed=0):
    done = []
    samples = choose(str(folder / "store"), tensors, seed)
    report = deep_verify(samples, done.append)
    assert sum(done) == sum(sample.nbytes for sample in samples)
    return report


def flip(folder: Path, name: str) -> None:
    """Change one bit of a tensor; size, time and what fingerprints sample of the file stay."""
    checkpoint = open_local(str(folder))
    spec = checkpoint.by_name[name]
    step = spec.file.size // 64
    at = next(a for a in range(spec.offset, spec.offset + spec.nbytes) if a % step == 5000)
    before = Path(spec.file.path).stat()
    with Path(spec.file.path).open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(spec.file.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert open_local(str(folder)).revision == checkpoint.revision


def test_a_clean_store(extracted):
    report = report_of(extracted)
    assert (report.damaged, report.unchecked) == ([], [])
    # the tensor that only one side has is not compared
    assert report.tensors == 8


def test_a_flipped_byte_in_a_model_is_found(extracted):
    flip(extracted / "two", "layers.1.mlp.up_proj.weight")
    report = report_of(extracted)
    assert report.unchecked == []
    (finding,) = report.damaged
    assert finding.check == "deep"
    assert finding.pair_id.startswith("two-")
    assert "tensor layers.1.mlp.up_proj.weight [600,700]: the bytes in tuned" in finding.problem
    assert str(extracted / "two") in finding.problem


def test_a_flipped_byte_in_a_base_is_found_in_every_pair(extracted):
    flip(extracted / "base", "layers.2.mlp.up_proj.weight")
    found = report_of(extracted).damaged
    assert [finding.pair_id[:4] for finding in found] == ["one-", "two-"]
    assert all("the bytes in base" in finding.problem for finding in found)


def tamper(store: Path, table: str, edit) -> None:
    """Rewrite a small table of the first pair, and its hash in the row that lists it."""
    pair_id = min(Store.open(store).committed())
    part = f"{table}/pair_id={pair_id}/{table}.parquet"
    rows = pq.ParquetFile(store / part).read().to_pylist()
    write_parquet(tables.to_table(table, edit(rows)), store / part)
    row = Store.open(store).pair_row(pair_id)
    for listed in row["parts"]:
        if listed["path"] == part:
            data = (store / part).read_bytes()
            listed |= {"bytes": len(data), "xxh3": xxh3_of([data])}
    Store.open(store).write_pair(pair_id, row)


def test_a_tampered_count_is_found(extracted):
    def edit(rows):
        row = next(r for r in rows if r["criterion"] == "abs:1e-4" and "layers.1" in r["tensor"])
        row["changed"] += 1
        return rows

    tamper(extracted / "store", "counts", edit)
    report = report_of(extracted)
    (finding,) = report.damaged
    assert finding.pair_id.startswith("one-")
    for words in ("layers.1.mlp.up_proj.weight", "under abs:1e-4, `counts` says", "damaged"):
        assert words in finding.problem


def test_a_tampered_hash_is_found(extracted):
    def edit(rows):
        rows[0]["base_xxh3"] = "0" * 16
        return rows

    tamper(extracted / "store", "tensors", edit)
    (finding,) = report_of(extracted).damaged
    assert "`tensors` says 0000000000000000" in finding.problem


def test_a_model_that_is_gone_is_not_damage(extracted):
    shutil.rmtree(extracted / "two")
    report = report_of(extracted)
    assert report.damaged == []
    assert report.tensors == 4
    (finding,) = report.unchecked
    assert finding.pair_id.startswith("two-")
    assert f"{extracted / 'two'}: no such folder" in finding.problem


def test_a_model_that_moved_on_is_not_damage(extracted):
    model = extracted / "one" / "model.safetensors"
    os.utime(model, ns=(1, 1))
    report = report_of(extracted)
    assert report.damaged == []
    (finding,) = report.unchecked
    assert f"tuned {extracted / 'one'}: moved, copied or changed" in finding.problem


def test_a_sample_is_drawn_by_a_seed(extracted):
    def keys(tensors, seed):
        samples = choose(str(extracted / "store"), tensors, seed)
        return [[row["tensor_key"] for row in sample.tensors] for sample in samples]

    assert [len(pair) for pair in keys(2, 0)] == [2, 2]
    assert keys(2, 0) == keys(2, 0)
    assert len({str(keys(2, seed)) for seed in range(6)}) > 3
    assert [len(pair) for pair in keys(ALL, 0)] == [4, 4]


def test_nothing_is_left_behind(extracted, monkeypatch):
    scratch = extracted / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    before = sorted(extracted.rglob("*"))
    report_of(extracted)
    assert sorted(extracted.rglob("*")) == before


def test_command(rlsparse, extracted):
    store = extracted / "store"
    answer = rlsparse("verify", "--store", store, "--deep", "--sample", 2)
    assert answer.code == 0
    assert "4 tensors in the models: all is well" in answer.out
    assert json.loads(rlsparse("verify", "--store", store, "--deep", "--json").out) == []
    flip(extracted / "one", "layers.0.mlp.up_proj.weight")
    assert rlsparse("verify", "--store", store).code == 0
    answer = rlsparse("verify", "--store", store, "--deep", "--sample", ALL)
    assert answer.code == 1
    assert "1 problem" in answer.out


def test_command_says_what_was_not_checked(rlsparse, extracted):
    shutil.rmtree(extracted / "base")
    answer = rlsparse("verify", "--store", extracted / "store", "--deep")
    assert answer.code == 3
    assert "0 tensors in the models: all is well, 2 not checked" in answer.out
    rows = json.loads(rlsparse("verify", "--store", extracted / "store", "--deep", "--json").out)
    assert [row["check"] for row in rows] == ["not checked"] * 2


def test_command_mends_the_store_first(rlsparse, extracted):
    next((extracted / "store" / "counts").rglob("*.parquet")).unlink()
    answer = rlsparse("verify", "--store", extracted / "store", "--deep")
    assert answer.code == 1
    assert "mend the store first" in answer.out


def test_partial_rows_are_checked_in_full(tmp_path):
    """The hash is of every stored row, also of those that only one side has."""
    base = {"embed_tokens.weight": weights(0, (900, 300)), "norm.weight": weights(1, (300,))}
    longer = np.concatenate([base["embed_tokens.weight"], weights(2, (50, 300))])
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "one", base | {"embed_tokens.weight": longer})
    pair = {"name": "one", "base": "base", "tuned": "one"}
    extract_directly(write_corpus(tmp_path / "corpus.yaml", [pair]), tmp_path / "store")
    report = report_of(tmp_path)
    assert (report.tensors, report.damaged, report.unchecked) == (2, [], [])
