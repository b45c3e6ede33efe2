"""One running gateway in front of many scripted models: what a module of fault rows shares.

A row takes models that no row used before, so that what it does to their health concerns nobody else.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.clients import Caller, Tape
from tests.harness.gateway import GatewayProcess
from tests.harness.oracles import Health, Oracles
from tests.harness.upstreamd import Scenario, Seen, Step, Upstream, normal

TIMEOUTS = {"connect_s": 1.0, "first_byte_s": 1.0, "idle_s": 1.0}
UPSTREAM_KEY = "sk-upstream-CANARY-0123456789"
SETTINGS: Mapping[str, Any] = {
    "server": {"grace_s": 3.0},
    "health": {"probe_interval_s": 20, "probe_timeout_s": 2, "eject_s": 1.0},
    "logging": {"level": "debug", "format": "json"},
    "accounting": {"flush_interval_s": 0.05},
}


def on_posts(scenario: Scenario) -> Scenario:
    """Returns a scenario for the requests that cost something; probes find a healthy server."""

    def steps(seen: Seen) -> Sequence[Step]:
        if seen.method == "GET":
            return [normal()]
        return scenario(seen) if callable(scenario) else scenario

    return steps


@dataclass
class ModelSpec:
    """One model of the configuration; ``fields`` are its keys beside name and targets, ``target`` those of each."""

    name: str
    targets: int = 1
    fields: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)


class ScriptedModel:
    """A model's name and its upstreams."""

    def __init__(self, spec: ModelSpec) -> None:
        self.name = spec.name
        self.spec = spec
        self.upstreams = [Upstream() for _ in range(spec.targets)]

    def script(self, *scenarios: Scenario | None) -> None:
        """Sets what each upstream does with POSTs; None is good behaviour."""
        for upstream, scenario in zip(self.upstreams, scenarios, strict=True):
            upstream.scenario = None if scenario is None else on_posts(scenario)

    @property
    def posts(self) -> list[Seen]:
        """The POSTs all its upstreams saw, oldest first."""
        seen = [seen for upstream in self.upstreams for seen in upstream.requests if seen.method == "POST"]
        return sorted(seen, key=lambda each: each.at)

    def section(self) -> dict[str, Any]:
        """Returns its part of the configuration."""
        targets = [
            {"url": u.url, "model": "m", "timeouts": TIMEOUTS, "api_key": UPSTREAM_KEY, **self.spec.target}
            for u in self.upstreams
        ]
        return {"name": self.name, "policy": "round_robin", **self.spec.fields, "targets": targets}


class World:
    """A gateway, its models, callers of two tenants, and the oracles.

    ``singles`` and ``pairs`` are how many models of one and two targets rows may take; ``models`` are those with
    something of their own.
    """

    def __init__(
        self,
        home: Path,
        *,
        singles: int = 0,
        pairs: int = 0,
        models: Sequence[ModelSpec] = (),
        settings: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        specs = [ModelSpec(f"single-{n}") for n in range(singles)] + [ModelSpec(f"pair-{n}", 2) for n in range(pairs)]
        specs = [ModelSpec("warm-up"), *specs, *models]
        self.models = {spec.name: ScriptedModel(spec) for spec in specs}
        self._unused = {1: [f"single-{n}" for n in range(singles)], 2: [f"pair-{n}" for n in range(pairs)]}
        self._home = home
        self._environ = environ
        self.settings: dict[str, Any] = {name: dict(section) for name, section in SETTINGS.items()}
        for name, section in (settings or {}).items():
            if isinstance(section, Mapping):
                self.settings.setdefault(name, {}).update(section)
            else:
                self.settings[name] = section
        self._organisations = {"default"}
        self.tape = Tape()
        self.gateway: GatewayProcess
        self.caller: Caller
        self.second: Caller
        """A well-behaved tenant of another organisation."""
        self.oracles: Oracles
        self._health: Health

    def configuration(self) -> dict[str, Any]:
        """Returns the configuration as a document."""
        return {**self.settings, "models": [model.section() for model in self.models.values()]}

    @property
    def upstreams(self) -> list[Upstream]:
        return [upstream for model in self.models.values() for upstream in model.upstreams]

    async def start(self, *, arguments: tuple[str, ...] = ()) -> World:
        for upstream in self.upstreams:
            await upstream.start()
        self.gateway = GatewayProcess(self._home, self.configuration(), environ=self._environ, arguments=arguments)
        await asyncio.to_thread(self.gateway.start)
        self.caller = Caller(self.gateway.port, self.gateway.key, self.tape)
        key = await asyncio.to_thread(self.make_key, "second", "organisation-two")
        self.second = Caller(self.gateway.port, key, self.tape, name="second")
        self._health = Health(self.gateway.port, self.gateway.pid)
        self.oracles = Oracles(self.gateway, self.upstreams, self.tape, health=self._health)
        assert (await self.caller.chat("warm-up", stream=False)).status == 200
        self._health.start()
        return self

    async def stop(self) -> None:
        self._health.stop()
        status = await asyncio.to_thread(self.gateway.stop)
        for upstream in self.upstreams:
            await upstream.stop()
        defects = [error for upstream in self.upstreams for error in upstream.errors]
        assert not defects, defects
        assert status == 0, f"the gateway ended with status {status}: {''.join(self.gateway.log[-20:])}"

    def take(self, targets: int = 1) -> ScriptedModel:
        """Returns a model of so many targets that no row has used."""
        return self.models[self._unused[targets].pop(0)]

    def make_key(self, name: str, organisation: str, *options: str) -> str:
        """Makes a key with the command line, beside the running server, and returns it; its organisation too."""
        if organisation not in self._organisations:
            self.command("org", "create", "--name", organisation)
            self._organisations.add(organisation)
        return self.command("key", "create", "--name", name, "--organisation", organisation, *options).strip()

    def command(self, *arguments: str) -> str:
        """Runs ``passerelle`` on the server's database and returns what it printed."""
        command = [sys.executable, "-m", "passerelle", *arguments, "--home", str(self._home)]
        command += ["--config", str(self.gateway.config_path)]
        environ = os.environ | dict(self._environ or {})
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rewrite(self, document: Mapping[str, Any]) -> None:
        """Writes the configuration file anew, as an editor does: a new file renamed over the old."""
        path = self.gateway.config_path
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(document))
        fresh.replace(path)

    async def router(self) -> dict[str, Any]:
        """Returns what /admin/router shows."""
        status, body = await asyncio.to_thread(self.gateway.get, "/admin/router", key=self.gateway.key)
        assert status == 200
        document: dict[str, Any] = json.loads(body)
        return document

    async def model_state(self, name: str) -> dict[str, Any]:
        """Returns a model's queue and targets as /admin/router shows them."""
        models = (await self.router())["models"]
        found: dict[str, Any] = next(model for model in models if model["model"] == name)
        return found

    async def metric(self, line: str) -> float:
        """Returns the value of one metric, named with its labels; 0 when it is not there."""
        _, body = await asyncio.to_thread(self.gateway.get, "/metrics", key=self.gateway.key)
        for found in body.decode().splitlines():
            if found.startswith(line + " "):
                return float(found.rpartition(" ")[2])
        return 0.0

    async def usage(self, request_id: str, within_s: float = 20.0) -> dict[str, Any]:
        """Returns the usage row of a request."""
        until = asyncio.get_running_loop().time() + within_s
        while True:
            rows = [row for row in self.gateway.usage_rows() if row["request_id"] == request_id]
            if rows:
                assert len(rows) == 1, "one usage row for each call"
                return rows[0]
            assert asyncio.get_running_loop().time() < until, f"no usage row for {request_id}"
            await asyncio.sleep(0.02)
