"""The child that reads one risky file: ``python -m passerelle.services.extract.child KIND < FILE``.

It writes one line of JSON, an `Answer`, and behind it the text as UTF-8. Whatever ends it otherwise is the parent's to
explain.
"""

from __future__ import annotations

import sys

import msgspec

from passerelle.services.extract.found import MAX_TEXT_BYTES, Answer, Refusal
from passerelle.services.extract.lockdown import limit, lock


def main() -> None:
    """Reads the file on standard input."""
    limit()
    kind = sys.argv[1]
    data = sys.stdin.buffer.read()
    answer = Answer()
    try:
        text = _READERS[kind](data, answer)
        body = text.encode("utf-8", "replace")
        if len(body) > MAX_TEXT_BYTES:
            raise Refusal("file_text_too_large", f"The file holds more than {MAX_TEXT_BYTES:,} bytes of text.")
    except Refusal as refusal:
        answer.code, answer.message, body = refusal.code, refusal.message, b""
    except (MemoryError, RecursionError):
        answer.code, body = "file_too_complex", b""
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n" + body)
    sys.stdout.buffer.flush()


def _docx(data: bytes, answer: Answer) -> str:
    import encodings.cp437  # noqa: F401 - names in archives; nothing can be imported once locked

    from passerelle.services.extract.docx import read_docx

    answer.locked = lock()
    return read_docx(data)


def _pdf(data: bytes, answer: Answer) -> str:
    import encodings.utf_16_le  # noqa: F401 - the library's texts; nothing can be imported once locked

    import pypdfium2

    from passerelle.services.extract.pdf import read_pdf

    pypdfium2.PdfDocument.new().close()  # what the library imports late
    answer.locked = lock()
    text, answer.pages = read_pdf(data)
    return text


def _html(data: bytes, answer: Answer) -> str:
    from passerelle.services.extract.html import html_encoding, read_html
    from passerelle.services.extract.sniff import decode

    encoding = html_encoding(data)
    try:
        text = data.decode(encoding) if encoding is not None else decode(data)[0]
    except UnicodeDecodeError:
        text = decode(data)[0]
    answer.locked = lock()
    return read_html(text)


_READERS = {"docx": _docx, "pdf": _pdf, "html": _html}


if __name__ == "__main__":
    main()
