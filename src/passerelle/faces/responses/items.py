"""Items of a Responses conversation, told as chat messages.

message                    a message of its role; input_text, input_image, output_text … its parts
function_call              tool_calls of the assistant's message before it, or of one of its own
function_call_output       a message of role "tool"
reasoning                  left out: models that think again do not want it
instructions               a system message in front; those of earlier responses are not carried on
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from passerelle.domain.errors import BadRequest

Item = dict[str, Any]
_ROLES: Final = ("user", "assistant", "system", "developer")
_TEXTS: Final = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def new_item_id(prefix: str) -> str:
    """Returns an id for an item: ``msg_``, ``fc_`` … and 32 hexadecimal digits."""
    return f"{prefix}_{os.urandom(16).hex()}"


def given_items(value: str | list[Item]) -> list[Item]:
    """Returns the input as whole items, with ids. Raises BadRequest that names the item."""
    if isinstance(value, str):
        return [_message("user", value, "input")]
    return [_item(item, f"input[{number}]") for number, item in enumerate(value)]


def _item(item: Item, where: str) -> Item:
    kind = item.get("type", "message")
    if kind == "message":
        return _message(item.get("role"), item.get("content"), where, _id_of(item, "msg"))
    if kind == "function_call":
        called = {name: _text_of(item, name, where) for name in ("call_id", "name", "arguments")}
        return {"type": kind, "id": _id_of(item, "fc"), "status": "completed", **called}
    if kind == "function_call_output":
        output = item.get("output")
        if not isinstance(output, str):
            output = _joined(_parts(output, f"{where}.output", "user"), f"{where}.output")
        told = {"call_id": _text_of(item, "call_id", where), "output": output}
        return {"type": kind, "id": _id_of(item, "fco"), "status": "completed", **told}
    if kind == "reasoning":
        return {**item, "id": _id_of(item, "rs")}
    raise BadRequest(f"Field `{where}.type`: items of the type {str(kind)[:64]!r} are not served.", param=where)


def _message(role: object, content: object, where: str, item_id: str | None = None) -> Item:
    if role not in _ROLES:
        raise BadRequest(f"Field `{where}.role`: it is one of {', '.join(_ROLES)}.", param=f"{where}.role")
    parts = _parts(content, f"{where}.content", str(role))
    return {
        "type": "message",
        "id": item_id or new_item_id("msg"),
        "role": role,
        "status": "completed",
        "content": parts,
    }


def _id_of(item: Item, prefix: str) -> str:
    found = item.get("id")
    return found if isinstance(found, str) and 0 < len(found) <= 128 else new_item_id(prefix)


def _joined(parts: list[Item], where: str) -> str:
    if not all(part["type"] == "input_text" for part in parts):
        raise BadRequest(f"Field `{where}`: what a tool gave is text, for the models here.", param=where)
    return "".join(part["text"] for part in parts)


def _parts(content: object, where: str, role: str) -> list[Item]:
    kind = "output_text" if role == "assistant" else "input_text"
    if isinstance(content, str):
        return [_text_part(kind, content)]
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise BadRequest(f"Field `{where}`: it is a text or a list of parts.", param=where)
    return [_part(part, kind, f"{where}[{number}]") for number, part in enumerate(content)]


def _part(part: Item, kind: str, where: str) -> Item:
    given = part.get("type")
    if given in _TEXTS:
        return _text_part(kind, _text_of(part, "text", where))
    if given == "refusal" and kind == "output_text":
        return {"type": "refusal", "refusal": _text_of(part, "refusal", where)}
    if given == "input_image" and isinstance(part.get("image_url"), str):
        return {"type": "input_image", "image_url": part["image_url"], "detail": part.get("detail") or "auto"}
    if given == "input_audio" and isinstance(part.get("input_audio"), dict):
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    why = "send its text as input_text" if given == "input_file" else "parts are input_text and input_image"
    raise BadRequest(f"Field `{where}`: {str(given)[:64]!r} is not served here; {why}.", param=where)


def _text_part(kind: str, text: str) -> Item:
    return {"type": kind, "text": text, "annotations": []} if kind == "output_text" else {"type": kind, "text": text}


def _text_of(item: Item, name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise BadRequest(f"Field `{where}.{name}`: it is required, a text.", param=f"{where}.{name}")
    return value


def messages_of(items: Sequence[Item], instructions: str | None) -> list[dict[str, Any]]:
    """Returns the chat messages for whole items."""
    made: list[dict[str, Any]] = []
    if instructions:
        made.append({"role": "system", "content": instructions})
    for item in items:
        kind = item["type"]
        if kind == "message":
            made.append(_chat_message(item))
        elif kind == "function_call":
            _add_call(made, item)
        elif kind == "function_call_output":
            made.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
    return made


def _chat_message(item: Item) -> dict[str, Any]:
    parts = [_chat_part(part) for part in item["content"]]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return {"role": item["role"], "content": parts[0]["text"]}
    if item["role"] == "assistant" and not parts:
        return {"role": "assistant", "content": ""}
    return {"role": item["role"], "content": parts}


def _chat_part(part: Item) -> dict[str, Any]:
    if part["type"] == "input_image":
        return {"type": "image_url", "image_url": {"url": part["image_url"], "detail": part["detail"]}}
    if part["type"] in ("refusal", "input_audio"):
        return part
    return {"type": "text", "text": part["text"]}


def _add_call(made: list[dict[str, Any]], item: Item) -> None:
    if not made or made[-1]["role"] != "assistant":
        made.append({"role": "assistant", "content": None})
    function = {"name": item["name"], "arguments": item["arguments"]}
    call = {"id": item["call_id"], "type": "function", "function": function}
    made[-1].setdefault("tool_calls", []).append(call)


def text_of(items: Sequence[Item]) -> str:
    """Returns all text that users sent, for a service: its input is one text."""
    parts = [part for item in items if item["type"] == "message" and item["role"] == "user" for part in item["content"]]
    return "\n".join(part["text"] for part in parts if part["type"] == "input_text")
