"""Bodies and answers of `/v1/prompts`, and what a chat or a response says in `prompt`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from passerelle.faces.admin.resource import Body, Id
from passerelle.prompts.template import MAX_TEMPLATE_CHARACTERS, Role, Syntax

Variables = Annotated[dict[str, Any], Meta(max_length=1000)]
Reference = Annotated[str, Meta(min_length=1, max_length=100)] | Annotated[int, Meta(ge=1, le=10**9 - 1)]
"""A number, a label, or "latest"."""
Labels = Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=20)]
Text = Annotated[str, Meta(min_length=1, max_length=MAX_TEMPLATE_CHARACTERS)]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]


class VersionBody(Body, kw_only=True):
    """A new version. ``template`` is text with ``{name}``, or Jinja with ``syntax`` "jinja"; ``role`` is that of the
    message made of it. ``defaults`` are values for variables that a request leaves out, ``config`` sampling fields
    for requests that do not say them, ``model`` the model for requests that name none. ``labels`` point at it."""

    template: Text
    syntax: Syntax = "text"
    role: Role = "user"
    defaults: Variables = msgspec.field(default_factory=dict)
    config: dict[str, Any] = msgspec.field(default_factory=dict)
    model: ModelName | None = None
    labels: Labels = msgspec.field(default_factory=list)


class PromptBody(VersionBody, kw_only=True):
    """A new prompt with its first version; the label "production" points at it."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]


class LabelBody(Body):
    """Where a label is to point."""

    version: Annotated[int, Meta(ge=1, le=10**9 - 1)]


class RenderBody(Body):
    """What to fill a version with; without ``version`` the one labelled "production"."""

    version: Reference | None = None
    variables: Variables | None = None


class PromptReference(Body):
    """A kept prompt, by its id or name, filled with ``variables`` and put before the messages of the request.

    ``version`` is a number, a label or "latest"; "production" when it is left out.
    """

    id: Id
    version: Reference | None = None
    variables: Variables | None = None


class PromptAnswer(msgspec.Struct, tag_field="object", tag="prompt"):
    """One prompt. ``latest`` is the number of its newest version, ``labels`` say what points where."""

    id: str
    name: str
    latest: int
    labels: dict[str, int]
    archived: bool
    created_at: datetime | None
    created_by: str


class VersionAnswer(msgspec.Struct, tag_field="object", tag="prompt.version"):
    """One version. ``variables`` are the names its template asks for."""

    prompt: str
    name: str
    version: int
    template: str
    syntax: Syntax
    role: Role
    variables: list[str]
    defaults: dict[str, Any]
    config: dict[str, Any]
    model: str | None
    created_at: datetime | None
    created_by: str


class RenderAnswer(msgspec.Struct, tag_field="object", tag="prompt.rendering"):
    """What a request with this prompt would send; nothing was called."""

    prompt: str
    version: int
    text: str
    messages: list[dict[str, str]]
    config: dict[str, Any]
    model: str | None


class StudioConfig(msgspec.Struct):
    """Sampling fields, as numbers or as texts that read so."""

    temperature: float | str | None = None
    top_p: float | str | None = None
    max_tokens: int | str | None = None


class StudioBody(msgspec.Struct, kw_only=True):
    """``POST /prompt``: every key but ``template`` and ``config`` is a value for its ``{key}`` in the template.

    ``model`` is the first one that writes text, when it is left out.
    """

    template: str
    config: StudioConfig | None = None
    system: str | None = None
    user: str | None = None
    model: str | None = None


class StudioAnswer(StudioBody, kw_only=True):
    """The request again, and the text that the model wrote."""

    result: str
