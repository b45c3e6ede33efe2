"""What a caller gives a service: the text of an upload or a JSON body, and how it is to be run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from passerelle.domain.errors import BadRequest, PayloadTooLarge
from passerelle.edge.dispatch import Context
from passerelle.edge.exchange import header
from passerelle.faces.multipart import Part, parse_form
from passerelle.services.extract.extractor import Extractor
from passerelle.services.job import ServiceRequest
from passerelle.services.manifest import ServiceManifest

MAX_TEMPERATURE = 2.0


@dataclass(frozen=True, slots=True)
class Intake:
    """A text and how to work on it. ``file`` are the facts of an upload; ``warnings`` are for the caller."""

    text: str
    flavor: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    file: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    rest: Mapping[str, Part] = field(default_factory=dict)
    """Fields of a form that are not of the service."""

    def request(self, service: ServiceManifest) -> ServiceRequest:
        """Returns the payload of the job."""
        return ServiceRequest(
            service=service.id,
            text=self.text,
            flavor=self.flavor,
            temperature=self.temperature,
            top_p=self.top_p,
            warnings=self.warnings,
        )


async def read_form(context: Context, extractor: Extractor, *, more: frozenset[str] = frozenset()) -> Intake:
    """Returns what a form gives; fields beside ``file``, ``flavor``, ``temperature`` and ``top_p`` that are in ``more``
    are kept as they are.

    Raises BadRequest, UnsupportedMedia or PayloadTooLarge.
    """
    body = await context.exchange.body()
    parts = parse_form(header(context.exchange.headers, b"content-type"), body)
    file = parts.pop("file", None)
    if file is None:
        raise BadRequest("Send the document as a file in the field `file`.", param="file", code="file_missing")
    flavor = parts.pop("flavor", None)
    temperature = _number(parts.pop("temperature", None), "temperature")
    top_p = _number(parts.pop("top_p", None), "top_p")
    unknown = next((name for name in parts if name not in more), None)
    if unknown is not None:
        raise BadRequest(f"There is no form field `{unknown}` here.", param=unknown)
    check_temperature(temperature)
    name = file.filename or ""
    extracted = await extractor.extract(file.data, name)
    facts: dict[str, Any] = {"name": name, "bytes": len(file.data), "kind": extracted.kind.value}
    if extracted.pages is not None:
        facts["pages"] = extracted.pages
    return Intake(
        extracted.text,
        None if flavor is None else flavor.text,
        temperature,
        top_p,
        facts,
        extracted.warnings,
        parts,
    )


def check_temperature(value: float | None) -> None:
    """Raises BadRequest for a temperature that no model takes."""
    if value is not None and not 0 <= value <= MAX_TEMPERATURE:
        raise BadRequest(f"`temperature` is a number from 0 to {MAX_TEMPERATURE:g}.", param="temperature")


def check_size(service: ServiceManifest, text: str) -> None:
    """Raises PayloadTooLarge for a text longer than the service takes."""
    most = service.limits.max_input_bytes
    if most is not None and len(text.encode()) > most:
        raise PayloadTooLarge(
            f"The text has {len(text.encode()):,} bytes; the service '{service.name}' takes {most:,}.",
            param="file",
            code="input_too_long",
        )


def _number(part: Part | None, name: str) -> float | None:
    if part is None or not part.text.strip():
        return None
    try:
        value = float(part.text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise BadRequest(f"Field `{name}` is not a number.", param=name)
    return value
