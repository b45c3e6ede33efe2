"""``passerelle serve``: prepares home, models and database, then runs children and workers until told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop

from passerelle.catalog.schema import MANAGED
from passerelle.crew import Crew
from passerelle.domain.model import Target
from passerelle.edge.server import bind
from passerelle.engines.managed import ChildAddress
from passerelle.gateway.shared import ENTRIES
from passerelle.identity.bootstrap import ensure_admin_key
from passerelle.models.drivers import Drivers
from passerelle.models.fetched import Progress
from passerelle.models.served import ChildReport, ReportFile, report_of
from passerelle.models.store import ModelStore
from passerelle.models.supervisor import ChildFailed, ChildPhase, ChildSpec, ChildState, Supervisor
from passerelle.settings import Configuration
from passerelle.storage.engine import open_database
from passerelle.storage.migrations import upgrade
from passerelle.worker import Assignment, run

_CHILD_GRACE_S = 3.0
_OTHER_DESCRIPTORS = 500
"""Files of the database, pipes and libraries, beside a connection of a caller and one to a model server for each."""


def want_descriptors(count: int) -> None:
    """Lets this process and its workers open ``count`` files, as far as the hard limit of the system allows.

    The soft limit is 1,024 in most shells, for the sake of old programs; a thousand websockets are more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class HomeUnusable(Exception):
    """The home folder cannot be used; the message is one line for a person."""


@dataclass(frozen=True, slots=True)
class Launch:
    """All that a start needs. ``flags`` are the options of the command line, by key path."""

    configuration: Configuration
    environ: Mapping[str, str]
    flags: Mapping[str, str | int | None]
    store: ModelStore
    progress: Callable[[], Progress]

    def serve(self) -> None:
        """Runs until stopped by a signal.

        Raises HomeUnusable, PortInUse, StorageError, ModelError or NotGguf before anything is started.
        """
        settings = self.configuration.settings
        os.umask(0o077)  # database, models and sockets are this user's, whatever the home's own mode
        prepare_home(settings.home)
        want_descriptors(2 * settings.server.max_connections + _OTHER_DESCRIPTORS)
        listener = bind(settings.server.host, settings.server.port)
        try:
            specs = self._child_specs()
            uvloop.run(self._run(listener, specs))
        finally:
            listener.close()

    def _child_specs(self) -> dict[str, ChildSpec]:
        """Fetches the models that are missing, and returns what to run, by target id."""
        drivers = Drivers(self.store, self.configuration.settings.home, self.progress)
        specs: dict[str, ChildSpec] = {}
        for model in self.configuration.snapshot.models.values():
            for target in model.targets:
                if target.engine in MANAGED:
                    spec = drivers.spec(target.engine, target.model, target.options)
                    specs[target.id] = replace(spec, name=_child_name(target, specs))
        return specs

    async def _run(self, listener: socket.socket, specs: Mapping[str, ChildSpec]) -> None:
        settings = self.configuration.settings
        database = open_database(settings.database, settings.home)
        try:
            await upgrade(database)
            created = await ensure_admin_key(database, settings.home)
        finally:
            await database.aclose()
        told = _Told(settings.home, specs)
        supervisor = Supervisor(list(specs.values()), on_change=told.tell)
        await supervisor.start()
        children = {
            target_id: ChildAddress(
                supervisor.address(spec.name), supervisor.api_key(spec.name), dict(spec.engine_options)
            )
            for target_id, spec in specs.items()
        }
        listening = asyncio.Event()
        announce = asyncio.create_task(self._announce(listener, listening, supervisor, specs, created=created))
        try:
            if settings.server.workers == 1:
                ready = listening.set
                await run(self.configuration, self.environ, children, told.file, listener, lambda passerelle: ready())
            else:
                await self._crew(listener, children, told.file, listening.set).run()
        finally:
            announce.cancel()
            await asyncio.gather(announce, return_exceptions=True)
            await supervisor.stop(_CHILD_GRACE_S)
            told.file.remove()

    async def _announce(
        self,
        listener: socket.socket,
        listening: asyncio.Event,
        supervisor: Supervisor,
        specs: Mapping[str, ChildSpec],
        *,
        created: bool,
    ) -> None:
        """Says where it serves once it does, where the key is and how to try it; then, when each model is ready."""
        host, port = listener.getsockname()[:2]
        await listening.wait()
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
        key_file = self.configuration.settings.home / "admin.key"
        print(f"Passerelle listens on {url}  (API description: {url}/docs)")
        print(f"Administrator's key: {key_file}{'  (created now)' if created else ''}")
        model = next(iter(self.configuration.snapshot.models), None)
        if model is not None:
            print("Try it:\n" + curl_line(url, key_file, model), flush=True)
        for spec in specs.values():
            try:
                await supervisor.wait_ready(spec.name)
                print(f"Model {spec.name} is ready.", flush=True)
            except ChildFailed as error:
                print(f"Model {spec.name} cannot be served: {error}", file=sys.stderr, flush=True)

    def _crew(
        self,
        listener: socket.socket,
        children: Mapping[str, ChildAddress],
        reports: ReportFile,
        on_listening: Callable[[], None],
    ) -> Crew:
        settings, models = self.configuration.settings, self.configuration.snapshot.models.values()
        assignment = Assignment(
            config=None if self.configuration.config is None else str(self.configuration.config),
            flags=dict(self.flags),
            listener=listener.fileno(),
            children={key: (child.url, child.api_key, dict(child.options)) for key, child in children.items()},
            reports=str(reports.path),
        )
        return Crew(
            count=settings.server.workers,
            entries=max(ENTRIES, 4 * sum(1 + len(model.targets) for model in models)),
            assignment=assignment,
            environ=self.environ,
            home=settings.home,
            grace_s=settings.server.grace_s,
            listener=listener,
            on_listening=on_listening,
        )


class _Told:
    """Passes the states of children on: to the log, and to the workers by a file."""

    def __init__(self, home: Path, specs: Mapping[str, ChildSpec]) -> None:
        folder = home / "run"
        folder.mkdir(mode=0o700, exist_ok=True)
        _remove_abandoned(folder)
        self.file = ReportFile(folder / f"children-{os.getpid()}.json")
        self._targets = {spec.name: target_id for target_id, spec in specs.items()}
        self._reports: dict[str, ChildReport] = {}

    def tell(self, state: ChildState) -> None:
        """Takes a new state."""
        if state.phase is ChildPhase.READY:
            logging.getLogger(__name__).info("model server %s (process %d) is ready", state.name, state.pid)
        self._reports[self._targets[state.name]] = report_of(state)
        self.file.write(self._reports)


def _remove_abandoned(folder: Path) -> None:
    """Removes the reports of gateways that were killed, and could not do it themselves."""
    for report in folder.glob("children-*.json"):
        number = report.stem.removeprefix("children-")
        try:
            os.kill(int(number), 0)
        except (ProcessLookupError, ValueError, OverflowError):
            report.unlink(missing_ok=True)
        except PermissionError:
            continue  # somebody else's process: it lives


def _child_name(target: Target, specs: Mapping[str, ChildSpec]) -> str:
    """The model's name, numbered when several children serve it."""
    taken = sum(1 for spec in specs.values() if spec.settings["alias"] == target.model)
    return target.model if not taken else f"{target.model}-{taken + 1}"


def prepare_home(home: Path) -> None:
    """Makes the home folder if need be. Raises HomeUnusable when it cannot be made or written."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise HomeUnusable(f"Cannot make the home folder {home}: {error.strerror}; set PASSERELLE_HOME.") from error
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK) or _read_only(home):
        raise HomeUnusable(f"The home folder {home} cannot be written; set PASSERELLE_HOME to one that can.")


def _read_only(home: Path) -> bool:
    """Whether a file cannot be made there; for the superuser, permissions alone do not tell."""
    probe = home / f".write-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return True
    return False


def curl_line(url: str, key_file: Path, model: str) -> str:
    """Returns a command that streams one chat answer."""
    return (
        f"  curl -N {url}/v1/chat/completions -H \"Authorization: Bearer $(cat '{key_file}')\" \\\n"
        f"    -H 'Content-Type: application/json' \\\n"
        f'    -d \'{{"model":"{model}","messages":[{{"role":"user","content":"Hello!"}}],"stream":true}}\''
    )
