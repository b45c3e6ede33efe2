"""Text inside JSON text is opened and closed without changing what it says."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from passerelle.gateway.json_text import JsonText, closed


@given(st.text(max_size=20), st.booleans(), st.integers(1, 9))
def test_opened_and_closed_is_the_same_document(text: str, ascii_only: bool, size: int) -> None:
    """Any text, its escapes cut anywhere, says the same afterwards."""
    document = json.dumps({"a": text.replace("\U0010f700", "")}, ensure_ascii=ascii_only)
    document = document.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    opener = JsonText()
    pieces = [opener.open(document[at : at + size]) for at in range(0, len(document), size)]
    opened = "".join(pieces)
    assert json.loads(closed(opened) + opener.rest()) == json.loads(document)


def test_a_reader_sees_characters() -> None:
    """Letters, digits and slashes behind escapes are themselves; structure stays structure."""
    opened = JsonText().open(r'{"a":"\u0030\u0036 \u00e9\/\n0612"}')
    assert "06 é/" in opened
    assert not opened[opened.index("/") + 1].isalnum()
    assert closed(opened) == r'{"a":"06 é/\n0612"}'


def test_what_could_break_the_document_stays_escaped() -> None:
    """Quotes, backslashes, control characters and halves of pairs."""
    for document in (r'"\u0022"', r'"\""', r'"\u005c\\"', r'"\u0000\u001f"', r'"\ud83d\ude00"'):
        assert json.loads(closed(JsonText().open(document))) == json.loads(document)


def test_a_cut_escape_that_never_ends_is_not_lost() -> None:
    """A document that breaks off inside an escape comes out as it was."""
    opener = JsonText()
    assert closed(opener.open(r'"ab\u00')) + opener.rest() == r'"ab\u00'
    assert opener.rest() == ""


def test_characters_we_use_ourselves_do_no_harm() -> None:
    """Private characters of ours in a document cannot become escapes."""
    assert json.loads(closed(JsonText().open('"\U0010f722,"'))) == "\ufffd,"
