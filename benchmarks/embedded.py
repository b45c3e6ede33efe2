"""What the gateway costs the embedded engine: its tokens per second asked directly and through Passerelle.

The engine is the child that ``passerelle serve`` itself runs for a ``llamacpp`` target, started here by the same
supervisor so that its address and key are known; Passerelle is a second process with that child as its target.
For 1, 4 and 8 clients the same deterministic work is done both ways, in pairs whose order alternates. A result is the
median of the pairs' ratios; 1.0 would be a gateway that costs nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.compare import machine
from benchmarks.peers import start_passerelle

from passerelle.models.llamacpp_child import llamacpp_spec
from passerelle.models.store import ModelStore
from passerelle.models.supervisor import Supervisor

NAME = "smollm2-135m-instruct"
GOAL = 0.97
COMPLETION = re.compile(rb'"completion_tokens" ?: ?(\d+)')
SUBJECTS = ("a bridge", "a harbour", "the rain", "an old map", "bread", "the night train", "a violin", "the moon")
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "embedded.json"


class Silent:
    """A progress display that shows nothing."""

    def begin(self, label: str, total: int | None, done: int) -> None:
        """A download begins."""

    def advance(self, count: int) -> None:
        """Bytes have come."""

    def end(self) -> None:
        """It ended."""


async def ask(port: int, key: str, subject: str, tokens: int) -> int:
    """One streamed answer, read to its end; returns the completion tokens its usage names."""
    messages = [{"role": "user", "content": f"Tell me a long story about {subject}."}]
    body = json.dumps(
        {
            "model": NAME,
            "messages": messages,
            "max_tokens": tokens,
            "temperature": 0,
            "seed": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.read(-1)
    writer.close()
    counted = COMPLETION.findall(answer)
    if not answer.startswith(b"HTTP/1.1 200") or not counted:
        raise SystemExit(f"the engine or the gateway did not answer: {answer[:300]!r}")
    return int(counted[-1])


async def work(port: int, key: str, clients: int, answers: int, tokens: int) -> tuple[float, int]:
    """``clients`` clients that ask ``answers`` times each; returns tokens per second and the tokens."""

    async def client(subject: str) -> int:
        return sum([await ask(port, key, subject, tokens) for _ in range(answers)])

    started_s = time.monotonic()
    total = sum(await asyncio.gather(*(client(subject) for subject in SUBJECTS[:clients])))
    return total / (time.monotonic() - started_s), total


async def compare(model: Path, pairs: int, tokens: int) -> dict:
    """Starts both, runs the pairs, returns the figures by number of clients."""
    supervisor = Supervisor([llamacpp_spec(NAME, model)])
    await supervisor.start()
    try:
        await supervisor.wait_ready(NAME)
        port, key = int(supervisor.address(NAME).rpartition(":")[2]), supervisor.api_key(NAME)
        target = {"url": f"http://127.0.0.1:{port}/v1", "engine": "openai", "model": NAME, "api_key": key}
        config = {"models": [{"name": NAME, "targets": [target]}]}
        with tempfile.TemporaryDirectory(prefix="passerelle-bench-") as folder:
            gateway = await asyncio.to_thread(start_passerelle, Path(folder), Path(folder), port, config=config)
            try:
                own_key = gateway.headers["authorization"].removeprefix("Bearer ")
                ways = {"direct": (port, key), "through": (gateway.server.port, own_key)}
                return {str(clients): await run(ways, clients, pairs, tokens) for clients in (1, 4, 8)}
            finally:
                await asyncio.to_thread(gateway.server.stop)
    finally:
        await supervisor.stop(5)


async def run(ways: dict[str, tuple[int, str]], clients: int, pairs: int, tokens: int) -> dict:
    """The pairs for one number of clients."""
    answers = max(1, 4 // clients)
    for way in ways.values():
        await work(*way, clients, 1, tokens)
    seen: list[dict] = []
    for index in range(pairs):
        pair = {}
        for name in list(ways) if index % 2 == 0 else reversed(ways):
            pair[name], pair[f"{name}_tokens"] = await work(*ways[name], clients, answers, tokens)
        seen.append(pair)
        print(
            f"{clients} clients: direct {pair['direct']:.1f}, through {pair['through']:.1f} tokens/s",
            file=sys.stderr,
            flush=True,
        )
    ratio = statistics.median(pair["through"] / pair["direct"] for pair in seen)
    return {
        "direct": statistics.median(pair["direct"] for pair in seen),
        "through": statistics.median(pair["through"] for pair in seen),
        "ratio": ratio,
        "met": ratio >= GOAL,
        "pairs": seen,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128, help="length of each answer")
    parser.add_argument("--model", type=Path, help=f"a GGUF file (default: {NAME}, pulled when it is not here)")
    parser.add_argument("--quick", action="store_true", help="one short pair each: does it work")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    model = given.model
    if model is None:
        store = ModelStore(Path.home() / ".cache" / "passerelle-bench" / "models")
        store.pull(NAME, Silent())
        model = store.resolve(NAME)
    pairs, tokens = (1, 32) if given.quick else (given.pairs, given.tokens)
    figures = asyncio.run(compare(model, pairs, tokens))
    for clients, seen in figures.items():
        verdict = "met" if seen["met"] else "MISSED"
        print(
            f"{clients} clients: direct {seen['direct']:.1f} tokens/s, through {seen['through']:.1f}, "
            f"ratio {seen['ratio']:.3f} (>= {GOAL}: {verdict})"
        )
    out = given.out or (None if given.quick else RESULTS)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": machine(), "pairs": pairs, "clients": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
