"""Models on a real S3 server, behind a proxy that counts what is sent and breaks it."""

import re
import threading
import time
from itertools import pairwise

import ml_dtypes
import numpy as np
import obstore
import pytest
from safetensors.numpy import save_file

from rlsparse_ray.errors import CheckpointError, RlsparseError
from rlsparse_ray.storage.buckets import bucket
from rlsparse_ray.weights import Reader, ReadRequest, open_checkpoint, prefetch
from rlsparse_ray.weights.objects import open_objects
from tests.servers.gcs import gcs_server
from tests.servers.proxy import Rule

BUCKET = "models"
MiB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base of 24 MB and a tuned model, each a file of six tensors and a config."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "tuned")):
        rng = np.random.default_rng(seed)
        (folder / name / "original").mkdir(parents=True)
        tensors = {
            f"model.layers.{k}.weight": rng.normal(size=(1000, 2000)).astype(ml_dtypes.bfloat16)
            for k in range(6)
        }
        save_file(tensors, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text('{"tie_word_embeddings": true}')
        (folder / name / "original" / "params.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def uploaded(s3_session, folder):
    s3_session.create_bucket(BUCKET)
    s3_session.upload(folder, BUCKET, "org")
    return "s3://models/org"


@pytest.fixture
def settings_of(s3, monkeypatch):
    """Opens buckets anew with other variables of the environment."""

    def change(**variables):
        for name, value in variables.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        bucket.cache_clear()

    yield change
    monkeypatch.undo()
    bucket.cache_clear()


def weights(address):
    return open_objects(address).files["model.safetensors"]


def read(file, offset, nbytes):
    buffer = bytearray(nbytes)
    with Reader() as reader:
        reader.read_into(file, offset, memoryview(buffer))
    return bytes(buffer)


def body_requests(s3):
    return [r for r in s3.proxy.log if r.range]


def test_a_folder(s3, uploaded, folder):
    found = open_objects(f"{uploaded}/base/")
    assert found.source == "s3://models/org/base"
    assert list(found.files) == ["config.json", "model.safetensors"]
    path = folder / "base" / "model.safetensors"
    file = found.files["model.safetensors"]
    assert (file.path, file.size) == ("s3://models/org/base/model.safetensors", path.stat().st_size)
    e_tag = obstore.head(s3.store(BUCKET), "org/base/model.safetensors")["e_tag"]
    assert f'"{file.stamp}"' == e_tag
    assert len(s3.proxy.log) == 1
    assert found.read(file, 3, 100) == path.read_bytes()[3:103]
    assert found.read(file, file.size, 0) == b""
    assert len(s3.proxy.log) == 2


def test_a_model_is_as_on_the_disk(s3, uploaded, folder):
    there, here = open_checkpoint(f"{uploaded}/base"), open_checkpoint(str(folder / "base"))
    assert [(t.name, t.dtype, t.shape, t.offset, t.nbytes) for t in there.tensors] == [
        (t.name, t.dtype, t.shape, t.offset, t.nbytes) for t in here.tensors
    ]
    assert there.tied_embeddings is True
    assert there.identity == f"s3@{there.revision}"
    assert open_checkpoint(f"{uploaded}/base").revision == there.revision
    assert open_checkpoint(f"{uploaded}/tuned").revision != there.revision
    headers = sum(r.sent for r in body_requests(s3))
    assert headers < MiB, "of 72 MB that are there"


def test_windows_are_merged_and_each_byte_is_sent_once(s3, uploaded, folder):
    models = [open_checkpoint(f"{uploaded}/{name}") for name in ("base", "tuned")]
    requests = [
        ReadRequest(t.file, t.offset + at, min(2 * MiB, t.nbytes - at))
        for base, tuned in zip(*(m.tensors for m in models), strict=True)
        for at in range(0, base.nbytes, 2 * MiB)
        for t in (base, tuned)
    ]
    s3.proxy.forget()
    content = {
        m.tensors[0].file: (folder / name / "model.safetensors").read_bytes()
        for m, name in zip(models, ("base", "tuned"), strict=True)
    }
    with Reader() as reader:
        for array, r in zip(prefetch(requests, reader, 4, hold=2), requests, strict=True):
            assert array.tobytes() == content[r.file][r.offset : r.offset + r.nbytes]
    sent = body_requests(s3)
    assert sum(r.sent for r in sent) == sum(r.nbytes for r in requests)
    spans = sorted((r.path, *map(int, re.findall(r"\d+", r.range))) for r in sent)
    for before, after in pairwise(spans):
        assert before[0] != after[0] or before[2] + 1 == after[1], "overlap or hole"
    # 24 MB a file in windows of 2 MiB or less: 24 windows, but 4 reads of up to 8 MiB
    assert len(sent) <= 8


def test_a_service_that_fails_for_a_moment(s3, uploaded, folder):
    file = weights(f"{uploaded}/base")
    expected = (folder / "base" / "model.safetensors").read_bytes()
    s3.proxy.rules += [
        Rule(match="GET .*model", status=503, times=2),
        Rule(match="GET .*model", status=429),
        Rule(match="GET .*model", drop=True),
    ]
    assert read(file, 5, 1000) == expected[5:1005]
    assert [r.status for r in body_requests(s3)] == [503, 503, 429, 0, 206]


def test_a_cut_body_goes_on_where_it_broke(s3, uploaded, folder):
    file = weights(f"{uploaded}/base")
    expected = (folder / "base" / "model.safetensors").read_bytes()
    s3.proxy.rules += [Rule(match="GET .*model", cut=3 * MiB), Rule(match="GET .*model", cut=MiB)]
    assert read(file, 100, 8 * MiB) == expected[100 : 100 + 8 * MiB]
    assert [r.sent for r in body_requests(s3)] == [3 * MiB, MiB, 4 * MiB]


def test_a_service_that_keeps_failing_is_given_up_in_time(s3, uploaded, settings_of):
    file = weights(f"{uploaded}/base")
    settings_of(RLSPARSE_RETRY_SECONDS="1")
    s3.proxy.rules.append(Rule(status=500, times=None))
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"base/model.safetensors: .*500.*run again later"):
        read(file, 0, 100)
    assert time.monotonic() - started < 5
    s3.proxy.forget()
    with pytest.raises(CheckpointError, match="check the network"), s3.proxy.unavailable():
        read(file, 0, 100)
    s3.proxy.rules.append(Rule(cut=0, times=None))
    with pytest.raises(CheckpointError, match="check the network"):
        read(file, 0, 100)


@pytest.mark.parametrize("text", ["soon", "-1", "inf", ""])
def test_a_senseless_limit(uploaded, settings_of, text):
    settings_of(RLSPARSE_RETRY_SECONDS=text)
    with pytest.raises(RlsparseError, match=r"RLSPARSE_RETRY_SECONDS='.*' is no number of seconds"):
        open_objects(f"{uploaded}/base")


def test_a_replaced_object_is_noticed(s3, uploaded):
    store, key = s3.store(BUCKET), "changing/model.safetensors"
    obstore.put(store, key, b"a" * 100)
    file = weights("s3://models/changing")
    assert read(file, 10, 10) == b"a" * 10
    obstore.put(store, key, b"b" * 100)
    with pytest.raises(CheckpointError, match=r"changing/model.*: changed between plan and read"):
        read(file, 10, 10)
    obstore.put(store, key, b"b" * 9)
    with pytest.raises(CheckpointError, match=r"changing/model.*: changed between plan and read"):
        read(file, 10, 10)
    obstore.delete(store, key)
    with pytest.raises(CheckpointError, match="no such object, though it was listed"):
        read(file, 10, 10)


def test_an_object_replaced_in_the_middle_of_a_body_is_noticed(s3, uploaded):
    store, key = s3.store(BUCKET), "middle/model.safetensors"
    obstore.put(store, key, b"a" * 4 * MiB)
    file = weights("s3://models/middle")
    s3.proxy.rules += [
        Rule(match="GET .*middle", cut=2 * MiB),
        Rule(match="GET .*middle", delay=0.5, times=None),
    ]
    replace = threading.Timer(0.3, obstore.put, (store, key, b"b" * 4 * MiB))
    replace.start()
    with pytest.raises(CheckpointError, match=r"middle/model.*changed between plan and read"):
        read(file, 0, 4 * MiB)
    replace.join()


def test_a_short_body_is_an_error_not_a_wrong_row(s3, uploaded):
    store, key = s3.store(BUCKET), "short/model.safetensors"
    obstore.put(store, key, b"a" * 100)
    file = weights("s3://models/short")
    with pytest.raises(CheckpointError, match="ends at byte 100, but 20 bytes from 90 on"):
        read(file, 90, 20)


def refused(address, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(address)
    message = str(caught.value)
    assert message.startswith(address)
    assert "\n" not in message
    assert "testsecret" not in message


def test_nothing_there(s3, uploaded):
    refused("s3://models/org/absent", r"no such folder \(nothing there\): check the bucket")
    refused("s3://models/org", r"no such folder \(only folders \(base, tuned\)\)")
    refused("s3://nobucket/base", "NoSuchBucket.*create the bucket or correct the address")


def test_wrong_credentials(uploaded, settings_of):
    settings_of(AWS_SECRET_ACCESS_KEY="wrong")
    refused(f"{uploaded}/base", "SignatureDoesNotMatch.*check the credentials .AWS_ACCESS_KEY_ID")
    settings_of(AWS_ACCESS_KEY_ID="nobody")
    refused(f"{uploaded}/base", "InvalidAccessKeyId.*check the credentials .AWS_ACCESS_KEY_ID")


def test_no_credentials(uploaded, settings_of):
    settings_of(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, RLSPARSE_RETRY_SECONDS="0.5")
    refused(f"{uploaded}/base", "no credentials found: set AWS_ACCESS_KEY_ID")


def test_a_service_that_does_not_exist(uploaded, settings_of):
    settings_of(AWS_ENDPOINT_URL="http://127.0.0.1:9", RLSPARSE_RETRY_SECONDS="0.5")
    refused(f"{uploaded}/base", "check the network and AWS_ENDPOINT_URL")


def test_an_endpoint_for_s3_alone(s3, uploaded, settings_of):
    settings_of(AWS_ENDPOINT_URL=None, AWS_ENDPOINT_URL_S3=s3.environment["AWS_ENDPOINT_URL"])
    assert open_checkpoint(f"{uploaded}/base").tensors


@pytest.mark.parametrize("status", [301, 400, 405])
def test_a_refusal_is_no_fault_of_the_network(s3, uploaded, settings_of, status):
    settings_of(RLSPARSE_RETRY_SECONDS="0.5")
    s3.proxy.rules.append(Rule(status=status, times=None))
    refused(f"{uploaded}/base", "AWS_REGION")


def test_what_no_bucket_can_have(s3):
    for address in ("s3://models/org//base", "s3://models/org/../base"):
        refused(address, "is no part of a key: correct the address")
    assert not s3.proxy.log


def test_google_cloud_storage(folder, tmp_path, monkeypatch):
    with gcs_server(tmp_path) as gcs:
        for name, value in gcs.environment.items():
            monkeypatch.setenv(name, value)
        gcs.create_bucket("models")
        path = folder / "base" / "model.safetensors"
        gcs.put("models", "org/base/model.safetensors", path.read_bytes())
        model = open_checkpoint("gs://models/org/base")
        last = model.tensors[-1]
        assert last.file.path == "gs://models/org/base/model.safetensors"
        assert read(last.file, last.offset, last.nbytes) == path.read_bytes()[last.offset :]
        gcs.put("models", "org/base/model.safetensors", bytes(path.stat().st_size))
        with pytest.raises(CheckpointError, match="changed between plan and read"):
            read(last.file, last.offset, last.nbytes)
    bucket.cache_clear()
