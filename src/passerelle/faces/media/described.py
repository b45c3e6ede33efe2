"""The routes of sound and pictures for the OpenAPI document."""

from __future__ import annotations

import msgspec

from passerelle.domain.principal import Scope
from passerelle.faces.described import Described
from passerelle.faces.media.bodies import ImageBody, SpeechBody, TranscriptionForm, TranslationForm


class Transcript(msgspec.Struct):
    """What was said; other members as the model's server tells them. With ``text``, ``srt`` and ``vtt`` it is text."""

    text: str


class Picture(msgspec.Struct):
    """One picture, in base64."""

    b64_json: str


class Pictures(msgspec.Struct):
    """Pictures; ``created`` is in seconds since the epoch."""

    created: int
    data: list[Picture]


_FORM_ERRORS = {413: "The recording is too large.", 415: "The body is no form."}
MEDIA = (
    Described(
        "POST",
        "/v1/audio/transcriptions",
        "Media",
        "createTranscription",
        "Write down a recording",
        Scope.INFERENCE,
        Transcript,
        TranscriptionForm,
        body_type="multipart/form-data",
        errors=_FORM_ERRORS,
    ),
    Described(
        "POST",
        "/v1/audio/translations",
        "Media",
        "createTranslation",
        "Write down a recording, in English",
        Scope.INFERENCE,
        Transcript,
        TranslationForm,
        body_type="multipart/form-data",
        errors=_FORM_ERRORS,
    ),
    Described(
        "POST",
        "/v1/audio/speech",
        "Media",
        "createSpeech",
        "Speak a text; the answer is sound",
        Scope.INFERENCE,
        None,
        SpeechBody,
        content_type="audio/*",
    ),
    Described(
        "POST",
        "/v1/images/generations",
        "Media",
        "createImage",
        "Make pictures of a text",
        Scope.INFERENCE,
        Pictures,
        ImageBody,
    ),
)
