"""Streams of a real vLLM, byte for byte, kept in ``tests/golden/vllm`` for tests that replay them without one.

``python -m tests.vllm.transcripts`` records them anew.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import httpx
from tests.vllm.environment import BuildError, build, default_folder
from tests.vllm.prompts import CHAT, CHATS, COMPLETION, COMPLETIONS
from tests.vllm.servers import vllm
from tests.vllm.wire import JsonObject

GOLDEN = Path(__file__).parents[1] / "golden" / "vllm"
_USAGE = {"stream_options": {"include_usage": True}}

TRANSCRIPTS: dict[str, tuple[str, JsonObject]] = {
    "chat": (CHAT, CHATS["plain"]),
    "chat-usage": (CHAT, CHATS["plain"] | _USAGE),
    "chat-usage-in-each-event": (
        CHAT,
        CHATS["plain"] | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    "chat-accents": (CHAT, CHATS["accents"] | _USAGE),
    "chat-two-choices": (CHAT, CHATS["two-choices"] | _USAGE),
    "chat-logprobs": (CHAT, CHATS["logprobs"] | _USAGE),
    "chat-stop-string": (CHAT, CHATS["stop-string"] | _USAGE),
    "chat-tool": (CHAT, CHATS["named-tool"] | _USAGE),
    "completion": (COMPLETION, COMPLETIONS["plain"]),
    "completion-usage": (COMPLETION, COMPLETIONS["plain"] | _USAGE),
    "completion-stop-string": (COMPLETION, COMPLETIONS["stop-string"] | _USAGE),
    "completion-two-prompts": (COMPLETION, COMPLETIONS["two-prompts"] | _USAGE),
}
"""By name: where a request is posted, and the request without ``stream``."""


def transcript(url: str, name: str) -> bytes:
    """Asks the vLLM at ``url`` and returns the bytes of its stream."""
    path, body = TRANSCRIPTS[name]
    answer = httpx.post(f"{url}{path}", json=body | {"stream": True}, timeout=120)
    answer.raise_for_status()
    return answer.content


def main() -> int:
    """Starts vLLM and writes every transcript."""
    try:
        environment = build(default_folder())
    except BuildError as error:
        print(f"transcripts: {error}", file=sys.stderr)
        return 1
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, vllm(environment, Path(folder)) as server:
        for name in TRANSCRIPTS:
            (GOLDEN / f"{name}.sse").write_bytes(transcript(server.url, name))
            print(f"recorded {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
