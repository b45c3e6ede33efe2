"""OpenAI's files: uploaded in a form, listed, read, deleted; each seen by its own organisation and project only."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Literal

import msgspec

from passerelle.domain.client import Client, Headers
from passerelle.domain.errors import BadRequest, PasserelleError
from passerelle.domain.principal import Principal, Scope
from passerelle.edge.dispatch import Context
from passerelle.edge.exchange import header
from passerelle.faces.admin.resource import query, respond
from passerelle.faces.described import Described, Parameter
from passerelle.faces.openai.listing import list_parameters, listed, listing
from passerelle.faces.uploads import FormReader
from passerelle.files.store import FileStore, StoredFile, Writing, now_ms

UPLOADED: Final = ("batch", "user_data")
"""What a client may upload for; ``batch_output`` is made here."""
PURPOSES: Final = (*UPLOADED, "batch_output")
MOST_LISTED = 10_000
_FORM_BYTES = 64 * 1024
"""What a form may have beside its file."""
_LIFE_S = (3600, 2_592_000)


class FileAnswer(msgspec.Struct):
    """A file. Times are seconds since the epoch; ``expires_at`` is null for one that is kept."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "user_data", "batch_output"]
    status: Literal["processed"]


class FileListAnswer(msgspec.Struct):
    """One page of files."""

    object: Literal["list"]
    data: list[FileAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileForm(msgspec.Struct):
    """The form of an upload. ``expires_after[seconds]`` counts from the upload, 3,600 to 2,592,000."""

    file: bytes
    purpose: Literal["batch", "user_data"]
    expires_after_anchor: Literal["created_at"] | None = msgspec.field(name="expires_after[anchor]", default=None)
    expires_after_seconds: int | None = msgspec.field(name="expires_after[seconds]", default=None)


class DeletedAnswer(msgspec.Struct):
    """It is gone."""

    id: str
    object: str
    deleted: bool


class FilesFace:
    """The endpoints. ``store`` gives a caller's files."""

    def __init__(self, store: Callable[[Principal], FileStore]) -> None:
        self._store = store

    async def create(self, context: Context) -> None:
        """``POST /v1/files``: the file is written as it arrives, and shown once it is whole."""
        store = self._store(context.caller)
        exchange = context.exchange
        pieces = exchange.pieces(store.rules.max_file_bytes + _FORM_BYTES)
        form = FormReader(header(exchange.headers, b"content-type"), pieces)
        writing = await store.begin()
        try:
            found = await _receive(form, writing, store)
        except BaseException:
            with contextlib.suppress(PasserelleError):
                await writing.discard()
            raise
        await respond(context, shown(found))

    async def list(self, context: Context) -> None:
        """``GET /v1/files``: newest first, of one purpose where it is asked."""
        parameters = query(context, "limit", "after", "order", "purpose")
        asked = listing(parameters, default=MOST_LISTED, most=MOST_LISTED)
        found = await self._store(context.caller).list(
            purpose=parameters.get("purpose"), after=asked.after, limit=asked.limit + 1, ascending=asked.ascending
        )
        await respond(context, listed([shown(each) for each in found], asked))

    async def show(self, context: Context) -> None:
        """``GET /v1/files/{file_id}``."""
        await respond(context, shown(await self._store(context.caller).get(context.parameters["file_id"])))

    async def content(self, context: Context) -> None:
        """``GET /v1/files/{file_id}/content``: as it was uploaded, and never as something a browser would run."""
        store = self._store(context.caller)
        found = await store.get(context.parameters["file_id"])
        client = context.exchange.client
        headers: Headers = [
            (b"content-type", b"application/octet-stream"),
            (b"content-length", b"%d" % found.bytes),
            (b"content-disposition", b"attachment"),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
            (b"x-request-id", context.request_id.encode()),
        ]
        if context.exchange.method == "HEAD":
            client.begin(200, headers)
            await client.end()
            return
        await _send(client, headers, store.pieces(found.id))

    async def delete(self, context: Context) -> None:
        """``DELETE /v1/files/{file_id}``."""
        file_id = context.parameters["file_id"]
        await self._store(context.caller).delete(file_id)
        await respond(context, DeletedAnswer(file_id, "file", deleted=True))


async def _send(client: Client, headers: Headers, pieces: AsyncIterator[bytes]) -> None:
    """Streams a body no faster than the caller takes it."""
    flowing = asyncio.Event()
    flowing.set()
    client.on_flow(flowing.clear, flowing.set)
    client.begin(200, headers)
    client.on_gone(flowing.set)
    async for piece in pieces:
        await flowing.wait()
        if client.gone:
            return
        client.write(piece)
    await client.end()


async def _receive(form: FormReader, writing: Writing, store: FileStore) -> StoredFile:
    """Reads the form; the file goes to ``writing``. Raises BadRequest."""
    fields: dict[str, str] = {}
    filename: str | None = None
    while (part := await form.next()) is not None:
        name, given = part
        if name in fields or (name == "file" and filename is not None):
            raise BadRequest(f"Field `{name}` is there twice.", param=name)
        if name == "file":
            if given is None:
                raise BadRequest("Field `file` is no file: it has no filename.", param="file")
            filename = given or "file"
            async for piece in form.data():
                await writing.write(piece)
        elif name in ("purpose", "expires_after[anchor]", "expires_after[seconds]"):
            fields[name] = await form.text(name)
        else:
            raise BadRequest(f"There is no field `{name[:64]}` here.", param=name[:64])
    if filename is None:
        raise BadRequest("Field `file`: it is required.", param="file")
    purpose = fields.get("purpose")
    if purpose not in UPLOADED:
        raise BadRequest(f"Field `purpose` is one of {', '.join(UPLOADED)}.", param="purpose")
    expires_at_ms = _expires_at_ms(fields, purpose, store)
    return await writing.finish(purpose=purpose, filename=filename, expires_at_ms=expires_at_ms)


def _expires_at_ms(fields: dict[str, str], purpose: str, store: FileStore) -> int | None:
    seconds, anchor = fields.get("expires_after[seconds]"), fields.get("expires_after[anchor]")
    if seconds is None and anchor is None:
        return now_ms() + int(store.rules.retain_s * 1000) if purpose == "batch" else None
    if anchor != "created_at":
        raise BadRequest("`expires_after.anchor` is created_at.", param="expires_after.anchor")
    least, most = _LIFE_S
    if seconds is None or not re.fullmatch("[0-9]{1,8}", seconds) or not least <= int(seconds) <= most:
        raise BadRequest(f"`expires_after.seconds` is from {least} to {most}.", param="expires_after.seconds")
    return now_ms() + int(seconds) * 1000


def shown(file: StoredFile) -> dict[str, Any]:
    """Returns a file as answers show it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at_ms // 1000,
        "expires_at": None if file.expires_at_ms is None else file.expires_at_ms // 1000,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


_PURPOSE = Parameter("purpose", "Files of this purpose only.", {"type": "string", "enum": list(PURPOSES)})
FILES = (
    Described(
        "POST",
        "/v1/files",
        "Files",
        "createFile",
        "Upload a file, in a form",
        Scope.INFERENCE,
        FileAnswer,
        FileForm,
        body_type="multipart/form-data",
        errors={413: "The file is too large.", 415: "The body is no form.", 429: "The organisation's quota is full."},
    ),
    Described(
        "GET",
        "/v1/files",
        "Files",
        "listFiles",
        "List files, newest first",
        Scope.INFERENCE,
        FileListAnswer,
        parameters=(*list_parameters(default=MOST_LISTED, most=MOST_LISTED, order=True), _PURPOSE),
    ),
    Described("GET", "/v1/files/{file_id}", "Files", "showFile", "Show a file", Scope.INFERENCE, FileAnswer),
    Described(
        "GET",
        "/v1/files/{file_id}/content",
        "Files",
        "readFile",
        "Read what is in a file",
        Scope.INFERENCE,
        None,
        content_type="application/octet-stream",
    ),
    Described("DELETE", "/v1/files/{file_id}", "Files", "deleteFile", "Delete a file", Scope.INFERENCE, DeletedAnswer),
)
