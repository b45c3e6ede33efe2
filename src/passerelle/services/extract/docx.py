"""Text out of Word documents (DOCX): a zip archive with XML in it. Runs in the child.

Two entries and their notes are read, as streams; nothing is unpacked to disk, no archive inside is opened, no reference
is followed. A document type declaration, which is where entities and external files come from, is refused.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from typing import Any
from xml.parsers import expat

from passerelle.services.extract.found import MAX_TEXT_BYTES, Refusal

MAX_ENTRIES = 10_000
MAX_XML_BYTES = 400_000_000
MAX_TAG_BYTES = 4_000_000
"""The longest stretch of XML without an event: a tag of megabytes would be read over and over."""
_PIECE_BYTES = 1 << 18
_ENTRY = b"PK\x01\x02"
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_STRICT_WORD = "http://purl.oclc.org/ooxml/wordprocessingml/main"
_SKIPPED = frozenset({"del", "moveFrom", "instrText", "Fallback", "rPr", "sectPr"})
_HEADING = re.compile(r"(?:heading|titre|berschrift|t[ií]tulo|titolo|kop)\s*([1-6])\Z", re.IGNORECASE)
_PARTS = ("word/document.xml", "word/footnotes.xml", "word/endnotes.xml")


def read_docx(data: bytes) -> str:
    """Returns the paragraphs of a document as Markdown: headings, list items, table rows. Raises Refusal."""
    if data.count(_ENTRY) > MAX_ENTRIES:  # before a directory of a million entries is read
        raise Refusal("file_too_complex", f"The document has more than {MAX_ENTRIES:,} parts.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = {entry.filename: entry for entry in archive.infolist()}
            if _PARTS[0] not in names:
                raise Refusal("unsupported_file", "The file is an archive, not a Word document (DOCX).")
            return "\n\n".join(filter(None, (_read_part(archive, names[part]) for part in _PARTS if part in names)))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OverflowError, ValueError) as error:
        raise Refusal("file_broken", f"The document cannot be unpacked: {type(error).__name__}.") from None


def _read_part(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str:
    if entry.flag_bits & 1:
        raise Refusal("file_encrypted", "The document is encrypted; save it without a password.")
    reader = _Reader()
    size = 0
    with archive.open(entry) as part:
        while piece := part.read(_PIECE_BYTES):
            size += len(piece)
            if size > MAX_XML_BYTES:
                raise Refusal("file_too_complex", f"The document unpacks to more than {MAX_XML_BYTES:,} bytes.")
            reader.feed(piece)
    reader.feed(b"", last=True)
    return "\n\n".join(reader.blocks)


class _Reader:
    """Hears the events of one part."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self._parser = expat.ParserCreate(namespace_separator="|")
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.EntityDeclHandler = self._refuse
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._paragraph: list[str] = []
        self._mark = ""
        self._skipping = 0
        self._in_text = False
        self._cells: list[list[str]] = []
        self._rows: list[list[str]] = []
        self._size = 0
        self._quiet = 0

    def feed(self, piece: bytes, *, last: bool = False) -> None:
        self._quiet += len(piece)
        try:
            self._parser.Parse(piece, last)
        except expat.ExpatError as error:
            why = expat.ErrorString(error.code)
            raise Refusal("file_broken", f"The document's XML cannot be read: {why}.") from None
        if self._quiet > MAX_TAG_BYTES:
            raise Refusal("file_too_complex", f"The document has a tag of more than {MAX_TAG_BYTES:,} bytes.")

    def _refuse(self, *_: object) -> None:
        raise Refusal("file_unsafe", "The document's XML declares a document type, which Word never does.")

    def _start(self, name: str, attributes: dict[str, Any]) -> None:
        self._quiet = 0
        space, _, tag = name.rpartition("|")
        if self._skipping or tag in _SKIPPED:
            self._skipping += 1
            return
        if space not in (_WORD, _STRICT_WORD):
            return
        if tag == "t":
            self._in_text = True
        elif tag == "tab":
            self._add("\t")
        elif tag in ("br", "cr"):
            self._add("\n")
        elif tag == "noBreakHyphen":
            self._add("-")
        elif tag == "pStyle":
            self._style(str(attributes.get(f"{space}|val", "")))
        elif tag == "numPr":
            self._mark = self._mark or "- "
        elif tag == "tbl":
            self._rows.append([])
        elif tag == "tr":
            self._cells.append([])
        elif tag == "tc" and self._cells:
            self._cells[-1].append("")

    def _end(self, name: str) -> None:
        self._quiet = 0
        if self._skipping:
            self._skipping -= 1
            return
        space, _, tag = name.rpartition("|")
        if space not in (_WORD, _STRICT_WORD):
            return
        if tag == "t":
            self._in_text = False
        elif tag == "p":
            self._end_paragraph()
        elif tag == "tr" and self._cells:
            cells = self._cells.pop()
            if self._rows and any(cells):
                self._rows[-1].append("| " + " | ".join(cells) + " |")
        elif tag == "tbl" and self._rows:
            self._put("\n".join(self._rows.pop()))

    def _characters(self, text: str) -> None:
        self._quiet = 0
        if self._in_text and not self._skipping:
            self._add(text)

    def _add(self, text: str) -> None:
        self._paragraph.append(text)
        self._size += len(text)
        if self._size > MAX_TEXT_BYTES:
            raise Refusal("file_text_too_large", f"The document holds more than {MAX_TEXT_BYTES:,} bytes of text.")

    def _style(self, style: str) -> None:
        heading = _HEADING.search(style)
        if heading is not None:
            self._mark = "#" * int(heading[1]) + " "
        elif style.lower() in ("title", "titre"):
            self._mark = "# "

    def _end_paragraph(self) -> None:
        text = "".join(self._paragraph).strip()
        mark, self._paragraph, self._mark = self._mark, [], ""
        if text:
            self._put(mark + text)

    def _put(self, block: str) -> None:
        """Adds a block to the cell it is in, to the document without one."""
        if not block:
            return
        if self._cells and self._cells[-1]:
            before = self._cells[-1][-1]
            self._cells[-1][-1] = f"{before} {' '.join(block.split())}".strip()
        elif self.blocks and self.blocks[-1].startswith("- ") and block.startswith("- "):
            self.blocks[-1] += f"\n{block}"
        else:
            self.blocks.append(block)
