"""Models on a hub: the real client against a hub of our own, with every fault it may have."""

import re
import resource
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from huggingface_hub import HfApi, hf_hub_download
from hypothesis import given
from hypothesis import strategies as st

import rlsparse_ray
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.weights import FileRef, open_checkpoint
from rlsparse_ray.weights.hub import HubFolder, open_hub
from rlsparse_ray.weights.hub_address import HubAddress, parse_address
from rlsparse_ray.weights.hub_cache import cache_files, cached_file
from rlsparse_ray.weights.hub_ranges import HubRanges
from rlsparse_ray.weights.hub_resolve import Locations
from rlsparse_ray.weights.hub_room import room_for
from tests.builders import small_model, write_model
from tests.servers.hub import HubServer
from tests.servers.proxy import Rule

MODEL = "model.safetensors"
TOKEN = "hf_somebody"

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Faults that do not end are given up after two seconds."""
    monkeypatch.setenv("RLSPARSE_RETRY_SECONDS", "2")


@pytest.fixture
def base(hub: HubServer) -> Path:
    """acme/base: one file of weights, a config, and a folder with another model."""
    folder = hub.folder("acme/base")
    write_model(folder, small_model(), config={"model_type": "llama"})
    write_model(folder / "step-10", small_model(1))
    return folder


@pytest.fixture
def log_in(hub, monkeypatch):
    def log_in(*repositories):
        hub.tokens.add(TOKEN)
        for name in repositories:
            hub.settings(name).readers.add(TOKEN)
        monkeypatch.setenv("HF_TOKEN", TOKEN)

    return log_in


def refusal(call, *args):
    with pytest.raises(CheckpointError) as caught:
        call(*args)
    return str(caught.value)


def read(folder: HubFolder, name: str) -> bytes:
    file = folder.files[name]
    return folder.read(file, 0, file.size)


def spans(hub: HubServer) -> list[tuple[str | None, int]]:
    """Range and bytes sent of every request for data."""
    return [(r.range, r.sent) for r in hub.proxy.log if r.path.startswith("/cdn/")]


# addresses


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("hf://org/repo", ("org/repo", None, "")),
        ("hf://models/org/repo", ("org/repo", None, "")),
        ("hf://org/repo/", ("org/repo", None, "")),
        ("hf://org/repo/a/b", ("org/repo", None, "a/b")),
        ("hf://org/repo@v1", ("org/repo", "v1", "")),
        ("hf://org/repo@v1/a", ("org/repo", "v1", "a")),
        ("hf://org/repo@feature%2Fx/a", ("org/repo", "feature/x", "a")),
        ("hf://org/repo@refs/pr/12", ("org/repo", "refs/pr/12", "")),
        ("hf://org/repo@refs/pr/12/a/b", ("org/repo", "refs/pr/12", "a/b")),
        ("hf://org/repo@refs/convert/parquet/a", ("org/repo", "refs/convert/parquet", "a")),
        ("hf://org/repo/odd@name/b", ("org/repo", None, "odd@name/b")),
        ("hf://gpt2", ("gpt2", None, "")),
        ("hf://gpt2@main/a", ("gpt2", "main", "a")),
    ],
)
def test_addresses_as_hf_file_system_reads_them(address, parts):
    assert parse_address(address) == HubAddress(*parts)


@pytest.mark.parametrize("address", ["hf://", "hf://org/repo@", "hf:///repo", "s3://a/b"])
def test_what_is_no_address(address):
    assert refusal(parse_address, address).startswith(f"{address}: no address on the hub: write")


def test_other_kinds_of_repositories_are_refused():
    assert refusal(parse_address, "hf://datasets/org/data") == (
        "hf://datasets/org/data: only models have weights: write hf://org/repo"
    )


_word = st.from_regex(r"[A-Za-z0-9][\w.-]{0,9}", fullmatch=True).filter(
    lambda word: word not in ("models", "datasets", "spaces", "buckets", "kernels", "refs")
)


@given(
    st.builds(
        HubAddress,
        repository=st.builds("{}/{}".format, _word, _word),
        revision=st.none() | _word | st.builds("{}/{}".format, _word, _word),
        path=st.lists(_word, max_size=3).map("/".join),
    )
)
def test_an_address_is_read_as_it_was_written(address):
    assert parse_address(str(address)) == address


def test_every_source_of_the_corpora_that_are_shipped():
    corpora = Path(rlsparse_ray.__file__).parent / "corpora"
    sources = [
        word
        for path in corpora.glob("*.yaml")
        for word in path.read_text().replace('"', " ").replace(",", " ").split()
        if word.startswith("hf://")
    ]
    assert len(sources) > 100
    assert all(yaml.safe_load(source) == str(parse_address(source)) for source in sources)


# opening


def test_files_commit_and_bytes(hub, base):
    folder = open_hub("hf://acme/base")
    sha = hub.sha("acme/base")
    assert (folder.source, folder.revision, folder.subfolder) == ("hf://acme/base", sha, "")
    assert list(folder.files) == ["config.json", MODEL]
    for name, file in folder.files.items():
        assert file.path == f"hf://acme/base@{sha}/{name}"
        assert read(folder, name) == (base / name).read_bytes()
    weights = folder.files[MODEL]
    assert len(weights.content) == 64
    assert weights.stamp == weights.content
    assert folder.files["config.json"].content == ""


def test_a_folder_of_a_repository(hub, base):
    folder = open_hub("hf://acme/base/step-10")
    assert (folder.source, folder.subfolder) == ("hf://acme/base/step-10", "step-10")
    assert list(folder.files) == [MODEL]
    assert folder.files[MODEL].path.endswith(f"@{hub.sha('acme/base')}/step-10/{MODEL}")
    assert read(folder, MODEL) == (base / "step-10" / MODEL).read_bytes()
    assert refusal(open_hub, "hf://acme/base/step-20") == (
        f"hf://acme/base@{hub.sha('acme/base')}/step-20: no such folder in the repository: "
        "its folders are step-10"
    )


def test_revisions_are_branches_pull_requests_and_short_commits(hub, base):
    write_model(hub.folder("acme/base", "other"), small_model(2))
    hub.settings("acme/base").refs.update({"refs/pr/1": "other", "feature/x": "other"})
    sha = hub.sha("acme/base", "other")
    for revision in ("other", "refs/pr/1", "feature%2Fx", sha, sha[:8]):
        assert open_hub(f"hf://acme/base@{revision}").revision == sha != hub.sha("acme/base")


def test_the_commit_is_resolved_once_and_kept_when_the_branch_moves(hub, base):
    folder = open_hub("hf://acme/base")
    write_model(hub.folder("acme/base", "newer"), small_model(3))
    hub.settings("acme/base").refs["main"] = "newer"
    assert read(folder, MODEL) == (base / MODEL).read_bytes()
    listings = [r for r in hub.proxy.log if r.path.startswith("/api/")]
    assert len(listings) == 1
    assert all(
        f"/resolve/{folder.revision}/" in r.path for r in hub.proxy.log if "resolve" in r.path
    )


def test_a_model_in_shards_is_planned_with_few_requests(hub):
    tensors = small_model()
    write_model(hub.folder("acme/shards"), tensors, shards=2, config={"model_type": "llama"})
    checkpoint = open_checkpoint("hf://acme/shards")
    assert {t.name: t.shape for t in checkpoint.tensors} == {n: a.shape for n, a in tensors.items()}
    assert checkpoint.identity == f"hf@{hub.sha('acme/shards')}"
    # the listing; where it is and what is in it for config, index and the header of each shard
    assert len(hub.proxy.log) == 1 + 2 * 2 + 2 * 2
    assert all(r.sent <= 64 << 10 for r in hub.data_requests)


# ranges


def test_threads_share_one_resolution_and_each_byte_comes_once(hub, base):
    file = open_hub("hf://acme/base").files[MODEL]
    target = np.zeros(file.size, np.uint8)
    step = 100_003
    hub.proxy.forget()
    ranges = HubRanges()

    def read_one(start):
        ranges.read_into(file, start, target[start : start + step].data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read_one, range(0, file.size, step)))
    ranges.close()
    assert target.tobytes() == (base / MODEL).read_bytes()
    assert sum(r.sent for r in hub.data_requests) == file.size
    assert [r.method for r in hub.proxy.log if "resolve" in r.path] == ["HEAD"]


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, base, log_in):
    log_in()
    hub.settings("acme/base").private = True
    hub.settings("acme/base").readers.add(TOKEN)
    folder = open_hub("hf://acme/base")
    assert [read(folder, name) for name in folder.files]
    home = hub.endpoint.removeprefix("http://")
    sent = {(r.host == home, r.authorization) for r in hub.proxy.log}
    assert sent == {(True, f"Bearer {TOKEN}"), (False, None)}


def test_an_expired_signature_is_renewed_once(hub, base):
    folder = open_hub("hf://acme/base")
    file = folder.files[MODEL]
    folder.read(file, 0, 8)
    hub.expire()
    hub.proxy.forget()
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda at: folder.read(file, at, 1000), range(0, 8000, 1000)))
    assert b"".join(parts) == (base / MODEL).read_bytes()[:8000]
    assert len([r for r in hub.proxy.log if "resolve" in r.path]) == 1


def test_a_process_asks_once_where_a_file_is(hub, base):
    file = open_hub("hf://acme/base").files[MODEL]
    for _ in range(3):
        ranges = HubRanges()
        ranges.read_into(file, 0, memoryview(bytearray(100)))
        ranges.close()
    assert [r.method for r in hub.proxy.log if "resolve" in r.path] == ["HEAD"]


def test_few_locations_are_kept(hub, base):
    locations = Locations(most=1)
    files = open_hub("hf://acme/base").files
    for name in (MODEL, MODEL, "config.json", MODEL):
        locations.get(files[name])
    assert len([r for r in hub.proxy.log if "resolve" in r.path]) == 3


def test_a_storage_host_that_goes_on_refusing(hub, base):
    folder = open_hub("hf://acme/base")
    hub.proxy.rules.append(Rule("/cdn/", times=None, status=403))
    message = refusal(read, folder, MODEL)
    assert message.startswith(f"{folder.files[MODEL].path}: localhost:")
    assert "answers 403, though the hub had just given that address" in message


@pytest.mark.parametrize("resolved", [False, True])
def test_a_shard_that_was_replaced_is_refused(hub, base, resolved):
    folder = open_hub("hf://acme/base")
    file = folder.files[MODEL]
    if resolved:
        folder.read(file, 0, 8)
    write_model(base, small_model(7))
    message = refusal(folder.read, file, 0, file.size)
    assert message.startswith(f"{file.path}: changed between plan and read (ETag {file.stamp} then")


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("where", ["GET /api/", "HEAD .*/resolve/", "GET .*/cdn/"])
def test_what_fails_for_a_moment_is_asked_again(hub, base, status, where):
    hub.proxy.rules.append(Rule(where, status=status, headers={"Retry-After": "0"}))
    assert read(open_hub("hf://acme/base"), MODEL) == (base / MODEL).read_bytes()
    assert [r.status for r in hub.proxy.log].count(status) == 1


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """The clock of the waits for the hub."""
    clock = Clock()
    monkeypatch.setattr("rlsparse_ray.weights.hub_patience.time", clock)
    monkeypatch.setattr("rlsparse_ray.weights.hub_patience._notice.until", 0.0)
    return clock


WINDOW = {"RateLimit": '"api";r=0;t=300'}


def test_the_pause_that_is_asked_for_is_kept(hub, base, clock, caplog):
    """The hub's windows are longer than the time after which a fault is given up."""
    hub.proxy.rules.append(Rule("HEAD", status=429, headers={"Retry-After": "1"}))
    hub.proxy.rules.append(Rule("GET /api/", status=429, headers=WINDOW))
    assert read(open_hub("hf://acme/base"), MODEL) == (base / MODEL).read_bytes()
    assert [int(pause / asked) for pause, asked in zip(clock.pauses, (300, 1), strict=True)] == [
        1,
        1,
    ]
    (line,) = caplog.messages
    assert re.fullmatch(rf"{hub.endpoint} answers 429: waiting 3\d\d s, as it asks", line)


def test_threads_that_wait_together_say_so_once(hub, base, clock, caplog):
    hub.proxy.rules.append(Rule("GET /api/", times=4, status=429, headers=WINDOW))
    # one after the other: the clock stands still while others wait
    clock.sleep = clock.pauses.append
    for _ in range(4):
        open_hub("hf://acme/base")
    assert len(caplog.messages) == 1
    assert len(set(clock.pauses)) == 4, "all would come back at once"


def test_a_fault_after_a_pause_has_its_own_time(hub, base, clock):
    hub.proxy.rules.append(Rule("GET /api/", status=429, headers=WINDOW))
    hub.proxy.rules.append(Rule("GET /api/", times=2, status=503))
    assert open_hub("hf://acme/base").revision == hub.sha("acme/base")


@pytest.mark.parametrize(("asked", "tries"), [(300, [4]), (331, [1]), (0, range(4, 12))])
def test_a_hub_that_always_asks_for_a_pause_is_given_up(hub, base, clock, asked, tries):
    headers = {"Retry-After": f"{asked}"}
    hub.proxy.rules.append(Rule("GET /api/", times=None, status=429, headers=headers))
    message = refusal(open_hub, "hf://acme/base")
    found = int(re.search(r"answers 429 \((\d+) tries in \d+ s\): run again later", message)[1])
    assert found in tries
    assert clock.now < 4 * 330


def test_a_hub_that_goes_on_failing_is_given_up(hub, base, monkeypatch):
    folder = open_hub("hf://acme/base")
    monkeypatch.setenv("RLSPARSE_RETRY_SECONDS", "0.6")
    hub.proxy.rules.append(Rule("/cdn/", times=None, status=503))
    message = refusal(read, folder, MODEL)
    assert message.startswith(f"{folder.files[MODEL].path}: localhost:")
    assert "answers 503 (" in message
    assert re.search(r"run again later, or set RLSPARSE_RETRY_SECONDS to \d or more$", message)


def test_a_body_that_breaks_off_is_resumed_where_it_broke(hub, base):
    folder = open_hub("hf://acme/base")
    file = folder.files[MODEL]
    hub.proxy.rules += [Rule("/cdn/", cut=1000), Rule("/cdn/", cut=0), Rule("/cdn/", cut=5000)]
    assert read(folder, MODEL) == (base / MODEL).read_bytes()
    last = file.size - 1
    assert spans(hub) == [
        (f"bytes=0-{last}", 1000),
        (f"bytes=1000-{last}", 0),
        (f"bytes=1000-{last}", 5000),
        (f"bytes=6000-{last}", file.size - 6000),
    ]


def test_dropped_connections_are_made_again(hub, base):
    hub.proxy.rules += [Rule(where, drop=True) for where in ("GET /api/", "HEAD", "/cdn/")]
    assert read(open_hub("hf://acme/base"), MODEL) == (base / MODEL).read_bytes()


def test_a_host_that_ignores_ranges_is_refused(hub, base):
    folder = open_hub("hf://acme/base")
    hub.proxy.rules.append(Rule("/cdn/", status=200))
    assert "sends whole files where ranges are asked for: check HF_ENDPOINT" in refusal(
        folder.read, folder.files[MODEL], 8, 100
    )


def test_no_range_beyond_the_end(hub, base):
    folder = open_hub("hf://acme/base")
    file = folder.files[MODEL]
    assert "changed between plan and read" in refusal(folder.read, file, file.size, 8)


# refusals that say what to do


def test_gated_repositories(hub, base, log_in):
    hub.settings("acme/base").gated = True
    page = f"{hub.endpoint}/acme/base"
    path = f"hf://acme/base@{hub.sha('acme/base')}/{MODEL}"
    assert refusal(read, open_hub("hf://acme/base"), MODEL) == (
        f"{path}: gated: open {page}, accept the terms, then `hf auth login` or set HF_TOKEN"
    )
    log_in()
    assert refusal(read, open_hub("hf://acme/base"), MODEL).startswith(
        f"{path}: gated, and your token has no access: open {page} with that account"
    )
    log_in("acme/base")
    assert read(open_hub("hf://acme/base"), MODEL) == (base / MODEL).read_bytes()


def test_private_and_missing_repositories(hub, base, log_in):
    hub.settings("acme/base").private = True
    for address in ("hf://acme/base", "hf://acme/nothing"):
        assert refusal(open_hub, address) == (
            f"{address}: no such repository, or a private one: check the name; if it is private, "
            "`hf auth login` or set HF_TOKEN"
        )
    log_in()
    assert refusal(open_hub, "hf://acme/base") == (
        "hf://acme/base: no such repository, or a private one that your token may not read"
    )
    log_in("acme/base")
    assert read(open_hub("hf://acme/base"), MODEL) == (base / MODEL).read_bytes()


def test_a_token_that_is_nobodys(hub, base, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert refusal(open_hub, "hf://acme/base") == (
        "hf://acme/base: the hub refuses your token: `hf auth login` or set HF_TOKEN anew"
    )


def test_a_missing_revision_names_those_that_are_there(hub, base):
    hub.folder("acme/base", "step-10")
    assert refusal(open_hub, "hf://acme/base@step-11") == (
        "hf://acme/base@step-11: no revision step-11 there: it has main, step-10 (or name a commit)"
    )


def test_a_name_that_cannot_be_one(hub):
    assert refusal(open_hub, "hf://acme/b--b") == (
        "hf://acme/b--b: 'acme/b--b' is no name of a repository: write hf://org/repo"
    )


@pytest.mark.parametrize("old", ["old/base", "gpt2"])
def test_a_renamed_repository_goes_by_its_new_name(hub, base, old):
    hub.rename(old, "acme/base")
    folder = open_hub(f"hf://{old}@main/step-10")
    assert folder.source == "hf://acme/base/step-10"
    assert read(folder, MODEL) == (base / "step-10" / MODEL).read_bytes()
    assert not [r for r in hub.proxy.log if "resolve" in r.path and old in r.path]


def test_a_hub_that_is_not_there(hub, monkeypatch):
    monkeypatch.setenv("RLSPARSE_RETRY_SECONDS", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/")
    message = refusal(open_hub, "hf://acme/base")
    assert message.startswith("hf://acme/base: http://127.0.0.1:9 cannot be reached (")
    assert "check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1" in message


def test_a_repository_without_weights(hub):
    (hub.folder("acme/words") / "README.md").write_text("# words")
    assert "no safetensors" in refusal(open_checkpoint, "hf://acme/words")


# the local cache


@pytest.fixture
def download(hub, monkeypatch, tmp_path):
    """What a user downloaded before: with the real library, into the same cache."""

    def download(repository, *names, **which):
        for name in names:
            hf_hub_download(
                repository,
                name,
                endpoint=hub.endpoint,
                cache_dir=tmp_path / "hub-cache",
                **which,
            )
        hub.proxy.forget()

    return download


def test_a_cached_file_is_not_fetched_and_the_others_are(hub, base, download):
    download("acme/base", MODEL)
    folder = open_hub("hf://acme/base")
    assert read(folder, MODEL) == (base / MODEL).read_bytes()
    assert [r.path.partition("?")[0] for r in hub.proxy.log] == ["/api/models/acme/base"]
    assert read(folder, "config.json") == (base / "config.json").read_bytes()
    assert len(hub.proxy.log) == 3


def test_a_cached_file_that_is_cut_is_fetched(hub, base, download):
    download("acme/base", MODEL)
    folder = open_hub("hf://acme/base")
    path = cached_file(folder.files[MODEL])
    assert path is not None
    path.resolve().write_bytes(b"cut")
    assert read(folder, MODEL) == (base / MODEL).read_bytes()
    assert hub.data_requests


def test_offline_the_cache_alone_is_asked(hub, base, download, monkeypatch):
    online = open_hub("hf://acme/base")
    download("acme/base", MODEL)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sha = hub.sha("acme/base")
    for address in ("hf://acme/base", f"hf://acme/base@{sha}", f"hf://acme/base@{sha[:8]}"):
        folder = open_hub(address)
        assert folder.revision == sha
        assert folder.files == {MODEL: online.files[MODEL]}
        assert read(folder, MODEL) == (base / MODEL).read_bytes()
    assert refusal(read, online, "config.json") == (
        f"{online.files['config.json'].path}: not in the local cache "
        f"{cached_file(online.files[MODEL]).parents[3]}, and HF_HUB_OFFLINE forbids fetching it: "
        f"unset it, or run first: hf download acme/base config.json --revision {sha}"
    )
    assert not hub.proxy.log


def test_offline_without_the_revision(hub, base, download, monkeypatch, tmp_path):
    sha = hub.sha("acme/base")
    download("acme/base", MODEL, revision=sha)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = f"the local cache {tmp_path / 'hub-cache'} has"
    fix = "HF_HUB_OFFLINE forbids asking the hub: unset it, name one of those commits, or run first"
    assert refusal(open_hub, "hf://acme/base@v1") == (
        f"hf://acme/base@v1: {start} only {sha}, and {fix}: hf download acme/base --revision v1"
    )
    assert refusal(open_hub, "hf://acme/other") == (
        f"hf://acme/other: {start} nothing of this repository, and {fix}: hf download acme/other"
    )


def test_whole_files_are_cached_on_request(hub, base, tmp_path):
    folder = open_hub("hf://acme/base")
    cache_files(folder.files.values())
    hub.proxy.forget()
    cache_files(folder.files.values())
    for name in folder.files:
        assert read(folder, name) == (base / name).read_bytes()
    assert not hub.proxy.log


@pytest.mark.parametrize("fault", [Rule("HEAD", status=503), Rule("/cdn/", cut=1000)])
def test_a_download_into_the_cache_outlasts_a_fault(hub, base, fault):
    folder = open_hub("hf://acme/base")
    hub.proxy.rules.append(replace(fault))
    cache_files([folder.files[MODEL]])
    path = cached_file(folder.files[MODEL])
    assert path is not None
    assert path.read_bytes() == (base / MODEL).read_bytes()


@pytest.fixture
def silent(monkeypatch):
    """As a process is that has not yet said that it does not cache."""
    monkeypatch.setattr("rlsparse_ray.weights.hub_cache._said", [])


def assert_read_by_ranges(folder, base):
    """The cache is asked for, and what it does not take is read all the same."""
    cache_files(folder.files.values())
    for name in folder.files:
        assert cached_file(folder.files[name]) is None
        assert read(folder, name) == (base / name).read_bytes()


def test_a_cache_that_cannot_be_written(hub, base, monkeypatch, tmp_path, silent, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    assert_read_by_ranges(open_hub("hf://acme/base"), base)
    (line,) = caplog.messages
    assert "Not a directory" in line
    assert f"cannot be kept in {tmp_path / 'file' / 'cache'}, so it is read by ranges" in line


def test_nothing_is_cached_where_there_is_no_room(hub, base, monkeypatch, silent, caplog):
    folder = open_hub("hf://acme/base")
    disk = SimpleNamespace(total=0, free=min(file.size for file in folder.files.values()) - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: disk)
    assert_read_by_ranges(folder, base)
    assert "GB do not fit: cannot be kept in" in caplog.text
    disk.free = sum(file.size for file in folder.files.values())
    disk.total = 20 * disk.free
    cache_files([folder.files[MODEL]])
    assert cached_file(folder.files[MODEL]) is None, "a twentieth of the disk is left to others"
    disk.total = 0
    cache_files(folder.files.values())
    assert None not in map(cached_file, folder.files.values())
    assert len(caplog.messages) == 1


def test_a_disk_that_is_full_before_the_end(hub, base, tmp_path, silent, caplog):
    folder = open_hub("hf://acme/base")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        cache_files([folder.files[MODEL]])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large: cannot be kept in" in caplog.text
    assert not list(tmp_path.rglob("*.incomplete"))
    assert read(folder, MODEL) == (base / MODEL).read_bytes()


def test_downloads_at_once_do_not_share_the_same_room(tmp_path, monkeypatch):
    disk = SimpleNamespace(total=0, free=25)
    monkeypatch.setattr("shutil.disk_usage", lambda path: disk)
    one, same, other = (FileRef("hf://a/b/c", 15, stamp) for stamp in ("1", "1", "2"))
    with room_for(one, tmp_path) as fits, room_for(same, tmp_path) as again:
        assert fits and again
        with room_for(other, tmp_path) as too:
            assert not too
    # of a process that was killed
    claims = tmp_path / ".locks" / "rlsparse"
    (claims / "3.claim").write_text("15")
    with room_for(other, tmp_path) as fits:
        assert fits
    assert [path.name for path in claims.iterdir()] == ["lock"]


# discovery: what the hub tells of descendants


def test_descendants_are_found_page_by_page(hub, monkeypatch):
    monkeypatch.setattr("tests.servers.hub.PAGE", 2)
    for number in range(5):
        hub.folder(f"acme/tuned-{number}")
        hub.settings(f"acme/tuned-{number}").card["base_model"] = "acme/base"
    hub.folder("acme/base")
    found = HfApi(endpoint=hub.endpoint).list_models(filter="base_model:finetune:acme/base")
    assert [model.id for model in found] == [f"acme/tuned-{number}" for number in range(5)]
    assert len(hub.proxy.log) == 3
