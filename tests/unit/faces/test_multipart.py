"""Forms with files: what is read, what is refused, and that neither takes long."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.harness.cpu import within_cpu

from passerelle.domain.errors import BadRequest, PasserelleError, UnsupportedMedia
from passerelle.faces.multipart import MAX_PARTS, file_name, is_form, parse_form

TYPE = b"multipart/form-data; boundary=cut"


def form(*parts: tuple[bytes, bytes]) -> bytes:
    """Returns a form of parts: the value of Content-Disposition after ``form-data``, and the content."""
    text = b"".join(b"--cut\r\nContent-Disposition: form-data%s\r\n\r\n%s\r\n" % part for part in parts)
    return text + b"--cut--\r\n"


def test_fields_and_files() -> None:
    """Names, contents and file names are what was sent, in any of the ways that clients write them."""
    parts = parse_form(
        b'Multipart/Form-Data; charset=utf-8; boundary="cut"',
        form(
            (b'; name="flavor"', b"llama"),
            (b'; name="file"; filename="r\xc3\xa9union \\"1\\".txt"', b"A : \r\n--cu\r\n\r\n--cutting\r\n"),
            (b"; name=plain", b""),
            (b"; name=\"star\"; filename*=UTF-8''%e2%82%ac.txt", b"\x00\xff"),
        ),
    )
    assert {name: part.data for name, part in parts.items()} == {
        "flavor": b"llama",
        "file": b"A : \r\n--cu\r\n\r\n--cutting\r\n",
        "plain": b"",
        "star": b"\x00\xff",
    }
    assert parts["file"].filename == 'réunion "1".txt'
    assert parts["star"].filename == "€.txt"
    assert parts["flavor"].filename is None
    assert parts["flavor"].text == "llama"
    with pytest.raises(BadRequest, match="`star` is not UTF-8"):
        _ = parts["star"].text


WHOLE = form((b'; name="a"', b"1"))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (TYPE, b""),
        (TYPE, b"junk\r\n" + WHOLE),
        (TYPE, WHOLE[:-10]),
        (TYPE, WHOLE.replace(b"\r\n", b"\n")),
        (TYPE, b"--cut"),
        (TYPE, b"--cut\r\n"),
        (TYPE, b"--cut\r\n\r\nno headers\r\n--cut--"),
        (TYPE, b'--cut\r\nContent-Disposition: attachment; name="a"\r\n\r\n1\r\n--cut--'),
        (TYPE, b"--cut\r\nContent-Disposition: form-data\r\n\r\n1\r\n--cut--"),
        (TYPE, form((b'; name="a"\r\nContent-Disposition: form-data; name="b"', b"1"))),
        (TYPE, form((b'; name="' + b"a" * 101 + b'"', b"1"))),
        (TYPE, form((b'; name="a"\r\n' + b"x: 1\r\n" * 20 + b"y: 1", b"1"))),
        (TYPE, form((b'; name="a"; filename="' + b"x" * 10_000 + b'"', b"1"))),
        (TYPE, form((b'; name="a"', b"1"), (b'; name="a"', b"2"))),
        (TYPE, form(*[(b'; name="%d"' % n, b"") for n in range(MAX_PARTS + 1)])),
        (b"multipart/form-data", WHOLE),
        (b"multipart/form-data; boundary=", WHOLE),
        (b"multipart/form-data; boundary=" + b"a" * 71, WHOLE),
    ],
)
def test_what_is_malformed_is_refused(content_type: bytes, body: bytes) -> None:
    """Each broken form gets a 400 that says what is wrong."""
    with pytest.raises(BadRequest):
        parse_form(content_type, body)


@pytest.mark.parametrize("content_type", [None, b"", b"application/json", b"multipart/mixed; boundary=cut"])
def test_other_types_are_unsupported(content_type: bytes | None) -> None:
    """What is no form is 415."""
    assert not is_form(content_type)
    with pytest.raises(UnsupportedMedia):
        parse_form(content_type, WHOLE)


@pytest.mark.parametrize(
    "body",
    [
        b"--cut\r\n" * 500_000,
        b"--cut\r\nContent-Disposition: form-data; name=a\r\n\r\n" + b"\r\n--cut" * 500_000,
        b"--cut\r\n" + b"a: b\r\n" * 500_000,
        b"--cut\r\nContent-Disposition: form-data" + b"; a=" * 500_000,
        b'--cut\r\nContent-Disposition: form-data; name="' + b"\\" * 3_000_000,
        b"-" * 4_000_000,
    ],
    ids=["boundaries", "near boundaries", "headers", "parameters", "escapes", "dashes"],
)
def test_malice_costs_little(body: bytes) -> None:
    """Megabytes of what made parsers slow are refused in far less than a second (promises, row 24)."""

    def refuse() -> None:
        with pytest.raises(BadRequest):
            parse_form(TYPE, body)

    within_cpu(0.5, refuse)


PIECES = [b"--cut", b"--cut--", b"\r\n", b"\r\n\r\n", b'Content-Disposition: form-data; name="a"', b"; filename=", b'"']


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, b"\\", b"x", b"\xff"]), max_size=30))
def test_no_bytes_break_it(pieces: list[bytes]) -> None:
    """Whatever comes, it is a form or an error of the caller's."""
    try:
        parse_form(TYPE, b"".join(pieces))
    except PasserelleError as error:
        assert error.status == 400


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=600))
def test_names_of_files_are_harmless(name: str) -> None:
    """No separator, no control, no direction mark, no more than 255 characters."""
    shown = file_name(name)
    assert len(shown) <= 255
    assert not set(shown) & set("/\\\r\n\0\u202e\u2066")
