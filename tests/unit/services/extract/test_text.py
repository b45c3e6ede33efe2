"""Text in its encodings, Markdown, subtitles; what is not text is said so (row H4 of the fault table)."""

from __future__ import annotations

import asyncio
import codecs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passerelle.domain.errors import PasserelleError
from passerelle.services.extract.extractor import Extractor
from passerelle.services.extract.found import Extracted, Kind
from passerelle.services.turns import parse_turns

SENTENCE = "Été à Besançon, œuvre naïve: 20 €. "


async def read(data: bytes, name: str = "a.txt") -> Extracted:
    return await Extractor().extract(data, name)


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (SENTENCE.encode(), "utf-8"),
        (codecs.BOM_UTF8 + SENTENCE.encode(), "utf-8"),
        (SENTENCE.encode("utf-16"), "utf-16"),
        (codecs.BOM_UTF16_BE + SENTENCE.encode("utf-16-be"), "utf-16"),
        (SENTENCE.encode("utf-16-le"), "utf-16-le"),
        (SENTENCE.encode("utf-16-be"), "utf-16-be"),
        (SENTENCE.encode("utf-32"), "utf-32"),
        (SENTENCE.encode("windows-1252"), "windows-1252"),
    ],
)
async def test_encodings_are_recognised(data: bytes, encoding: str) -> None:
    """By byte order mark, by zeros, by validity; Windows' Latin comes last, with a warning."""
    found = await read(data)
    assert (found.text, found.encoding, found.kind) == (SENTENCE, encoding, Kind.TEXT)
    assert bool(found.warnings) == (encoding == "windows-1252")


async def test_latin_1_with_undefined_bytes_is_read_too() -> None:
    """0x81 is nothing in Windows' Latin."""
    assert (await read("caf\xe9 \x81".encode("latin-1"))).encoding == "latin-1"


async def test_line_breaks_are_made_one_kind() -> None:
    """Of Windows and of old Macintoshes; everything else stays as it is."""
    assert (await read(b"# T\r\n\r\n a\tb\rc \n\n\n")).text == "# T\n\n a\tb\nc \n\n\n"


@given(text=st.text(min_size=1, max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_utf_8_text_comes_back_or_is_refused(text: str) -> None:
    """Text without control characters is returned as it was."""
    try:
        data = text.encode()
        found = asyncio.run(read(data))
    except (PasserelleError, UnicodeEncodeError):
        return
    if found.kind is Kind.TEXT and found.encoding == "utf-8":
        assert found.text == data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


@given(data=st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_text_or_a_refusal(data: bytes) -> None:
    """Nothing but an error with a status comes out."""
    try:
        found = asyncio.run(read(data))
    except PasserelleError as error:
        assert error.status in (400, 413, 415)
    else:
        assert found.text.strip()


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "file_empty"),
        (b" \r\n\t ", 400, "file_empty"),
        (codecs.BOM_UTF8, 400, "file_empty"),
        (codecs.BOM_UTF16_LE, 400, "file_empty"),
        (codecs.BOM_UTF8 + b" \n", 400, "file_empty"),
        (codecs.BOM_UTF16_LE + b"a", 400, "file_broken"),
        (codecs.BOM_UTF8 + b"\xff", 400, "file_broken"),
        (bytes(range(256)), 415, "unsupported_file"),
        (b"text\x00text", 415, "unsupported_file"),
        (b"\x89PNG\r\n\x1a\n", 415, "unsupported_file"),
        (b"\xff\xd8\xff\xe0", 415, "unsupported_file"),
        (b"GIF89a", 415, "unsupported_file"),
        (b"RIFF\x00\x00\x00\x00WAVE", 415, "unsupported_file"),
        (b"OggS\x00", 415, "unsupported_file"),
        (b"ID3\x04", 415, "unsupported_file"),
        (b"\x00\x00\x00\x20ftypmp42", 415, "unsupported_file"),
        (b"\x1f\x8b\x08\x00", 415, "unsupported_file"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 415, "unsupported_file"),
        (b"{\\rtf1 text}", 415, "unsupported_file"),
        (b"\x7fELF\x02", 415, "unsupported_file"),
        (b"1\n00:00:01,000 --> 00:00:02,000\n\n", 400, "file_without_text"),
        (b"x" * 20_000_001, 413, "file_text_too_large"),
    ],
    ids=lambda value: ascii(value)[:24],
)
async def test_what_is_not_text_is_refused_in_words(data: bytes, status: int, code: str) -> None:
    """Empty, damaged, binary, too large: a code, a status and a sentence, whatever the name says."""
    with pytest.raises(PasserelleError) as refused:
        await read(data, "notes.txt")
    assert (refused.value.status, refused.value.error_code, refused.value.param) == (status, code, "file")
    assert refused.value.message.endswith(".")


@pytest.mark.parametrize(
    "name",
    [
        "a\r\nSet-Cookie: x",
        "\u202egpj.txt",
        "x" * 10_000,
        "a\x00b.txt",
        "<script>.txt",
        "../../etc/passwd",
        "",
        "a.pdf",
        ".",
    ],
    ids=lambda name: ascii(name[:12]),
)
async def test_a_name_is_a_claim_and_never_a_path(name: str) -> None:
    """Row H4: the bytes decide, and the name reaches nothing."""
    found = await read(b"plain text", name)
    assert (found.kind, found.text) == (Kind.TEXT, "plain text")


@pytest.mark.parametrize(
    ("data", "name", "kind"),
    [
        (b"# Title\n", "a.md", Kind.MARKDOWN),
        (b"# Title\n", "a.txt", Kind.TEXT),
        (b"<p>not a page, only text</p>", "a.txt", Kind.TEXT),
        (b"<p>a page</p>", "a.html", Kind.HTML),
        (b"<!-- x -->\n<!DOCTYPE HTML><p>a page</p>", "a.txt", Kind.HTML),
        (b"<?xml version='1.0'?><html><body>page</body></html>", "a", Kind.HTML),
        (b"WEBVTT\n\n00:01.000 --> 00:02.000\nhi\n", "a.txt", Kind.VTT),
        (b"\xef\xbb\xbf1\r\n00:00:01,000 --> 00:00:02,000\r\nhi\r\n", "a.txt", Kind.SRT),
        (b'{"text": "hi"}', "a.txt", Kind.TRANSCRIPT),
        (b'{"unknown": "shape"}', "a.json", Kind.TEXT),
        (b"{not json} but text", "a.txt", Kind.TEXT),
        (b"[00:01] Alice: hi", "a.txt", Kind.TEXT),
        (b"see %PDF-1.4 and PK\x03\x04".replace(b"\x03\x04", b""), "a.pdf", Kind.TEXT),
    ],
)
async def test_the_kind_is_seen_in_the_bytes(data: bytes, name: str, kind: Kind) -> None:
    """The name only tells Markdown and fragments of HTML from plain text."""
    assert (await read(data, name)).kind is kind


SRT = """1
00:00:01,000 --> 00:00:04,000
Alice: Hello
everyone.

2
00:00:04,500 --> 00:00:06,000
<i>How are you?</i>

3
00:00:07,000 --> 00:00:08,000 X1:40 Y1:20
Bob: {\\an8}Fine &amp; you?

4
00:00:09,000 --> 00:00:10,000
1984 was a year.
"""


async def test_srt_gives_turns_without_times() -> None:
    """Cues of one speaker are one turn; tags go, numbers that are said stay."""
    found = await read(SRT.encode())
    assert found.text == "Alice: Hello everyone. How are you?\nBob: Fine & you? 1984 was a year."
    assert [turn.speaker for turn in parse_turns(found.text)] == ["Alice", "Bob"]


async def test_vtt_gives_turns_by_voice() -> None:
    """Notes, styles and cue settings go; voices are speakers."""
    text = (
        "WEBVTT - title\n\nNOTE a note\nof two lines\n\nSTYLE\n::cue { color: red }\n\nintro\n"
        "00:01.000 --> 00:02.000 align:start\n<v.loud Mary Ann>Hi <c.x>there</c>\n\n"
        "00:00:03.000 --> 00:00:04.000\n<v Mary Ann>again</v>\n\n"
        "00:05.000 --> 00:06.000\n<v Bob>Yes <00:05.500>indeed.\n"
    )
    assert (await read(text.encode())).text == "Mary Ann: Hi there again\nBob: Yes indeed."


async def test_subtitles_without_speakers_become_paragraphs() -> None:
    """Lines are joined until a sentence ends; nothing is lost."""
    cues = [
        f"{n}\n00:00:{n % 60:02},000 --> 00:00:{n % 60:02},900\nword {n} is said here{'.' if n % 5 == 0 else ''}\n"
        for n in range(1, 200)
    ]
    found = await read("\n".join(cues).encode())
    lines = found.text.split("\n")
    assert all(line.endswith(".") for line in lines[:-1])
    assert len(lines) > 5
    assert [f"word {n} " in found.text + " " for n in range(1, 200)] == [True] * 199
