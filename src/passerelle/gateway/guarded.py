"""The caller's connection with guardrails before it: answers go through them, whole or event by event.

Of a stream each text (a choice's content, its reasoning, the arguments of each of its tool calls) is guarded by itself.
Text is held back while it may be the beginning of a find; what is held goes out before the event that ends the choice,
and before another text of the choice begins. An event that nothing changed goes on as it came.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from passerelle.domain.client import Client, Headers
from passerelle.domain.errors import PasserelleError, UpstreamFailed
from passerelle.domain.guardrail import Action, Guardrail, TextGuard
from passerelle.engines.sse import iter_data
from passerelle.gateway.json_text import JsonText, closed

Path = tuple[str | int, ...]
"""Where a text is in a choice: ``("delta", "tool_calls", 0, "function", "arguments")``; tool calls by their index."""

_NOT_TEXT = frozenset(
    {"role", "type", "id", "index", "tool_call_id", "name", "url", "data", "format", "detail", "file_id", "file_data"}
    | {"uuid", "finish_reason", "stop_reason", "logprobs", "object", "model", "created"}
)
"""Members whose strings are names and addresses, which no model reads as text."""
_OF_TEXT_ONLY = frozenset({"content", "reasoning_content", "reasoning", "refusal", "tool_calls"})
_JSON_TEXT = "arguments"
_TOKEN_LISTS = ("logprobs", "token_ids", "prompt_token_ids")
"""What spells the answer out a second time."""


THREAD_BYTES = 8 * 1024
"""What is larger is read in a thread: a megabyte takes a second, and nobody's tokens may wait for that."""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int | None = None
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None


_check_event = msgspec.json.Decoder(_Event).decode
"""Raises for events that cannot be looked into: those do not go on."""


def _counting(finds: Counter[str], guardrail: Guardrail) -> Callable[[], None]:
    name = guardrail.rule.name

    def count() -> None:
        finds[name] += 1

    return count


class Reviewer:
    """Puts every text of a JSON value through the guardrails. ``changed`` counts the texts that came out different."""

    def __init__(self, guardrails: tuple[Guardrail, ...], finds: Counter[str]) -> None:
        self._guardrails = [(one, _counting(finds, one)) for one in guardrails]
        self.changed = 0

    def review(self, value: Any, name: str = "") -> Any:
        """Returns the value as it may go on; lists and tables are changed in place."""
        if type(value) is str:
            return self._text(value, name)
        if type(value) is list:
            for index, item in enumerate(value):
                value[index] = self.review(item, name)
        elif type(value) is dict:
            for key, item in value.items():
                if key not in _TOKEN_LISTS and (key not in _NOT_TEXT or type(item) is not str):
                    value[key] = self.review(item, key)
        return value

    def _text(self, text: str, name: str) -> str:
        json_text = JsonText() if name == _JSON_TEXT else None
        before = text if json_text is None else json_text.open(text)
        after = before
        for guardrail, count in self._guardrails:
            after = guardrail.review(after, count)
        if after == before:
            return text
        self.changed += 1
        return after if json_text is None else closed(after) + json_text.rest()


class _Channel:
    """One text of one choice, through all guardrails."""

    def __init__(self, path: Path, guards: list[TextGuard]) -> None:
        self.path = path
        self._guards = guards
        self._json_text = JsonText() if path[-1] == _JSON_TEXT else None

    def feed(self, text: str) -> str:
        """Takes a piece and returns what may go on."""
        if self._json_text is not None:
            text = self._json_text.open(text)
        for guard in self._guards:
            if not text:
                return ""
            text = guard.feed(text)
        return text if self._json_text is None else closed(text)

    def flush(self) -> str:
        """Returns what was held."""
        text = ""
        for guard in self._guards:
            text = (guard.feed(text) if text else "") + guard.flush()
        return text if self._json_text is None else closed(text) + self._json_text.rest()


class GuardedClient:
    """A `Client` that passes on what the guardrails let pass.

    ``blocked`` makes the error of a guardrail that blocks. ``stop`` is called once with that of a stream, and
    nothing is written from then on. ``finds`` counts by guardrail.
    """

    def __init__(
        self,
        client: Client,
        guardrails: tuple[Guardrail, ...],
        stop: Callable[[PasserelleError], None],
        blocked: Callable[[Guardrail], PasserelleError],
    ) -> None:
        self._client = client
        self._guardrails = guardrails
        self._stop = stop
        self._blocked = blocked
        self._hides = any(one.rule.action is not Action.FLAG for one in guardrails)
        self._blockers = [one for one in guardrails if one.rule.action is Action.BLOCK]
        self.finds = Counter[str]()
        self._channels: dict[int, dict[Path, _Channel]] = {}
        self._envelope: dict[str, Any] = {}
        self._stopped = False

    @property
    def gone(self) -> bool:
        """As `Client.gone`."""
        return self._client.gone

    @property
    def started(self) -> bool:
        """As `Client.started`."""
        return self._client.started

    def on_gone(self, callback: Callable[[], object]) -> None:
        """As `Client.on_gone`."""
        self._client.on_gone(callback)

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """As `Client.on_flow`."""
        self._client.on_flow(pause, resume)

    def begin(self, status: int, headers: Headers) -> None:
        """As `Client.begin`."""
        self._client.begin(status, headers)

    def last(self) -> None:
        """As `Client.last`."""
        self._client.last()

    def abort(self) -> None:
        """As `Client.abort`."""
        self._client.abort()

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """As `Client.respond`, of an answer as it may be seen. Raises ContentBlocked, or UpstreamFailed."""
        try:
            if len(body) > THREAD_BYTES:
                body = await asyncio.to_thread(self._review_document, body)
            else:
                body = self._review_document(body)
        except (ValueError, RecursionError):
            raise _not_readable() from None
        await self._client.respond(status, headers, body)

    def write(self, data: bytes) -> None:
        """As `Client.write`, of whole events."""
        if self._stopped:
            return
        out: list[bytes] = []
        try:
            for event in data.split(b"\n\n"):
                if event and self._event(event, out):
                    break
        except (ValueError, RecursionError):
            self._halt(_not_readable())
        if out:
            self._client.write(b"".join(out))
        if self._blockers and (blocker := self._blocker()) is not None:
            self._halt(self._blocked(blocker))

    def let_go(self) -> None:
        """Writes what is still held: the stream ended without its last events."""
        if not self._stopped and (rest := b"".join(self._flush_all())):
            self._client.write(rest)

    async def end(self) -> None:
        """As `Client.end`."""
        if self._stopped:
            await asyncio.sleep(0)  # the cancellation arrives here
        await self._client.end()

    def _halt(self, error: PasserelleError) -> None:
        self._stopped = True
        self._stop(error)

    def _blocker(self) -> Guardrail | None:
        return next((one for one in self._blockers if self.finds[one.rule.name]), None)

    def _review_document(self, body: bytes) -> bytes:
        document: dict[str, Any] = msgspec.json.decode(body)
        reviewer = Reviewer(self._guardrails, self.finds)
        choices = document.get("choices")
        if type(choices) is not list:
            return body
        hidden = False
        for choice in choices:
            reviewer.review(choice)
            hidden = (type(choice) is dict and self._hide_tokens(choice)) or hidden
        if (blocker := self._blocker()) is not None:
            raise self._blocked(blocker)
        return msgspec.json.encode(document) if reviewer.changed or hidden else body

    def _hide_tokens(self, choice: dict[str, Any]) -> bool:
        """Takes out what would tell what was masked. Returns whether there was something."""
        if not self._hides:
            return False
        told = [name for name in _TOKEN_LISTS if choice.get(name)]
        for name in told:
            choice[name] = None
        return bool(told)

    def _event(self, event: bytes, out: list[bytes]) -> bool:
        """Takes one event without its blank line. Returns whether a guardrail blocks the stream here."""
        data = event[6:] if event.startswith(b"data: {") and b"\n" not in event else b"\n".join(iter_data(event))
        if data[:1] != b"{":
            if data.strip() == b"[DONE]":
                out.extend(self._flush_all())
                if self._blocker() is not None:
                    return True
            out.append(event + b"\n\n")
            return False
        _check_event(data)
        parsed: dict[str, Any] = msgspec.json.decode(data)
        choices = parsed.get("choices")
        if not choices:
            out.append(event + b"\n\n")
            return False
        self._envelope = parsed
        changed = False
        kept: list[dict[str, Any]] = []
        for choice in choices:
            touched = self._choice(choice, out)
            changed = changed or touched
            if self._blockers and self._blocker() is not None:
                choice["finish_reason"] = None
                parsed["choices"] = [choice]
                parsed.pop("usage", None)
                if not _is_hollow(choice):
                    out.append(_event_of(parsed))
                return True
            if not touched or not _is_hollow(choice):
                kept.append(choice)
        if not changed:
            out.append(event + b"\n\n")
        elif kept or parsed.get("usage") is not None:
            parsed["choices"] = kept
            out.append(_event_of(parsed))
        return False

    def _choice(self, choice: dict[str, Any], out: list[bytes]) -> bool:
        """Guards the texts of one choice of an event. Returns whether it is another one now."""
        number = choice.get("index") or 0
        channels = self._channels.setdefault(number, {})
        changed = self._hide_tokens(choice)
        ends = choice.get("finish_reason") is not None
        fed: dict[Path, tuple[dict[str, Any], str]] = {}
        for path, table, name in _texts(choice, ()):
            text = table[name]
            if not text:
                continue
            channel = channels.get(path)
            if channel is None:
                out.extend(self._flush(number, channels))
                channel = channels[path] = self._open(path)
            passed = channel.feed(text)
            if passed != text:
                table[name] = passed
                changed = True
            fed[path] = (table, name)
        if not ends:
            return changed
        for path, channel in channels.items():
            rest = channel.flush()
            if rest and path in fed:
                table, name = fed[path]
                table[name] += rest
                changed = True
            elif rest:
                out.append(self._piece(number, path, rest))
        channels.clear()
        return changed

    def _open(self, path: Path) -> _Channel:
        return _Channel(path, [one.watch(_counting(self.finds, one)) for one in self._guardrails])

    def _flush(self, number: int, channels: dict[Path, _Channel]) -> list[bytes]:
        """Returns events of what the texts of a choice still hold."""
        pieces = ((path, channel.flush()) for path, channel in channels.items())
        return [self._piece(number, path, rest) for path, rest in pieces if rest]

    def _flush_all(self) -> list[bytes]:
        pieces = [piece for number, channels in self._channels.items() for piece in self._flush(number, channels)]
        self._channels = {}
        return pieces

    def _piece(self, number: int, path: Path, text: str) -> bytes:
        """Returns an event of one piece of one text."""
        value: Any = text
        for step in reversed(path):
            value = [value | {"index": step}] if isinstance(step, int) else {step: value}
        choice = {"index": number, **value, "finish_reason": None}
        return _event_of({key: item for key, item in self._envelope.items() if key != "usage"} | {"choices": [choice]})


def _not_readable() -> UpstreamFailed:
    return UpstreamFailed("The model server sent something that cannot be checked; retry the request.")


def _event_of(parsed: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(parsed) + b"\n\n"


def _texts(value: dict[str, Any], path: Path) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """Yields each text of a choice: its path, and the table and name under which it stands."""
    for name, item in value.items():
        if type(item) is str:
            if name not in _NOT_TEXT:
                yield (*path, name), value, name
        elif type(item) is dict:
            if name not in _TOKEN_LISTS:
                yield from _texts(item, (*path, name))
        elif type(item) is list and name not in _TOKEN_LISTS:
            for place, one in enumerate(item):
                if type(one) is dict:
                    yield from _texts(one, (*path, name, one.get("index", place)))


def _is_hollow(choice: dict[str, Any]) -> bool:
    """Whether nothing is left to tell: all of its text is held back."""
    if choice.get("finish_reason") is not None or choice.get("text"):
        return False
    delta = choice.get("delta")
    if delta is None:
        return True
    if any(value for name, value in delta.items() if name not in _OF_TEXT_ONLY):
        return False
    calls = delta.get("tool_calls") or ()
    if any(call.get("id") or (call.get("function") or {}).get("name") for call in calls):
        return False
    return not any(text for _, table, name in _texts(delta, ()) if (text := table[name]))
