"""A JSON body into a structure: what is wrong with it is told the same way by every face that decodes strictly."""

from __future__ import annotations

import re
from typing import NoReturn, TypeVar

import msgspec

from passerelle.domain.errors import BadRequest

T = TypeVar("T")
_MAX_QUOTE = 200
_WHERE = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$?\.?(?P<path>.*)`)?\Z", re.DOTALL)
_QUOTED = re.compile(r"`([^`]*)`\Z")


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Returns the body as the decoder's structure. Raises BadRequest that names the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        _refuse(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if not body.strip():
            raise BadRequest("The request body is empty; send a JSON object.") from None
        reason = str(error).removeprefix("JSON is malformed: ")
        raise BadRequest(f"The request body is not valid JSON: {reason[:_MAX_QUOTE]}.") from None
    except RecursionError:
        raise BadRequest("The request body is nested too deeply.") from None


def _refuse(message: str) -> NoReturn:
    found = _WHERE.match(message)
    assert found is not None
    what, path = found["what"], found["path"] or ""
    name = quoted[1] if (quoted := _QUOTED.search(what)) else "?"
    if what.startswith(("Object missing required field", "Object contains unknown field")):
        path = f"{path}.{name}" if path else name
        what = "it is required" if "missing" in what else "there is no such field"
    param = path[:_MAX_QUOTE]
    if not param:
        raise BadRequest(f"The request body must be a JSON object. {what[:_MAX_QUOTE]}.") from None
    raise BadRequest(f"Field `{param}`: {what[0].lower()}{what[1:_MAX_QUOTE]}.", param=param) from None
