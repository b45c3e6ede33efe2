"""Text out of HTML as Markdown. Runs in the child; nothing that the page refers to is fetched, no script is run."""

from __future__ import annotations

import codecs
import re
from html.parser import HTMLParser

from passerelle.services.extract.found import MAX_TEXT_BYTES, Refusal

_SKIPPED = frozenset({"script", "style", "noscript", "template", "svg", "math", "iframe", "object", "select", "nav"})
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl", "dt"}
    | {"fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "li", "main", "ol", "p", "pre"}
    | {
        "section",
        "summary",
        "table",
        "tbody",
        "tfoot",
        "thead",
        "title",
        "tr",
        "ul",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
    }
)
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
)
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([A-Za-z0-9_\-]{2,20})", re.IGNORECASE)
_ENCODINGS = re.compile(
    r"utf-?(8|16(le|be)?)|iso-?8859-?\d{1,2}|(windows|cp)-?(125\d|874|932|949)|latin-?1|us-ascii|koi8-[ru]|"
    r"shift_?jis|euc-(jp|kr)|iso-2022-jp|gb(k|2312|18030)|big5|macintosh",
    re.IGNORECASE,
)


def html_encoding(data: bytes) -> str | None:
    """Returns the encoding that a page names and that is one of the web's; None without."""
    found = _CHARSET.search(data, 0, 4096)
    name = found[1].decode() if found is not None else ""
    if not _ENCODINGS.fullmatch(name):
        return None
    try:
        return codecs.lookup("mac-roman" if name.lower() == "macintosh" else name).name
    except LookupError:
        return None


def read_html(text: str) -> str:
    """Returns the readable text of a page. Raises Refusal."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    found = reader.text()
    if not found:
        raise Refusal("file_without_text", "The page holds no readable text.")
    return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._blocks: list[str] = []
        self._words: list[str] = []
        self._mark = ""
        self._skipping: list[str] = []
        self._preformatted = 0
        self._size = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begins an element."""
        if self._skipping or tag in _SKIPPED:
            if tag in _SKIPPED:
                self._skipping.append(tag)
            return
        if tag in _BLOCKS:
            self._end_block()
        if tag == "br":
            self._words.append("\n")
        elif tag in ("td", "th"):
            self._words.append(" | ")
        elif tag == "li":
            self._mark = "- "
        elif len(tag) == 2 and tag[0] == "h" and tag[1] in "123456":
            self._mark = "#" * int(tag[1]) + " "
        elif tag == "pre":
            self._preformatted += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element that closes itself: only void ones really do."""
        self.handle_starttag(tag, attrs)
        if tag not in _VOID and tag in _SKIPPED and self._skipping:
            self._skipping.pop()

    def handle_endtag(self, tag: str) -> None:
        """Ends an element; a skipped one together with those left open in it."""
        if tag in _SKIPPED:
            if tag in self._skipping:
                del self._skipping[self._skipping.index(tag) :]
            return
        if self._skipping:
            return
        if tag in _BLOCKS:
            self._end_block()
        if tag == "pre" and self._preformatted:
            self._preformatted -= 1

    def handle_data(self, data: str) -> None:
        """Adds text."""
        if self._skipping:
            return
        self._size += len(data)
        if self._size > MAX_TEXT_BYTES:
            raise Refusal("file_text_too_large", f"The page holds more than {MAX_TEXT_BYTES:,} bytes of text.")
        self._words.append(data if self._preformatted else re.sub(r"\s+", " ", data))

    def text(self) -> str:
        """Returns the blocks, blank lines between them but not between the items of a list."""
        self._end_block()
        parts: list[str] = []
        for block, after in zip(self._blocks, [*self._blocks, ""][1:], strict=True):
            listed = block.startswith(("- ", "| ")) and after.startswith(block[:2])
            parts += (block, "\n" if listed else "\n\n")
        return "".join(parts).strip()

    def _end_block(self) -> None:
        text = "".join(self._words)
        if not self._preformatted:
            lines = (" ".join(line.split()) for line in text.split("\n"))
            text = "\n".join(line for line in lines if line)
        self._words = []
        if text.strip():
            self._blocks.append(self._mark + text.strip("\n"))
            self._mark = ""
