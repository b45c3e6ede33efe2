"""Rows H1 to H4 of the fault table: DOCX, PDF and HTML, honest and not."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.services.extract import samples
from tests.unit.services.extract.samples import docx, paragraph, pdf, text_pdf, word_xml

from passerelle.domain.errors import PasserelleError
from passerelle.services.extract.extractor import Extractor
from passerelle.services.extract.found import Extracted, Kind


async def read(data: bytes, name: str = "") -> Extracted:
    return await Extractor().extract(data, name)


async def refusal(data: bytes, name: str = "", *, wall_s: float = 60.0) -> tuple[int, str]:
    """Returns status and code of the error that a file ends in; its message is for people."""
    with pytest.raises(PasserelleError) as refused:
        await Extractor(wall_s=wall_s).extract(data, name)
    assert refused.value.param == "file"
    assert refused.value.message.endswith(".")
    assert "Traceback" not in refused.value.message
    return refused.value.status, refused.value.error_code


async def test_a_word_document_becomes_markdown() -> None:
    """Headings, list items, tables, tabs and breaks; deleted text and fallbacks go."""
    table = "".join(
        f"<w:tr>{''.join(f'<w:tc>{paragraph(cell)}</w:tc>' for cell in row)}</w:tr>" for row in (("a", "b"), ("c", "d"))
    )
    body = (
        paragraph("Title", "Title")
        + paragraph("Part", "Heading2")
        + paragraph("Partie", "Titre3")
        + "<w:p><w:r><w:t>one</w:t><w:tab/><w:t>t&amp;wo</w:t><w:br/><w:t>three</w:t></w:r></w:p>"
        + "<w:p><w:pPr><w:numPr/></w:pPr><w:r><w:t>item</w:t></w:r></w:p>" * 2
        + f"<w:tbl>{table}</w:tbl>"
        + "<w:p><w:del><w:r><w:delText>x</w:delText><w:t>gone</w:t></w:r></w:del>"
        + "<w:ins><w:r><w:t>kept</w:t></w:r></w:ins></w:p>"
        + "<w:p><mc:AlternateContent><mc:Choice><w:r><w:t>once</w:t></w:r></mc:Choice>"
        + "<mc:Fallback><w:r><w:t>twice</w:t></w:r></mc:Fallback></mc:AlternateContent></w:p>"
        + paragraph("日本語 é")
    )
    note = f'<w:footnotes xmlns:w="{samples.WORD}"><w:footnote>{paragraph("a note")}</w:footnote></w:footnotes>'
    found = await read(docx(word_xml(body), {"word/footnotes.xml": note.encode()}), "report.pdf")
    assert found.kind is Kind.DOCX
    assert found.text == (
        "# Title\n\n## Part\n\n### Partie\n\none\tt&wo\nthree\n\n- item\n- item\n\n| a | b |\n| c | d |\n\n"
        "kept\n\nonce\n\n日本語 é\n\na note"
    )


async def test_a_pdf_gives_its_pages() -> None:
    """In order, apart by a blank line; the number of pages is known."""
    found = await read(text_pdf("First page", "Second page"), "x.docx")
    assert (found.kind, found.pages, found.text) == (Kind.PDF, 2, "First page\n\nSecond page")


async def test_a_page_of_html_gives_what_is_read() -> None:
    """Headings, lists, tables, breaks; scripts, styles and comments go, entities are characters."""
    page = (
        "<!DOCTYPE html><html><head><title>T &amp; U</title><style>b{}</style><script>alert('x')</script></head><body>"
        "<h1>Head</h1><p>one <b>two</b>\n  three<br>four</p><ul><li>a<li>b</ul><table><tr><td>x<td>y</table>"
        "<pre>  kept\n  as is</pre><!-- gone --><noscript>no</noscript><p>&eacute;&#x65E5;</p></body></html>"
    )
    found = await read(page.encode(), "x.txt")
    assert found.kind is Kind.HTML
    assert found.text == ("T & U\n\n# Head\n\none two three\nfour\n\n- a\n- b\n\n| x | y\n\n  kept\n  as is\n\né日")


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-2", "windows-1250", "utf-16"])
async def test_a_page_names_its_encoding(charset: str) -> None:
    """By a meta element or a byte order mark."""
    page = f"<!doctype html><meta charset={charset}><p>zażółć gęślą</p>"
    assert (await read(page.encode(charset))).text == "zażółć gęślą"


@pytest.mark.parametrize("charset", ["zip", "rot13", "unicode_escape", "idna", "nope", "../../x"])
async def test_an_encoding_that_is_no_encoding_is_ignored(charset: str) -> None:
    """Python knows codecs that are no character sets."""
    page = f"<!doctype html><meta charset={charset}><p>plain</p>".encode()
    assert (await read(page)).text == "plain"


XXE = '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
LAUGHS = (
    '<!DOCTYPE d [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {after} "{f"&{before};" * 10}">' for before, after in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>"
)

BAD_WORD = [
    (docx(word_xml("<w:p><w:r><w:t>&x;</w:t></w:r></w:p>", XXE)), 400, "file_unsafe"),
    (docx(word_xml("<w:p><w:r><w:t>&i;</w:t></w:r></w:p>", LAUGHS)), 400, "file_unsafe"),
    (docx(word_xml("", '<!DOCTYPE d SYSTEM "http://127.0.0.1:9/x.dtd">')), 400, "file_unsafe"),
    (docx(word_xml("", "<!DOCTYPE d PUBLIC 'a' 'http://127.0.0.1:9/x.dtd'>")), 400, "file_unsafe"),
    (samples.archive({"a.txt": b"x"}), 415, "unsupported_file"),
    (samples.archive({"inner.zip": samples.archive({"word/document.xml": b"x"})}), 415, "unsupported_file"),
    (samples.archive({"../../word/document.xml": word_xml(paragraph("x")).encode()}), 415, "unsupported_file"),
    (samples.archive({"/word/document.xml": word_xml(paragraph("x")).encode()}), 415, "unsupported_file"),
    (samples.archive({f"{number}": b"" for number in range(10_001)}), 400, "file_too_complex"),
    (samples.archive({}), 415, "unsupported_file"),
    (b"PK\x03\x04" + b"\x00" * 100, 400, "file_broken"),
    (docx(word_xml(paragraph("x")))[:-30], 400, "file_broken"),
    (docx("<w:document"), 400, "file_broken"),
    (docx(b"\xff\xfe\x00"), 400, "file_broken"),
    (docx(word_xml("")), 400, "file_without_text"),
    (docx(word_xml(paragraph("x")).encode("utf-16")), 400, "file_broken"),
]


@pytest.mark.parametrize(("data", "status", "code"), BAD_WORD, ids=range(len(BAD_WORD)))
async def test_a_bad_word_document_is_refused(data: bytes, status: int, code: str) -> None:
    """Entities, document types, archives in archives, paths outside, ten thousand parts, damage."""
    assert await refusal(data) == (status, code)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "codes"),
    [
        (samples.deflated_bomb(60_000_000), {"file_text_too_large"}),
        (docx(word_xml("<w:p></w:p>" * 1_000_000)), {"file_without_text", "file_too_complex"}),
        (docx(word_xml("<w:p>" * 500_000)), {"file_broken", "file_too_complex"}),
        (docx(word_xml("<w:t " + "a" * 40_000_000)), {"file_broken", "file_too_complex"}),
        (samples.many_entries(1_000_000), {"file_broken", "file_too_complex", "unsupported_file"}),
    ],
    ids=["text", "empty paragraphs", "nesting", "one tag", "a million entries"],
)
async def test_a_zip_bomb_costs_little(data: bytes, codes: set[str]) -> None:
    """Row H1: the child is stopped by its limits; the gateway's memory stays as it was."""
    before = resident_bytes()
    _, code = await refusal(data)
    assert code in codes
    assert resident_bytes() - before < 100_000_000


def resident_bytes() -> int:
    """Returns the memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


LOOP = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[2 0 R]/Count 1>>endobj\n"
    b"xref\n0 1\n0000000000 65535 f \ntrailer<</Size 3/Root 1 0 R/Prev 9>>\nstartxref\n9\n%%EOF"
)
SCRIPT = pdf(
    [b"BT /F1 12 Tf 72 700 Td (Text) Tj ET"],
    extra="/OpenAction<</S/JavaScript/JS(app.launchURL('http://127.0.0.1:9'))>>",
)
LAUNCH = pdf([b"BT /F1 12 Tf 72 700 Td (Text) Tj ET"], extra="/OpenAction<</S/Launch/F(/bin/sh)>>")
BAD_PDF = [
    (b"%PDF-1.4", 400, {"file_broken"}),
    (b"%PDF-1.7\n" + b"\x00" * 1000, 400, {"file_broken"}),
    (LOOP, 400, {"file_broken", "file_without_text", "file_too_complex"}),
    (samples.encrypted_pdf(), 400, {"file_encrypted"}),
    (pdf([b""]), 400, {"file_without_text"}),
    (pdf([]), 400, {"file_without_text", "file_broken"}),
    (text_pdf("x").replace(b"startxref", b"startxxxx")[:200], 400, {"file_broken", "file_without_text"}),
    (pdf([b"BT ET"], count=1_000_000), 400, {"file_too_complex", "file_without_text", "file_broken"}),
    (pdf([b"q " * 1_000_000]), 400, {"file_without_text", "file_too_complex"}),
]


@pytest.mark.parametrize(("data", "status", "codes"), BAD_PDF, ids=range(len(BAD_PDF)))
async def test_a_bad_pdf_is_refused(data: bytes, status: int, codes: set[str]) -> None:
    """Row H2: loops, damage, encryption, a million claimed pages, nothing to read."""
    found, code = await refusal(data)
    assert found == status
    assert code in codes


@pytest.mark.parametrize("data", [SCRIPT, LAUNCH], ids=["script", "launch"])
async def test_actions_of_a_pdf_are_not_run(data: bytes) -> None:
    """Its text is read, and nothing else of it."""
    assert (await read(data)).text == "Text"


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [samples.flate_bomb(200_000_000), samples.flate_bomb(600_000_000, layers=2)],
    ids=["once", "twice"],
)
async def test_a_flate_bomb_ends_in_the_child(data: bytes) -> None:
    """Row H2: a small file that unpacks to half a gigabyte is stopped, or read within the limits of text."""
    assert len(data) < 2_000_000
    before = resident_bytes()
    began = time.monotonic()
    try:
        found = await read(data)
        assert len(found.text) <= 20_000_000
    except PasserelleError as error:
        assert error.error_code in ("file_too_complex", "file_text_too_large", "file_without_text", "file_broken")
    assert time.monotonic() - began < 75
    assert resident_bytes() - before < 150_000_000


@pytest.mark.slow
async def test_too_many_pages_are_refused() -> None:
    """Ten thousand are the most."""
    status, code = await refusal(text_pdf(*["x"] * 10_001))
    assert (status, code) == (400, "file_too_complex")


async def test_a_child_that_takes_too_long_is_ended() -> None:
    """The wall clock ends it too, and it leaves no process behind."""
    assert (await refusal(text_pdf("x"), wall_s=0.01))[1] == "file_too_complex"


async def test_a_caller_who_leaves_ends_the_child() -> None:
    """A cancelled extraction waits for nothing and leaves no child."""
    task = asyncio.create_task(read(b"<!doctype html>" + b"<div>a" * 1_000_000))
    deadline = time.monotonic() + 30
    while not children():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not children()


def children() -> list[str]:
    """Returns the children of this process that read files."""
    pids: list[str] = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            pids += (thread / "children").read_text().split()
    return [pid for pid in pids if b"extract.child" in command_of(pid)]


def command_of(pid: str) -> bytes:
    """Returns the command line of a process, nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


async def test_many_files_are_read_a_few_at_a_time() -> None:
    """All are answered, in whatever order; no more children than allowed."""
    extractor = Extractor(max_children=2)
    reading = [asyncio.create_task(extractor.extract(text_pdf(f"number {number}"))) for number in range(6)]
    most = 0
    while not all(task.done() for task in reading):
        most = max(most, len(children()))
        await asyncio.sleep(0.005)
    assert [task.result().text for task in reading] == [f"number {number}" for number in range(6)]
    assert most <= 2


@given(cut=st.integers(0, 1000), noise=st.binary(max_size=20))
@settings(max_examples=15, deadline=None)
def test_damaged_files_give_text_or_a_refusal(cut: int, noise: bytes) -> None:
    """No other exception comes out of a file that was cut and scratched."""
    for whole in (docx(word_xml(paragraph("Hello"))), text_pdf("Hello")):
        at = cut % len(whole)
        try:
            found = asyncio.run(read(whole[:at] + noise + whole[at + len(noise) :]))
        except PasserelleError as error:
            assert error.status in (400, 413, 415)
        else:
            assert found.text
