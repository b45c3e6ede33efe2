"""Reads the header of a GGUF model file, and tells a whole file from a truncated one.

The format is described in the ggml repository, docs/gguf.md: magic, version, two counts, metadata, tensor descriptions,
then the tensors' data at an aligned offset. Only version 2 and 3, little-endian, are in use.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LONGEST_STRING_BYTES = 1 << 24
_MOST_ENTRIES = 1 << 20
_MOST_ELEMENTS = 1 << 26
_MOST_DIMENSIONS = 8
_PRE_TOKENIZER = "tokenizer.ggml.pre"

# Bytes per block and elements per block of each tensor type, from ggml's type traits. A type that is not listed here
# (newer than this table) is measured by its offset only.
_BLOCKS = {
    0: (4, 1), 1: (2, 1), 2: (18, 32), 3: (20, 32), 6: (22, 32), 7: (24, 32), 8: (34, 32), 9: (36, 32),
    10: (84, 256), 11: (110, 256), 12: (144, 256), 13: (176, 256), 14: (210, 256), 15: (292, 256),
    16: (66, 256), 17: (74, 256), 18: (98, 256), 19: (50, 256), 20: (18, 32), 21: (110, 256), 22: (82, 256),
    23: (136, 256), 24: (1, 1), 25: (2, 1), 26: (4, 1), 27: (8, 1), 28: (8, 1), 29: (56, 256), 30: (2, 1),
    34: (54, 256), 35: (66, 256), 39: (17, 32),
}  # fmt: skip


class NotGguf(Exception):
    """The file is not a usable GGUF model; the message is one line that says what is wrong with which file."""


@dataclass(frozen=True, slots=True)
class GgufInfo:
    """What a model file says about itself. ``context_length`` is the window it was trained for, in tokens.

    ``template`` is its chat template in Jinja, never to be run by us. ``pre_tokenizer`` names how text is split before
    it is tokenised, and stands at byte ``pre_tokenizer_at`` of the file.
    """

    version: int
    architecture: str | None
    name: str | None
    context_length: int | None
    embedding_length: int | None
    template: str | None
    tensors: int
    size_bytes: int
    pre_tokenizer: str | None = None
    pre_tokenizer_at: int | None = None

    @property
    def chat_template(self) -> bool:
        """Whether it brings a chat template."""
        return self.template is not None


def read_gguf(path: Path) -> GgufInfo:
    """Reads the header of a model file and checks that all its tensors are there.

    Takes a few milliseconds up to some 100 (a large vocabulary). Raises NotGguf when the file is missing, unreadable,
    not GGUF, damaged or truncated.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _Reader(path, file, size).read()
    except FileNotFoundError:
        raise NotGguf(f"{path}: no such model file") from None
    except OSError as error:
        raise NotGguf(f"{path}: cannot be read: {error.strerror}") from None


class _Reader:
    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._pre_tokenizer_at: int | None = None

    def read(self) -> GgufInfo:
        if self._file.read(4) != b"GGUF":
            raise NotGguf(f"{self._path}: not a GGUF model file")
        version = self._scalar(4)
        if version not in (2, 3):
            raise NotGguf(f"{self._path}: GGUF version {version} is not supported")
        tensors, entries = self._count(_MOST_ENTRIES), self._count(_MOST_ENTRIES)
        metadata = dict(self._entry() for _ in range(entries))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise self._damaged()
        end = max((self._tensor_end() for _ in range(tensors)), default=0)
        needed = -(-self._file.tell() // alignment) * alignment + end
        if needed > self._size:
            raise NotGguf(f"{self._path}: truncated: {self._size:,} bytes of at least {needed:,}")
        architecture = _text(metadata.get("general.architecture"))
        return GgufInfo(
            version=int(version),
            architecture=architecture,
            name=_text(metadata.get("general.name")),
            context_length=_whole(metadata.get(f"{architecture}.context_length")),
            embedding_length=_whole(metadata.get(f"{architecture}.embedding_length")),
            template=_text(metadata.get("tokenizer.chat_template")),
            tensors=tensors,
            size_bytes=self._size,
            pre_tokenizer=_text(metadata.get(_PRE_TOKENIZER)),
            pre_tokenizer_at=self._pre_tokenizer_at,
        )

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise NotGguf(f"{self._path}: truncated: the header ends after {self._size:,} bytes")
        return data

    def _damaged(self) -> NotGguf:
        return NotGguf(f"{self._path}: damaged: its header makes no sense near byte {self._file.tell():,}")

    def _scalar(self, kind: int) -> int | float | bool:
        form = _SCALARS[kind]
        value: int | float | bool = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return value

    def _count(self, most: int) -> int:
        value = int(self._scalar(10))
        if value > most:
            raise self._damaged()
        return value

    def _string(self) -> str:
        return self._take(self._count(_LONGEST_STRING_BYTES)).decode("utf-8", "replace")

    def _entry(self) -> tuple[str, object]:
        key, kind = self._string(), int(self._scalar(4))
        if key == _PRE_TOKENIZER and kind == _STRING:
            self._pre_tokenizer_at = self._file.tell() + 8  # behind the text's length
        return key, self._value(kind)

    def _value(self, kind: int) -> object:
        if kind in _SCALARS:
            return self._scalar(kind)
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            self._skip_array()
            return None
        raise self._damaged()

    def _skip_array(self) -> None:
        kind, length = int(self._scalar(4)), self._count(_MOST_ELEMENTS)
        if kind in _SCALARS:
            self._skip(length * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            for _ in range(length):
                self._skip(self._count(_LONGEST_STRING_BYTES))
        else:
            raise self._damaged()

    def _skip(self, count: int) -> None:
        self._file.seek(count, 1)
        if self._file.tell() > self._size:
            raise NotGguf(f"{self._path}: truncated: the header ends after {self._size:,} bytes")

    def _tensor_end(self) -> int:
        """Returns where a tensor's data ends, in bytes from the start of the data."""
        self._string()
        dimensions = int(self._scalar(4))
        if dimensions > _MOST_DIMENSIONS:
            raise self._damaged()
        elements = 1
        for _ in range(dimensions):
            elements *= int(self._scalar(10))
        kind, offset = int(self._scalar(4)), int(self._scalar(10))
        block_bytes, block_elements = _BLOCKS.get(kind, (0, 1))
        return offset + elements // block_elements * block_bytes


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None
