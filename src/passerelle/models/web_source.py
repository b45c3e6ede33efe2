"""Fetches a file by HTTP, resuming where an earlier attempt stopped.

The bytes go to a ``.part`` file with a note of the server's validator (RFC 9110: a strong ETag, else Last-Modified).
A later attempt asks for the rest with ``Range`` and ``If-Range``: a server whose file has changed answers with the
whole new file, so two versions are never spliced. Without a validator it starts over.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from passerelle.models.fetched import PIECE_BYTES, Progress, PullFailed, UnknownModel, check_space, reported_space

_TIMEOUT_S = 30.0
_FRUITLESS_ATTEMPTS = 4
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_url(url: str, *, pinned: bool) -> None:
    """Raises UnknownModel for an address we do not fetch: plain http needs a known SHA-256, or this machine."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UnknownModel(f"url:{url} is not an http or https address")
    if parts.scheme == "http" and not pinned and parts.hostname not in _LOOPBACK:
        raise UnknownModel(f"url:{url} can be changed on its way: use https, or give --sha256")


def download(url: str, part: Path, progress: Progress, *, pinned: bool, pause_s: float = 1.0) -> None:
    """Fetches ``url`` into ``part``, which afterwards is complete and synced.

    A connection that breaks is taken up again, with growing pauses from ``pause_s`` seconds, until four attempts in a
    row brought nothing. Raises PullFailed; ``part`` then stays for a later attempt.
    """
    check_url(url, pinned=pinned)
    work = _Download(url, part, progress, pinned)
    fruitless = 0
    try:
        while True:
            before = _size(part)
            try:
                work.attempt()
                return
            except (OSError, http.client.HTTPException) as error:
                fruitless = 0 if _size(part) > before else fruitless + 1
                if fruitless >= _FRUITLESS_ATTEMPTS:
                    raise PullFailed(f"{_shown(url)} cannot be fetched: {_reason(error)}") from None
            time.sleep(pause_s * 2**fruitless / 2)
    finally:
        progress.end()


class _Download:
    def __init__(self, url: str, part: Path, progress: Progress, pinned: bool) -> None:
        self._url = url
        self._part = part
        self._note = part.with_suffix(".note")
        self._progress = progress
        self._pinned = pinned

    def attempt(self) -> None:
        """One connection's worth. Raises OSError or HTTPException when another attempt may help, else PullFailed."""
        have = _size(self._part)
        validator = _validator(self._note, self._url)
        headers = {"accept-encoding": "identity", "user-agent": "passerelle"}
        if have and validator:
            headers |= {"range": f"bytes={have}-", "if-range": validator}
        request = urllib.request.Request(self._url, headers=headers)  # noqa: S310 - the scheme was checked
        try:
            response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error, have)
            return
        with response:
            check_url(response.geturl(), pinned=self._pinned)
            self._receive(response, have if response.status == 206 else 0)

    def _refused(self, error: urllib.error.HTTPError, have: int) -> None:
        """Returns when the file is complete already."""
        if error.code == 416:  # nothing after what we have: complete, or another file by now
            if error.headers.get("content-range") == f"bytes */{have}":
                return
            self._part.unlink()
            raise ConnectionError("the file on the server has changed")
        if error.code in (408, 429) or error.code >= 500:
            raise ConnectionError(f"the server answered {error.code}")
        raise PullFailed(f"{_shown(self._url)} cannot be fetched: the server answered {error.code}")

    def _receive(self, response: http.client.HTTPResponse, have: int) -> None:
        length = response.headers.get("content-length")
        total = have + int(length) if length else None
        self._progress.begin(_file_name(self._url), total, have)
        with reported_space(self._part.parent):
            check_space(self._part.parent, total - have if total is not None else None)
            _remember(self._note, self._url, response.headers)
            with self._part.open("r+b" if have else "wb") as file:
                file.seek(have)
                while piece := response.read(PIECE_BYTES):
                    file.write(piece)
                    file.flush()
                    self._progress.advance(len(piece))
                    have += len(piece)
                os.fsync(file.fileno())
        if total is not None and have < total:
            raise ConnectionError(f"the connection ended after {have:,} of {total:,} bytes")


def _remember(note: Path, url: str, headers: http.client.HTTPMessage) -> None:
    etag = headers.get("etag", "")
    validator = etag if etag and not etag.startswith("W/") else headers.get("last-modified")
    note.write_text(json.dumps({"url": url, "validator": validator}))


def _validator(note: Path, url: str) -> str | None:
    try:
        noted = json.loads(note.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(noted, dict) or noted.get("url") != url:
        return None
    validator = noted.get("validator")
    return validator if isinstance(validator, str) else None


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def _file_name(url: str) -> str:
    return urlsplit(url).path.rpartition("/")[2] or "model"


def _shown(url: str) -> str:
    """The address without what may be a secret: user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer for {_TIMEOUT_S:g} s"
    return str(getattr(cause, "strerror", None) or cause)
