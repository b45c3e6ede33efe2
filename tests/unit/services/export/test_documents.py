"""Results as documents: read again by our own reader of uploads, they say the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passerelle.domain.errors import BadRequest, PayloadTooLarge
from passerelle.services.export import pdf as pdf_module
from passerelle.services.export.blocks import BlockKind, blocks
from passerelle.services.export.docx import docx
from passerelle.services.export.pdf import FONTS, pdf
from passerelle.services.extract.extractor import Extractor
from passerelle.services.extract.found import Kind

MINUTES = """# Compte rendu

Réunion à l'œuvre — 5 €, « très bien ».
- **Alice** écrit <le plan> & l'envoie
  - avant lundi
1. Vote : adopté

## Suite
Fin."""


def test_blocks_of_markdown() -> None:
    """Headings, items and bold words are found; a text that is not Markdown keeps its marks."""
    found = list(blocks(MINUTES, markdown=True))
    kinds = [block.kind.value for block in found]
    assert kinds == ["heading", "paragraph", "item", "item", "item", "heading", "paragraph"]
    assert found[2].runs == (("Alice", True), (" écrit <le plan> & l'envoie", False))
    assert (found[3].level, found[4].number, found[5].level) == (1, "1.", 2)
    assert [block.kind for block in blocks("# a\n- b", markdown=False)] == [BlockKind.PARAGRAPH] * 2


async def test_docx_is_read_again() -> None:
    """What was written is what is read, headings and marks included."""
    extracted = await Extractor().extract(docx(blocks(MINUTES, markdown=True)), "minutes.docx")
    assert extracted.kind is Kind.DOCX
    for words in ("Compte rendu", "Réunion à l'œuvre — 5 €, « très bien ».", "<le plan> & l'envoie", "Vote : adopté"):
        assert words in extracted.text


async def test_pdf_is_read_again() -> None:
    """French needs no font of the machine."""
    extracted = await Extractor().extract(pdf(blocks(MINUTES, markdown=True), candidates=()), "minutes.pdf")
    assert extracted.kind is Kind.PDF
    for words in ("Compte rendu", "Réunion à l'œuvre", "5 €", "<le plan>"):
        assert words in extracted.text


async def test_pdf_in_other_scripts_embeds_a_font() -> None:
    """With a font that has them, Greek and Cyrillic are in the file; without one an error says what to do."""
    text = "Ελληνικά и русский"
    with pytest.raises(BadRequest, match=r"services\.font"):
        pdf(blocks(text, markdown=False), candidates=(Path("/nothing.ttf"),))
    font = next((path for path in FONTS if path.is_file()), None)
    if font is None:  # no font on this machine: the error above is what people get
        return
    extracted = await Extractor().extract(pdf(blocks(text, markdown=False)), "a.pdf")
    assert "Ελληνικά" in extracted.text
    assert "русский" in extracted.text


def test_pdf_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that would take minutes to set is refused."""
    monkeypatch.setattr(pdf_module, "MAX_CHARACTERS", 10)
    with pytest.raises(PayloadTooLarge):
        pdf(blocks("a" * 11, markdown=False))


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=300), st.booleans())
def test_any_text_makes_a_docx(text: str, markdown: bool) -> None:
    """No text breaks the writer."""
    assert docx(blocks(text, markdown=markdown)).startswith(b"PK")
