"""Seeded bugs: each is a small change to a copy of the source, and each has to make its row fail.

    python -m tests.faults.mutations [NAME ...]      # all of them, or those named; exit 1 when one survives

A row that passes with its bug in proves nothing. The tree itself is never touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_UPSTREAM = "tests/faults/test_upstream.py"
_CALLER = "tests/faults/test_caller.py"
_CONTENT = "tests/faults/test_content.py"
_TIMEOUT_S = 180


@dataclass(frozen=True, slots=True)
class Mutation:
    """One bug: in ``file``, ``old`` becomes ``new``; ``test`` of ``row`` has to notice."""

    name: str
    row: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = (
    Mutation(
        "a caller who leaves is not noticed",
        "B2",
        "gateway/gateway.py",
        "client.on_gone(task.cancel)",
        "client.on_gone(lambda: None)",
        f"{_CALLER}::test_leaving_a_model_server[before the headers-fin-stream]",
    ),
    Mutation(
        "a waiter who leaves keeps its place",
        "B1",
        "gateway/gateway.py",
        "client.on_gone(task.cancel)",
        "client.on_gone(lambda: call.attempts and task.cancel())",
        f"{_CALLER}::test_leaving_the_queue[fin-stream]",
    ),
    Mutation(
        "a cut stream's server goes on",
        "A13",
        "gateway/relay.py",
        '        """Ends a stream whose server ignores ``max_tokens``, as the server should have."""\n'
        "        self._reply.abort()\n",
        '        """Ends a stream whose server ignores ``max_tokens``, as the server should have."""\n',
        f"{_UPSTREAM}::test_a_runaway_stream_is_cut",
    ),
    Mutation(
        "max_tokens is not watched",
        "A13",
        "gateway/relay.py",
        "if self._max_tokens is not None and self.tokens > self._max_tokens:",
        "if self._max_tokens is not None and self.tokens > 1000 * self._max_tokens:",
        f"{_UPSTREAM}::test_a_runaway_stream_is_cut",
    ),
    Mutation(
        "a stream is retried after its first byte",
        "A8",
        "gateway/attempt.py",
        "            if not relay.begun:\n                raise\n",
        "            if relay.begun:\n                raise\n",
        f"{_UPSTREAM}::test_a_death_after_five_tokens_is_told[reset]",
    ),
    Mutation(
        "a broken stream ends with [DONE]",
        "A8",
        "gateway/gateway.py",
        "        client.write(self._render_stream_error(error, call.request_id))\n",
        "        client.write(self._render_stream_error(error, call.request_id))\n"
        '        client.write(b"data: [DONE]\\n\\n")\n',
        f"{_UPSTREAM}::test_a_death_after_five_tokens_is_told[reset]",
    ),
    Mutation(
        "the tokens of a broken stream are not accounted",
        "A8",
        "gateway/attempt.py",
        "            _report(flight, error)\n            relay.settle_usage()\n",
        "            _report(flight, error)\n",
        f"{_UPSTREAM}::test_a_death_after_five_tokens_is_told[reset]",
    ),
    Mutation(
        "the connection stays open after a broken stream",
        "A8",
        "gateway/gateway.py",
        "        client.last()\n",
        "",
        f"{_UPSTREAM}::test_the_connection_ends_with_a_broken_stream",
    ),
    Mutation(
        "nothing is retried",
        "A4",
        "gateway/retry.py",
        "return isinstance(error, EngineRefused | EngineBroke)",
        "return False",
        f"{_UPSTREAM}::test_a_5xx_is_taken_elsewhere[500]",
    ),
    Mutation(
        "retries have no budget",
        "A19",
        "gateway/retry.py",
        "        if self._tokens < 0.999:",
        "        if self._tokens < -1e9:",
        "tests/promises/test_failover.py::test_retries_have_a_budget",
    ),
    Mutation(
        "no target is ever put out",
        "A1",
        "gateway/health.py",
        "        self.consecutive_failures += 1\n",
        "        return\n",
        f"{_UPSTREAM}::test_a_target_that_refuses_is_passed_over_and_put_out",
    ),
    Mutation(
        "the smaller Retry-After is passed on",
        "A5",
        "gateway/attempt.py",
        "max(waits, default=1.0)",
        "min(waits, default=1.0)",
        f"{_UPSTREAM}::test_when_all_are_at_their_limit_the_larger_wait_is_passed_on[waits0]",
    ),
    Mutation(
        "error texts of servers are not scrubbed",
        "A6",
        "engines/rejection.py",
        "        text = pattern.sub(name, text)\n",
        "        text = pattern.sub(name, text) and text\n",
        f"{_UPSTREAM}::test_a_400_is_the_callers_own",
    ),
    Mutation(
        "errors within a stream are relayed",
        "A14",
        "gateway/relay.py",
        'return self._break("the server reported an error in the stream")',
        "return True",
        f"{_UPSTREAM}::test_nonsense_in_a_stream_is_never_shown[an error]",
    ),
    Mutation(
        "a document without a result is an answer",
        "A14",
        "gateway/relay.py",
        "        return bool(document.choices)\n",
        "        return True\n",
        f"{_UPSTREAM}::test_nonsense_in_a_document_is_502[no choices]",
    ),
    Mutation(
        "a lone CR ends no line",
        "A11",
        "engines/sse.py",
        '.replace(b"\\r", b"\\n")',
        "",
        f"{_UPSTREAM}::test_event_streams_are_read_by_the_standard[whole-cr]",
    ),
    Mutation(
        "the server's name for the model is shown",
        "A11",
        "gateway/relay.py",
        "return None if upstream == public else Renaming(upstream, public)",
        "return None",
        f"{_UPSTREAM}::test_event_streams_are_read_by_the_standard[whole-one packet]",
    ),
    Mutation(
        "a silent server is waited for",
        "A9",
        "engines/transport.py",
        "        self._idle_s = timeouts.idle_s\n",
        "        self._idle_s = 60 * timeouts.idle_s\n",
        f"{_UPSTREAM}::test_a_stall_is_a_death",
    ),
    Mutation(
        "a compressed answer is taken",
        "A15",
        "engines/transport.py",
        'raise self._complaint("a compressed body nobody asked for")',
        "pass",
        f"{_UPSTREAM}::test_broken_framing_is_502_and_the_connection_is_dropped[gzip]",
    ),
    Mutation(
        "calls are settled twice",
        "O6",
        "gateway/gateway.py",
        "            if not call.settled:\n                self._settlement.settle(call)\n",
        "            self._settlement.settle(call)\n            self._settlement.settle(call)\n",
        f"{_UPSTREAM}::test_our_ids_are_used",
    ),
    Mutation(
        "something blocks the loop",
        "O2",
        "gateway/gateway.py",
        "        model = resolve(call)\n",
        '        model = resolve(call)\n        __import__("time").sleep(0.8)\n',
        f"{_UPSTREAM}::test_a_connection_that_swallows_everything_is_given_up",
    ),
    Mutation(
        "a head may take any time",
        "B10",
        "edge/protocol.py",
        "elif now > self.deadline and not self._refused:",
        "elif now > self.deadline + 3600 and not self._refused:",
        f"{_CALLER}::test_slow_heads_are_closed[50]",
    ),
    Mutation(
        "a body may take any time",
        "B11",
        "edge/protocol.py",
        "if now - self._body_started > allowed_s and",
        "if now - self._body_started > 3600 and",
        f"{_CALLER}::test_slow_bodies_are_closed",
    ),
    Mutation(
        "any number of connections",
        "B9",
        "edge/protocol.py",
        "if len(self.connections) > self.limits.max_connections:",
        "if len(self.connections) > 100 * self.limits.max_connections:",
        f"{_CALLER}::test_idle_connections_disturb_nobody",
    ),
    Mutation(
        "framing is left to the parser",
        "B13",
        "edge/protocol.py",
        '        if framings > 1 or (not hosts and version == "1.1"):',
        "        if False:",
        f"{_CALLER}::test_malformed_framing_is_refused[x, chunked]",
    ),
    Mutation(
        "trailers are headers",
        "B13",
        "edge/protocol.py",
        "        if self._in_trailers:\n",
        "        if False:\n",
        f"{_CALLER}::test_trailers_are_not_headers",
    ),
    Mutation(
        "what a picture announces is not read",
        "C14",
        "faces/openai/media.py",
        "    if width * height > MAX_PIXELS:",
        "    if width * height < 0:",
        f"{_CONTENT}::test_an_image_of_another_kind_is_refused[100,000 x 100,000 png]",
    ),
    Mutation(
        "a compressed body is read as it is",
        "B18",
        "edge/asgi.py",
        '    if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):',
        "    if False:",
        f"{_CALLER}::test_a_compressed_body_is_not_opened[gzip]",
    ),
    Mutation(
        "a header without an end is gathered",
        "D1",
        "edge/protocol.py",
        "        self._silent_bytes += len(data)\n",
        "        self._silent_bytes += 0\n",
        f"{_CONTENT}::test_a_key_of_10_mb_is_refused",
    ),
    Mutation(
        "the stated length is not looked at",
        "C3",
        "edge/asgi.py",
        "int(length) > max_body_bytes:",
        "int(length) > 1e18:",
        f"{_CONTENT}::test_a_body_past_the_limit_is_refused_early",
    ),
    Mutation(
        "dangerous fields are dropped in silence",
        "C5",
        "faces/openai/fields.py",
        "        if why is not None:\n",
        "        if why is None and False:\n",
        f"{_CONTENT}::test_a_dangerous_field_is_refused[prompt_embeds]",
    ),
    Mutation(
        "image addresses are passed on",
        "C11",
        "faces/openai/media.py",
        "    found = _PICTURE.match(url)\n",
        '    found = _PICTURE.match(url)\n    if url.startswith("http"):\n        return\n',
        f"{_CONTENT}::test_no_image_address_is_fetched",
    ),
    Mutation(
        "private addresses are fetched from",
        "C13",
        "net/fetch.py",
        "        if not all(is_reachable(",
        "        if False and not all(is_reachable(",
        f"{_CONTENT}::test_redirects_are_looked_at",
    ),
    Mutation(
        "a slow caller pauses nobody",
        "B8",
        "gateway/relay.py",
        "        client.on_flow(reply.pause, reply.resume)\n",
        "",
        f"{_CALLER}::test_a_caller_who_never_reads",
    ),
)
CHEAP = ("a broken stream ends with [DONE]", "calls are settled twice")
"""Those that the ordinary tests run."""


def mutated_source(mutation: Mutation, folder: Path) -> Path:
    """Copies the source into ``folder`` with the bug in; returns what to put on the path."""
    source = folder / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    file = source / "passerelle" / mutation.file
    text = file.read_text()
    if text.count(mutation.old) != 1:
        raise LookupError(f"{mutation.name}: the text to change is {text.count(mutation.old)} times in {mutation.file}")
    file.write_text(text.replace(mutation.old, mutation.new))
    return source


def run(test: str, source: Path, folder: Path) -> int:
    """Runs one test against a source; returns pytest's exit status, -1 when it took too long."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--basetemp", str(folder / "pytest"), test]
    environ = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return -1
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode


def caught(mutation: Mutation) -> bool:
    """Whether the row fails with the bug in."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return run(mutation.test, mutated_source(mutation, folder), folder) != 0


def main(names: Sequence[str]) -> int:
    """Runs the mutations of these names, or all; returns the exit status."""
    survived = 0
    for mutation in MUTATIONS:
        if names and mutation.name not in names:
            continue
        began = time.monotonic()
        good = caught(mutation)
        survived += not good
        verdict = "caught" if good else "SURVIVED"
        print(f"{verdict:<9} {mutation.row:<4} {mutation.name} ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{survived} survived" if survived else "all caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
