"""A Hugging Face hub of our own on 127.0.0.1, for the real client, behind the recording proxy.

    with hub_server(root) as hub:
        write_model(hub.folder("acme/base"), tensors)
        os.environ.update(hub.environment)

As on the real hub, files in LFS are answered with a redirect to a signed address on another host
(here `localhost`, while the endpoint is 127.0.0.1). The proxy's rules inject every other fault.
"""

import hmac
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit

from tests.servers.hub_repos import Blob, Repositories, Repository, Settings
from tests.servers.proxy import Proxy, Request

PAGE = 1000
"""Most entries of a listing in one answer."""

DATA = "/cdn/"
"""How the paths of the second host begin."""


@dataclass(frozen=True)
class HubServer:
    """A running hub."""

    proxy: Proxy
    repositories: Repositories
    tokens: set[str]
    """Tokens that are somebody's; any other one is refused."""
    _signer: "_Signer"

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return self.proxy.endpoint

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which clients find the hub; HF_HUB_CACHE is the test's to choose."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}

    @property
    def data_requests(self) -> list[Request]:
        """Requests of the second host that were answered with bytes."""
        return [r for r in self.proxy.log if r.path.startswith(DATA) and r.sent]

    def folder(self, name: str, revision: str = "main") -> Path:
        """Where to put the files of a repository; it is made if there is none."""
        folder = self.repositories.root / name / revision
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def settings(self, name: str) -> Settings:
        """The settings of a repository, to be changed in place."""
        return self.repositories.settings.setdefault(name, Settings())

    def sha(self, name: str, revision: str = "main") -> str:
        """The commit of a revision."""
        repository = self.repositories.get(name)
        sha = repository.commit(revision) if repository else None
        if sha is None:
            raise KeyError(f"{name}@{revision}")
        return sha

    def rename(self, old: str, new: str) -> None:
        """From now on an old name is redirected to a new one; one-part names may be old names."""
        self.repositories.renamed[old] = new

    def forget(self) -> None:
        """Remove every repository, name and token, and what the proxy recorded."""
        for path in self.repositories.root.iterdir():
            shutil.rmtree(path)
        self.repositories.settings.clear()
        self.repositories.renamed.clear()
        self.tokens.clear()
        self.proxy.forget()

    def expire(self) -> None:
        """Every address that was signed until now is refused with 403."""
        self._signer.key = secrets.token_bytes(16)


@contextmanager
def hub_server(root: Path) -> Iterator[HubServer]:
    """Serve the repositories under a folder, which may grow and change meanwhile."""
    root.mkdir(parents=True, exist_ok=True)
    repositories, tokens, signer = Repositories(root), set[str](), _Signer()
    with ExitStack() as stack:
        server = _Server(repositories, tokens, signer)
        stack.callback(server.server_close)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        proxy = Proxy(("127.0.0.1", server.server_address[1]))
        stack.callback(proxy.close)
        yield HubServer(proxy, repositories, tokens, signer)


class _Signer:
    """Signs addresses of the second host for an hour."""

    def __init__(self) -> None:
        self.key = secrets.token_bytes(16)

    def query(self, path: str) -> str:
        expires = int(time.time()) + 3600
        return urlencode({"Expires": expires, "Signature": self._sign(path, expires)})

    def accepts(self, path: str, query: dict[str, str]) -> bool:
        expires = int(query.get("Expires", 0))
        signature = self._sign(path, expires)
        return expires > time.time() and hmac.compare_digest(query.get("Signature", ""), signature)

    def _sign(self, path: str, expires: int) -> str:
        return hmac.new(self.key, f"{path}?{expires}".encode(), "sha256").hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, repositories: Repositories, tokens: set[str], signer: _Signer) -> None:
        self.repositories = repositories
        self.tokens = tokens
        self.signer = signer
        super().__init__(("127.0.0.1", 0), _Handler)


class _RefusedError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        # headers are latin-1 and one line
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **headers}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def do_any(self) -> None:
        url = urlsplit(self.path)
        self.query = dict(parse_qsl(url.query, keep_blank_values=True))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self._route(url.path)
        except _RefusedError as refused:
            self._send(refused.status, {"error": str(refused)}, refused.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_any  # noqa: N815

    def _route(self, path: str) -> None:
        if path.startswith(DATA):
            return self._data(path)
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            raise _RefusedError(401, "", "Invalid credentials in Authorization header")
        self._follow_names(path)
        if path == "/api/models":
            return self._models(token)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/(.*))?)?", path):
            return self._about(self._repository(found[1], token), found[2], found[3] or "")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository = self._repository(found[1], token)
            if repository.settings.gated and token not in repository.settings.readers:
                restricted = f"Access to model {repository.name} is restricted."
                raise _RefusedError(403 if token else 401, "GatedRepo", restricted)
            return self._resolve(repository, unquote(found[2]), unquote(found[3]))
        raise _RefusedError(404, "", "Sorry, we can't find the page you are looking for.")

    def _follow_names(self, path: str) -> None:
        """Redirect an old name, at the place where the name of a repository stands."""
        for old, new in self.server.repositories.renamed.items():
            for before in ("/api/models/", "/"):
                if path == before + old or path.startswith(f"{before}{old}/"):
                    raise _RefusedError(
                        307, "", f"Moved to {new}", Location=self.path.replace(old, new, 1)
                    )

    def _repository(self, name: str, token: str) -> Repository:
        repository = self.server.repositories.get(unquote(name))
        hidden = repository and repository.settings.private
        if repository is None or (hidden and token not in repository.settings.readers):
            raise _RefusedError(404 if token else 401, "RepoNotFound", "Repository not found")
        return repository

    def _models(self, token: str) -> None:
        wanted = parse_qs(urlsplit(self.path).query)
        expand = wanted.get("expand")
        found = []
        for repository in self.server.repositories:
            info = repository.info(repository.refs["main"], blobs=False)
            if (
                (not info["private"] or token in repository.settings.readers)
                and self.query.get("author", info["author"]) == info["author"]
                and self.query.get("search", "").lower() in info["id"].lower()
                and set(wanted.get("filter", [])) <= {*info["tags"], info["library_name"]}
            ):
                found.append(_only(info, expand) if expand else self._usual(info))
        self._send_page(found)

    def _usual(self, info: dict[str, Any]) -> dict[str, Any]:
        hidden = ("downloadsAllTime",) if self._asks("full") else ("downloadsAllTime", "siblings")
        return {name: value for name, value in info.items() if name not in hidden}

    def _about(self, repository: Repository, what: str | None, rest: str) -> None:
        if what == "refs":
            return self._send(200, _refs(repository))
        # a revision with slashes comes percent-encoded
        revision, _, path = rest.partition("/")
        sha = self._commit(repository, unquote(revision) or "main")
        if what in (None, "revision"):
            return self._send(200, repository.info(sha, blobs=self._asks("blobs")))
        if what == "tree":
            recursive = self._asks("recursive")
            entries = repository.tree(sha, unquote(path), recursive=recursive)
            if path and not entries:
                raise _RefusedError(404, "EntryNotFound", f"{path} does not exist on {sha}")
            return self._send_page(entries)
        if what == "paths-info":
            wanted = _wanted_paths(self.headers["Content-Type"], self.body)
            entries = repository.tree(sha, "", recursive=True)
            return self._send(200, [entry for entry in entries if entry["path"] in wanted])
        raise _RefusedError(404, "", "Sorry, we can't find the page you are looking for.")

    def _commit(self, repository: Repository, revision: str) -> str:
        sha = repository.commit(revision)
        if sha is None:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _resolve(self, repository: Repository, revision: str, path: str) -> None:
        sha = self._commit(repository, revision)
        blob = repository.files(sha).get(path)
        if blob is None:
            raise _RefusedError(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if not blob.sha256:
            return self._send_file(blob, {**headers, "ETag": f'"{blob.etag}"'})
        headers["X-Linked-Size"] = str(blob.size)
        headers["X-Linked-ETag"] = f'"{blob.etag}"'
        host, _, port = self.headers["Host"].partition(":")
        # another host than the endpoint's: within one, clients follow a redirect of HEAD
        other = "127.0.0.1" if host == "localhost" else "localhost"
        target = f"{DATA}{blob.sha256}"
        signed = f"http://{other}:{port}{target}?{self.server.signer.query(target)}"
        self._send(302, {}, {**headers, "Location": signed})

    def _data(self, path: str) -> None:
        if not self.server.signer.accepts(path, self.query):
            raise _RefusedError(403, "", "Request has expired")
        if self.headers["Authorization"]:  # as S3 does with two kinds of authentication
            raise _RefusedError(400, "", "Only one auth mechanism allowed")
        blob = self.server.repositories.blob(path.removeprefix(DATA))
        if blob is None:
            raise _RefusedError(404, "", "NoSuchKey")
        self._send_file(blob, {"ETag": f'"{blob.sha256[:32]}"', "Accept-Ranges": "bytes"})

    def _asks(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("1", "true")

    def _send_page(self, items: Sequence[dict[str, Any]]) -> None:
        start = int(self.query.get("cursor") or 0)
        end = start + min(int(self.query.get("limit") or PAGE), PAGE)
        headers = {}
        if end < len(items):
            url = urlsplit(self.path)
            # a filter may be there several times
            asked = [(key, v) for key, v in parse_qsl(url.query) if key != "cursor"]
            query = urlencode([*asked, ("cursor", end)])
            headers["Link"] = f'<http://{self.headers["Host"]}{url.path}?{query}>; rel="next"'
        self._send(200, list(items[start:end]), headers)

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(answer).encode()
        self._send_head(status, len(body), {"Content-Type": "application/json", **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_file(self, blob: Blob, headers: dict[str, str]) -> None:
        start, end = _span(self.headers["Range"], blob.size)
        if start >= blob.size > 0:
            raise _RefusedError(416, "", "Range", **{"Content-Range": f"bytes */{blob.size}"})
        if self.headers["Range"]:
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{blob.size}"}
        self._send_head(206 if self.headers["Range"] else 200, end - start, headers)
        if self.command == "HEAD":
            return
        with blob.path.open("rb") as stream:
            while start < end:
                start += os.sendfile(self.wfile.fileno(), stream.fileno(), start, end - start)

    def _send_head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def _span(header: str | None, size: int) -> tuple[int, int]:
    """The first byte of a range and the one after its last."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "bytes=0-")
    if found is None:
        raise _RefusedError(416, "", f"Range {header}")
    if not found[1]:
        return max(0, size - int(found[2])), size
    return int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)


def _refs(repository: Repository) -> dict[str, Any]:
    branches, others = [], []
    for name, sha in repository.refs.items():
        special = name.startswith("refs/")
        ref = name if special else f"refs/heads/{name}"
        (others if special else branches).append({"name": name, "ref": ref, "targetCommit": sha})
    return {"branches": branches, "tags": [], "converts": [], "pullRequests": others}


def _wanted_paths(content_type: str, body: bytes) -> set[str]:
    if "json" in content_type:
        return set(json.loads(body)["paths"])
    return set(parse_qs(body.decode()).get("paths", []))


def _only(info: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: info[name] for name in ("_id", "id", *names)}
