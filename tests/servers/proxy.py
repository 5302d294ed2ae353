"""An HTTP proxy in front of one server: it records every request and injects faults by rules.

Requests and answers pass through as they are (the Host header too, so that signatures stay
valid), streamed, over connections that are kept alive.
"""

import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PIECE = 256 << 10
"""Bytes copied at a time."""

_HOP_BY_HOP = ("connection", "keep-alive", "proxy-connection", "te", "upgrade")


@dataclass(frozen=True)
class Request:
    """One request as the proxy saw it."""

    method: str
    path: str
    """As sent: with the query, percent-encoded."""
    range: str | None
    """The Range header."""
    status: int
    """What the client got; 0 if the connection was dropped without an answer."""
    sent: int
    """Bytes of body that the client was sent."""
    host: str
    """The Host header: by which of its names the server was called."""
    authorization: str | None
    """The Authorization header."""


@dataclass
class Rule:
    """A fault for the next `times` requests that match; rules are tried in order."""

    match: str = ""
    """A regular expression searched in "METHOD /path?query"."""
    times: int | None = 1
    """Requests that it hits; None: all."""
    status: int | None = None
    """Answer with this status instead of asking the server."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of that answer."""
    cut: int | None = None
    """Close the connection after this many bytes of the body."""
    drop: bool = False
    """Close the connection instead of answering."""
    delay: float = 0.0
    """Seconds to wait before anything else."""


class Proxy:
    """The proxy; serves on its own free port of 127.0.0.1 until it is closed."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.rules: list[Rule] = []
        self._log: list[Request] = []
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """What clients talk to: http://127.0.0.1:PORT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def log(self) -> list[Request]:
        """The requests that are finished, in the order of their ends; a copy."""
        with self._lock:
            return list(self._log)

    def forget(self) -> None:
        """Empty the log and drop every rule."""
        with self._lock:
            self._log.clear()
            self.rules.clear()

    @contextmanager
    def unavailable(self) -> Iterator[None]:
        """Within the block every connection is dropped without an answer."""
        rule = Rule(times=None, drop=True)
        self.rules.insert(0, rule)
        try:
            yield
        finally:
            self.rules.remove(rule)

    def close(self) -> None:
        """Stop serving, close every connection and wait for its thread."""
        self._server.shutdown()
        self._server.close_connections()
        self._server.server_close()
        self._thread.join()

    def record(self, request: Request) -> None:
        """Append to the log."""
        with self._lock:
            self._log.append(request)

    def take_rule(self, method: str, path: str) -> Rule:
        """The rule for a request, counted as used; one without a fault if none matches."""
        with self._lock:
            for rule in self.rules:
                if rule.times != 0 and re.search(rule.match, f"{method} {path}"):
                    if rule.times is not None:
                        rule.times -= 1
                    return rule
        return Rule()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        with self._lock:
            for connection in self._connections:
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client or the server went away: the client has seen it, and so will the test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 << 10
    server: _Server

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:  # the client is gone, with bytes still in the buffer
            self.rfile.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def do_any(self) -> None:
        rule = self.server.proxy.take_rule(self.command, self.path)
        if rule.delay:
            time.sleep(rule.delay)
        if rule.drop:
            self._record(0, 0)
            self.close_connection = True
        elif rule.status is not None:
            self._answer(rule.status, rule.headers)
        else:
            self._forward(rule.cut)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = do_any  # noqa: N815

    def _record(self, status: int, sent: int) -> None:
        self.server.proxy.record(
            Request(
                method=self.command,
                path=self.path,
                range=self.headers["Range"],
                status=status,
                sent=sent,
                host=self.headers["Host"],
                authorization=self.headers["Authorization"],
            )
        )

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        for _ in self._body():
            pass
        self._record(status, 0)
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _forward(self, cut: int | None) -> None:
        # a connection for each request: one that idles is closed by servers without notice
        with closing(http.client.HTTPConnection(*self.server.proxy.upstream)) as upstream:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            _put_headers(upstream, self.headers)
            for piece in self._body():
                upstream.send(piece)
            with upstream.getresponse() as answer:
                self._send_head(answer)
                self._send_body(answer, cut)

    def _send_head(self, answer: http.client.HTTPResponse) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.end_headers()

    def _send_body(self, answer: http.client.HTTPResponse, cut: int | None) -> None:
        chunked = bool(answer.chunked)
        sent, ended = 0, False
        buffer = bytearray(PIECE)
        while not ended:
            most = PIECE if cut is None else min(PIECE, cut - sent)
            got = answer.readinto(memoryview(buffer)[:most])
            sent += got
            ended = got == 0 or answer.length == 0
            if ended:
                # before the last byte goes out, so that a client that is done finds it
                self._record(answer.status, sent)
            if got:
                self.wfile.write(b"%x\r\n" % got if chunked else b"")
                self.wfile.write(memoryview(buffer)[:got])
                self.wfile.write(b"\r\n" if chunked else b"")
        if sent == cut:
            self.close_connection = True
        elif chunked:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _body(self) -> Iterator[bytes]:
        """The body of the request, with the framing of chunks as it came."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            yield from self._chunks()
        left = int(self.headers.get("Content-Length", 0))
        while left > 0 and (piece := self.rfile.read(min(PIECE, left))):
            left -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while True:
            head = self.rfile.readline()
            size = int(head.split(b";")[0], 16)
            yield head
            yield self.rfile.read(size + 2) if size else b""
            if size == 0:
                break
        while (trailer := self.rfile.readline()) not in (b"\r\n", b""):
            yield trailer
        yield b"\r\n"


def _put_headers(upstream: http.client.HTTPConnection, headers: Message) -> None:
    for name, value in headers.items():
        if name.lower() not in (*_HOP_BY_HOP, "expect"):
            upstream.putheader(name, value)
    upstream.endheaders()
