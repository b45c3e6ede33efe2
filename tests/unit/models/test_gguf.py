"""The header of a model file is read, and what is not a whole model is told apart in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.harness.models import gguf_bytes

from passerelle.models.gguf import NotGguf, read_gguf


def test_tells_what_the_model_is(tmp_path: Path) -> None:
    """Architecture, name and window come from the metadata, whatever arrays stand between them."""
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf_bytes("Tiny", context_length=77))
    info = read_gguf(file)
    assert (info.architecture, info.name, info.context_length, info.tensors) == ("llama", "Tiny", 77, 1)
    assert not info.chat_template
    assert info.size_bytes == file.stat().st_size


@pytest.mark.slow
def test_reads_the_default_model(default_gguf: Path) -> None:
    """The real file has the window and the chat template that the defaults count on."""
    info = read_gguf(default_gguf)
    assert info.context_length == 8192
    assert info.chat_template
    assert info.tensors == 272


@pytest.mark.slow
def test_the_default_model_without_its_last_byte_is_truncated(default_gguf: Path, tmp_path: Path) -> None:
    """The tensors' extent is exact for the real file: one byte less is noticed."""
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(default_gguf.read_bytes()[:-1])
    with pytest.raises(NotGguf, match="truncated"):
        read_gguf(cut)


@pytest.mark.parametrize("missing", [1, 200, 256, 300])
def test_a_truncated_file_is_refused(tmp_path: Path, missing: int) -> None:
    """A file that lost its end says so, wherever the cut is."""
    data = gguf_bytes()
    file = tmp_path / "m.gguf"
    file.write_bytes(data[:-missing])
    with pytest.raises(NotGguf, match="truncated"):
        read_gguf(file)


@pytest.mark.parametrize("data", [b"", b"GG", b"<html>not found</html>", b"PK\x03\x04" * 20])
def test_another_kind_of_file_is_refused(tmp_path: Path, data: bytes) -> None:
    """An error page or an archive under a model's name is named as such."""
    file = tmp_path / "m.gguf"
    file.write_bytes(data)
    with pytest.raises(NotGguf, match="not a GGUF model file"):
        read_gguf(file)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    """What cannot be opened gives the same kind of error, with its path."""
    with pytest.raises(NotGguf, match="no such model file"):
        read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(NotGguf, match="cannot be read"):
        read_gguf(tmp_path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(4, 400), junk=st.binary(min_size=1, max_size=12), cut=st.integers(0, 600))
def test_damage_never_raises_anything_else(tmp_path: Path, place: int, junk: bytes, cut: int) -> None:
    """Whatever bytes change or go missing, the answer is information or NotGguf, and comes soon."""
    data = bytearray(gguf_bytes())
    data[place : place + len(junk)] = junk
    file = tmp_path / "m.gguf"
    file.write_bytes(bytes(data[: max(0, len(data) - cut)]))
    try:
        assert read_gguf(file).size_bytes == file.stat().st_size
    except NotGguf as error:
        assert "\n" not in str(error)
