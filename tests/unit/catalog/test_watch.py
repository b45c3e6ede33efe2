"""Hot reload with real files and the real watcher (row G1 of the fault table)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from passerelle.catalog.holder import Catalog, ReloadError
from passerelle.catalog.watch import Watcher
from passerelle.settings import Configuration, Settings, load_configuration, reloader

DEADLINE_S = 15.0


def text(*names: str, extra: str = "") -> str:
    models = "".join(f"  - {{name: {name}, targets: [{{url: 'http://{name}/v1'}}]}}\n" for name in names)
    return f"{extra}models:\n{models}"


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition that the watcher brings about, at most 15 s."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the watcher did not notice in time"
        await asyncio.sleep(0.01)


class Watched:
    """A catalog that follows a file, and the results it was told."""

    def __init__(self, config: Path, *, polling: bool = False, live: frozenset[str] = frozenset()) -> None:
        self.applied: list[Settings] = []
        environ = {"PASSERELLE_HOME": str(config.parent)}
        self.running: Configuration = load_configuration(config, environ)
        self.catalog = Catalog(self.running.snapshot)
        self.results: list[ReloadError | None] = []
        load = reloader(self.running, environ, live=live, on_settings=self.applied.append)
        self.watcher = Watcher(self.catalog, self.running.files, load, on_result=self.results.append, polling=polling)

    def names(self) -> tuple[str, ...]:
        return self.catalog.current.names()

    @asynccontextmanager
    async def running_watcher(self) -> AsyncIterator[Watched]:
        task = asyncio.create_task(self.watcher.run())
        try:
            yield self
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "passerelle.yaml"
    path.write_text(text("a"))
    return path


@pytest.mark.parametrize("polling", [False, True])
async def test_a_file_written_in_place_is_loaded(config: Path, polling: bool) -> None:
    """The next snapshot has what the file says now, by events and by polling."""
    async with Watched(config, polling=polling).running_watcher() as watched:
        config.write_text(text("a", "b"))
        await until(lambda: watched.names() == ("a", "b"))
        assert watched.catalog.current.generation >= 2
        assert watched.catalog.last_error is None


async def test_a_file_renamed_over_the_old_one_is_loaded_again_and_again(config: Path) -> None:
    """Editors write a new file and rename it: the watch survives any number of times."""
    async with Watched(config).running_watcher() as watched:
        for round_number in range(3):
            fresh = config.with_suffix(".new")
            fresh.write_text(text("a", f"r{round_number}"))
            fresh.rename(config)
            await until(lambda name=f"r{round_number}": name in watched.names())  # type: ignore[misc]


async def test_a_bad_file_keeps_what_served_and_says_the_line(config: Path) -> None:
    """Errors of every kind leave the snapshot alone; the next good file clears the error."""
    async with Watched(config).running_watcher() as watched:
        before = watched.catalog.current
        for content, place in (
            ("models: [", "passerelle.yaml:2:1: not valid YAML"),
            (text("a") + "  - {name: a, targets: []}\n", "passerelle.yaml:3:12: models[1].name: the name 'a' is taken"),
            (text("a", extra="serverr: {}\n"), "passerelle.yaml:1:1: serverr: unknown key"),
            (text("a", extra="server: {port: x}\n"), "passerelle.yaml:1:16: server.port: expected a whole number"),
        ):
            told = len(watched.results)
            config.write_text(content)
            await until(
                lambda place=place: any(place in line for line in getattr(watched.catalog.last_error, "problems", ()))  # type: ignore[misc]
            )
            assert watched.catalog.current is before
            assert len(watched.results) > told
            assert watched.results[-1] == watched.catalog.last_error
        config.write_text(text("b"))
        await until(lambda: watched.names() == ("b",))
        assert watched.catalog.last_error is None
        assert watched.results[-1] is None


async def test_a_deleted_file_is_an_error_until_it_is_back(config: Path) -> None:
    """Deleting keeps the last good models; the file's return is noticed."""
    async with Watched(config).running_watcher() as watched:
        config.unlink()
        await until(lambda: watched.catalog.last_error is not None)
        assert "No such file" in watched.results[-1].problems[0]  # type: ignore[union-attr]
        assert watched.names() == ("a",)
        config.write_text(text("c"))
        await until(lambda: watched.names() == ("c",))


async def test_a_deleted_folder_is_survived(tmp_path: Path) -> None:
    """Even the folder may go and come back."""
    folder = tmp_path / "etc"
    folder.mkdir()
    config = folder / "passerelle.yaml"
    config.write_text(text("a"))
    async with Watched(config).running_watcher() as watched:
        config.unlink()
        folder.rmdir()
        await until(lambda: watched.catalog.last_error is not None)
        folder.mkdir()
        config.write_text(text("d"))
        await until(lambda: watched.names() == ("d",))


async def test_a_switched_symbolic_link_is_loaded(tmp_path: Path) -> None:
    """As Kubernetes updates a mounted configuration map: ``..data`` is renamed over, the file's own link stays."""
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "passerelle.yaml").write_text(text(name))
    (tmp_path / "..data").symlink_to("one")
    config = tmp_path / "passerelle.yaml"
    config.symlink_to("..data/passerelle.yaml")
    async with Watched(config).running_watcher() as watched:
        for name in ("two", "three"):
            (tmp_path / "..fresh").symlink_to(name)
            (tmp_path / "..fresh").rename(tmp_path / "..data")
            await until(lambda name=name: watched.names() == (name,))  # type: ignore[misc]
        (tmp_path / "three" / "passerelle.yaml").write_text(text("edited"))
        await until(lambda: watched.names() == ("edited",))


async def test_a_second_file_is_watched_as_soon_as_it_is_named(config: Path, tmp_path: Path) -> None:
    """A routing table elsewhere counts from the reload that brought it in."""
    elsewhere = tmp_path / "tables"
    elsewhere.mkdir()
    table = elsewhere / "llm_routing_table.json"
    entry = '{"albert": {"hf_repo_id": "x/y", "model_host": "%s", "model_port": 1}}'
    table.write_text(entry % "one")
    async with Watched(config).running_watcher() as watched:
        config.write_text(text("a", extra="models_file: tables/llm_routing_table.json\n"))
        await until(lambda: watched.names() == ("a", "albert"))
        table.write_text(entry % "two")
        await until(lambda: watched.catalog.current.models["albert"].targets[0].url == "http://two:1/v1")


async def test_a_file_that_is_named_before_it_exists_is_waited_for(config: Path, tmp_path: Path) -> None:
    """The configuration is refused while the table is missing, and taken as soon as it is there."""
    async with Watched(config).running_watcher() as watched:
        config.write_text(text("a", extra="models_file: table.json\n"))
        await until(lambda: watched.catalog.last_error is not None)
        (tmp_path / "table.json").write_text('{"s": {"hf_repo_id": "x/y", "model_host": "h", "model_port": 1}}')
        await until(lambda: watched.names() == ("a", "s"))
        assert watched.catalog.last_error is None


async def test_settings_that_need_a_restart_are_named(config: Path) -> None:
    """A new port does not move the listener; it is reported, the models are swapped all the same."""
    async with Watched(config, live=frozenset({"logging"})).running_watcher() as watched:
        config.write_text(text("b", extra="server: {port: 9001, grace_s: 1}\nlogging: {level: debug}\n"))
        await until(lambda: watched.names() == ("b",))
        assert watched.catalog.restart_keys == ("server.port", "server.grace_s")
        assert watched.applied[-1].logging.level == "debug"
        config.write_text(text("c"))
        await until(lambda: watched.names() == ("c",))
        assert watched.catalog.restart_keys == ()


async def test_reload_can_be_asked_for(config: Path) -> None:
    """An explicit reload answers whether the files are what serves now."""
    watched = Watched(config)
    config.write_text(text("b"))
    assert await watched.watcher.reload()
    assert watched.names() == ("b",)
    config.write_text("models: 3")
    assert not await watched.watcher.reload()
    assert watched.names() == ("b",)


async def test_a_defect_of_the_loader_does_not_end_the_watch(config: Path) -> None:
    """The watcher's edge holds anything: what serves stays and the error is visible, without its text."""

    def broken() -> None:
        raise ZeroDivisionError("s3cret")

    catalog = Catalog(load_configuration(config, {}).snapshot)
    watcher = Watcher(catalog, (config,), broken)  # type: ignore[arg-type]
    assert not await watcher.reload()
    assert catalog.last_error is not None
    assert catalog.last_error.problems == ("the configuration cannot be loaded: ZeroDivisionError",)


async def test_hundreds_of_reloads_leak_nothing_and_lose_no_name(config: Path) -> None:
    """Two hundred alternating reloads: each ends in its snapshot, and a held one never changes."""
    watched = Watched(config)
    held = watched.catalog.current
    for round_number in range(200):
        config.write_text(text("a", "odd") if round_number % 2 else text("a"))
        assert await watched.watcher.reload()
        assert watched.catalog.current.resolve("a") is not None
    assert watched.catalog.current.generation == 201
    assert held.names() == ("a",)
    assert len(asyncio.all_tasks()) == 1
