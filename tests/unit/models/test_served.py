"""How keepers and gateways find each other: entries appear, drain and end, and nobody waits for the dead."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from passerelle.domain.model import Model, ModelKind, Target
from passerelle.models.served import (
    AlreadyServed,
    ChildReport,
    Entry,
    ReportFile,
    Served,
    ServedModels,
    announce,
    is_served,
)

KNOWN = {
    "far": Model("far", (Target("t", "http://far/v1", "openai", "far"),), aliases=("distant",)),
    "e5": Model("e5", (Target("e", "http://far/v1", "openai", "e5"),), kind=ModelKind.EMBEDDING),
}


def entry(name: str = "near", key: str = "k1", at_once: int | None = None) -> Entry:
    return Entry(name, "vllm", "org/Near", "http://127.0.0.1:9/v1", key, os.getpid(), 7.0, at_once, 4096)


async def until(condition: Callable[[], bool]) -> None:
    """Polls until the condition holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def end(served: Served) -> None:
    assert await served.withdraw(20, asyncio.Event())
    served.close()


async def test_an_entry_becomes_a_model_and_goes_again(tmp_path: Path) -> None:
    """What is announced is a model beside the others; what is withdrawn is none, and the others stay as they were."""
    gateway = ServedModels(tmp_path)
    assert not gateway.look()
    served = announce(tmp_path, entry(at_once=1))
    assert gateway.look()
    assert not gateway.look()
    models = gateway.extend(KNOWN)
    (target,) = models["near"].targets
    assert (target.url, target.engine, target.model, target.api_key) == (
        "http://127.0.0.1:9/v1",
        "vllm",
        "org/Near",
        "k1",
    )
    assert target.max_concurrent == 1
    assert models["near"].context_window == 4096
    assert is_served(target)
    assert gateway.extend(models) == models
    ending = asyncio.create_task(end(served))
    await until(lambda: gateway.look())
    assert gateway.extend(models) == KNOWN
    gateway.let_go(lambda _: True)
    await ending


async def test_a_name_that_is_known_gets_one_more_target(tmp_path: Path) -> None:
    """By the model's name or an alias; a model of another kind stays as it is."""
    gateway = ServedModels(tmp_path)
    kept = [announce(tmp_path, entry("distant")), announce(tmp_path, entry("e5"))]
    assert gateway.look()
    models = gateway.extend(KNOWN)
    assert list(models) == ["far", "e5"]
    assert [target.url for target in models["far"].targets] == ["http://far/v1", "http://127.0.0.1:9/v1"]
    assert models["e5"] == KNOWN["e5"]
    gateway.close()
    for served in kept:
        await end(served)


async def test_the_keeper_waits_for_running_answers(tmp_path: Path) -> None:
    """A withdrawn server is used until the last request there has ended, and no longer than the grace."""
    gateway, other = ServedModels(tmp_path), ServedModels(tmp_path)
    served = announce(tmp_path, entry())
    assert gateway.look()
    assert other.look()
    assert not await served.withdraw(0.1, asyncio.Event())
    ending = asyncio.create_task(served.withdraw(20, asyncio.Event()))
    for each in (gateway, other):
        assert each.look()
    gateway.let_go(lambda _: True)
    other.let_go(lambda _: False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(ending), 0.2)
    other.let_go(lambda _: True)
    assert await ending
    served.close()


async def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """Who is in a hurry stops although a request runs."""
    gateway, hurry = ServedModels(tmp_path), asyncio.Event()
    served = announce(tmp_path, entry())
    gateway.look()
    hurry.set()
    assert not await served.withdraw(60, hurry)
    served.close()
    gateway.close()


async def test_a_name_is_served_once(tmp_path: Path) -> None:
    """A second keeper of the name is refused while the first lives, and taken after it, with its own key."""
    gateway = ServedModels(tmp_path)
    first = announce(tmp_path, entry())
    gateway.look()
    with pytest.raises(AlreadyServed, match="near is being served already"):
        announce(tmp_path, entry())
    first.close()
    second = announce(tmp_path, entry(key="k2"))
    await until(lambda: gateway.look() or bool(gateway.extend({})))
    await until(lambda: gateway.look() or gateway.extend({})["near"].targets[0].api_key == "k2")
    gateway.close()
    await end(second)


_KEEPER = """
import os, sys, time
from pathlib import Path
from passerelle.models.served import Entry, announce
served = announce(Path(sys.argv[1]), Entry("near", "vllm", "m", "http://127.0.0.1:9/v1", "k", os.getpid(), 1.0))
print("announced", flush=True)
time.sleep(60)
"""


async def test_a_keeper_that_was_killed_leaves_nothing(tmp_path: Path) -> None:
    """Its entry is one no more at the next look, and its name is free."""
    keeper = subprocess.Popen([sys.executable, "-c", _KEEPER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "announced\n"
        gateway = ServedModels(tmp_path)
        assert gateway.look()
        keeper.send_signal(signal.SIGKILL)
        keeper.wait()
        await until(lambda: gateway.look())
        assert gateway.extend(KNOWN) == KNOWN
        gateway.close()
        await end(announce(tmp_path, entry()))
    finally:
        keeper.kill()
        keeper.wait()
        assert keeper.stdout is not None
        keeper.stdout.close()


async def test_reports_are_told_without_a_new_catalog(tmp_path: Path) -> None:
    """A state that changes is seen at the next look, and is no change of the models."""
    gateway = ServedModels(tmp_path)
    served = announce(tmp_path, entry())
    gateway.look()
    assert gateway.reports() == {}
    report = ChildReport("org/Near", "ready", time.time(), "model loaded", 5, 1)
    served.report(report)
    assert not gateway.look()
    assert list(gateway.reports().values()) == [report]
    gateway.close()
    await end(served)


def test_the_key_is_for_this_user_and_in_no_repr(tmp_path: Path) -> None:
    """The file with the key is the owner's only; printing an entry does not print the key."""
    served = announce(tmp_path, entry(key="secret-canary"))
    file = next((tmp_path / "served").glob("*/entry.json"))
    assert file.stat().st_mode & 0o077 == 0
    assert "secret-canary" not in repr(entry(key="secret-canary"))
    assert msgspec.json.decode(file.read_bytes())["api_key"] == "secret-canary"
    served.close()


def test_strange_files_are_no_entries(tmp_path: Path) -> None:
    """Whatever else lies there is passed over."""
    folder = tmp_path / "served" / "x"
    folder.mkdir(parents=True)
    (folder / "entry.json").write_text("{")
    (tmp_path / "served" / "file").write_text("")
    gateway = ServedModels(tmp_path)
    assert not gateway.look()
    assert gateway.extend(KNOWN) == KNOWN


def test_report_file(tmp_path: Path) -> None:
    """What was written last is read; nothing when there is none."""
    file = ReportFile(tmp_path / "children.json")
    assert file.read() == {}
    reports = {"t": ChildReport("m", "backoff", 1.5, "killed", None, 3)}
    file.write(reports)
    assert file.read() == reports
    file.remove()
    assert file.read() == {}
