"""A result as PDF, by fpdf2, with a font of this machine embedded; Helvetica where it has every character."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from passerelle.domain.errors import BadRequest, Conflict, PayloadTooLarge
from passerelle.services.export.blocks import Block, BlockKind

MEDIA_TYPE: Final = "application/pdf"
MAX_CHARACTERS = 2_000_000
FONTS: Final = tuple(
    Path(folder, name)
    for folder in (
        "/usr/share/fonts/truetype/dejavu",
        "/usr/share/fonts/dejavu-sans-fonts",
        "/usr/share/fonts/TTF",
        "/usr/share/fonts/truetype/liberation",
        "/usr/share/fonts/truetype/noto",
        "/Library/Fonts",
        "C:/Windows/Fonts",
    )
    for name in (
        "DejaVuSans.ttf",
        "LiberationSans-Regular.ttf",
        "NotoSans-Regular.ttf",
        "Arial Unicode.ttf",
        "arial.ttf",
    )
)
"""Where fonts with many scripts are, by custom."""
_SIZES = {1: 18.0, 2: 15.0, 3: 13.0}


def pdf(found: Iterable[Block], font: Path | None = None, candidates: Sequence[Path] = FONTS) -> bytes:
    """Returns the file. ``font`` is a TrueType font, None to look for one where Helvetica lacks a character.

    Raises Conflict when fpdf2 is not installed, PayloadTooLarge, and BadRequest for characters that no font has.
    """
    try:
        from fpdf import FPDF  # an extra
    except ModuleNotFoundError:
        raise Conflict(
            "PDF is not available here: an operator may install passerelle[pdf].", code="pdf_not_available"
        ) from None
    whole = list(found)
    text = "".join(block.text for block in whole)
    if len(text) > MAX_CHARACTERS:
        raise PayloadTooLarge(f"A PDF takes {MAX_CHARACTERS:,} characters; take the result as text or DOCX.")
    page = FPDF(format="A4")
    page.core_fonts_encoding = "cp1252"
    page.set_margin(20)
    page.set_auto_page_break(True, 20)
    page.add_page()
    name = _choose(page, text, font, candidates)
    for block in whole:
        _write(page, name, block)
    return bytes(page.output())


def _choose(page: object, text: str, font: Path | None, candidates: Sequence[Path]) -> str:
    """Returns the name of the font, which the document has by then."""
    from fpdf import FPDF
    from fpdf.fonts import TTFFont

    assert isinstance(page, FPDF)
    needed = {ord(char) for char in text if not char.isspace()} | {ord("•")}
    if font is None and _is_western(text):
        return "helvetica"
    for path in candidates if font is None else [font]:
        if not path.is_file():
            continue
        page.add_font("result", "", path)
        added = page.fonts["result"]
        if isinstance(added, TTFFont) and needed <= set(added.cmap):
            return "result"
        del page.fonts["result"]
    raise BadRequest(
        "The result holds characters that no font here has: take it as DOCX, or name a TrueType font in "
        "`services.font`.",
        code="font_missing",
    )


def _is_western(text: str) -> bool:
    try:
        text.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True


def _write(page: object, name: str, block: Block) -> None:
    from fpdf import FPDF

    assert isinstance(page, FPDF)
    size, indent, text = 11.0, 0.0, block.text
    if block.kind is BlockKind.HEADING:
        size = _SIZES.get(block.level, 12.0)
        page.ln(2)
    elif block.kind is BlockKind.ITEM:
        indent, text = 5.0 * (block.level + 1), f"{block.number or '•'} {text}"
    page.set_font(name, "", size)
    page.set_x(page.l_margin + indent)
    page.multi_cell(0, size * 0.5, text, align="L", new_x="LMARGIN", new_y="NEXT")
    page.ln(1.5)
