"""Measures what the embedded engine's defaults cost, one setting at a time against the defaults.

    python benchmarks/embedded_defaults.py [--rounds N] [--only NAME,NAME]

Every round starts each variant once, the defaults first, so that a variant is compared with defaults measured minutes
and not hours apart. The table holds medians over the rounds, and in brackets the median of the ratios to the defaults
of the same round. The model is the default one, fetched if it is not here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from passerelle.cli.model import DEFAULT_CACHE_HOME, open_store, progress_on
from passerelle.models.catalogue import DEFAULT_CHAT_MODEL
from passerelle.models.llamacpp_child import LlamaCppSettings
from passerelle.models.supervisor import ChildSpec, Supervisor, private_memory_bytes

SUBJECTS = ["bridges", "rivers", "winter", "bread", "clocks", "islands", "maps", "violins"]
PREFIX = " ".join(f"Rule {number}: an answer about item {number} stays polite and brief." for number in range(40))

VARIANTS: dict[str, dict[str, object]] = {
    "defaults": {},
    "1 thread": {"threads": 1},
    "4 threads": {"threads": 4},
    "4 slots x 4096": {"slots": 4, "window": 4096},
    "2 slots x 8192": {"slots": 2, "window": 8192},
    "8 slots x 4096": {"slots": 8, "window": 4096},
    "no flash attention": {"flash_attention": False},
    "unified KV cache": {"kv_unified": True, "window": 16384},
    "no prompt cache": {"prompt_cache_mib": 0},
}


@dataclass
class Figures:
    """What one start of one variant measured. Rates are tokens per second, times seconds, memory MiB."""

    ready_s: float
    memory_mib: float
    prompt_rate: float
    alone_rate: float
    four_rate: float
    eight_rate: float
    prefix_again_tokens: float
    first_token_again_s: float


class Child:
    """Talks to one running child over one connection per request."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._port = int(supervisor.address("m").rpartition(":")[2])
        self._key = supervisor.api_key("m")

    async def complete(self, prompt: str, tokens: int) -> dict[str, Any]:
        """Returns llama.cpp's ``timings`` of one completion of exactly ``tokens`` tokens."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        data = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._key}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        answer = await reader.read()
        writer.close()
        timings: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["timings"]
        return timings

    async def rate(self, clients: int, tokens: int) -> float:
        """Returns tokens per second over all of so many clients at once."""
        prompts = [f"A short story about {subject}:" for subject in SUBJECTS[:clients]]
        began = time.monotonic()
        timings = await asyncio.gather(*(self.complete(prompt, tokens) for prompt in prompts))
        return sum(timing["predicted_n"] for timing in timings) / (time.monotonic() - began)


async def measure(model: Path, changes: dict[str, object], tokens: int) -> Figures:
    """Starts the engine with the defaults and ``changes``, and measures it."""
    settings = msgspec.to_builtins(LlamaCppSettings(str(model), "m")) | changes
    supervisor = Supervisor([ChildSpec("m", "passerelle.models.llamacpp_child", settings)])
    began = time.monotonic()
    await supervisor.start()
    try:
        await supervisor.wait_ready("m")
        ready_s = time.monotonic() - began
        child = Child(supervisor)
        await child.complete("Warm up:", 8)
        first = await child.complete(f"{PREFIX}\nQuestion: what is a bridge?", 1)
        again = await child.complete(f"{PREFIX}\nQuestion: what is a bridge?", 1)
        alone, four, eight = [await child.rate(clients, tokens) for clients in (1, 4, 8)]
        pid = supervisor.states()[0].pid
        memory = private_memory_bytes(pid) if pid else None
        return Figures(
            ready_s=ready_s,
            memory_mib=(memory or 0) / (1 << 20),
            prompt_rate=first["prompt_per_second"],
            alone_rate=alone,
            four_rate=four,
            eight_rate=eight,
            prefix_again_tokens=again["prompt_n"],
            first_token_again_s=(again["prompt_ms"] + again["predicted_ms"]) / 1000,
        )
    finally:
        await supervisor.stop(5)


def table(results: dict[str, list[Figures]]) -> str:
    """Renders medians, and the medians of the ratios to the defaults of the same round, as a Markdown table."""
    names = [field.name for field in fields(Figures)]
    lines = [f"| variant | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for variant, rounds in results.items():
        cells = []
        for name in names:
            values = [getattr(figures, name) for figures in rounds]
            base = [getattr(figures, name) for figures in results["defaults"][: len(values)]]
            ratios = [value / other for value, other in zip(values, base, strict=True) if other]
            ratio = f" ({statistics.median(ratios):.2f})" if ratios and variant != "defaults" else ""
            cells.append(f"{statistics.median(values):.3g}{ratio}")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


async def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="that each client asks for")
    parser.add_argument("--only", default="", help="variants, beside the defaults")
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    variants = {name: VARIANTS[name] for name in VARIANTS if not only or name == "defaults" or name in only}
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or DEFAULT_CACHE_HOME)
    results: dict[str, list[Figures]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as home:
        store = open_store(Path(home), cache_home)
        store.pull(DEFAULT_CHAT_MODEL, progress_on(sys.stderr.isatty()))
        model = store.resolve(DEFAULT_CHAT_MODEL)
        for number in range(options.rounds):
            for name, changes in variants.items():
                print(f"round {number + 1}: {name}", file=sys.stderr)
                results[name].append(await measure(model, changes, options.tokens))
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} processors, load {load:.1f}, {options.rounds} rounds, {options.tokens} tokens a client\n")
    print(table(results))


if __name__ == "__main__":
    asyncio.run(main())
