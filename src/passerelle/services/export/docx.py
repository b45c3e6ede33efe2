"""A result as DOCX: the five parts of Office Open XML that a document of headings, items and paragraphs needs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from typing import Final
from xml.sax.saxutils import escape

from passerelle.services.export.blocks import Block, BlockKind

MEDIA_TYPE: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_MAIN = "application/vnd.openxmlformats-officedocument.wordprocessingml"
_DATE = (1980, 1, 1, 0, 0, 0)
"""Of the parts: the same result is the same file."""
_CONTENT_TYPES = (
    f'{_HEAD}<Types xmlns="{_PACKAGE}/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="xml" ContentType="application/xml"/>'
    f'<Override PartName="/word/document.xml" ContentType="{_MAIN}.document.main+xml"/>'
    f'<Override PartName="/word/styles.xml" ContentType="{_MAIN}.styles+xml"/></Types>'
)
_RELATIONS = (
    f'{_HEAD}<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="r1" Type="{_OFFICE}/officeDocument" Target="word/document.xml"/></Relationships>'
)
_DOCUMENT_RELATIONS = (
    f'{_HEAD}<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="r1" Type="{_OFFICE}/styles" Target="styles.xml"/></Relationships>'
)


def docx(found: Iterable[Block]) -> bytes:
    """Returns the file."""
    parts = {
        "[Content_Types].xml": _CONTENT_TYPES,
        "_rels/.rels": _RELATIONS,
        "word/_rels/document.xml.rels": _DOCUMENT_RELATIONS,
        "word/styles.xml": _styles(),
        "word/document.xml": "".join(_document(found)),
    }
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), text, zipfile.ZIP_DEFLATED)
    return output.getvalue()


def _document(found: Iterable[Block]) -> Iterator[str]:
    yield f"{_HEAD}<w:document {_WORD}><w:body>"
    for block in found:
        yield "<w:p>"
        if block.kind is BlockKind.HEADING:
            yield f'<w:pPr><w:pStyle w:val="Heading{block.level}"/></w:pPr>'
        elif block.kind is BlockKind.ITEM:
            indent = 360 * (block.level + 1)
            yield f'<w:pPr><w:ind w:left="{indent}" w:hanging="360"/></w:pPr>'
            yield _run(f"{block.number or '•'}\t", bold=False)
        for text, bold in block.runs:
            yield _run(text, bold=bold)
        yield "</w:p>"
    yield '<w:sectPr><w:pgSz w:w="11906" w:h="16838"/></w:sectPr></w:body></w:document>'


def _run(text: str, *, bold: bool) -> str:
    marks = "<w:rPr><w:b/></w:rPr>" if bold else ""
    inner = "<w:tab/>".join(f'<w:t xml:space="preserve">{escape(part)}</w:t>' for part in text.split("\t"))
    return f"<w:r>{marks}{inner}</w:r>"


def _styles() -> str:
    headings = "".join(
        f'<w:style w:type="paragraph" w:styleId="Heading{level}"><w:name w:val="heading {level}"/>'
        f'<w:basedOn w:val="Normal"/><w:next w:val="Normal"/><w:pPr><w:keepNext/><w:spacing w:before="240"/>'
        f'<w:outlineLvl w:val="{level - 1}"/></w:pPr><w:rPr><w:b/><w:sz w:val="{36 - 3 * level}"/></w:rPr></w:style>'
        for level in range(1, 7)
    )
    return (
        f'{_HEAD}<w:styles {_WORD}><w:style w:type="paragraph" w:default="1" w:styleId="Normal">'
        '<w:name w:val="Normal"/><w:pPr><w:spacing w:after="120"/></w:pPr><w:rPr><w:sz w:val="22"/></w:rPr></w:style>'
        f"{headings}</w:styles>"
    )
