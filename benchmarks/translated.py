"""What a token costs when its server's wire is translated, beside one whose bytes pass: CPU time of the gateway.

One gateway stands before four scripted servers that write the same words at the same pace: OpenAI's wire, TGI's events,
Triton's gRPC messages (the tensors of its vLLM backend) and the NUL-separated documents of vLLM's first route. Rounds
alternate between them; a figure is the median over rounds, a ratio that of the pairs within each round.

    python -m benchmarks.translated [--rounds 5] [--streams 40] [--tokens 400]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.plot import FOLDER
from benchmarks.processes import cpu_s, family
from tests.harness.gateway import GatewayProcess
from tests.harness.tritond import VLLM, TritonStandIn
from tests.harness.upstreamd import Seen, Step, Upstream, body, end, headers, normal, stall

KINDS = ("openai", "tgi", "triton", "vllm-legacy")
RESULTS = FOLDER / "translated.json"
EVERY_S = 0.005


def words(count: int) -> list[str]:
    return [f"word{number % 10} " for number in range(count)]


# The servers, in a process of their own.


def paced(parts: list[bytes]) -> list[Step]:
    steps: list[Step] = [headers()]
    for part in parts:
        steps += [body(part), stall(EVERY_S)]
    return [*steps, end()]


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def openai(count: int) -> list[bytes]:
    head = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choices = [
        {"index": 0, "delta": {"content": word}, "logprobs": None, "finish_reason": None} for word in words(count)
    ]
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count}
    told = [event({**head, "choices": [choice]}) for choice in [*choices, last]]
    return [*told, event({**head, "choices": [], "usage": usage}), b"data: [DONE]\n\n"]


def tgi(count: int) -> list[bytes]:
    made = []
    for number, word in enumerate(words(count), 1):
        token = {"id": number, "text": word, "logprob": -0.5, "special": False}
        told: dict[str, Any] = {"index": number, "token": token, "generated_text": None, "details": None}
        if number == count:
            details = {"finish_reason": "length", "generated_tokens": count, "seed": None, "input_length": 5}
            told |= {"generated_text": "".join(words(count)), "details": details}
        made.append(event(told))
    return made


def legacy(count: int) -> list[bytes]:
    text, made = "", []
    for word in words(count):
        text += word
        made.append(json.dumps({"text": [text]}).encode() + b"\0")
    return made


def route(seen: Seen, count: int) -> list[Step]:
    if seen.path == "/info":
        return [normal()] if seen.method != "GET" else [_json({"model_id": "m", "max_total_tokens": 100_000})]
    if seen.method == "GET":
        return [normal()]
    makers = {"/v1/chat/completions": openai, "/generate_stream": tgi, "/generate": legacy}
    return paced(makers[seen.path](count))


def _json(document: object) -> Step:
    from tests.harness.upstreamd import status

    return status(200, [("content-type", "application/json")], json.dumps(document).encode())


async def serve(count: int, streams: int) -> None:
    """Serves until its standard input ends; prints where."""
    triton = TritonStandIn(words(count), workers=streams + 4, every_s=EVERY_S)
    async with Upstream(scenario=lambda seen: route(seen, count)) as upstream:
        with triton:
            print(json.dumps({"http": upstream.root, "grpc": triton.url}), flush=True)
            await asyncio.to_thread(sys.stdin.read)


@contextmanager
def servers(count: int, streams: int) -> Iterator[dict[str, str]]:
    command = [sys.executable, "-m", "benchmarks.translated", "--serve", "--tokens", str(count)]
    process = subprocess.Popen(
        [*command, "--streams", str(streams)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


# The measurement.


async def stream(gateway: GatewayProcess, model: str, count: int) -> int:
    """Reads one streamed chat and returns how many pieces of text it had."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    asked = {"model": model, "messages": [{"role": "user", "content": "Say many words please"}], "stream": True}
    content = json.dumps(asked | {"max_tokens": count}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\n"
    head += f"content-type: application/json\r\nconnection: close\r\ncontent-length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    data = await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    assert data.startswith(b"HTTP/1.1 200") and b"[DONE]" in data, data[:300]
    return data.count(b'"content":"word')


async def measure(gateway: GatewayProcess, kind: str, streams: int, count: int) -> float:
    """Returns the gateway's CPU time for each token, in microseconds."""
    pids = family(gateway.pid)
    before = cpu_s(pids)
    found = await asyncio.gather(*(stream(gateway, kind, count) for _ in range(streams)))
    spent_s = cpu_s(pids) - before
    assert found == [count] * streams, f"{kind}: {found}"
    return spent_s / (streams * count) * 1e6


def run(rounds: int, streams: int, count: int) -> dict[str, Any]:
    """Measures every kind in every round, in turn, every second round backwards."""
    with servers(count, streams) as at, tempfile.TemporaryDirectory() as folder:
        urls = {"openai": at["http"] + "/v1", "tgi": at["http"], "triton": at["grpc"], "vllm-legacy": at["http"]}
        models = [
            {
                "name": kind,
                "targets": [
                    {"url": urls[kind], "engine": kind, "model": VLLM if kind == "triton" else "m"}
                    | ({} if kind == "openai" else {"chat_template": "plain"})
                ],
            }
            for kind in KINDS
        ]
        taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
        with GatewayProcess(Path(folder) / "home", {"models": models}) as gateway:
            gateway.wait_ready()
            for kind in KINDS:
                asyncio.run(measure(gateway, kind, streams, count))  # connections, metadata, compiled paths
            for number in range(rounds):
                for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                    taken[kind].append(asyncio.run(measure(gateway, kind, streams, count)))
    return {
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "rounds": rounds,
        "streams": streams,
        "tokens": count,
        "cpu_us": {kind: round(statistics.median(values), 1) for kind, values in taken.items()},
        "ratio": {
            kind: round(statistics.median(a / b for a, b in zip(taken[kind], taken["openai"], strict=True)), 2)
            for kind in KINDS
        },
    }


def main() -> int:
    """Prints the table, and keeps it in the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.translated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.tokens, options.streams))
        return 0
    found = run(options.rounds, options.streams, options.tokens)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    for kind in KINDS:
        print(f"{kind:12} {found['cpu_us'][kind]:7.1f} µs a token   x {found['ratio'][kind]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
