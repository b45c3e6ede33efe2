"""What a file is, from its bytes: the declared type and the name are claims."""

from __future__ import annotations

import codecs
import re
from pathlib import PurePosixPath

from passerelle.services.extract.found import Kind, Refusal

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FOREIGN = (
    (b"\xd0\xcf\x11\xe0", "an old or an encrypted Office document; save it as DOCX without a password"),
    (b"{\\rtf", "an RTF document; save it as DOCX or as plain text"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"RIFF", "an audio, video or picture file"),
    (b"OggS", "an audio file; transcribe it first"),
    (b"ID3", "an audio file; transcribe it first"),
    (b"fLaC", "an audio file; transcribe it first"),
    (b"\x1f\x8b", "a compressed file; unpack it first"),
    (b"BZh", "a compressed file; unpack it first"),
    (b"\xfd7zXZ", "a compressed file; unpack it first"),
    (b"7z\xbc\xaf", "an archive; unpack it first"),
    (b"Rar!", "an archive; unpack it first"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
)
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_HTML = re.compile(r"\s*(?:<!--.*?-->\s*|<\?xml[^>]*>\s*){0,20}<(?:!doctype\s+html|html|head|body)\b", re.DOTALL | re.I)
_TAGS = re.compile(r"<(?:p|div|br|h[1-6]|span|table|ul|ol|title|meta)\b[^>]*>", re.I)
_SRT = re.compile(r"\s*\d+[ \t]*\n\s*\d{1,2}:\d{2}:\d{2}[,.]\d{1,3}[ \t]*-->")
_SAMPLE = 4096
_LATIN = "windows-1252"


def sniff_binary(data: bytes) -> Kind | None:
    """Returns PDF or DOCX (any zip archive) by the first bytes, None for what may be text.

    Raises Refusal for an empty file and for known formats that hold no text.
    """
    head = data[:_SAMPLE].lstrip(b"\xef\xbb\xbf \t\r\n\f")
    if not head and not data.strip():
        raise Refusal("file_empty", "The file is empty.")
    if head.startswith(b"%PDF-"):
        return Kind.PDF
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Kind.DOCX
    for magic, what in _FOREIGN:
        if data.startswith(magic):
            raise Refusal("unsupported_file", f"The file is not text but {what}.")
    if data[4:8] == b"ftyp":
        raise Refusal("unsupported_file", "The file is not text but an audio or video file; transcribe it first.")
    return None


def decode(data: bytes) -> tuple[str, str]:
    """Returns the text of bytes and the name of its encoding. Line breaks become ``\\n``.

    A byte order mark decides; else UTF-8, UTF-16 that shows by its zeros, at last Windows' Latin. Raises Refusal when
    it is none of these.
    """
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), None) or _guess(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"byte {error.start:,} is not {encoding.removesuffix('-sig').upper()}"
        raise Refusal("file_broken", f"The text cannot be read: {where}. Save it as UTF-8.") from None
    if _NOT_TEXT.search(text):
        accepted = "text, Markdown, SRT, VTT, a JSON transcript, DOCX, PDF or HTML"
        raise Refusal("unsupported_file", f"The file is binary, not text. Send {accepted}.")
    if not text.strip("\ufeff \t\r\n\f\x85\xa0\u2028\u2029"):
        raise Refusal("file_empty", "The file is empty.")
    return text.replace("\r\n", "\n").replace("\r", "\n"), encoding.removesuffix("-sig")


def sniff_text(text: str, name: str) -> Kind:
    """Returns the kind of a text by its beginning; ``name`` decides between Markdown and plain text only."""
    if text.startswith("WEBVTT") and (len(text) == 6 or text[6] in " \t\n"):
        return Kind.VTT
    if _SRT.match(text):
        return Kind.SRT
    if text.lstrip()[:1] in ("{", "["):
        return Kind.TRANSCRIPT
    suffix = PurePosixPath(name).suffix.lower()
    named = suffix in (".html", ".htm", ".xhtml") and _TAGS.search(text, 0, 100_000)
    if named or _HTML.match(text, 0, 100_000):
        return Kind.HTML
    return Kind.MARKDOWN if suffix in (".md", ".markdown") else Kind.TEXT


def _guess(data: bytes) -> str:
    try:
        data.decode()
    except UnicodeDecodeError:
        pass
    else:
        if b"\x00" not in data[:_SAMPLE]:
            return "utf-8"
    sample = data[:_SAMPLE]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if max(even, odd) > len(sample) // 8 and min(even, odd) < len(sample) // 64 + 1:
        return "utf-16-le" if odd > even else "utf-16-be"
    try:
        data.decode(_LATIN)
    except UnicodeDecodeError:
        return "latin-1"
    return _LATIN
