"""Prompts of a studio's folder, ``prompts/*.json``: ``{config, system, template, user, …}``, one prompt a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from passerelle.domain.errors import BadRequest
from passerelle.prompts.template import Content, prepare, sampling, text_of

MAX_FILE_BYTES: Final = 1024 * 1024
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def read_folder(folder: Path) -> tuple[dict[str, Content], list[str]]:
    """Returns the prompts of a folder by name, and what is wrong: a line for each file that cannot be taken.

    A prompt's name is its file's up to the first dot. Raises BadRequest for a folder that cannot be read.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json" and not path.name.startswith("."))
    except OSError as error:
        raise BadRequest(f"{folder}: it cannot be read ({error.strerror}).") from None
    found: dict[str, Content] = {}
    problems: list[str] = []
    for path in paths:
        name = path.name.split(".", 1)[0]
        try:
            content = read_file(path)
        except BadRequest as error:
            problems.append(f"{path}: {error.message}")
            continue
        if name in found:
            problems.append(f"{path}: another file makes the prompt '{name}' already.")
        found[name] = content
    return found, problems


def read_file(path: Path) -> Content:
    """Returns the prompt of one file. Keys that its template uses become defaults. Raises BadRequest."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadRequest(f"It is larger than {MAX_FILE_BYTES:,} bytes.")
        document = _decode(path.read_bytes())
    except OSError as error:
        raise BadRequest(f"It cannot be read ({error.strerror}).") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"It is no JSON object: {error}.") from None
    template, config = document.get("template"), document.get("config", {})
    if not isinstance(template, str):
        raise BadRequest("It has no `template`, a text.")
    if not isinstance(config, dict):
        raise BadRequest("Its `config` is no object.")
    values = {name: value for name, value in document.items() if name not in ("template", "config")}
    used = {name: text_of(name, value) for name, value in values.items() if f"{{{name}}}" in template}
    content = Content(template=template, defaults=used, config=sampling(config))
    prepare(content)
    return content
