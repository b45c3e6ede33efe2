"""The routes of sound and pictures: what is asked is checked, what is answered passes as it is.

A form is read as it arrives, up to `MAX_UPLOAD_BYTES`; its file is kept until the answer is there, because another
target may have to be asked.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from passerelle.domain.errors import BadRequest, PayloadTooLarge
from passerelle.domain.request import Operation, Request, Upload
from passerelle.edge.dispatch import Context
from passerelle.edge.exchange import header
from passerelle.faces.body import decode
from passerelle.faces.calls import Calls
from passerelle.faces.media.bodies import ImageBody, SpeechBody, TranscriptionForm, TranslationForm
from passerelle.faces.uploads import FormReader

MAX_UPLOAD_BYTES: Final = 25 * 1024 * 1024
"""Of one recording; OpenAI's own bound."""
_FORM_BYTES: Final = 64 * 1024
_SPEECH = msgspec.json.Decoder(SpeechBody)
_IMAGE = msgspec.json.Decoder(ImageBody)
_TOP_LEVEL = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NAMES = {
    operation: tuple(field.encode_name for field in msgspec.structs.fields(form))
    for operation, form in ((Operation.TRANSCRIPTION, TranscriptionForm), (Operation.TRANSLATION, TranslationForm))
}
_TRANSCRIPTION: msgspec.json.Decoder[TranscriptionForm | TranslationForm] = msgspec.json.Decoder(
    TranscriptionForm, strict=False
)
_TRANSLATION: msgspec.json.Decoder[TranscriptionForm | TranslationForm] = msgspec.json.Decoder(
    TranslationForm, strict=False
)
_CONSUMED = ("user",)
Body = TypeVar("Body", SpeechBody, ImageBody)


class MediaFace:
    """The endpoints."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def transcribe(self, context: Context) -> None:
        """``POST /v1/audio/transcriptions``: a recording, told in its own language."""
        await self._calls.run(context, await _uploaded(context, Operation.TRANSCRIPTION))

    async def translate(self, context: Context) -> None:
        """``POST /v1/audio/translations``: a recording, told in English."""
        await self._calls.run(context, await _uploaded(context, Operation.TRANSLATION))

    async def speak(self, context: Context) -> None:
        """``POST /v1/audio/speech``: a text, as sound."""
        await self._calls.run(context, _request(Operation.SPEECH, await context.exchange.body(), _SPEECH))

    async def picture(self, context: Context) -> None:
        """``POST /v1/images/generations``: pictures of a text."""
        request = _request(Operation.IMAGE, await context.exchange.body(), _IMAGE)
        request.fields["response_format"] = msgspec.Raw(b'"b64_json"')
        request.body = msgspec.json.encode(request.fields)
        await self._calls.run(context, request)


def _request(operation: Operation, body: bytes, decoder: msgspec.json.Decoder[Body]) -> Request:
    asked = decode(body, decoder)
    names = set(asked.__struct_fields__)
    fields = decode(body, _TOP_LEVEL)
    dropped = tuple(sorted(fields.keys() - names))
    kept = {
        name: raw for name, raw in fields.items() if name in names and name not in _CONSUMED and bytes(raw) != b"null"
    }
    return Request(operation, asked.model, msgspec.json.encode(kept), kept, session=asked.user, dropped=dropped)


async def _uploaded(context: Context, operation: Operation) -> Request:
    """Reads the form. Raises BadRequest that names the field, or PayloadTooLarge."""
    exchange = context.exchange
    form = FormReader(header(exchange.headers, b"content-type"), exchange.pieces(MAX_UPLOAD_BYTES + _FORM_BYTES))
    given: dict[str, Any] = {}
    dropped: list[str] = []
    upload: Upload | None = None
    while (part := await form.next()) is not None:
        name, filename = part
        if name == "file":
            if filename is None or upload is not None:
                raise BadRequest("Field `file` is one file, with its filename.", param="file")
            upload = Upload("file", filename or "recording", await _file(form))
        elif name not in _NAMES[operation]:
            await form.text(name)
            dropped.append(name)
        elif name.endswith("[]"):
            given.setdefault(name, []).append(await form.text(name))
        elif name in given:
            raise BadRequest(f"Field `{name}` is there twice.", param=name)
        else:
            given[name] = await form.text(name)
    if upload is None or not upload.data:
        raise BadRequest("Field `file`: it is required, a recording.", param="file")
    return _form_request(operation, given, upload, tuple(dropped))


def _form_request(operation: Operation, given: dict[str, Any], upload: Upload, dropped: tuple[str, ...]) -> Request:
    encoded = msgspec.json.encode({**given, "file": ""})
    asked = decode(encoded, _TRANSCRIPTION if operation is Operation.TRANSCRIPTION else _TRANSLATION)
    if not 0 < len(asked.model) <= 256:
        raise BadRequest("Field `model`: it is required, 1 to 256 characters.", param="model")
    if asked.temperature is not None and not 0 <= asked.temperature <= 1:
        raise BadRequest("Field `temperature` is from 0 to 1.", param="temperature")
    fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in given.items() if name != "model"}
    return Request(operation, asked.model, msgspec.json.encode(fields), fields, dropped=dropped, upload=upload)


async def _file(form: FormReader) -> bytes:
    data = bytearray()
    async for piece in form.data():
        data += piece
        if len(data) > MAX_UPLOAD_BYTES:
            raise PayloadTooLarge(f"A recording has at most {MAX_UPLOAD_BYTES} bytes; send it in parts.", param="file")
    return bytes(data)
