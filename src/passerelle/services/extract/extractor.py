"""Turns an uploaded file into text.

What is text is read here. DOCX, PDF and HTML, whose readers have to expect malice, are read by a child process that has
512 MB of memory, 20 s of processor time, 60 s in all, no files and no network (`passerelle.services.extract.lockdown`).
A file that kills its child is refused; nothing else notices.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path
from sysconfig import get_path

import msgspec

import passerelle
from passerelle.domain.errors import BadRequest, PasserelleError, PayloadTooLarge, UnsupportedMedia
from passerelle.services.extract.found import MAX_TEXT_BYTES, Answer, Extracted, Kind, Refusal
from passerelle.services.extract.sniff import decode, sniff_binary, sniff_text
from passerelle.services.extract.subtitles import read_subtitles
from passerelle.services.extract.transcript import read_transcript

WALL_S = 60.0
_MAX_HEAD_BYTES = 64_000
_PIECE_BYTES = 1 << 18


class Extractor:
    """Reads files, ``max_children`` risky ones at one time; further ones wait. ``wall_s`` is for one of them."""

    def __init__(self, max_children: int = 2, wall_s: float = WALL_S) -> None:
        self._places = asyncio.Semaphore(max_children)
        self._wall_s = wall_s

    async def extract(self, data: bytes, name: str = "") -> Extracted:
        """Returns the text of a file. ``name`` tells Markdown from plain text; the bytes tell everything else.

        Raises BadRequest (``file_empty``, ``file_broken``, ``file_encrypted``, ``file_unsafe``, ``file_too_complex``,
        ``file_without_text``), UnsupportedMedia (``unsupported_file``) or PayloadTooLarge (``file_text_too_large``).
        """
        try:
            kind = sniff_binary(data)
            if kind is None:
                found = await asyncio.to_thread(_read_text, data, name)
                if found.kind is not Kind.HTML:
                    return found
                kind = Kind.HTML
            async with self._places:
                return await self._in_child(kind, data)
        except Refusal as refusal:
            raise _refused(refusal) from None

    async def _in_child(self, kind: Kind, data: bytes) -> Extracted:
        command = (sys.executable, "-P", "-s", "-B", "-m", "passerelle.services.extract.child", kind.value)
        child = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=_environment())
        try:
            async with asyncio.timeout(self._wall_s):
                output, _, _ = await asyncio.gather(_receive(child), _send(child, data), _drain(child))
                status = await child.wait()
        except TimeoutError:
            message = f"Reading the file takes longer than {self._wall_s:g} s."
            raise Refusal("file_too_complex", message) from None
        finally:
            await _end(child)
        return _answered(kind, output, status)


def _environment() -> dict[str, str]:
    """Returns an environment without the parent's secrets, in which this very package is found."""
    source = Path(passerelle.__file__).parents[1]
    # A folder of installed packages must not come before the standard library, as PYTHONPATH does.
    installed = source in (Path(get_path("purelib")), Path(get_path("platlib")))
    return {"LC_ALL": "C.UTF-8"} | ({} if installed else {"PYTHONPATH": str(source)})


async def _send(child: Process, data: bytes) -> None:
    assert child.stdin is not None
    with suppress(BrokenPipeError, ConnectionResetError):
        for at in range(0, len(data), _PIECE_BYTES):
            child.stdin.write(data[at : at + _PIECE_BYTES])
            await child.stdin.drain()
    child.stdin.close()
    with suppress(BrokenPipeError, ConnectionResetError):
        await child.stdin.wait_closed()


async def _receive(child: Process) -> bytes:
    assert child.stdout is not None
    output = bytearray()
    while piece := await child.stdout.read(_PIECE_BYTES):
        output += piece
        if len(output) > MAX_TEXT_BYTES + _MAX_HEAD_BYTES:
            raise Refusal("file_text_too_large", f"The file holds more than {MAX_TEXT_BYTES:,} bytes of text.")
    return bytes(output)


async def _drain(child: Process) -> None:
    assert child.stderr is not None
    while await child.stderr.read(_PIECE_BYTES):
        pass


async def _end(child: Process) -> None:
    """Ends the child if it has not ended, and waits for it: also when the request was cancelled."""
    if child.returncode is None:
        with suppress(ProcessLookupError):
            child.kill()
        await asyncio.shield(child.wait())


def _answered(kind: Kind, output: bytes, status: int) -> Extracted:
    head, _, body = output.partition(b"\n")
    try:
        answer = msgspec.json.decode(head, type=Answer)
    except msgspec.DecodeError:
        answer = None
    if answer is None or status != 0:
        if status == -signal.SIGXCPU or status == -signal.SIGKILL:
            raise Refusal("file_too_complex", "Reading the file takes more processor time or memory than is allowed.")
        raise Refusal("file_too_complex", "The file cannot be read: it is damaged, or made to break its reader.")
    if answer.code is not None:
        raise Refusal(answer.code, answer.message or "Reading the file takes more memory than is allowed.")
    text = body.decode()
    if not text.strip():
        raise Refusal("file_without_text", "The file holds no text.")
    return Extracted(text, kind, pages=answer.pages)


def _read_text(data: bytes, name: str) -> Extracted:
    text, encoding = decode(data)
    kind = sniff_text(text, name)
    warnings: list[str] = []
    if encoding in ("windows-1252", "latin-1"):
        warnings.append("The file is not UTF-8; it was read as Western European (Windows-1252).")
    if kind in (Kind.SRT, Kind.VTT):
        text = read_subtitles(text)
        if not text:
            raise Refusal("file_without_text", "The subtitles hold no text.")
    elif kind is Kind.TRANSCRIPT:
        turns = read_transcript(text)
        if turns is None:
            kind = Kind.MARKDOWN if name.lower().endswith((".md", ".markdown")) else Kind.TEXT
        text = text if turns is None else turns
    if len(text) > MAX_TEXT_BYTES:
        raise Refusal("file_text_too_large", f"The file holds more than {MAX_TEXT_BYTES:,} bytes of text.")
    return Extracted(text, kind, encoding, warnings=tuple(warnings))


def _refused(refusal: Refusal) -> PasserelleError:
    """Returns the error that a caller sees."""
    message = refusal.message
    match refusal.code:
        case "unsupported_file":
            return UnsupportedMedia(message, param="file", code="unsupported_file")
        case "file_text_too_large":
            return PayloadTooLarge(message, param="file", code="file_text_too_large")
        case "file_empty":
            return BadRequest(message, param="file", code="file_empty")
        case "file_encrypted":
            return BadRequest(message, param="file", code="file_encrypted")
        case "file_unsafe":
            return BadRequest(message, param="file", code="file_unsafe")
        case "file_without_text":
            return BadRequest(message, param="file", code="file_without_text")
        case "file_broken":
            return BadRequest(message, param="file", code="file_broken")
        case _:
            return BadRequest(message, param="file", code="file_too_complex")
