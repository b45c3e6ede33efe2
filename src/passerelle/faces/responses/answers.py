"""Chat answers told as Responses: one document, or the events response.created … response.completed.

A stream is told item by item: each is added, its parts are added, filled and done, then it is done itself. The last
event has the whole answer. What broke ends with response.failed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from passerelle.faces.responses.items import Item, new_item_id

_OURS = (
    *("background", "created_at", "id", "instructions", "metadata", "model", "object", "previous_response_id"),
    *("prompt_cache_key", "safety_identifier", "store", "user"),
)
"""What a server's own answer does not decide."""
_COUNTED = ("type", "sequence_number")
_TEXT = "text"
_THOUGHT = "reasoning"


class ResponseRendering:
    """As `passerelle.faces.translated.Rendering`. ``draft`` is the answer before there is one; it is filled.

    The last event of a stream is not returned by `end`: it stands in ``last``, to be sent once the answer is kept.
    """

    content_type = b"text/event-stream"

    def __init__(self, draft: dict[str, Any]) -> None:
        self.answer = draft
        self.last = b""
        self._number = 0
        self._open: str | None = None
        """Which item is open: text, reasoning, or the index of a tool call."""
        self._finish: str | None = None
        self._begun = False

    # Whole answers

    def document(self, answer: dict[str, Any]) -> bytes:
        """Returns the response."""
        if answer.get("object") == "response":
            self._adopt(answer)
            return msgspec.json.encode(self.answer)
        choice = answer["choices"][0]
        message = choice["message"]
        output: list[Item] = self.answer["output"]
        thought = message.get("reasoning_content") or message.get("reasoning")
        if thought:
            output.append(_reasoning(thought))
        parts = []
        if message.get("content"):
            part = _text(message["content"])
            part["logprobs"] = _logprobs(choice)
            parts.append(part)
        if message.get("refusal"):
            parts.append({"type": "refusal", "refusal": message["refusal"]})
        calls = message.get("tool_calls") or ()
        if parts or not calls:
            output.append(_message(parts or [_text("")]))
        output += [_call(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]
        self._finish = choice.get("finish_reason")
        self._conclude(answer.get("usage"))
        return msgspec.json.encode(self.answer)

    # Streams

    def comment(self, text: bytes) -> bytes:
        """The comment, which clients ignore."""
        return b": " + text + b"\n\n"

    def event(self, event: dict[str, Any]) -> bytes:
        """Returns the events that one chunk makes; an event of a server that has Responses itself, with our names."""
        if "type" in event:
            return self._passed(event)
        out = self._begin()
        if event.get("error"):
            error = event["error"]
            return out + self._fail(error.get("code") or "server_error", error.get("message") or "")
        if event.get("usage"):
            self.answer["usage"] = usage_of(event["usage"])
        for choice in event.get("choices") or ():
            out += self._delta(choice)
            self._finish = choice.get("finish_reason") or self._finish
        return out

    def end(self) -> bytes:
        """Returns the events before the last one."""
        out = self._begin()
        if not self.answer["output"]:
            out += self._item(_TEXT, _message([])) + self._part(_text(""))
        out += self._close()
        self._conclude(None)
        self.last = self._event(f"response.{self.answer['status']}", {"response": self.answer})
        return out

    # Answers of servers that have Responses themselves

    def _passed(self, event: dict[str, Any]) -> bytes:
        self._begun = True
        self._number = event.get("sequence_number", self._number)
        kind, fields = event["type"], {name: value for name, value in event.items() if name not in _COUNTED}
        if "response" in event:
            self._adopt(event["response"])
            fields["response"] = self.answer
        told = self._event(kind, fields)
        if kind in ("response.completed", "response.incomplete"):
            self.last = told
            return b""
        return told

    def _adopt(self, answer: dict[str, Any]) -> None:
        """Takes a server's answer; its name, what was asked for and who keeps it stay ours."""
        for item in answer.get("output") or ():
            if item.get("type") != "function_call":
                item["content"] = item.get("content") or []
                for part in item["content"]:
                    if part.get("type") == "output_text":
                        part |= {"annotations": part.get("annotations") or [], "logprobs": part.get("logprobs") or []}
        self.answer = answer | {name: self.answer[name] for name in _OURS}

    # Answers that are made in the background

    def queued(self) -> list[bytes]:
        """Returns the first events of an answer that waits for its job, numbers 0 and 1."""
        told = {"response": {**self.answer, "status": "queued"}}
        return [self._event("response.created", told), self._event("response.queued", told)]

    def working(self) -> bytes:
        """Returns the event of an answer whose job runs, number 2."""
        return self._event("response.in_progress", {"response": {**self.answer, "status": "in_progress"}})

    def replay(self, document: dict[str, Any]) -> list[bytes]:
        """Returns the further events of an answer that has ended: the same at each time."""
        out: list[bytes] = []
        for number, item in enumerate(document["output"]):
            calls = item["type"] == "function_call"
            empty: Item = {"arguments": ""} if calls else {"content": []}
            out.append(self._item(f"{number}", {**item, **empty}))
            if calls:
                self._current["arguments"] = item["arguments"]
                told = {"item_id": item["id"], "output_index": self._index, "delta": item["arguments"]}
                out.append(self._event("response.function_call_arguments.delta", told))
                continue
            for part in item["content"]:
                if self._current["content"]:
                    out.append(self._end_part())
                field = "refusal" if part["type"] == "refusal" else "text"
                out.append(self._part({**part, field: ""}))
                self._current["content"][-1][field] = part[field]
                told = {**self._place(), "delta": part[field]}
                if part["type"] == "output_text":
                    told["logprobs"] = part.get("logprobs") or []
                out.append(self._event(f"response.{part['type']}.delta", told))
        out.append(self._close())
        state = {"completed": "completed", "failed": "failed"}.get(document["status"], "incomplete")
        out.append(self._event(f"response.{state}", {"response": document}))
        return [each + b"\n\n" for block in out for each in block.split(b"\n\n") if each]

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        told = {"response": self.answer}
        return self._event("response.created", told) + self._event("response.in_progress", told)

    def _fail(self, code: str, message: str) -> bytes:
        self.answer |= {"status": "failed", "error": {"code": code, "message": message}}
        return self._event("response.failed", {"response": self.answer})

    def _delta(self, choice: dict[str, Any]) -> bytes:
        delta = choice.get("delta") or {}
        out = b""
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            out += self._think(thought)
        if delta.get("content"):
            out += self._say(_TEXT, "text", "output_text", delta["content"], _logprobs(choice))
        if delta.get("refusal"):
            out += self._say(_TEXT, "refusal", "refusal", delta["refusal"], None)
        for call in delta.get("tool_calls") or ():
            out += self._call(call)
        return out

    def _think(self, text: str) -> bytes:
        out = b""
        if self._open != _THOUGHT:
            out = self._item(_THOUGHT, _reasoning(None)) + self._part({"type": "reasoning_text", "text": ""})
        self._current["content"][-1]["text"] += text
        return out + self._event("response.reasoning_text.delta", {**self._place(), "delta": text})

    def _say(self, kind: str, field: str, part: str, text: str, logprobs: list[Any] | None) -> bytes:
        out = b""
        if self._open != kind:
            out += self._item(kind, _message([]))
        content = self._current["content"]
        if not content or content[-1]["type"] != part:
            out += self._end_part() if content else b""
            out += self._part(_text("") if part == "output_text" else {"type": part, field: ""})
        content[-1][field] += text
        told: dict[str, Any] = {**self._place(), "delta": text}
        if logprobs is not None:
            content[-1]["logprobs"] += logprobs
            told["logprobs"] = logprobs
        return out + self._event(f"response.{part}.delta", told)

    def _call(self, call: dict[str, Any]) -> bytes:
        function = call.get("function") or {}
        key = str(call.get("index", 0))
        out = b""
        if self._open != key:
            item = _call(call.get("id") or new_item_id("call"), function.get("name") or "", "")
            item["status"] = "in_progress"
            out += self._item(key, item)
        if arguments := function.get("arguments"):
            self._current["arguments"] += arguments
            told = {"item_id": self._current["id"], "output_index": self._index, "delta": arguments}
            out += self._event("response.function_call_arguments.delta", told)
        return out

    def _item(self, kind: str, item: Item) -> bytes:
        """Begins an item, and ends the one before."""
        out = self._close()
        self._open = kind
        item["status"] = "in_progress"
        self.answer["output"].append(item)
        return out + self._event("response.output_item.added", {"output_index": self._index, "item": item})

    def _part(self, part: Item) -> bytes:
        self._current["content"].append(part)
        return self._event("response.content_part.added", {**self._place(), "part": part})

    def _end_part(self) -> bytes:
        part = self._current["content"][-1]
        kind, place = part["type"], self._place()
        field = "refusal" if kind == "refusal" else "text"
        told = {**place, field: part[field]}
        if kind == "output_text":
            told["logprobs"] = part["logprobs"]
        out = self._event(f"response.{kind}.done", told)
        return out + self._event("response.content_part.done", {**place, "part": part})

    def _close(self) -> bytes:
        """Ends the open item."""
        if self._open is None:
            return b""
        item, out = self._current, b""
        if item["type"] == "function_call":
            told = {"item_id": item["id"], "output_index": self._index, "arguments": item["arguments"]}
            out = self._event("response.function_call_arguments.done", told | {"name": item["name"]})
        elif item["content"]:
            out = self._end_part()
        item["status"] = "completed"
        self._open = None
        return out + self._event("response.output_item.done", {"output_index": self._index, "item": item})

    @property
    def _current(self) -> Item:
        return self.answer["output"][-1]  # type: ignore[no-any-return]

    @property
    def _index(self) -> int:
        return len(self.answer["output"]) - 1

    def _place(self) -> dict[str, Any]:
        return {
            "item_id": self._current["id"],
            "output_index": self._index,
            "content_index": len(self._current["content"]) - 1,
        }

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        told = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(told))

    def _conclude(self, usage: dict[str, Any] | None) -> None:
        """Gives the answer its final state."""
        if usage:
            self.answer["usage"] = usage_of(usage)
        reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(self._finish or "")
        if reason is None:
            self.answer |= {"status": "completed", "completed_at": int(time.time())}
            return
        self.answer |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
        if self.answer["output"]:
            self._current["status"] = "incomplete"


def _message(parts: list[Item]) -> Item:
    return {
        "type": "message",
        "id": new_item_id("msg"),
        "role": "assistant",
        "status": "completed",
        "content": parts,
    }


def text_message(text: str) -> Item:
    """Returns an item of the answer with one text."""
    return _message([_text(text)])


def _text(text: str) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _reasoning(text: str | None) -> Item:
    parts = [] if text is None else [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": new_item_id("rs"), "summary": [], "content": parts, "status": "completed"}


def _call(call_id: str, name: str, arguments: str) -> Item:
    told = {"call_id": call_id, "name": name, "arguments": arguments}
    return {"type": "function_call", "id": new_item_id("fc"), "status": "completed", **told}


def _logprobs(choice: dict[str, Any]) -> list[Any]:
    return list((choice.get("logprobs") or {}).get("content") or ())


def usage_of(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a chat's usage in the names of Responses."""
    read, wrote = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cache = usage.get("prompt_tokens_details") or {}
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": read,
        "input_tokens_details": {
            "cached_tokens": cache.get("cached_tokens") or 0,
            "cache_write_tokens": cache.get("cache_write_tokens") or 0,
        },
        "output_tokens": wrote,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": read + wrote,
    }
