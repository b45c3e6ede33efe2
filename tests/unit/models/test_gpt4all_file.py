"""Files as GPT4All can read them, and the families of chat templates."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from passerelle.models.gguf import read_gguf
from passerelle.models.gpt4all_file import chat_family, gpt4all_file


def gguf_with(pre_tokenizer: str, template: str = "") -> bytes:
    """A well-formed GGUF file that names a pre-tokenizer and a template."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    entries = {"general.architecture": "llama", "tokenizer.ggml.pre": pre_tokenizer}
    entries |= {"tokenizer.chat_template": template} if template else {}
    metadata = [text(key) + struct.pack("<I", 8) + text(value) for key, value in entries.items()]
    whole = b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata)) + b"".join(metadata)
    return whole + bytes(-len(whole) % 32)


def test_a_copy_differs_by_the_one_word(tmp_path: Path) -> None:
    """A file whose pre-tokenizer GPT4All does not know by that name is copied once, with the name it knows."""
    file, copies = tmp_path / "m.gguf", tmp_path / "copies"
    file.write_bytes(gguf_with("smollm"))
    copy = gpt4all_file(file, read_gguf(file), copies)
    assert copy.parent == copies
    assert read_gguf(copy).pre_tokenizer == "refact"
    assert copy.read_bytes() == file.read_bytes().replace(b"smollm", b"refact")
    made = copy.stat().st_mtime_ns
    assert gpt4all_file(file, read_gguf(file), copies) == copy
    assert copy.stat().st_mtime_ns == made
    assert list(copies.iterdir()) == [copy]


def test_other_files_are_used_as_they_are(tmp_path: Path) -> None:
    """Nothing is copied where nothing has to change."""
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf_with("llama-bpe"))
    assert gpt4all_file(file, read_gguf(file), tmp_path / "copies") == file
    assert not (tmp_path / "copies").exists()


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("{{'<|im_start|>' + m.role}}", "chatml"),
        ("<|start_header_id|>{{m.role}}<|end_header_id|>", "llama3"),
        ("<start_of_turn>model", "gemma"),
        ("[INST] <<SYS>>", "llama2"),
        ("{{bos_token}}[INST] {{m.content}} [/INST]", "mistral"),
        ("<|user|>\n{{m.content}}<|end|>", "phi3"),
        ("<|user|>\n{{m.content}}{{eos_token}}", "zephyr"),
        ("{{m.content}}", "plain"),
        (None, "plain"),
    ],
)
def test_families(template: str | None, family: str) -> None:
    """A model's own template is not run: its marks tell which of ours is the same."""
    assert chat_family(template) == family


def test_the_template_is_read(tmp_path: Path) -> None:
    """It is known by its text, and that there is one."""
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf_with("x", "[INST]"))
    assert (read_gguf(file).template, read_gguf(file).chat_template) == ("[INST]", True)
