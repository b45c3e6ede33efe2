"""Entries of a Triton model repository: what is written, what is refused, and that it is whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from passerelle.models import triton_repository
from passerelle.models.triton_repository import (
    Entry,
    RepositoryError,
    checked_name,
    python_entry,
    quoted,
    tensorrt_entries,
    vllm_entry,
    write,
)

STEP = 'name: "{step}"\nbackend: "python"\nmax_batch_size: ${{triton_max_batch_size}}\n'
PARAMETER = 'parameters {{ key: "{key}" value: {{ string_value: "${{{key}}}" }} }}\n'


def templates(folder: Path) -> Path:
    """Templates as those of the backend: placeholders within quotes and without, comments, a version with code."""
    for step in ("preprocessing", "postprocessing", "tensorrt_llm"):
        (folder / step / "1").mkdir(parents=True)
        (folder / step / "1" / "model.py").write_text("class TritonPythonModel: ...\n")
        text = STEP.format(step=step) + PARAMETER.format(key="tokenizer_dir") + PARAMETER.format(key="engine_dir")
        (folder / step / "config.pbtxt").write_text(text + PARAMETER.format(key="medusa_choices"))
    (folder / "ensemble").mkdir()
    steps = "".join(f'  step {{\n    model_name: "{step}"\n  }}\n' for step in ("preprocessing", "tensorrt_llm"))
    text = '# ${not_a_value}\nname: "ensemble"\nplatform: "ensemble"\nmax_batch_size: ${triton_max_batch_size}\n'
    (folder / "ensemble" / "config.pbtxt").write_text(text + f"ensemble_scheduling {{\n{steps}}}\n")
    return folder


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    (tmp_path / "engine").mkdir()
    return tmp_path / "engine"


def test_vllm(tmp_path: Path) -> None:
    """The backend's configuration, and vLLM's arguments as JSON."""
    write(tmp_path / "new" / "repository", [vllm_entry("phi", {"model": "é/x", "enforce_eager": True})], force=False)
    folder = tmp_path / "new" / "repository" / "phi"
    assert 'backend: "vllm"' in (folder / "config.pbtxt").read_text()
    assert json.loads((folder / "1" / "model.json").read_text()) == {"model": "é/x", "enforce_eager": True}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["phi"]


def test_python(tmp_path: Path) -> None:
    """A model of one's own gets the tensors of the vLLM backend; a file that is no model is refused."""
    source = tmp_path / "mine.py"
    source.write_text("class TritonPythonModel:\n    pass\n")
    entry = python_entry("mine", source)
    assert entry.files["1/model.py"] == source.read_text()
    assert all(f'"{name}"' in entry.files["config.pbtxt"] for name in ("text_input", "stream", "text_output"))
    source.write_text("print()")
    with pytest.raises(RepositoryError, match="TritonPythonModel"):
        python_entry("mine", source)
    source.write_bytes(b"\xff")
    with pytest.raises(RepositoryError, match="UTF-8"):
        python_entry("mine", source)
    with pytest.raises(RepositoryError, match="cannot be read"):
        python_entry("mine", tmp_path / "nowhere.py")


def test_tensorrt(tmp_path: Path, engine: Path) -> None:
    """The backend's own templates are filled, and the four models get names of their own."""
    entries = tensorrt_entries(
        "big", engine, engine, templates(tmp_path / "all"), max_batch=16, values={"medusa_choices": 'a"b\\c'}
    )
    configs = {entry.name: entry.files["config.pbtxt"] for entry in entries}
    assert set(configs) == {"big", "big_preprocessing", "big_tensorrt_llm", "big_postprocessing"}
    assert 'model_name: "big_preprocessing"' in configs["big"]
    assert 'name: "big"\nplatform: "ensemble"\nmax_batch_size: 16' in configs["big"]
    assert f'"{engine}"' in configs["big_tensorrt_llm"]
    assert 'string_value: "a\\"b\\\\c"' in configs["big_tensorrt_llm"]
    write(tmp_path / "repository", entries, force=False)
    assert (tmp_path / "repository" / "big_preprocessing" / "1" / "model.py").is_file()
    assert (tmp_path / "repository" / "big" / "1").is_dir()
    assert not list((tmp_path / "repository" / "big" / "1").iterdir())


def test_tensorrt_that_cannot_be(tmp_path: Path, engine: Path) -> None:
    """A missing folder, a missing template, and a placeholder that must have a value are each said by name."""
    folder = templates(tmp_path / "all")
    with pytest.raises(RepositoryError, match="nowhere: there is no such folder"):
        tensorrt_entries("big", tmp_path / "nowhere", engine, folder, max_batch=1, values={})
    with pytest.raises(RepositoryError, match="all_models/inflight_batcher_llm"):
        tensorrt_entries("big", engine, engine, tmp_path, max_batch=1, values={})
    config = folder / "postprocessing" / "config.pbtxt"
    config.write_text(config.read_text() + "instance_group [ { count: ${new_in_this_release} } ]\n")
    with pytest.raises(RepositoryError, match="--set new_in_this_release="):
        tensorrt_entries("big", engine, engine, folder, max_batch=1, values={})
    tensorrt_entries("big", engine, engine, folder, max_batch=1, values={"new_in_this_release": "1"})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", ".hidden", "a b", "a\n", "é", "a" * 129, "-x", "a."])
def test_names(name: str) -> None:
    """A name is a folder's and part of a URL, and nothing that leads elsewhere."""
    with pytest.raises(RepositoryError, match="cannot name a model"):
        checked_name(name)


def test_good_names() -> None:
    """Names as models have them."""
    assert [checked_name(name) for name in ("phi-3.5_mini", "7b", "A")] == ["phi-3.5_mini", "7b", "A"]


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    """Without force nothing changes, not even the models that are new; with it the old files are gone."""
    write(tmp_path, [vllm_entry("b", {"model": "old"})], force=False)
    (tmp_path / "b" / "1" / "left").write_text("x")
    both = [vllm_entry("a", {"model": "new"}), vllm_entry("b", {"model": "new"})]
    with pytest.raises(RepositoryError, match="b is there already; --force"):
        write(tmp_path, both, force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]
    write(tmp_path, both, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert sorted(path.name for path in (tmp_path / "b" / "1").iterdir()) == ["model.json"]
    assert "new" in (tmp_path / "b" / "1" / "model.json").read_text()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """What cannot be copied is one clear line, and no half of a model is left behind."""
    broken = Entry("b", {"config.pbtxt": ""}, {"1": tmp_path / "nowhere"})
    with pytest.raises(RepositoryError, match="nowhere"):
        write(tmp_path / "repository", [vllm_entry("a", {"model": "m"}), broken], force=False)
    assert list((tmp_path / "repository").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match="file"):
        write(tmp_path / "file", [vllm_entry("a", {"model": "m"})], force=False)


def test_a_move_that_fails_puts_back_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the second of two models cannot be moved in, the first is as it was before."""
    write(tmp_path, [vllm_entry("a", {"model": "old"})], force=False)
    move = Path.rename

    def failing(source: Path, target: Path) -> Path:
        if source.parent.name == "new" and source.name == "b":
            raise OSError(28, "No space left on device", str(target))
        return move(source, target)

    monkeypatch.setattr(triton_repository.Path, "rename", failing)
    with pytest.raises(RepositoryError, match="No space left"):
        write(tmp_path, [vllm_entry("a", {"model": "new"}), vllm_entry("b", {"model": "new"})], force=True)
    assert "old" in (tmp_path / "a" / "1" / "model.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_quoting() -> None:
    """Strings of protobuf's text format."""
    assert quoted('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'
