"""A stand-in for ``vllm``: an executable that takes its command line and answers like it, in no time and without GPUs.

It is for tests of what starts, watches and ends such servers; what vLLM itself answers is proved by the tier ``vllm``.
It is started as ``vllm serve MODEL …``, loads ASGI middleware by ``--middleware`` as vLLM does, starts a process of its
own (vLLM's engine is one), says on standard output how it was started, and refuses options it does not know, status 2.

    max_tokens      that many words, one each 20 ms when it streams
    /invocations    answers without a key, as vLLM does
    POST /crash     ends at once, status 1, after a line on standard error
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_SHORT = {"--served-model-name", "--host", "--gpu-memory-utilization", "--tensor-parallel-size"}
_SHORT |= {"--pipeline-parallel-size", "--max-model-len", "--dtype", "--quantization", "--max-num-seqs"}


def executable(folder: Path) -> Path:
    """Writes the executable ``vllm`` into the folder and returns its path."""
    file = folder / "vllm"
    file.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} "$@"\n')
    file.chmod(0o755)
    return file


class App:
    """The ASGI application."""

    def __init__(self, model: str, window: int) -> None:
        self._card = {"id": model, "object": "model", "owned_by": "vllm", "max_model_len": window}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path == "/crash":
            print("stand-in: told to crash", file=sys.stderr, flush=True)
            os._exit(1)
        if path == "/v1/chat/completions":
            await self._chat(json.loads((await receive())["body"]), send)
        elif path == "/v1/models":
            await self._document(send, {"object": "list", "data": [self._card]})
        else:
            await self._document(send, {"path": path})

    async def _chat(self, asked: dict[str, Any], send: Any) -> None:
        count = asked.get("max_tokens", 3)
        usage = {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count}
        base = {"id": "c", "object": "chat.completion", "created": 1, "model": self._card["id"]}
        if not asked.get("stream"):
            message = {"role": "assistant", "content": "word " * count}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return await self._document(send, base | {"choices": [choice], "usage": usage})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        base["object"] = "chat.completion.chunk"
        for number in range(count):
            delta = {"role": "assistant", "content": "word "} if number == 0 else {"content": "word "}
            await self._event(send, base | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            await asyncio.sleep(0.02)
        await self._event(send, base | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        await self._event(send, base | {"choices": [], "usage": usage})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    @staticmethod
    async def _event(send: Any, event: dict[str, Any]) -> None:
        data = b"data: " + json.dumps(event).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": data, "more_body": True})

    @staticmethod
    async def _document(send: Any, document: object) -> None:
        data = json.dumps(document).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})


def main() -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--port", type=int)
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--middleware", action="append", default=[])
    for name in sorted(_SHORT):
        parser.add_argument(name)
    arguments = parser.parse_args()
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    started = {"argv": sys.argv[1:], "pid": os.getpid(), "engine": engine.pid, "environ": sorted(os.environ)}
    print("stand-in: " + json.dumps(started), flush=True)
    app: Any = App(arguments.served_model_name, int(arguments.max_model_len or 2048))
    for each in arguments.middleware:
        module, _, name = each.rpartition(".")
        app = getattr(importlib.import_module(module), name)(app)
    import uvicorn

    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="error", timeout_keep_alive=3600)


if __name__ == "__main__":
    main()
