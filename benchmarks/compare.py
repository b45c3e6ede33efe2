"""Passerelle beside its peers, in one run: what ``make bench`` does.

Every figure comes from rounds in which the gateways take turns (forwards, then backwards), in front of the same static
upstream and under the same load, so that what else the machine does meets all of them alike. What is claimed are
medians of the rounds, ratios within a round, and CPU time of the gateway's own processes (user and system, from /proc)
over requests or chunks, which noise hardly moves.

Results go to a JSON file; `report.py` and `plot.py` turn it into tables and pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.grow import seed_keys
from benchmarks.peers import PEERS, Running, default_cache, install, passerelle_config, start_direct, start_passerelle
from benchmarks.processes import StartFailed, cpu_s, rss_kib
from benchmarks.report import write_page

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "benchmarks" / "results.json"
SCENARIOS = ("requests", "streams", "fresh", "growth")


@dataclass(frozen=True)
class Plan:
    """How long and how often."""

    rounds: int
    request_s: int
    stream_s: int
    warm_s: int = 1


FULL = Plan(rounds=5, request_s=5, stream_s=8)
QUICK = Plan(rounds=1, request_s=2, stream_s=3)
GROWTH_WARM_S = 5
"""Every key is looked up once in the database; that is not what grows."""


@dataclass
class Bench:
    """One run: the upstream, where things are, and what was seen so far."""

    plan: Plan
    cache: Path
    work: Path
    upstream: Running
    names: list[str]
    not_run: dict[str, str]
    seen: dict[str, dict[str, list[dict]]] = field(default_factory=dict)
    starts: int = 0

    def keep(self, scenario: str, name: str, figures: dict) -> None:
        """Adds the figures of one round."""
        self.seen.setdefault(scenario, {}).setdefault(name, []).append(figures)
        print(f"{scenario:>14} {name:<28} {brief(figures)}", file=sys.stderr, flush=True)

    def folder(self, name: str) -> Path:
        """A new folder for one start of one gateway."""
        self.starts += 1
        return self.work / f"{self.starts:03d}-{name}"

    def start(self, name: str) -> Running | None:
        """Starts a peer; a peer that does not start is left out from now on, with the reason."""
        if name in self.not_run:
            return None
        try:
            return PEERS[name].start(self.cache, self.folder(name), self.upstream.server.port)
        except StartFailed as error:
            self.not_run[name] = f"did not start: {error}"
            return None

    def load(self, kind: str, running: Running, *options: object) -> dict:
        """Runs a load generator against a gateway."""
        headers = self.work / "headers.json"
        headers.write_text(json.dumps(running.headers))
        headers.chmod(0o600)
        path = running.stream_path if kind == "streams" else running.path
        where = ["--port", running.server.port, "--path", path, "--model", running.model, "--header-file", headers]
        words = [str(word) for word in (kind, *where, *options)]
        command = [sys.executable, "-m", "benchmarks.load", *words]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
        return json.loads(output)

    def requests(self, running: Running, *options: object, seconds: int | None = None) -> dict:
        """Non-streaming load of 32 connections; adds rates and CPU time."""
        pids = running.server.pids()
        before_s, upstream_before_s = cpu_s(pids), cpu_s(self.upstream.server.pids())
        figures = self.load("requests", running, "--seconds", seconds or self.plan.request_s, *options)
        used_s = cpu_s(running.server.pids()) - before_s
        done, took_s = figures["requests"], figures["seconds"]
        figures["requests_per_s"] = done / took_s
        figures["cpu_us_per_request"] = used_s * 1e6 / done if done else None
        figures["cpu_share"] = used_s / took_s
        figures["upstream_cpu_share"] = (cpu_s(self.upstream.server.pids()) - upstream_before_s) / took_s
        return figures

    def streams(self, running: Running, streams: int, rate: int) -> dict:
        """Streaming load; the generator measures CPU, memory and delays while every stream is open."""
        pids = [word for pid in running.server.pids() for word in ("--pid", pid)]
        ramp = max(1.0, streams / 400)
        shape = ["--streams", streams, "--rate", rate, "--seconds", self.plan.stream_s + int(ramp), "--ramp", ramp]
        return self.load("streams", running, *shape, *pids)


def settle(running: Running, limit_s: float = 30.0) -> None:
    """Waits until a gateway that nobody asks uses less than a tenth of a core: its first probes are over."""
    until_s = time.monotonic() + limit_s
    while time.monotonic() < until_s:
        before_s = cpu_s(running.server.pids())
        time.sleep(1)
        if cpu_s(running.server.pids()) - before_s < 0.1:
            return


def brief(figures: dict) -> str:
    """The figures one looks at while it runs."""
    shown = {
        "requests_per_s": "{:.0f} requests/s",
        "cpu_us_per_request": "{:.1f} us/request",
        "cpu_us_per_chunk": "{:.1f} us/chunk",
        "delay_p50_us": "p50 {} us",
        "delay_p99_us": "p99 {} us",
        "lost": "{} lost",
        "bad": "{} bad",
        "ready_s": "ready {:.2f} s",
        "idle_kib": "idle {} KiB",
        "stream_kib": "{:.1f} KiB/stream",
    }
    return ", ".join(form.format(figures[name]) for name, form in shown.items() if figures.get(name) is not None)


def in_turn(names: list[str], rounds: int) -> Iterator[str]:
    """The names, ``rounds`` times, every second time backwards."""
    for index in range(rounds):
        yield from names if index % 2 == 0 else reversed(names)


@contextmanager
def standing(bench: Bench, starters: dict[str, Callable[[], Running | None]]) -> Iterator[dict[str, Running]]:
    """Starts several gateways, yields those that run, stops them all."""
    started: dict[str, Running] = {}
    try:
        for name, starter in starters.items():
            running = starter()
            if running is not None:
                started[name] = running
        yield started
    finally:
        for running in started.values():
            running.server.stop()


def steady(bench: Bench, wanted: set[str]) -> None:
    """Requests and streams against gateways that stay up: 32 connections; 400 streams of 50 chunk/s."""
    with standing(bench, {name: lambda name=name: bench.start(name) for name in bench.names}) as gateways:
        for running in gateways.values():
            bench.requests(running, seconds=bench.plan.warm_s)
            settle(running)
        if "requests" in wanted:
            for name in in_turn(list(gateways), bench.plan.rounds):
                bench.keep("requests", name, bench.requests(gateways[name]))
        if "streams" in wanted:
            for name in in_turn(list(gateways), bench.plan.rounds):
                streams, rate = (20, 10) if PEERS[name].light else (400, 50)
                bench.keep("streams", name, bench.streams(gateways[name], streams, rate))


def fresh(bench: Bench) -> None:
    """A new process each time: start time, idle memory, then 1,000 streams of 30 chunk/s and memory per stream."""
    for name in in_turn(bench.names, bench.plan.rounds):
        running = bench.start(name)
        if running is None:
            continue
        try:
            bench.requests(running, "--connections", 1, seconds=1)
            idle_kib = rss_kib(running.server.pids())
            figures = {"ready_s": running.ready_s, "idle_kib": idle_kib}
            if not PEERS[name].light:
                seen = bench.streams(running, 1000, 30)
                figures |= seen
                figures["stream_kib"] = (seen["rss_peak_kib"] - idle_kib) / 1000
            bench.keep("fresh", name, figures)
        finally:
            running.server.stop()


def growth(bench: Bench) -> None:
    """Passerelle alone: few keys and targets, 100,000 keys, 1,000 targets in one model, 1,000 models."""
    port = bench.upstream.server.port
    few, many = bench.folder("few-keys") / "home", bench.folder("many-keys") / "home"
    used = {}
    for home, count in ((few, 1_000), (many, 100_000)):
        start_passerelle(bench.cache, home.parent, port, home=home).server.stop()
        used[home] = home.parent / "keys"
        used[home].write_text("\n".join(seed_keys(home, count, 1_000)))
        used[home].chmod(0o600)

    def starter(home: Path, targets: int = 1, models: int = 1) -> Callable[[], Running]:
        config = passerelle_config(port, targets, models)
        return lambda: start_passerelle(bench.cache, bench.folder("grown"), port, config=config, home=home)

    variants = {
        "base": (few, starter(few)),
        "100,000 keys": (many, starter(many)),
        "1,000 targets of one model": (few, starter(few, targets=1000)),
        "1,000 models": (few, starter(few, models=1000)),
    }
    for name in in_turn(list(variants), bench.plan.rounds):
        home, begin = variants[name]
        running = begin()
        try:
            keys = ("--keys-file", used[home])
            bench.requests(running, *keys, seconds=GROWTH_WARM_S)
            settle(running)
            figures = {**bench.requests(running, *keys), "ready_s": running.ready_s}
            figures["idle_kib"] = rss_kib(running.server.pids())
            streams = bench.streams(running, 400, 50)
            figures |= {name: streams[name] for name in ("cpu_us_per_chunk", "delay_p99_us", "lost")}
            bench.keep("growth", name, figures)
        finally:
            running.server.stop()


def machine() -> dict:
    """What the figures depend on: cores, memory and versions, no names."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "system": f"{platform.system()} {platform.release().split('-')[0]}, {platform.machine()}",
        "python": platform.python_version(),
        "load_by": "wrk" if shutil.which("wrk") else "asyncio",
        "load_average": os.getloadavg()[0],
    }


def middle(rounds: list[dict], figure: str) -> float | None:
    """The median of one figure over the rounds that have it."""
    values = [each[figure] for each in rounds if each.get(figure) is not None]
    return statistics.median(values) if values else None


def ratio(first: list[dict], second: list[dict], figure: str) -> float | None:
    """The median over rounds of the ratio within a round."""
    pairs = [
        one[figure] / other[figure]
        for one, other in zip(first, second, strict=False)
        if one.get(figure) is not None and other.get(figure)
    ]
    return statistics.median(pairs) if pairs else None


@dataclass(frozen=True)
class Goal:
    """One target: a ratio of Passerelle to a peer (or a figure of its own) and its bound."""

    says: str
    scenario: str
    figure: str
    over: str | None
    bound: float
    at_least: bool = False
    of: str = "passerelle"

    def value(self, seen: dict[str, dict[str, list[dict]]]) -> float | None:
        """What was measured, None when it was not."""
        rounds = seen.get(self.scenario, {})
        if self.of not in rounds or (self.over is not None and self.over not in rounds):
            return None
        if self.over is None:
            return middle(rounds[self.of], self.figure)
        return ratio(rounds[self.of], rounds[self.over], self.figure)

    def met(self, value: float) -> bool:
        """Whether a value is within the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


GOALS = (
    Goal("requests/s over vllm-router's", "requests", "requests_per_s", "vllm-router", 1.5, at_least=True),
    Goal("requests/s over nginx's", "requests", "requests_per_s", "nginx", 0.5, at_least=True),
    Goal("CPU per chunk over vllm-router's", "streams", "cpu_us_per_chunk", "vllm-router", 1.0),
    Goal("CPU per chunk over nginx's", "streams", "cpu_us_per_chunk", "nginx", 1.5),
    Goal("relay delay p99 over nginx's", "streams", "delay_p99_us", "nginx", 1.2),
    Goal("streams lost of 400", "streams", "lost", None, 0),
    Goal("streams lost of 1,000", "fresh", "lost", None, 0),
    Goal("KiB a stream", "fresh", "stream_kib", None, 64),
    Goal("ready, s", "fresh", "ready_s", None, 1.5),
    Goal("idle memory, KiB", "fresh", "idle_kib", None, 120 * 1024),
    *(
        Goal(f"{what}, {grown} over few", "growth", figure, "base", bound, at_least, of=grown)
        for grown in ("100,000 keys", "1,000 targets of one model", "1,000 models")
        for what, figure, bound, at_least in (
            ("CPU per request", "cpu_us_per_request", 1.05, False),
            ("CPU per chunk", "cpu_us_per_chunk", 1.05, False),
        )
    ),
)


def verdict(seen: dict[str, dict[str, list[dict]]]) -> list[dict]:
    """Each goal with what was measured."""
    rows = []
    for goal in GOALS:
        value = goal.value(seen)
        sign = ">=" if goal.at_least else "<="
        met = None if value is None else goal.met(value)
        rows.append({"goal": f"{goal.says} {sign} {goal.bound:g}", "value": value, "met": met})
    return rows


def measure(bench: Bench, wanted: set[str]) -> dict:
    """Runs the scenarios and returns everything as one JSON object."""
    if wanted & {"requests", "streams"}:
        steady(bench, wanted)
    if "fresh" in wanted:
        fresh(bench)
    if "growth" in wanted and "passerelle" in bench.names:
        growth(bench)
    return {
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": machine(),
        "rounds": bench.plan.rounds,
        "peers": {name: {"version": PEERS[name].version, "light": PEERS[name].light} for name in bench.names},
        "not_run": bench.not_run,
        "goals": verdict(bench.seen),
        "seen": bench.seen,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round: does it work, not how fast it is")
    parser.add_argument("--rounds", type=int, help=f"rounds of each scenario (default {FULL.rounds})")
    parser.add_argument("--seconds", type=int, help="length of each load")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated (default: all)")
    parser.add_argument("--only", help=f"comma-separated scenarios of {', '.join(SCENARIOS)}")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the peers are installed")
    parser.add_argument("--out", type=Path, help=f"JSON of the results (default {RESULTS.name} of the documentation)")
    given = parser.parse_args()
    plan = QUICK if given.quick else FULL
    plan = Plan(
        rounds=given.rounds or plan.rounds,
        request_s=given.seconds or plan.request_s,
        stream_s=given.seconds or plan.stream_s,
    )
    wanted = set(given.only.split(",")) if given.only else set(SCENARIOS) - ({"growth"} if given.quick else set())
    names = given.peers.split(",")
    if unknown := (wanted - set(SCENARIOS)) | (set(names) - set(PEERS)):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    not_run = install(names, given.cache)
    with tempfile.TemporaryDirectory(prefix="passerelle-bench-") as folder:
        upstream = start_direct(given.cache, Path(folder) / "upstream", 0)
        try:
            bench = Bench(plan, given.cache, Path(folder), upstream, names, not_run)
            results = measure(bench, wanted)
        finally:
            upstream.server.stop()
    for name, why in results["not_run"].items():
        print(f"{name}: {why}")
    for row in results["goals"]:
        value = "not measured" if row["value"] is None else f"{row['value']:.2f}"
        print(f"{row['goal']:<60} {value:>12}  {'' if row['met'] is None else 'met' if row['met'] else 'MISSED'}")
    out = given.out or (None if given.quick else RESULTS)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")
        if out == RESULTS:
            write_page()


if __name__ == "__main__":
    main()
