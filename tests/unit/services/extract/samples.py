"""Documents made by hand: sound ones, and such as nobody sends by accident."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def paragraph(text: str, style: str = "") -> str:
    """Returns one paragraph of a Word document."""
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f'<w:p>{properties}<w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'


def word_xml(body: str, prologue: str = "") -> str:
    """Returns the XML of a Word document with this body."""
    head = f'<?xml version="1.0" encoding="UTF-8"?>{prologue}<w:document xmlns:w="{WORD}"'
    return f'{head} xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"><w:body>{body}</w:body></w:document>'


def docx(xml: str | bytes, others: Mapping[str, bytes] | None = None) -> bytes:
    """Returns a DOCX file with this document."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/document.xml", xml)
        for name, data in (others or {}).items():
            archive.writestr(name, data)
    return buffer.getvalue()


def archive(entries: Mapping[str, bytes]) -> bytes:
    """Returns a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in entries.items():
            made.writestr(name, data)
    return buffer.getvalue()


def many_entries(count: int) -> bytes:
    """Returns an archive that claims a directory of ``count`` entries, all the same few bytes."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * count
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory), 4, 0)
    return b"PK\x03\x04" + directory + end


def deflated_bomb(size: int) -> bytes:
    """Returns a Word document whose text is ``size`` bytes of spaces and letters that pack a thousandfold."""
    return docx(word_xml(paragraph("a " * (size // 2))))


def pdf(pages: list[bytes], *, filters: str = "", extra: str = "", count: int | None = None) -> bytes:
    """Returns a PDF whose pages have these content streams. ``count`` is what the page tree claims."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        f"<</Type/Catalog/Pages 2 0 R{extra}>>".encode(),
        f"<</Type/Pages/Kids[{kids}]/Count {len(pages) if count is None else count}>>".encode(),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for number, content in enumerate(pages):
        box = "/MediaBox[0 0 600 800]/Resources<</Font<</F1 3 0 R>>>>"
        objects.append(f"<</Type/Page/Parent 2 0 R{box}/Contents {5 + 2 * number} 0 R>>".encode())
        objects.append(f"<</Length {len(content)}{filters}>>stream\n".encode() + content + b"\nendstream")
    return _assembled(objects)


def text_pdf(*texts: str) -> bytes:
    """Returns a PDF with one line of text on each page."""
    return pdf([f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode() for text in texts])


def flate_bomb(size: int, layers: int = 1) -> bytes:
    """Returns a PDF whose only page unpacks to ``size`` bytes of text operators, packed ``layers`` times."""
    content = b"BT /F1 12 Tf 72 700 Td (aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa) Tj ET\n"
    packed = content * (size // len(content))
    for _ in range(layers):
        packed = zlib.compress(packed, 9)
    return pdf([packed], filters="/Filter[" + "/FlateDecode" * layers + "]")


def encrypted_pdf() -> bytes:
    """Returns a PDF that says it is encrypted, with a password nobody knows."""
    made = text_pdf("secret")
    entry = (
        b"/Encrypt<</Filter/Standard/V 2/R 3/Length 128/P -44/O<"
        + b"41" * 32
        + b">/U<"
        + b"42" * 32
        + b">>>/ID[<"
        + b"43" * 16
        + b"><"
        + b"43" * 16
        + b">]"
    )
    return made.replace(b"/Root 1 0 R", b"/Root 1 0 R" + entry)


def _assembled(objects: list[bytes]) -> bytes:
    made = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, content in enumerate(objects, 1):
        offsets.append(len(made))
        made += f"{number} 0 obj\n".encode() + content + b"\nendobj\n"
    table = len(made)
    made += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    made += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return bytes(made) + f"trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{table}\n%%EOF".encode()
