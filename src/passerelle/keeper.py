"""``passerelle model serve``: keeps one model server on this machine, and lends it to the gateways of the same home."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from passerelle.catalog.schema import ENGINES
from passerelle.models.drivers import WIRES
from passerelle.models.served import Entry, Served, announce, report_of
from passerelle.models.supervisor import ChildFailed, ChildPhase, ChildSpec, ChildState, Supervisor

_CHILD_GRACE_S = 3.0


class PortTaken(Exception):
    """The port that was asked for is not free; the message is one line for a person."""


@dataclass(frozen=True, slots=True)
class Keeper:
    """What to keep: ``spec``'s server, known to clients as ``name``.

    ``options`` are what the gateway's engine is told, ``grace_s`` how long running answers may take when it is to stop,
    ``say`` gets lines for a person.
    """

    home: Path
    name: str
    engine: str
    spec: ChildSpec
    options: Mapping[str, object]
    grace_s: float
    say: Callable[[str], None]

    async def run(self) -> bool:
        """Keeps the server until SIGINT or SIGTERM, a second of which cuts running answers.

        Returns False when the server cannot be served. Raises PortTaken, AlreadyServed or OSError before it starts.
        """
        stopping, hurry = asyncio.Event(), asyncio.Event()

        def asked_to_stop() -> None:
            (hurry if stopping.is_set() else stopping).set()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, asked_to_stop)
        told: list[Served] = []
        supervisor = self._supervisor(told)
        told.append(announce(self.home, self._entry(supervisor)))
        try:
            await supervisor.start()
            self._say_where(supervisor)
            return await self._keep(supervisor, stopping)
        finally:
            if stopping.is_set():
                self.say(f"Stopping {self.name}: running answers have {self.grace_s:g} s.")
            await told[0].withdraw(self.grace_s, hurry)
            await supervisor.stop(_CHILD_GRACE_S, hurry=hurry.is_set())
            told[0].close()

    def _supervisor(self, told: list[Served]) -> Supervisor:
        def tell(state: ChildState) -> None:
            if told and state.phase is not ChildPhase.STOPPED:
                told[0].report(report_of(state))
            if state.phase is ChildPhase.READY:
                self.say(f"{self.name} is ready (process {state.pid}).")

        try:
            return Supervisor([self.spec], on_change=tell)
        except OSError as error:
            raise PortTaken(f"Port {self.spec.port} of 127.0.0.1 cannot be used: {error.strerror}.") from error

    def _entry(self, supervisor: Supervisor) -> Entry:
        return Entry(
            name=self.name,
            engine=self.engine,
            model=str(self.spec.settings["alias"]),
            url=supervisor.address(self.spec.name) + WIRES[self.engine],
            api_key=supervisor.api_key(self.spec.name),
            keeper_pid=os.getpid(),
            since=time.time(),
            at_once=self._at_once(),
            context_window=self.spec.context_window,
            options={**self.spec.engine_options, **self.options},
        )

    def _at_once(self) -> int | None:
        """How many requests the server answers together; the gateway keeps the others in its fair queue."""
        slots = self.spec.settings.get("slots")
        return slots if isinstance(slots, int) else ENGINES[self.engine].at_once

    def _say_where(self, supervisor: Supervisor) -> None:
        self.say(f"Serving {self.name} at {supervisor.address(self.spec.name)}{WIRES[self.engine]}, for its key only.")
        self.say("A gateway of this home lists it within a second. Ctrl-C stops it.")

    async def _keep(self, supervisor: Supervisor, stopping: asyncio.Event) -> bool:
        asked = asyncio.create_task(stopping.wait())
        failed = asyncio.create_task(self._failure(supervisor))
        try:
            await asyncio.wait((asked, failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            failed.cancel()
        if not stopping.is_set():
            self.say(f"{self.name} cannot be served: {await failed}")
        return stopping.is_set()

    async def _failure(self, supervisor: Supervisor) -> str:
        """Returns why the server can never start; waits while it can."""
        while True:
            try:
                await supervisor.wait_ready(self.spec.name)
            except ChildFailed as error:
                return str(error)
            await supervisor.wait_change(self.spec.name)
