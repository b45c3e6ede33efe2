"""Model files as GPT4All can read them, and what kind of chat they were trained on.

GPT4All's last release holds a llama.cpp of August 2024, which refuses a file whose pre-tokenizer it does not know by
name. Where it knows the very same splitting rules under another name of the same length, a copy of the file with those
few bytes changed serves; the numbers of tokens stay the same. Source: llama.cpp, ``llm_tokenizer_bpe``, where the names
of a group share one branch.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from passerelle.models.gguf import GgufInfo

_SAME_SPLITTING = {"smollm": "refact"}
_FAMILIES = (
    ("<|im_start|>", "chatml"),
    ("<|start_header_id|>", "llama3"),
    ("<start_of_turn>", "gemma"),
    ("<<SYS>>", "llama2"),
    ("[INST]", "mistral"),
    ("<|end|>", "phi3"),
    ("<|user|>", "zephyr"),
)
"""A mark that a model's own template holds -> the template of ours of that family; the first that is found counts."""


def gpt4all_file(path: Path, info: GgufInfo, copies: Path) -> Path:
    """Returns a file that GPT4All can read: ``path`` itself, or a copy of it in the folder ``copies``.

    The copy is made once for each state of the file (its size and time are part of the name). Raises OSError.
    """
    known_as = _SAME_SPLITTING.get(info.pre_tokenizer or "")
    if known_as is None or info.pre_tokenizer_at is None:
        return path
    written = path.stat()
    copy = copies / f"{path.stem}-{written.st_size}-{written.st_mtime_ns:x}.gguf"
    if not copy.exists():
        copies.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = copies / f".part-{secrets.token_hex(8)}"
        try:
            shutil.copyfile(path, part)
            with part.open("r+b") as file:
                file.seek(info.pre_tokenizer_at)
                file.write(known_as.encode())
                file.flush()
                os.fsync(file.fileno())
            part.rename(copy)
        finally:
            part.unlink(missing_ok=True)
    return copy


def chat_family(template: str | None) -> str:
    """Returns the name of the chat template of ours that fits a model's own; ``plain`` when none does."""
    return next((name for mark, name in _FAMILIES if mark in (template or "")), "plain")
