"""Services follow their folder, with real files and the real watcher (row G1 of the fault table)."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from passerelle.services.folder import ServiceCatalog, ServiceHolder, ServiceLoader, find_folders
from passerelle.services.watch import ServiceWatcher

DEADLINE_S = 20.0


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition that the watcher brings about."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the watcher did not notice in time"
        await asyncio.sleep(0.01)


class Watched:
    """A folder that is followed, and the catalogs that its listener was told of."""

    def __init__(self, root: Path, *, polling: bool = False) -> None:
        self.services, self.prompts = root / "services", root / "prompts"
        self.holder = ServiceHolder()
        self.told: list[ServiceCatalog] = []
        loader = ServiceLoader(find_folders(root), {})
        self.watcher = ServiceWatcher(self.holder, loader, on_result=self.told.append, polling=polling)

    def described(self) -> dict[str, str]:
        services = self.holder.current.services
        return {name: service.description.get("en", "") for name, service in services.items()}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Watched]:
        task = asyncio.create_task(self.watcher.run())
        try:
            yield self
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


def write(root: Path, name: str, description: str) -> None:
    for folder in ("services", "prompts"):
        (root / folder).mkdir(exist_ok=True)
    (root / "prompts" / f"{name}.txt").write_text("Work on {}")
    (root / "services" / f"{name}.yaml").write_text(f"{name}: {{model: m, description: {description}}}")


@pytest.mark.parametrize("polling", [False, True])
async def test_create_modify_rename_and_delete_are_followed(tmp_path: Path, polling: bool) -> None:
    """Each is seen without a restart, by events and by polling; the catalog in use stays whole."""
    write(tmp_path, "a", "one")
    async with Watched(tmp_path, polling=polling).running() as watched:
        await until(lambda: watched.described() == {"a": "one"})
        write(tmp_path, "b", "new")
        await until(lambda: watched.described() == {"a": "one", "b": "new"})
        write(tmp_path, "a", "two longer")
        await until(lambda: watched.described()["a"] == "two longer")
        fresh = watched.services / "fresh"
        fresh.write_text("a: {model: m, description: three}")
        fresh.rename(watched.services / "a.yaml")
        await until(lambda: watched.described()["a"] == "three")
        (watched.services / "b.yaml").unlink()
        await until(lambda: watched.described() == {"a": "three"})
        assert watched.told[-1] is watched.holder.current


async def test_a_mistake_is_told_and_mended(tmp_path: Path) -> None:
    """The last good one serves meanwhile, and its jobs see no gap."""
    write(tmp_path, "a", "good")
    async with Watched(tmp_path).running() as watched:
        await until(lambda: watched.described() == {"a": "good"})
        (watched.services / "a.yaml").write_text("a: [")
        await until(lambda: bool(watched.holder.current.problems))
        assert watched.described() == {"a": "good"}
        write(tmp_path, "a", "better")
        await until(lambda: watched.described() == {"a": "better"})
        assert watched.holder.current.problems == ()


async def test_a_prompt_is_followed(tmp_path: Path) -> None:
    """The next job has the new text."""
    write(tmp_path, "a", "x")
    async with Watched(tmp_path).running() as watched:
        await until(lambda: bool(watched.described()))
        (watched.prompts / "a.txt").write_text("Other words for {}")
        await until(lambda: watched.holder.current.services["a"].prompt.text == "Other words for {}")


async def test_folders_may_come_later_and_go(tmp_path: Path) -> None:
    """A gateway that starts without services gets them when their folder is made."""
    async with Watched(tmp_path).running() as watched:
        await until(lambda: watched.holder.current.generation >= 1)
        write(tmp_path, "a", "late")
        await until(lambda: watched.described() == {"a": "late"})
        shutil.rmtree(tmp_path / "services")
        await until(lambda: watched.described() == {})
        write(tmp_path, "a", "again")
        await until(lambda: watched.described() == {"a": "again"})


async def test_a_switched_link_is_followed(tmp_path: Path) -> None:
    """As Kubernetes does with configuration maps."""
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        write(tmp_path / version, "a", version)
    root = tmp_path / "root"
    root.mkdir()
    for folder in ("services", "prompts"):
        (root / folder).symlink_to(tmp_path / "one" / folder)
    async with Watched(root).running() as watched:
        await until(lambda: watched.described() == {"a": "one"})
        (root / "fresh").symlink_to(tmp_path / "two" / "services")
        (root / "fresh").rename(root / "services")
        await until(lambda: watched.described() == {"a": "two"})


async def test_reload_reads_at_once(tmp_path: Path) -> None:
    """Whoever asks for it has the newest catalog in hand."""
    watched = Watched(tmp_path)
    write(tmp_path, "a", "x")
    assert list((await watched.watcher.reload()).services) == ["a"]
    assert watched.holder.current.generation == 1
