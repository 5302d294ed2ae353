"""Local and object storage keep the same promises."""

import io
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from rlsparse_ray.errors import StoreError
from rlsparse_ray.storage.buckets import bucket
from rlsparse_ray.storage.files import address_of, files_at
from rlsparse_ray.storage.object_errors import object_errors
from rlsparse_ray.storage.seekable import Seekable, info_of

ODD = "criterion=abs:1e-05/a b@1.0#~%41ü"


@pytest.fixture(params=["disk", "s3"])
def root(request, tmp_path):
    """An empty place whose name has a space and the characters of globs."""
    if request.param == "disk":
        return str(tmp_path / "my [1]*? store")
    request.getfixturevalue("s3").create_bucket("files")
    return f"s3://files/{tmp_path.name}/my [1]*? store"


@pytest.fixture
def files(root):
    return files_at(root)


def test_small_files(files):
    assert files.is_empty()
    assert (files.read(ODD), files.size(ODD), files.list("")) == (None, None, {})
    files.write(ODD, b"one")
    files.write("a/b/c", b"")
    assert not files.is_empty()
    files.write(ODD, b"other")
    assert (files.read(ODD), files.size(ODD), files.read("a/b/c")) == (b"other", 5, b"")
    assert list(files.list("").items()) == [("a/b/c", 0), (ODD, 5)]
    assert files.list("a") == files.list("a/b") == {"a/b/c": 0}
    # a folder is not every name that begins like it
    assert files.list("a/b/") == {"a/b/c": 0}
    assert files.list("crit") == {}
    assert files.size("a") is None


def test_create_never_replaces(files):
    assert files.create("x", b"first")
    assert not files.create("x", b"second")
    assert files.read("x") == b"first"
    assert files.list("") == {"x": 5}


def test_one_of_many_creates(root):
    def create(name):
        return name if files_at(root).create("x", name) else None

    with ThreadPoolExecutor(8) as pool:
        made = [name for name in pool.map(create, [b"%d" % n for n in range(8)]) if name]
    assert made == [files_at(root).read("x")]


def test_replace_only_what_was_read(files):
    assert not files.replace("x", b"new", b"")
    files.write("x", b"one")
    assert not files.replace("x", b"new", b"other")
    assert files.replace("x", b"two", b"one")
    assert not files.replace("x", b"three", b"one")
    assert files.read("x") == b"two"
    assert files.list("") == {"x": 3}


def test_one_of_many_replaces(root):
    files_at(root).write("x", b"old")

    def replace(name):
        return name if files_at(root).replace("x", name, b"old") else None

    with ThreadPoolExecutor(8) as pool:
        made = [name for name in pool.map(replace, [b"%d" % n for n in range(8)]) if name]
    assert made == [files_at(root).read("x")]


def test_entries_say_when(files):
    before = time.time()
    files.write("a/x", b"123")
    ((path, entry),) = files.entries("a").items()
    assert (path, entry.nbytes) == ("a/x", 3)
    assert before - 2 < entry.modified < time.time() + 2


def test_remove(files):
    for path in ("t/a/x", "t/a/y", "t/ab/z", "t/b"):
        files.write(path, b"1")
    files.remove("t/a")
    assert list(files.list("")) == ["t/ab/z", "t/b"]
    files.remove("t/b")
    files.remove("t/nothing")
    files.remove("nothing")
    assert list(files.list("")) == ["t/ab/z"]
    files.remove("t/ab/z")
    assert files.is_empty() or files.list("") == {}


@pytest.mark.parametrize("nbytes", [0, 1, 20_000_003])
def test_large_files(files, nbytes):
    data = np.random.default_rng(nbytes).bytes(nbytes)
    for _ in range(2):
        scratch = files.scratch(ODD)
        scratch.write_bytes(data)
        files.publish(scratch, ODD)
        assert not scratch.exists()
    assert files.list("") == {ODD: nbytes}
    pieces = list(files.pieces(ODD))
    assert b"".join(pieces) == data
    assert max(map(len, pieces), default=0) <= 2 << 20
    with files.open(ODD) as file:
        assert file.size() == nbytes
        for start, stop in ((0, 1), (nbytes // 3, nbytes // 2), (nbytes - 5, nbytes + 5)):
            if start >= 0:
                file.seek(start)
                assert file.read(stop - start) == data[start:stop]


def test_no_two_scratch_files_are_one(files, root):
    """Also not of one thread of one process, as every container has the same ones."""
    scratches = [files.scratch("part"), files.scratch("part"), files_at(root).scratch("part")]
    assert len(set(scratches)) == 3


def test_a_write_that_fails_leaves_no_scratch_file(tmp_path):
    files = files_at(tmp_path)
    (tmp_path / "x" / "y").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        files.write("x", b"1")
    assert files.list("") == {}


def test_folders_that_come_and_go_beside_a_listing(tmp_path):
    """And beside a removal: a commit clears its folder while other runs write and look."""
    files, ended, errors = files_at(tmp_path), threading.Event(), []
    files.write("staging/other", b"1")

    def work(do):
        while not ended.is_set():
            try:
                do()
            except OSError as error:
                errors.append(error)
                return

    def come_and_go():
        for n in range(20):
            with suppress(FileNotFoundError, FileExistsError):
                (tmp_path / f"staging/a/{n}").mkdir(parents=True, exist_ok=True)
        files.remove("staging/a")

    def look():
        assert "staging/other" in files.list("staging")

    threads = [threading.Thread(target=work, args=[do]) for do in (come_and_go, come_and_go, look)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    ended.set()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path):
    """What is taken for empty would be taken for garbage."""
    files = files_at(tmp_path)
    files.write("pairs/a/x", b"1")
    (tmp_path / "pairs" / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        files.list("pairs/loop")


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    files = files_at(tmp_path / "store")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").write_bytes(b"1")
    files.write("staging/a/x", b"1")
    for link in ("staging/a/link", "link"):
        (tmp_path / "store" / link).symlink_to(tmp_path / "elsewhere")
        files.remove(link.removesuffix("/link"))
    assert list((tmp_path / "store").iterdir()) == []
    assert (tmp_path / "elsewhere" / "x").exists()


def test_scratch_files_go_with_what_made_them(root):
    files = files_at(root)
    scratch = files.scratch("part")
    scratch.write_bytes(b"unfinished")
    assert files.is_empty()
    del files
    assert root.startswith("/") or not scratch.exists()


def test_what_is_gone(files):
    with pytest.raises((OSError, StoreError)):
        files.open("nothing")
    with pytest.raises((OSError, StoreError)):
        list(files.pieces("nothing"))


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files_at(f"file://{tmp_path}/s").root == f"{tmp_path}/s"
    assert address_of("s") == f"{tmp_path}/s"
    assert address_of("s3://b/my store/") == "s3://b/my store"
    assert address_of("gs://b") == "gs://b"
    with pytest.raises(StoreError, match=r"ftp:// is unknown: use a path or one of s3://, gs://"):
        files_at("ftp://host/store")


# One file, several threads


@pytest.fixture
def numbers(s3):
    """An object of which every 8 bytes tell their place."""
    s3.create_bucket("files")
    address = "s3://files/numbers"
    data = np.arange(1 << 17, dtype=np.int64).tobytes()
    files_at("s3://files").write("numbers", data)
    return address, data


def test_every_thread_has_its_own_position(numbers):
    address, data = numbers
    file = Seekable(info_of(address))
    barrier = threading.Barrier(8)

    def read(seed):
        rng = np.random.default_rng(seed)
        barrier.wait()
        for _ in range(20):
            start = int(rng.integers(0, len(data) - 100))
            assert file.seek(start) == start
            assert file.read(100) == data[start : start + 100]
            assert file.tell() == start + 100

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


def test_it_reads_like_a_file(numbers):
    address, data = numbers
    file, local = Seekable(info_of(address)), io.BytesIO(data)
    for offset, whence in ((5, io.SEEK_SET), (7, io.SEEK_CUR), (-3, io.SEEK_END)):
        assert file.seek(offset, whence) == local.seek(offset, whence)
        assert file.read(11) == local.read(11)
        assert file.tell() == local.tell()
    file.seek(0)
    assert io.BufferedReader(file).read() == data


def test_a_replaced_object_is_not_mixed_with_the_new_one(numbers):
    address, data = numbers
    file = Seekable(info_of(address))
    assert file.read(8) == data[:8]
    files_at("s3://files").write("numbers", data[::-1])
    with pytest.raises(StoreError, match=r"s3://files/numbers: .*replaced while it was being read"):
        file.read(8)


# What is said when it fails


@pytest.fixture
def quickly(s3, monkeypatch):
    """Gives up after a second; takes other settings of the environment."""
    s3.create_bucket("files")

    def settings(**variables):
        for name, value in {"RLSPARSE_RETRY_SECONDS": "1"}.items() | variables.items():
            monkeypatch.setenv(name, value)
        bucket.cache_clear()

    yield settings
    bucket.cache_clear()


def every_use(files, tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    yield lambda: files.read("x")
    yield lambda: files.write("x", b"1")
    yield lambda: files.create("x", b"1")
    yield lambda: files.publish(tmp_path / "x", "x")
    yield lambda: files.list("")
    yield lambda: list(files.pieces("x"))
    yield files.is_empty


def assert_says(files, tmp_path, message):
    for use in every_use(files, tmp_path):
        with pytest.raises(StoreError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_no_bucket(s3, tmp_path):
    message = r"s3://nonesuch/.*NoSuchBucket: .*: create the bucket or correct the address$"
    assert_says(files_at("s3://nonesuch/store"), tmp_path, message)


def test_wrong_credentials(quickly, tmp_path):
    quickly(AWS_SECRET_ACCESS_KEY="wrong")
    message = r"s3://files.*: check the credentials \(AWS_ACCESS_KEY_ID, .*\) and what they allow$"
    assert_says(files_at("s3://files"), tmp_path, message)


def test_nobody_answers(quickly, tmp_path):
    quickly(AWS_ENDPOINT_URL="http://127.0.0.1:1")
    message = r"s3://files.*: check the network and AWS_ENDPOINT_URL, then run again"
    with pytest.raises(StoreError, match=message):
        files_at("s3://files").read("x")


def test_the_service_fails_for_ever(quickly, s3, tmp_path):
    from tests.servers.proxy import Rule

    quickly()
    s3.proxy.rules.append(Rule(times=None, status=503))
    with pytest.raises(StoreError, match=r"503 .*: the service keeps failing: run again later"):
        files_at("s3://files").write("x", b"1")


def test_a_bucket_of_another_region(quickly, s3):
    from tests.servers.proxy import Rule

    quickly()
    # S3 tells no LOCATION either
    s3.proxy.rules.append(Rule(times=None, status=301))
    with pytest.raises(StoreError, match=r"set AWS_REGION to the region of the bucket$"):
        files_at("s3://files").read("x")


@pytest.mark.parametrize(
    "address",
    ["s3://", "s3:///a", "s3://b d/a", "s3://b/a//b", "s3://b/a/../c", "gs://b/.", "az://b/a\nb"],
)
def test_what_no_bucket_can_have(address):
    with pytest.raises(StoreError, match=r"' is no (name of a bucket|part of a key): correct the"):
        files_at(address)


@pytest.mark.parametrize(
    ("address", "said", "fix"),
    [
        (
            "s3://b/x",
            "status code: 400 Bad Request: <?xml?>\n<Error><Code>ExpiredToken</Code>"
            "<Message>The token has expired.</Message></Error>",
            r"store s3://b/x: ExpiredToken: The token has expired: renew the credentials \(AWS_",
        ),
        (
            "gs://b/x",
            "Error performing token request: Error performing GET http://169.254.169.254/ 403 ",
            "no credentials found: set GOOGLE_APPLICATION_CREDENTIALS$",
        ),
        ("az://b/x", "MissingAccount", "no credentials found: set AZURE_STORAGE_ACCOUNT_NAME"),
        (
            "s3://b/x",
            "status code: 400 Bad Request: <Error><Code>AuthorizationHeaderMalformed</Code>"
            "<Message>The region 'us-east-1' is wrong; expecting 'eu-west-1'</Message></Error>",
            "'us-east-1' is wrong; expecting 'eu-west-1': set AWS_REGION to the region of the",
        ),
        ("gs://b/x", "code: 405 Method Not Allowed", "refuses it: check the address and GOOGLE"),
    ],
)
def test_what_other_services_say(address, said, fix):
    from obstore.exceptions import GenericError

    with pytest.raises(StoreError, match=fix), object_errors(address):
        raise GenericError(said)


def test_az_without_an_account(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(StoreError, match="no credentials found: set AZURE_STORAGE_ACCOUNT_NAME"):
        files_at("az://container/store").read("store.json")
