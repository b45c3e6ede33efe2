"""Entries of a Triton model repository: what its vLLM, TensorRT-LLM and Python backends need to serve a text model.

    vllm         NAME/config.pbtxt, NAME/1/model.json (vLLM's engine arguments); the backend knows the tensors itself
    tensorrtllm  NAME (an ensemble), NAME_preprocessing, NAME_tensorrt_llm, NAME_postprocessing, filled from the
                 templates that come with the backend (``all_models/inflight_batcher_llm``): they change from release
                 to release, so those of the installed one are used
    python       NAME/config.pbtxt with the tensors of the vLLM backend, NAME/1/model.py

Entries are written aside and moved into place, so that a server that polls the repository never loads half of one.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
_UNSET_VALUE = re.compile(r'"\$\{\w+\}"')
_STEPS: Final = ("preprocessing", "tensorrt_llm", "postprocessing")
_STAGE_PREFIX = ".passerelle-"

_VLLM_CONFIG = """\
name: {name}
backend: "vllm"
# vLLM batches by itself, and uses the devices that its arguments in 1/model.json name.
instance_group [ {{ count: 1 kind: KIND_MODEL }} ]
"""
_PYTHON_CONFIG = """\
name: {name}
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true }},
  {{ name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
  {{ name: "exclude_input_in_output" data_type: TYPE_BOOL dims: [ 1 ] optional: true }},
  {{ name: "return_finish_reason" data_type: TYPE_BOOL dims: [ 1 ] optional: true }},
  {{ name: "return_num_input_tokens" data_type: TYPE_BOOL dims: [ 1 ] optional: true }},
  {{ name: "return_num_output_tokens" data_type: TYPE_BOOL dims: [ 1 ] optional: true }}
]
output [
  {{ name: "text_output" data_type: TYPE_STRING dims: [ -1 ] }},
  {{ name: "finish_reason" data_type: TYPE_STRING dims: [ -1 ] }},
  {{ name: "num_input_tokens" data_type: TYPE_UINT32 dims: [ -1 ] }},
  {{ name: "num_output_tokens" data_type: TYPE_UINT32 dims: [ -1 ] }}
]
instance_group [ {{ count: 1 kind: KIND_AUTO }} ]
"""
_TENSORRT_VALUES: Final[Mapping[str, str]] = {
    "triton_backend": "tensorrtllm",
    "decoupled_mode": "true",
    "batching_strategy": "inflight_fused_batching",
    "exclude_input_in_output": "true",
    "max_queue_delay_microseconds": "0",
    "max_queue_size": "0",
    "preprocessing_instance_count": "1",
    "postprocessing_instance_count": "1",
    "add_special_tokens": "true",
    "skip_special_tokens": "true",
    "max_beam_width": "1",
    "logits_datatype": "TYPE_FP32",
    "prompt_embedding_table_data_type": "TYPE_FP16",
    "encoder_input_features_data_type": "TYPE_FP16",
    "cross_attention_mask_data_type": "TYPE_BOOL",
}
"""What the templates' placeholders get unless it is said otherwise; an unfilled one within quotes means "not set"."""


class RepositoryError(Exception):
    """Why an entry cannot be written, in one line for a person."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One folder of the repository: its files by their path within it, and folders that are copied into it first."""

    name: str
    files: Mapping[str, str]
    copied: Mapping[str, Path] = field(default_factory=dict)


def checked_name(name: str) -> str:
    """Returns the name of a model. Raises RepositoryError unless it can be a folder and part of a URL."""
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise RepositoryError(
            f"{name[:64]!r} cannot name a model: use up to 128 letters, digits, '.', '_', '-', a letter or digit first"
        )
    return name


def vllm_entry(name: str, arguments: Mapping[str, object]) -> Entry:
    """Returns the entry of a model that vLLM serves; ``arguments`` are its engine arguments, ``model`` among them."""
    document = json.dumps(dict(arguments), indent=4)  # in ASCII: a container's locale may know nothing else
    return Entry(name, {"config.pbtxt": _VLLM_CONFIG.format(name=quoted(name)), "1/model.json": document + "\n"})


def python_entry(name: str, source: Path) -> Entry:
    """Returns the entry of a model of one's own, with the tensors of the vLLM backend. Raises RepositoryError."""
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise RepositoryError(f"{source}: it cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise RepositoryError(f"{source}: it is not UTF-8") from None
    if "class TritonPythonModel" not in text:
        raise RepositoryError(f"{source}: it has no class TritonPythonModel, which Triton's Python backend looks for")
    return Entry(name, {"config.pbtxt": _PYTHON_CONFIG.format(name=quoted(name)), "1/model.py": text})


def tensorrt_entries(
    name: str, engine: Path, tokenizer: Path, templates: Path, *, max_batch: int, values: Mapping[str, str]
) -> list[Entry]:
    """Returns the ensemble and its three steps, from the backend's own templates.

    ``engine`` is the folder of the built engine; ``values`` fill further placeholders, or the same differently. Raises
    RepositoryError when a template is not there, or keeps a placeholder where there must be a value.
    """
    for folder in (engine, tokenizer):
        if not folder.is_dir():
            raise RepositoryError(f"{folder}: there is no such folder")
    given = {
        **_TENSORRT_VALUES,
        "triton_max_batch_size": str(max_batch),
        "engine_dir": str(engine.absolute()),
        "tokenizer_dir": str(tokenizer.absolute()),
        **values,
    }
    names = {step: f"{name}_{step}" for step in _STEPS} | {"ensemble": name}
    entries = []
    for step, ours in names.items():
        source = templates / step
        try:
            template = (source / "config.pbtxt").read_text(encoding="utf-8")
        except OSError:
            raise RepositoryError(
                f"{source / 'config.pbtxt'}: it is not there; --templates is the folder all_models/inflight_batcher_llm"
                " of the TensorRT-LLM backend"
            ) from None
        config = _renamed(_filled(template, given, source / "config.pbtxt"), names)
        version = source / "1"
        entries.append(Entry(ours, {"config.pbtxt": config}, {"1": version} if version.is_dir() else {}))
    return entries


def write(repository: Path, entries: Sequence[Entry], *, force: bool) -> None:
    """Puts the entries into the repository, which is made if it is not there.

    Raises RepositoryError when one is there and ``force`` is not given; nothing is written then.
    """
    there = [entry.name for entry in entries if (repository / entry.name).exists()]
    if there and not force:
        raise RepositoryError(f"{repository / there[0]} is there already; --force replaces it")
    try:
        repository.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=_STAGE_PREFIX, dir=repository))
        try:
            for entry in entries:
                _stage(stage / "new" / entry.name, entry)
            (stage / "old").mkdir()
            _move_in(repository, stage, [entry.name for entry in entries])
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        raise RepositoryError(f"{error.filename or repository}: {error.strerror or error}") from None


def quoted(text: str) -> str:
    """Returns a string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _move_in(repository: Path, stage: Path, names: Sequence[str]) -> None:
    """Moves all new folders into place, or none: what was there comes back when one cannot be moved."""
    undo: list[tuple[Path, Path]] = []
    try:
        for name in names:
            place, old, new = repository / name, stage / "old" / name, stage / "new" / name
            if place.exists():
                place.rename(old)
                undo.append((old, place))
            new.rename(place)
            undo.append((place, new))
    except OSError:
        for source, target in reversed(undo):
            source.rename(target)
        raise


def _stage(folder: Path, entry: Entry) -> None:
    (folder / "1").mkdir(parents=True)
    for within, source in entry.copied.items():
        shutil.copytree(source, folder / within, dirs_exist_ok=True)
    for within, text in entry.files.items():
        (folder / within).write_text(text, encoding="utf-8")


def _filled(template: str, given: Mapping[str, str], path: Path) -> str:
    """Fills placeholders. A value's quotes and backslashes are escaped: they stand within quotes, or are words."""
    text = _PLACEHOLDER.sub(lambda found: quoted(given[found[1]])[1:-1] if found[1] in given else found[0], template)
    lines = [line.partition("#")[0] for line in _UNSET_VALUE.sub('""', text).splitlines()]
    if left := _PLACEHOLDER.search("\n".join(lines)):
        raise RepositoryError(f"{path}: the template wants a value for '{left[1]}'; give it with --set {left[1]}=…")
    return text


def _renamed(config: str, names: Mapping[str, str]) -> str:
    """Gives the models of an ensemble names of their own, so that one repository can hold several."""
    for theirs, ours in names.items():
        config = re.sub(rf'(?m)^(\s*(?:name|model_name):\s*)"{theirs}"', rf"\g<1>{quoted(ours)}", config)
    return config
