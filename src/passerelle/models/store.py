"""The models on this machine: ``$PASSERELLE_HOME/models/NAME/`` holds a model's files and a ``manifest.json``.

A model is staged in a hidden folder, checked, synced and then renamed into its place, so no half file is ever visible.
Model files whose digest was known beforehand are also linked into a cache that all homes of a user share, under their
SHA-256, so that a second home needs no network.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from passerelle.domain.model import ModelKind
from passerelle.models.catalogue import CATALOGUE, INSTALLED, CatalogueModel, find_model
from passerelle.models.fetched import (
    Fetched,
    ModelMissing,
    Progress,
    PullFailed,
    UnknownModel,
    place,
    reported_space,
    sha256_of,
    sync,
)
from passerelle.models.gguf import NotGguf, read_gguf
from passerelle.models.sources import Pins, Source, fetch, parse_source

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")
_MANIFEST = "manifest.json"


class ModelFile(msgspec.Struct, frozen=True):
    """A file of a model: its path within the model's folder, its size in bytes and its SHA-256."""

    path: str
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What is known of a model here. ``files[0]`` is the one to load; ``pulled_at`` is seconds since the epoch."""

    name: str
    source: str
    files: tuple[ModelFile, ...]
    pulled_at: int
    revision: str | None = None
    licence: str | None = None
    architecture: str | None = None
    title: str | None = None
    context_window: int | None = None
    kind: ModelKind = ModelKind.CHAT

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size_bytes for file in self.files)


class ModelStore:
    """The models below one home. ``cache`` is the shared folder, None to use none."""

    def __init__(self, home: Path, *, cache: Path | None = None) -> None:
        self._folder = home / "models"
        self._parts = self._folder / ".parts"
        self._cache = cache

    def list(self) -> list[Manifest]:
        """Returns the models on this machine, by name."""
        if not self._folder.is_dir():
            return []
        found = (self._read(path) for path in sorted(self._folder.iterdir()) if not path.name.startswith("."))
        return [manifest for manifest in found if manifest is not None]

    def show(self, name: str) -> Manifest:
        """Returns the model of that name, or of the catalogue's name for that alias. Raises ModelMissing."""
        for candidate in _candidates(name):
            manifest = self._read(self._folder / candidate)
            if manifest is not None:
                return manifest
        known = find_model(name)
        remedy = f"run `passerelle model pull {name}`" if known else "`passerelle model list` shows what there is"
        raise ModelMissing(f"model {name} is not on this machine: {remedy}")

    def resolve(self, name: str) -> Path:
        """Returns the file to load for a name, an alias, ``file:/path`` or a path that ends in .gguf.

        Raises ModelMissing. The file is not read: `read_gguf` says whether it is whole.
        """
        if name.startswith("file:") or name.endswith(".gguf"):
            path = Path(name.removeprefix("file:").removeprefix("//")).expanduser()
            if path.is_file():
                return path
            raise ModelMissing(f"{path}: no such model file")
        manifest = self.show(name)
        path = self._folder / manifest.name / manifest.files[0].path
        if not path.is_file():
            raise ModelMissing(f"model {name} lost its file {path}: run `passerelle model pull {name}`")
        return path

    def remove(self, name: str) -> Manifest:
        """Deletes a model from this home (not from the shared cache) and returns what it was. Raises ModelMissing."""
        manifest = self.show(name)
        hidden = self._hidden("old")
        (self._folder / manifest.name).rename(hidden)
        shutil.rmtree(hidden)
        return manifest

    def pull(self, what: str, progress: Progress, *, name: str | None = None, sha256: str | None = None) -> Manifest:
        """Fetches a model by its catalogue name or from a source, and returns its manifest.

        Does nothing when the model is here from the same source with the same digest. ``name`` overrides the name made
        from the source; ``sha256`` is what the model file must have. Blocks for as long as the network takes. Raises
        UnknownModel or PullFailed, each one line.
        """
        known = find_model(what)
        if known is not None and known.source.startswith(INSTALLED):
            raise UnknownModel(f"{known.name} came with Passerelle: it is here, and needs no pull")
        source = parse_source(known.source if known else what)
        target = name or (known.name if known else source.name)
        if not _NAME.match(target):
            raise UnknownModel(f"{target!r} cannot name a model: use letters, digits, '.', '_' and '-'")
        if sha256 is not None and not _SHA256.match(sha256):
            raise UnknownModel("--sha256 takes 64 hexadecimal digits")
        pins = _pins(known, sha256)
        with reported_space(self._folder):
            self._parts.mkdir(parents=True, exist_ok=True)
        with self._locked(target):
            here = self._read(self._folder / target)
            if here is not None and self._is_current(here, source, pins):
                return here
            return self._fetch(source, pins, target, known, progress)

    def _fetch(
        self, source: Source, pins: Pins, target: str, known: CatalogueModel | None, progress: Progress
    ) -> Manifest:
        staging = self._hidden("new")
        with reported_space(self._folder):
            staging.mkdir()
            try:
                fetched = self._from_cache(source, pins, staging) or fetch(source, pins, staging, self._parts, progress)
                manifest = _describe(target, source, fetched, known)
                manifest_path = staging / _MANIFEST
                manifest_path.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
                sync(manifest_path)
                sync(staging)
                self._swap(staging, target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        self._into_cache(pins, self._folder / target / manifest.files[0].path)
        return manifest

    def _from_cache(self, source: Source, pins: Pins, staging: Path) -> Fetched | None:
        if self._cache is None or pins.sha256 is None:
            return None
        cached = self._cache / pins.sha256.lower()
        try:
            if not cached.is_file() or sha256_of(cached) != pins.sha256.lower():
                return None
        except OSError:
            return None  # somebody else's, or on a bad disk: fetch it
        file = f"{source.name}.gguf"
        place(cached, staging / file)
        return Fetched(staging, (file,))

    def _into_cache(self, pins: Pins, file: Path) -> None:
        """A home on another file system, a full or read-only cache: the pull has succeeded all the same."""
        if self._cache is None or pins.sha256 is None:
            return
        cached = self._cache / pins.sha256.lower()
        staged = self._cache / f".{secrets.token_hex(4)}"
        with contextlib.suppress(OSError, PullFailed):
            place(file, staged)
            staged.replace(cached)

    def _swap(self, staging: Path, target: str) -> None:
        final = self._folder / target
        if final.exists():
            old = self._hidden("old")
            final.rename(old)
            staging.rename(final)
            shutil.rmtree(old)
        else:
            staging.rename(final)
        sync(self._folder)

    def _is_current(self, here: Manifest, source: Source, pins: Pins) -> bool:
        if here.source != source.text or (pins.sha256 and here.files[0].sha256 != pins.sha256.lower()):
            return False
        folder = self._folder / here.name
        return all((folder / file.path).is_file() and _has_size(folder, file) for file in here.files)

    def _read(self, folder: Path) -> Manifest | None:
        try:
            return msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=Manifest)
        except (OSError, msgspec.MsgspecError):
            return None

    def _hidden(self, what: str) -> Path:
        return self._folder / f".{what}-{secrets.token_hex(4)}"

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One pull of a name at a time; a second process waits for the first. The kernel drops it with the process."""
        with reported_space(self._parts):
            file = (self._parts / f"{name}.lock").open("w")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def open_store(home: Path, cache_home: Path) -> ModelStore:
    """Returns the store of a home, with the cache that all homes of this user share."""
    return ModelStore(home.expanduser(), cache=cache_home.expanduser() / "passerelle" / "models")


def catalogue_and_here(store: ModelStore) -> list[tuple[CatalogueModel | None, Manifest | None]]:
    """Pairs the catalogue's models with those on this machine; those that are in only one of the two come too."""
    here = {manifest.name: manifest for manifest in store.list()}
    pairs: list[tuple[CatalogueModel | None, Manifest | None]] = [
        (model, here.pop(model.name, None)) for model in CATALOGUE
    ]
    return pairs + [(None, manifest) for manifest in here.values()]


def _candidates(name: str) -> list[str]:
    known = find_model(name)
    return [candidate for candidate in (name, known.name if known else "") if _NAME.match(candidate)]


def _pins(known: CatalogueModel | None, sha256: str | None) -> Pins:
    if known is None:
        return Pins(sha256)
    return Pins(sha256 or known.sha256, known.archive_sha256, known.archive_bytes)


def _has_size(folder: Path, file: ModelFile) -> bool:
    return (folder / file.path).stat().st_size == file.size_bytes


def _describe(name: str, source: Source, fetched: Fetched, known: CatalogueModel | None) -> Manifest:
    """Measures the staged files; raises PullFailed when the one to load is a GGUF file that is not whole."""
    files = tuple(
        ModelFile(file, (fetched.folder / file).stat().st_size, sha256_of(fetched.folder / file))
        for file in fetched.files
    )
    info = None
    if not fetched.files[0].endswith(".json"):  # a snapshot in the transformers layout begins with config.json
        try:
            info = read_gguf(fetched.folder / fetched.files[0])
        except NotGguf as error:
            why = str(error).removeprefix(f"{fetched.folder / fetched.files[0]}: ")
            raise PullFailed(f"{source.text} is not a usable model: {why}") from None
    return Manifest(
        name=name,
        source=source.text,
        files=files,
        pulled_at=int(time.time()),
        revision=fetched.revision,
        licence=known.licence if known else None,
        architecture=info.architecture if info else None,
        title=info.name if info else None,
        context_window=info.context_length if info else None,
    )
