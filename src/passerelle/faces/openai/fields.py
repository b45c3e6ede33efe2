"""What becomes of every top-level request field, one table per operation.

``FORWARD`` fields go to the model server, checked. ``CONSUME`` fields are used here and go no further. ``DROP`` fields
are OpenAI's or an engine's, harmless, and mean nothing to our targets: they are left out and named in
``x-passerelle-dropped-fields``, like any field that is in no table. ``REFUSE`` fields are answered with 400: they load
code, weights, templates or grammars into a model server, address its memory, or change what the answer is so much that
leaving them out would be a lie. Nothing outside a ``FORWARD`` list ever reaches a target.

The bounds of forwarded fields stand in ``bodies``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from passerelle.domain.errors import BadRequest
from passerelle.domain.request import Operation

CONSUME = frozenset({"prompt_cache_key", "safety_identifier", "user"})
"""They name the conversation or the person: what keeps a conversation on one target, and nobody else's business."""

_SAMPLING = frozenset(
    {
        "frequency_penalty",
        "ignore_eos",
        "include_stop_str_in_output",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "min_p",
        "min_tokens",
        "model",
        "n",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop",
        "stop_token_ids",
        "stream",
        "stream_options",
        "temperature",
        "top_k",
        "top_p",
    }
)

_CHAT = _SAMPLING | {
    "add_generation_prompt",
    "continue_final_message",
    "max_completion_tokens",
    "messages",
    "parallel_tool_calls",
    "reasoning_effort",
    "response_format",
    "tool_choice",
    "tools",
    "top_logprobs",
}

_COMPLETION = _SAMPLING | {"echo", "prompt", "suffix"}

FORWARD: Mapping[Operation, frozenset[str]] = {
    Operation.CHAT: _CHAT,
    Operation.COMPLETION: _COMPLETION,
    Operation.EMBEDDING: frozenset({"dimensions", "encoding_format", "input", "input_type", "model"}),
    Operation.TOKENIZE: frozenset(
        {"add_generation_prompt", "add_special_tokens", "messages", "model", "prompt", "return_token_strs"}
    ),
    Operation.DETOKENIZE: frozenset({"model", "tokens"}),
}

DROP = frozenset(
    {
        "best_of",
        "metadata",
        "modalities",
        "prediction",
        "priority",
        "prompt_cache_retention",
        "request_id",
        "service_tier",
        "store",
        "verbosity",
    }
)

_LOADS = "it would make the model server load or run something that a client chose"
_GRAMMAR = "send a JSON schema in `response_format` instead"
_TOOLS = "send `tools` and `tool_choice` instead"
_MEMORY = "it addresses the model server's own memory"

REFUSE: Mapping[str, str] = {
    "audio": "no model here answers in sound",
    "bootstrap_host": _MEMORY,
    "bootstrap_port": _MEMORY,
    "bootstrap_room": _MEMORY,
    "cache_salt": _MEMORY,
    "chat_template": _LOADS,
    "chat_template_kwargs": _LOADS,
    "custom_logit_processor": _LOADS,
    "custom_params": _LOADS,
    "documents": "put the documents into `messages`",
    "ebnf": _GRAMMAR,
    "function_call": _TOOLS,
    "functions": _TOOLS,
    "grammar": _GRAMMAR,
    "grammar_lazy": _GRAMMAR,
    "grammar_triggers": _GRAMMAR,
    "id_slot": _MEMORY,
    "input_embeds": _LOADS,
    "input_extra": _LOADS,
    "json_schema": _GRAMMAR,
    "kv_transfer_params": _MEMORY,
    "logits_processors": _LOADS,
    "lora": _LOADS,
    "media_io_kwargs": _LOADS,
    "mm_processor_kwargs": _LOADS,
    "n_discard": _MEMORY,
    "n_keep": _MEMORY,
    "prompt_embeds": _LOADS,
    "regex": _GRAMMAR,
    "session_params": _MEMORY,
    "slot_id": _MEMORY,
    "structural_tag": _GRAMMAR,
    "structured_outputs": _GRAMMAR,
    "vllm_xargs": _LOADS,
    "web_search_options": "no model here searches the web",
}

REFUSE_PREFIXES: Mapping[str, str] = {"guided_": _GRAMMAR, "lora_": _LOADS}


def leave_out(names: Iterable[str]) -> tuple[str, ...]:
    """Returns those of ``names`` that are dropped and reported, sorted.

    ``names`` are top-level fields that are not forwarded. Raises BadRequest for the first refused one.
    """
    dropped = []
    for name in sorted(names):
        why = refusal(name)
        if why is not None:
            raise BadRequest(f"The field `{name[:64]}` is not accepted: {why}.", param=name[:64], code="field_refused")
        if name not in CONSUME:
            dropped.append(name)
    return tuple(dropped)


def refusal(name: str) -> str | None:
    """Returns why a request with this field is refused, None when it is not."""
    why = REFUSE.get(name)
    if why is None:
        for prefix, reason in REFUSE_PREFIXES.items():
            if name.startswith(prefix):
                return reason
    return why
