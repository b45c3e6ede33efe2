"""Chat templates of the common model families, for servers that take a prompt and have no template of their own.

They are written in Python and named in the configuration; a template that a model or a client brings is never run
here. The mark that begins a text is left out: servers add it when they tokenise. Sources: the model cards and
tokenizer files of each family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from passerelle.engines.base import EngineRejected


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: who speaks, and the text."""

    role: str
    text: str


def turns(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Returns chat messages as plain turns. Raises EngineRejected for what has no text form: pictures, tool calls."""
    made = []
    for number, message in enumerate(messages):
        role, content = str(message.get("role", "user")), message.get("content")
        if message.get("tool_calls") or role in ("tool", "function"):
            raise _unsupported("tool calls", number)
        if isinstance(content, list):
            if any(part.get("type") != "text" for part in content):
                raise _unsupported("parts other than text", number)
            content = "".join(str(part.get("text", "")) for part in content)
        made.append(Turn("system" if role == "developer" else role, str(content or "")))
    return made


def render(name: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """Returns the prompt of a chat by the template ``name``, open for the assistant's answer."""
    return TEMPLATES[name](turns(messages))


def _chatml(said: Sequence[Turn]) -> str:
    parts = [f"<|im_start|>{turn.role}\n{turn.text}<|im_end|>\n" for turn in said]
    return "".join(parts) + "<|im_start|>assistant\n"


def _llama2(said: Sequence[Turn]) -> str:
    system, said = _apart(said)
    prompt, lead = "", f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    for turn in said:
        if turn.role == "assistant":
            prompt += f" {turn.text.strip()} </s><s>"
        else:
            prompt += f"[INST] {lead}{turn.text.strip()} [/INST]"
            lead = ""
    return prompt


def _llama3(said: Sequence[Turn]) -> str:
    parts = [f"<|start_header_id|>{turn.role}<|end_header_id|>\n\n{turn.text.strip()}<|eot_id|>" for turn in said]
    return "".join(parts) + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def _mistral(said: Sequence[Turn]) -> str:
    system, said = _apart(said)
    prompt, lead = "", f"{system}\n\n" if system else ""
    for turn in said:
        if turn.role == "assistant":
            prompt += f" {turn.text.strip()}</s>"
        else:
            prompt += f"[INST] {lead}{turn.text.strip()} [/INST]"
            lead = ""
    return prompt


def _zephyr(said: Sequence[Turn]) -> str:
    return "".join(f"<|{turn.role}|>\n{turn.text}</s>\n" for turn in said) + "<|assistant|>\n"


def _phi3(said: Sequence[Turn]) -> str:
    return "".join(f"<|{turn.role}|>\n{turn.text}<|end|>\n" for turn in said) + "<|assistant|>\n"


def _gemma(said: Sequence[Turn]) -> str:
    system, said = _apart(said)
    prompt, lead = "", f"{system}\n\n" if system else ""
    for turn in said:
        role = "model" if turn.role == "assistant" else "user"
        prompt += f"<start_of_turn>{role}\n{lead if role == 'user' else ''}{turn.text.strip()}<end_of_turn>\n"
        lead = "" if role == "user" else lead
    return prompt + "<start_of_turn>model\n"


def _plain(said: Sequence[Turn]) -> str:
    if len(said) == 1:
        return said[0].text
    return "".join(f"{turn.role.capitalize()}: {turn.text}\n" for turn in said) + "Assistant:"


def _apart(said: Sequence[Turn]) -> tuple[str, list[Turn]]:
    """Splits system text off, for families that put it into the first user turn."""
    system = "\n\n".join(turn.text for turn in said if turn.role == "system")
    return system, [turn for turn in said if turn.role != "system"]


TEMPLATES: Mapping[str, Callable[[Sequence[Turn]], str]] = MappingProxyType(
    {
        "chatml": _chatml,
        "gemma": _gemma,
        "llama2": _llama2,
        "llama3": _llama3,
        "mistral": _mistral,
        "phi3": _phi3,
        "plain": _plain,
        "zephyr": _zephyr,
    }
)


def _unsupported(what: str, number: int) -> EngineRejected:
    message = f"The server of this model takes plain text, and messages[{number}] holds {what}."
    return EngineRejected(f"a message holds {what}", status=400, message=message, param=f"messages[{number}]")
