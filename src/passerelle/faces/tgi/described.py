"""TGI's routes for the OpenAPI document."""

from __future__ import annotations

import msgspec

from passerelle.domain.principal import Scope
from passerelle.faces.described import Described
from passerelle.faces.tgi.bodies import GenerateBody


class GenerateDetails(msgspec.Struct):
    """Why the text ended, and how long it is."""

    finish_reason: str
    generated_tokens: int
    seed: int | None


class GenerateAnswer(msgspec.Struct):
    """The text, after the prompt where ``return_full_text`` asked for that."""

    generated_text: str
    details: GenerateDetails | None = None


class GenerateError(msgspec.Struct):
    """TGI's envelope of an error; ``code`` and ``request_id`` are ours."""

    error: str
    error_type: str
    code: str
    request_id: str


class Info(msgspec.Struct):
    """A model, as TGI describes the one it serves."""

    model_id: str
    model_pipeline_tag: str
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int | None
    max_total_tokens: int | None
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str


def _described(prefix: str, suffix: str, of: str) -> tuple[Described, ...]:
    def post(path: str, name: str, summary: str, answer: object) -> Described:
        return Described(
            "POST",
            path,
            "TGI",
            name + suffix,
            summary + of,
            Scope.INFERENCE,
            answer,
            GenerateBody,
            error_answer=GenerateError,
        )

    return (
        post(prefix or "/", "tgiRoot", "Complete a text; `stream` decides", list[GenerateAnswer]),
        post(f"{prefix}/generate", "tgiGenerate", "Complete a text", GenerateAnswer),
        post(f"{prefix}/generate_stream", "tgiGenerateStream", "Complete a text, token by token", None),
        Described(
            "GET",
            f"{prefix}/info",
            "TGI",
            "tgiInfo" + suffix,
            "Describe the model" + of,
            Scope.INFERENCE,
            Info,
            error_answer=GenerateError,
        ),
    )


TGI = _described("", "", ", for TGI's clients") + _described("/tgi/{model}", "Of", " of that name, for TGI's clients")
