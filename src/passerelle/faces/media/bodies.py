"""The bodies of the routes of sound and pictures. Source: OpenAI's API reference, ``audio`` and ``images``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from passerelle.faces.openai.bodies import Label, Name

Word = Annotated[str, Meta(min_length=1, max_length=64)]


class SpeechBody(msgspec.Struct):
    """``POST /v1/audio/speech``. ``speed`` 1 is the voice's own."""

    model: Name
    input: Annotated[str, Meta(min_length=1, max_length=32_768)]
    voice: Word
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4)] | None = None
    instructions: Annotated[str, Meta(max_length=4096)] | None = None
    user: Label | None = None


class ImageBody(msgspec.Struct):
    """``POST /v1/images/generations``. Pictures come in the answer (``b64_json``): no address of a server does."""

    model: Name
    prompt: Annotated[str, Meta(min_length=1, max_length=32_000)]
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    size: Annotated[str, Meta(pattern=r"^(auto|[1-9][0-9]{1,3}x[1-9][0-9]{1,3})\Z")] | None = None
    quality: Word | None = None
    style: Word | None = None
    background: Word | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    seed: Annotated[int, Meta(ge=0)] | None = None
    response_format: Literal["b64_json"] | None = None
    user: Label | None = None


class TranscriptionForm(msgspec.Struct):
    """The form of ``POST /v1/audio/transcriptions``; that of translations has no ``language``, no granularities."""

    file: bytes
    model: str
    language: str | None = None
    prompt: str | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] | None = None
    temperature: float | None = None
    timestamp_granularities: list[Literal["word", "segment"]] | None = msgspec.field(
        name="timestamp_granularities[]", default=None
    )


class TranslationForm(msgspec.Struct):
    """The form of ``POST /v1/audio/translations``: speech of any language, told in English."""

    file: bytes
    model: str
    prompt: str | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] | None = None
    temperature: float | None = None
