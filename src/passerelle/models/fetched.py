"""What every source of model files shares: its errors, its progress report, and checksums."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PIECE_BYTES = 1 << 20


class ModelError(Exception):
    """Something about a model file that one line can say.

    ModelError
      UnknownModel    no such name, or a source that is not one: the command is wrong
      ModelMissing    known, but not on this machine
      PullFailed      the file could not be fetched, or is not what it should be
      DriverMissing   what would run it is not installed, or not here
    """


class UnknownModel(ModelError):
    """The name or the source is wrong."""


class ModelMissing(ModelError):
    """The model is not on this machine."""


class PullFailed(ModelError):
    """The model could not be fetched."""


class DriverMissing(ModelError):
    """What runs this kind of model server is not installed."""


class Progress(Protocol):
    """Told how a download goes. Sizes are bytes."""

    def begin(self, label: str, total: int | None, done: int) -> None:
        """A file of ``total`` bytes, None if not known, of which ``done`` are here, begins or is taken up again."""

    def advance(self, count: int) -> None:
        """``count`` more bytes are here."""

    def end(self) -> None:
        """It is complete, or given up; also without a `begin`, when nothing had to be fetched."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Files in a staging folder: ``files`` are paths relative to it, the first is the one to load."""

    folder: Path
    files: tuple[str, ...]
    revision: str | None = None
    """Of the repository, when the source has such a thing."""


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raises PullFailed, and deletes the file, when its SHA-256 is not ``expected``."""
    found = sha256_of(path)
    if found != expected.lower():
        path.unlink()
        raise PullFailed(f"{what}: its SHA-256 is {found}, not {expected.lower()}; the file was deleted")


def place(source: Path, target: Path) -> None:
    """Makes ``target`` the same file as ``source``: a hard link where the file system allows it, else a synced copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:
        with reported_space(target.parent):
            shutil.copyfile(source, target)
            sync(target)


def sync(path: Path) -> None:
    """Makes a file's or a folder's content survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_space(folder: Path, needed_bytes: int | None) -> None:
    """Raises PullFailed when the disk of ``folder`` cannot take ``needed_bytes`` more."""
    free = shutil.disk_usage(folder).free
    if needed_bytes is not None and needed_bytes > free:
        raise PullFailed(f"no space in {folder}: {megabytes(needed_bytes)} needed, {megabytes(free)} free")


@contextmanager
def reported_space(folder: Path) -> Iterator[None]:
    """Turns a full or read-only disk into PullFailed."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PullFailed(f"no space left in {folder}") from None
        if error.errno in (errno.EROFS, errno.EACCES):
            raise PullFailed(f"cannot write to {folder}: {error.strerror}") from None
        raise


def megabytes(count: int) -> str:
    """Returns a size in MB or GB, for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1_000_000_000 else f"{count / 1e6:.1f} MB"
