"""The bodies of TGI's routes. Source: the server's OpenAPI description, version 3.3."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta


class Parameters(msgspec.Struct):
    """``parameters``: how to generate. Some have no meaning behind this gateway; see `GenerateBody`."""

    max_new_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[float, Meta(gt=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: Annotated[int, Meta(ge=0)] | None = None
    stop: list[str] | None = None
    do_sample: bool | None = None
    return_full_text: bool | None = None
    details: bool | None = None
    best_of: int | None = None
    typical_p: float | None = None
    truncate: int | None = None
    watermark: bool | None = None
    decoder_input_details: bool | None = None
    top_n_tokens: int | None = None
    grammar: dict[str, Any] | None = None
    adapter_id: str | None = None


class GenerateBody(msgspec.Struct):
    """``POST /generate`` and its sisters. ``stream`` counts on ``/`` only.

    ``typical_p``, ``truncate`` and ``watermark`` are left out and named in ``x-passerelle-dropped-fields``; ``best_of``
    above 1, ``grammar``, ``adapter_id``, ``decoder_input_details`` and ``top_n_tokens`` are refused.
    """

    inputs: str
    parameters: Parameters = msgspec.field(default_factory=Parameters)
    stream: bool = False
