"""What these tests ask for: one of each thing a client can want, every answer the same each time."""

from __future__ import annotations

from tests.vllm.servers import MODEL
from tests.vllm.wire import JsonObject

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"

SEA = "The sea is blue and calm today. "
LONG_PROMPT = SEA * 40
"""321 tokens, of which vLLM can cache 256; the model goes on with it for as long as it may."""

_SIZE_TOOL = {
    "type": "function",
    "function": {
        "name": "size",
        "description": "Says how large a city is.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
_CITY_SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}, "coastal": {"type": "boolean"}},
    "required": ["size", "coastal"],
    "additionalProperties": False,
}


def chat(text: str, **more: object) -> JsonObject:
    """A chat request of one user message, greedy unless it says otherwise."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 12} | more


def completion(prompt: str | list[str], **more: object) -> JsonObject:
    """A completion request, greedy unless it says otherwise."""
    return {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 12} | more


CHATS: dict[str, JsonObject] = {
    "plain": chat("What is the capital of France?", seed=1),
    "system-and-history": chat("")
    | {
        "messages": [
            {"role": "system", "content": "You answer in one word."},
            {"role": "user", "content": "The opposite of hot?"},
            {"role": "assistant", "content": "Cold."},
            {"role": "user", "content": "And of small?"},
        ]
    },
    "parts": chat("") | {"messages": [{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]},
    "accents": chat("Répète : « L'été à Brest, 12 °C, naïve, œuf 🥚 »", max_tokens=24),
    "seeded": chat("Tell me a joke.", temperature=0.9, top_p=0.8, seed=42),
    # Next to greedy: vLLM refuses n > 1 for greedy, and two warm choices differ with how they fall into one batch.
    "two-choices": chat("Name a colour.", temperature=0.01, seed=7, n=2),
    "logprobs": chat("Say yes.", logprobs=True, top_logprobs=3, max_tokens=4),
    "stop-string": chat("Hi", stop=["assist", "help"]),
    "stop-token": chat("Hi", stop_token_ids=[416]),
    "penalties": chat("List fruits.", frequency_penalty=0.5, presence_penalty=0.5),
    "engine-sampling": chat("Say hello.", top_k=5, min_p=0.1, repetition_penalty=1.1, ignore_eos=True, seed=5),
    "logit-bias": chat("Say hello.", logit_bias={"19556": -100}, max_tokens=6),
    "max-completion-tokens": {
        name: value for name, value in chat("Hi", max_completion_tokens=5).items() if name != "max_tokens"
    },
    "json-schema": chat(
        "Describe a city as JSON.",
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": _CITY_SCHEMA}},
    ),
    "named-tool": chat(
        "How large is Brest?",
        max_tokens=32,
        tools=[_SIZE_TOOL],
        tool_choice={"type": "function", "function": {"name": "size"}},
    ),
    "optional-tool": chat("How large is Brest?", tools=[_SIZE_TOOL], tool_choice="auto"),
}
"""By name, for ``/v1/chat/completions``."""

COMPLETIONS: dict[str, JsonObject] = {
    "plain": completion("One, two, three,"),
    "stop-string": completion("One, two, three,", stop=["six"]),
    "logprobs": completion("One, two, three,", logprobs=2, max_tokens=4),
    "echo": completion("A, B, C,", echo=True, max_tokens=4),
    "two-prompts": completion(["A, B, C,", "One, two, three,"], max_tokens=4),
    "eight-prompts": completion([f"Item {i}, two, three," for i in range(8)], max_tokens=8),
    "token-ids": completion("") | {"prompt": [19556, 905], "max_tokens": 4},
    "suffix-of-a-cached-prefix": completion(LONG_PROMPT),
    "seeded": completion("Once upon a time", temperature=0.9, seed=3),
}
"""By name, for ``/v1/completions``."""
