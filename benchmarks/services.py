"""A long transcript through a service, beside the sequential algorithm of LinTO's LLM Gateway on the same engine.

    python -m benchmarks.services scripted [--tokens 100000]     # an engine of 32 streams, each as fast as one alone
    python -m benchmarks.services embedded [--tokens 7000]       # the embedded model on this machine's processors

Both begin with the text and end with the whole result. The other algorithm (`Original`) is written from its public
source, with its defects of counting left out: real tokens, one call after the other, straight to the engine. Ours is a
job of a gateway process: uploaded, split, called, kept step by step, its end told by its events.

*scripted*: at least ten times faster is wanted, and memory that does not grow with the document: the gateway's peak for
the text and for one four times as long. *embedded*: what that engine gains from eight streams at once is measured with
the same text in the same run; ours is to reach 0.95 of that gain, with no slot idle while parts wait.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from benchmarks.compare import machine
from tests.harness.gateway import GatewayProcess
from tests.harness.killer import TargetProcess

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import long_transcript

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "services.json"
MAP, ROLLING = (
    "Summarize these turns of a meeting in one short sentence each.\n\n### Turns\n{}\n\n### Summary\n",
    ("Summarize the new turns of a meeting.\n\n### So far (do not repeat)\n{}\n\n### New turns\n{}\n\n### Summary\n"),
)
STREAMS = 32
SLOTS = 8
EMBEDDED = "smollm2-135m-instruct"
FASTER, OF_GAIN = 10.0, 0.95


@dataclass(frozen=True)
class Engine:
    """Where a model is asked directly, and how a service asks it. ``tokens`` counts those of a text."""

    url: str
    model: str
    context: int
    generation: int
    max_new_turns: int = 9
    create_new_turn_after: int = 250

    def flavor(self, name: str = "f") -> dict[str, Any]:
        """The flavor of a manifest."""
        return {
            "name": name,
            "modelName": self.model,
            "totalContextLength": self.context,
            "maxGenerationLength": self.generation,
            "maxNewTurns": self.max_new_turns,
            "createNewTurnAfter": self.create_new_turn_after,
            "temperature": 0,
        }


class Original:
    """The algorithm of the other gateway on one engine: turns into batches, one call after the other."""

    def __init__(self, engine: Engine, client: httpx.AsyncClient) -> None:
        self._engine = engine
        self._client = client
        self.calls = 0

    async def ask(self, prompt: str) -> list[str]:
        """One call; returns the lines of the answer that are not blank."""
        body = {
            "model": self._engine.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self._engine.generation,
            "temperature": 0,
        }
        answer = await self._client.post(f"{self._engine.url}/chat/completions", json=body)
        answer.raise_for_status()
        self.calls += 1
        return [line for line in answer.json()["choices"][0]["message"]["content"].splitlines() if line.strip()]

    def batches(self, turns: Sequence[str], prompt: str, shown: int = 0) -> list[list[str]]:
        """Turns as they are put together: nine, or as many as fit with a reserve of 15 %."""
        most = self._engine.context - self._engine.generation
        fixed = len(prompt.split()) + shown
        batches: list[list[str]] = [[]]
        total = fixed
        for turn in turns:
            tokens = len(turn.split())
            if batches[-1] and ((total + tokens) * 1.15 > most or len(batches[-1]) == self._engine.max_new_turns):
                batches.append([])
                total = fixed
            batches[-1].append(turn)
            total += tokens
        return batches

    async def run_batches(self, turns: Sequence[str]) -> list[str]:
        """Two slots: rolling, the last three lines shown again."""
        lines: list[str] = []
        for batch in self.batches(turns, ROLLING):
            lines += await self.ask(ROLLING.replace("{}", "\n".join(lines[-3:]), 1).replace("{}", "\n".join(batch), 1))
        return lines

    async def run_async_batches(self, turns: Sequence[str], at_once: int = 1) -> list[str]:
        """One slot; ``at_once`` is one as it is used there: its calls wait for each other."""
        places = asyncio.Semaphore(at_once)

        async def one(batch: Sequence[str]) -> list[str]:
            async with places:
                return await self.ask(MAP.replace("{}", "\n".join(batch)))

        answers = await asyncio.gather(*(one(batch) for batch in self.batches(turns, MAP)))
        return [line for answer in answers for line in answer]


def virtual_turns(text: str, most: int) -> list[str]:
    """The other gateway's turns: a line each, long ones cut at sentences."""
    turns: list[str] = []
    for line in text.splitlines():
        speaker, _, said = line.partition(" : ")
        current: list[str] = []
        for sentence in said.replace(". ", ".\0").split("\0") if len(line.split()) > most else [said]:
            if current and len(" ".join([*current, sentence]).split()) > most:
                turns.append(f"{speaker} : {' '.join(current)}")
                current = []
            current.append(sentence)
        turns.append(f"{speaker} : {' '.join(current)}")
    return turns


# Ours.


class Ours:
    """A gateway process with one service for each strategy, in front of ``engine``."""

    def __init__(self, folder: Path, engine: Engine, models: list[dict[str, Any]]) -> None:
        for name, prompt in (("map", MAP), ("rolling", ROLLING)):
            manifest = {"name": name, "fields": prompt.count("{}"), "flavor": [engine.flavor()]}
            for where, text in (("services", json.dumps({name: manifest})), ("prompts", prompt)):
                (folder / where).mkdir(exist_ok=True)
                (folder / where / f"{name}.{'yaml' if where == 'services' else 'txt'}").write_text(text)
        self.process = GatewayProcess(folder / "home", {"models": models, "logging": {"level": "warning"}})

    def memory_mb(self) -> float:
        """The gateway's largest resident memory since the last time this was asked."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return peak

    async def run(self, service: str, text: str) -> dict[str, Any]:
        """Runs a job; returns wall and processor seconds, peak memory, and the result's facts."""
        headers = {"authorization": f"Bearer {self.process.key}"}
        async with httpx.AsyncClient(base_url=self.process.url, headers=headers, timeout=60) as client:
            self.memory_mb()
            began, busy = time.monotonic(), self._cpu_s()
            answer = await client.post(f"/v1/services/{service}/jobs", json={"input": text})
            answer.raise_for_status()
            path = f"/v1/jobs/{answer.json()['id']}"
            async with client.stream("GET", f"{path}/events", timeout=None) as events:
                async for _ in events.aiter_raw():  # until its end: asking again and again takes time from the engine
                    pass
            wall = time.monotonic() - began
            job = (await client.get(path)).json()
            if job["status"] != "succeeded":
                raise SystemExit(f"the job did not succeed: {job['error']}")
            details = (await client.get(f"{path}/result")).json()["details"]
        return {
            "wall_s": wall,
            "cpu_s": self._cpu_s() - busy,
            "peak_mb": self.memory_mb(),
            "calls": details["calls"],
            "usage": details["usage"],
            "seconds": details["seconds"],
            "complete": details["coverage"]["complete"],
        }

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100


async def scripted(tokens: int, answer_s: float) -> dict[str, Any]:
    """The engine of 32 streams. A token of it is a word."""
    text = long_transcript.transcript(tokens)
    turns = virtual_turns(text, 250)
    every = answer_s / 8  # it answers eight tokens
    arguments = ("--kind", "vllm", "--streams", str(STREAMS), "--token-every-s", str(every))
    with TargetProcess(*arguments, "--context-window", "8192") as target, TemporaryDirectory() as folder:
        engine = Engine(target.url, "m", 8192, 256)
        targets = [{"url": target.url, "model": "m", "max_concurrent": STREAMS}]
        ours = Ours(Path(folder), engine, [{"name": "m", "targets": targets}])
        with ours.process:
            ours.process.wait_ready()
            async with httpx.AsyncClient(timeout=60) as client:

                async def counts() -> dict[str, Any]:
                    return dict((await client.get(f"{target.url.removesuffix('/v1')}/_upstreamd/counts")).json())

                await ours.run("map", long_transcript.transcript(500))
                await counts()
                figures: dict[str, Any] = {"turns": len(turns), "words": len(text.split())}
                figures["map"] = await ours.run("map", text) | {"engine": await counts()}
                print(json.dumps(figures["map"]), file=sys.stderr, flush=True)
                figures["map_x4"] = await ours.run("map", long_transcript.transcript(4 * tokens))
                figures["map_x4"]["engine"] = await counts()
                print(json.dumps(figures["map_x4"]), file=sys.stderr, flush=True)
                original = Original(engine, client)
                began = time.monotonic()
                await original.run_batches(turns)
                figures["original"] = {"wall_s": time.monotonic() - began, "calls": original.calls}
    figures["faster"] = figures["original"]["wall_s"] / figures["map"]["wall_s"]
    figures["memory_growth"] = figures["map_x4"]["peak_mb"] / figures["map"]["peak_mb"]
    return figures


async def embedded(tokens: int, rounds: int) -> dict[str, Any]:
    """The embedded engine, started by the gateway. A round's ways read the same text, with speakers of other names: no
    way finds its parts in the cache. One call at a time is slow and only says what the gain is of: it is asked once.
    """
    words = int(tokens * long_transcript.WORDS_PER_TOKEN)
    lines = long_transcript.transcript(2 * rounds * tokens + 2000).splitlines(keepends=True)
    target = {"engine": "llamacpp", "model": EMBEDDED, "slots": SLOTS, "context": 2048}
    passes: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        engine = Engine("", EMBEDDED, 2048, 48)
        ours = Ours(Path(folder), engine, [{"name": EMBEDDED, "targets": [target]}])
        with ours.process:
            ours.process.wait_ready(300)
            through = replace(engine, url=f"{ours.process.url}/v1")
            warm = await ours.run("map", take(lines, 300))
            await asyncio.to_thread(ours.process.wait_usage, warm["calls"])
            ways = {
                "one": lambda text: direct(ours, through, text, 1),
                "eight": lambda text: direct(ours, through, text, SLOTS),
                "map": lambda text: through_service(ours, text),
            }
            for number in range(rounds):
                order = [way for way in ways if number == 0 or way != "one"]
                text = take(lines, words)
                measured = {
                    way: await ways[way](renamed(text, f"{way[0]}{number}"))
                    for way in (order if number % 2 == 0 else reversed(order))
                }
                print(json.dumps(measured), file=sys.stderr, flush=True)
                passes.append(measured)
    gain = statistics.median(each["eight"]["tokens_s"] for each in passes) / passes[0]["one"]["tokens_s"]
    ratios = [each["map"]["tokens_s"] / each["eight"]["tokens_s"] for each in passes]
    walls = [each["eight"]["wall_s"] / each["map"]["wall_s"] for each in passes]
    of_gain = {"of_gain": statistics.median(ratios), "of_gain_by_wall": statistics.median(walls)}
    return {"passes": passes, "gain": gain, **of_gain}


def renamed(text: str, mark: str) -> str:
    """Gives the speakers of a text other names."""
    return re.sub(r"^(\w+) :", rf"\1{mark} :", text, flags=re.MULTILINE)


def take(lines: list[str], words: int) -> str:
    """Takes turns of about ``words`` words from the front of ``lines``."""
    taken: list[str] = []
    while words > 0:
        taken.append(lines.pop(0))
        words -= len(taken[-1].split())
    return "".join(taken)


async def direct(ours: Ours, engine: Engine, text: str, at_once: int) -> dict[str, Any]:
    """The other algorithm with so many calls at once; tokens are those of prompts and answers together."""
    before = len(ours.process.usage_rows())
    headers = {"authorization": f"Bearer {ours.process.key}"}
    async with httpx.AsyncClient(timeout=600, headers=headers) as client:
        original = Original(engine, client)
        began = time.monotonic()
        await original.run_async_batches(virtual_turns(text, 150), at_once)
        wall = time.monotonic() - began
    rows = (await asyncio.to_thread(ours.process.wait_usage, before + original.calls))[before:]
    return figures_of(rows, wall)


async def through_service(ours: Ours, text: str) -> dict[str, Any]:
    """The same as a job."""
    before = len(ours.process.usage_rows())
    ran = await ours.run("map", text)
    rows = (await asyncio.to_thread(ours.process.wait_usage, before + ran["calls"]))[before:]
    return figures_of(rows, ran["wall_s"]) | {"splitting_s": ran["seconds"]["splitting"], "peak_mb": ran["peak_mb"]}


def figures_of(rows: list[dict[str, Any]], wall_s: float) -> dict[str, Any]:
    """What the ledger says of some calls. ``cached`` are prompt tokens that the engine took from its cache, by its own
    count; ``busy`` the share of its slots that worked from the first call to the moment the last one began."""
    tokens = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
    spans = [(row["at_ms"] + row["queue_ms"], row["at_ms"] + row["total_ms"]) for row in rows]
    first, last = min(begin for begin, _ in spans), max(begin for begin, _ in spans)
    used = sum(min(end, last) - begin for begin, end in spans)
    return {
        "wall_s": wall_s,
        "calls": len(rows),
        "tokens_s": tokens / wall_s,
        "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
        "cached": sum(row["cached_tokens"] for row in rows),
        "busy": used / ((last - first) * SLOTS),
    }


def main() -> None:
    """Runs one part and adds its figures to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["scripted", "embedded"])
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--answer-s", type=float, default=0.4, help="scripted: how long one answer takes")
    parser.add_argument("--rounds", type=int, default=3, help="embedded: how often; the median counts")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.part == "scripted":
        figures = asyncio.run(scripted(given.tokens or 100_000, given.answer_s))
        met = figures["faster"] >= FASTER
    else:
        figures = asyncio.run(embedded(given.tokens or 7_000, given.rounds))
        met = figures["of_gain"] >= OF_GAIN
    print(json.dumps(figures, indent=1), "met" if met else "MISSED", sep="\n")
    if given.out is not None:
        kept = json.loads(given.out.read_text()) if given.out.exists() else {}
        given.out.write_text(json.dumps({**kept, "machine": machine(), given.part: figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
