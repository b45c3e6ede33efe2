"""Text out of PDF, by PDFium. Runs in the child; the library has no JavaScript engine and opens nothing else."""

from __future__ import annotations

from passerelle.services.extract.found import MAX_TEXT_BYTES, Refusal

MAX_PAGES = 10_000
_PASSWORD = "password"  # noqa: S105 - a word of the library's message


def read_pdf(data: bytes) -> tuple[str, int]:
    """Returns the text, pages apart by a blank line, and the number of pages. Raises Refusal."""
    import pypdfium2 as pdfium

    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if _PASSWORD in str(error).lower():
            raise Refusal("file_encrypted", "The PDF is encrypted; save it without a password.") from None
        raise Refusal("file_broken", "The PDF is damaged and cannot be opened.") from None
    count = len(document)
    if count > MAX_PAGES:
        raise Refusal("file_too_complex", f"The PDF has {count:,} pages; {MAX_PAGES:,} are the most.")
    pages: list[str] = []
    size = 0
    for number in range(count):
        try:
            page = document[number]
            text = page.get_textpage().get_text_bounded()
        except pdfium.PdfiumError:
            raise Refusal("file_broken", f"Page {number + 1} of the PDF is damaged.") from None
        text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "").replace("\ufffe", "-").strip()
        size += len(text)
        if size > MAX_TEXT_BYTES:
            raise Refusal("file_text_too_large", f"The PDF holds more than {MAX_TEXT_BYTES:,} bytes of text.")
        if text:
            pages.append(text)
        page.close()
    if not pages:
        message = "The PDF holds no text: its pages may be pictures. Recognise their text (OCR) first."
        raise Refusal("file_without_text", message)
    return "\n\n".join(pages), count
