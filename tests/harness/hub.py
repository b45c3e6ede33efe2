"""A stand-in for a Hugging Face hub, and for any web server with files: the protocol that ``huggingface_hub`` speaks.

Written from the library's requests and the hub's documented headers: model information with file sizes and digests,
``resolve`` with X-Repo-Commit, X-Linked-Etag and X-Linked-Size and a redirect to where the bytes are, ranges, tokens,
and the X-Error-Code of each refusal. It can cut a connection, stall, or change a file.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)\Z")
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?P<rest>/.*)?\Z")
_TREE = re.compile(r"/tree/[^/]+/?\Z")


@dataclass
class Repo:
    """A repository: its files, and the token that opens it (None: public). ``gated``: terms were not accepted."""

    files: dict[str, bytes]
    token: str | None = None
    gated: bool = False


@dataclass
class Seen:
    """One request, as it arrived."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Hub:
    """A running stand-in; use it as a context manager.

    ``cuts`` says after how many bytes the next answers with a file break off (None: not at all), one entry each.
    ``stall_after_bytes`` makes a file's answer stop, with the connection open, until `release` is set.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """What ``/files/NAME`` serves, as a plain web server would."""
    cuts: list[int | None] = field(default_factory=list)
    stall_after_bytes: int | None = None
    etags: bool = True
    seen: list[Seen] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``"""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def storage_url(self) -> str:
        """Where large files are, on another host as at the real hub: no token may be sent there."""
        return f"http://localhost:{self._server.server_port}"

    def ranges(self) -> list[str | None]:
        """The Range header of each request for a file's bytes, in order."""
        return [seen.headers.get("range") for seen in self.seen if seen.method == "GET" and "/api/" not in seen.path]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.seen.append(Seen(self.command, path, headers))
        if path.startswith("/files/"):
            self._bytes(self.hub.files.get(path.removeprefix("/files/")), {})
        elif path.startswith("/cdn/"):
            self._cdn(path.removeprefix("/cdn/"))
        elif match := _API.match(path):
            self._api(match["repo"], match["rest"] or "")
        elif match := _RESOLVE.match(path):
            self._resolve(match["repo"], match["file"])
        else:
            self._answer(404, b"", {})

    def _open(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        sent = self.headers.get("authorization", "").removeprefix("Bearer ")
        if repo is None or (repo.token is not None and sent != repo.token):
            self._answer(404 if sent else 401, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return None
        if repo.gated:
            self._answer(403, b'{"error":"Access is restricted"}', {"X-Error-Code": "GatedRepo"})
            return None
        return repo

    def _api(self, name: str, rest: str) -> None:
        repo = self._open(name)
        if repo is None:
            return
        if _TREE.match(rest):
            self._json([_entry(file, data) for file, data in repo.files.items()])
        else:
            siblings = [{"rfilename": file, **_details(data)} for file, data in repo.files.items()]
            self._json({"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})

    def _resolve(self, name: str, file: str) -> None:
        repo = self._open(name)
        if repo is None:
            return
        data = repo.files.get(file)
        if data is None:
            self._answer(404, b"Entry not found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        if not _is_large(data):
            self._bytes(data, {"X-Repo-Commit": COMMIT})
            return
        digest = hashlib.sha256(data).hexdigest()
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": COMMIT}
        self._answer(302, b"", {**linked, "Location": f"{self.hub.storage_url}/cdn/{digest}"})

    def _cdn(self, digest: str) -> None:
        for repo in self.hub.repos.values():
            for data in repo.files.values():
                if hashlib.sha256(data).hexdigest() == digest:
                    self._bytes(data, {})
                    return
        self._answer(404, b"", {})

    def _bytes(self, data: bytes | None, extra: dict[str, str]) -> None:
        if data is None:
            self._answer(404, b"no such file", {})
            return
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"Accept-Ranges": "bytes", **({"ETag": etag} if self.hub.etags else {}), **extra}
        start, status = 0, 200
        wanted = re.match(r"bytes=(\d+)-\Z", self.headers.get("range", ""))
        if wanted and self.headers.get("if-range", etag) == etag:
            start, status = int(wanted[1]), 206
            if start >= len(data):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(status, data[start:], headers, is_file=True)

    def _json(self, body: Any) -> None:
        self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str], *, is_file: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cuts.pop(0) if is_file and self.hub.cuts else None
        stall = self.hub.stall_after_bytes if is_file else None
        if stall is not None:
            self.wfile.write(body[:stall])
            self.hub.stalled.set()
            self.hub.release.wait(30)
        elif cut is not None:
            self.wfile.write(body[:cut])
        else:
            self.wfile.write(body)
            return
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def _is_large(data: bytes) -> bool:
    """Whether the hub would keep it apart from the repository, as it does with every model file."""
    return data.startswith(b"GGUF") or len(data) > 10_000


def _details(data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    lfs = {"sha256": digest, "size": len(data), "pointerSize": 134} if _is_large(data) else None
    return {"size": len(data), "blobId": hashlib.sha1(data).hexdigest(), **({"lfs": lfs} if lfs else {})}


def _entry(file: str, data: bytes) -> dict[str, Any]:
    details = _details(data)
    lfs = details.get("lfs")
    entry = {"type": "file", "path": file, "oid": details["blobId"], "size": len(data)}
    return entry | ({"lfs": {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 134}} if lfs else {})
