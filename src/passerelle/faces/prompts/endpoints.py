"""``/v1/prompts``: the kept prompts of the caller's project, their versions and labels, and a dry run of each."""

from __future__ import annotations

import msgspec

from passerelle.domain.errors import BadRequest
from passerelle.edge.dispatch import Context
from passerelle.faces.admin.resource import (
    Cursor,
    Listed,
    actor,
    answer,
    cursor,
    flag,
    listed,
    moment,
    page,
    query,
    read_nothing,
    respond,
    send,
)
from passerelle.faces.body import decode
from passerelle.faces.prompts.bodies import (
    LabelBody,
    PromptAnswer,
    PromptBody,
    RenderAnswer,
    RenderBody,
    VersionAnswer,
    VersionBody,
)
from passerelle.faces.prompts.references import values_of
from passerelle.prompts.library import PromptLibrary, checked, rendered
from passerelle.prompts.store import PRODUCTION, Prompt, PromptStore, Version
from passerelle.prompts.template import Content, Filler, sampling

_PROMPT = msgspec.json.Decoder(PromptBody)
_VERSION = msgspec.json.Decoder(VersionBody)
_LABEL = msgspec.json.Decoder(LabelBody)
_RENDER = msgspec.json.Decoder(RenderBody)


class PromptsFace:
    """The endpoints."""

    def __init__(self, library: PromptLibrary) -> None:
        self._library = library

    async def list(self, context: Context) -> None:
        """``GET /v1/prompts``: oldest first."""
        parameters = query(context, "limit", "after", "archived")
        asked = page(parameters, int, str)
        archived = flag(parameters, "archived", False)
        found = await self._store(context).page(limit=asked.limit + 1, after=asked.after, archived=archived)
        part = listed(found, asked, _place)
        await respond(context, Listed([_shown(each) for each in part.data], part.has_more, part.next))

    async def create(self, context: Context) -> None:
        """``POST /v1/prompts``."""
        body = decode(await context.exchange.body(), _PROMPT)
        content, _ = await _content(body)
        made = await self._store(context).create(actor(context), body.name, content, body.labels)
        self._library.forget(context.caller)
        await respond(context, _shown(made), status=201)

    async def show(self, context: Context) -> None:
        """``GET /v1/prompts/{prompt_id}``."""
        await respond(context, _shown(await self._store(context).get(context.parameters["prompt_id"])))

    async def versions(self, context: Context) -> None:
        """``GET /v1/prompts/{prompt_id}/versions``: newest first."""
        asked = page(query(context, "limit", "after"), int)
        below = None if asked.after is None else int(asked.after[0])
        reference = context.parameters["prompt_id"]
        found = await self._store(context).versions(reference, limit=asked.limit + 1, below=below)
        shown = [_version(each, await checked(each.content)) for each in found[: asked.limit]]
        more = len(found) > asked.limit
        await respond(context, Listed(shown, more, cursor((shown[-1].version,)) if more else None))

    async def add(self, context: Context) -> None:
        """``POST /v1/prompts/{prompt_id}/versions``."""
        body = decode(await context.exchange.body(), _VERSION)
        content, filler = await _content(body)
        reference = context.parameters["prompt_id"]
        made = await self._store(context).add(actor(context), reference, content, body.labels)
        self._library.forget(context.caller)
        await respond(context, _version(made, filler), status=201)

    async def version(self, context: Context) -> None:
        """``GET /v1/prompts/{prompt_id}/versions/{version}``: by number, label or "latest"."""
        found = await self._store(context).version(context.parameters["prompt_id"], context.parameters["version"])
        await respond(context, _version(found, await checked(found.content)))

    async def label(self, context: Context) -> None:
        """``PUT /v1/prompts/{prompt_id}/labels/{label}``: points it at a version."""
        body = decode(await context.exchange.body(), _LABEL)
        reference, label = context.parameters["prompt_id"], context.parameters["label"]
        await self._changed(context, await self._store(context).label(actor(context), reference, label, body.version))

    async def unlabel(self, context: Context) -> None:
        """``DELETE /v1/prompts/{prompt_id}/labels/{label}``."""
        reference, label = context.parameters["prompt_id"], context.parameters["label"]
        await self._changed(context, await self._store(context).unlabel(actor(context), reference, label))

    async def archive(self, context: Context) -> None:
        """``POST /v1/prompts/{prompt_id}/archive``: nobody can use it."""
        await read_nothing(context)
        await self._changed(
            context, await self._store(context).archive(actor(context), context.parameters["prompt_id"])
        )

    async def restore(self, context: Context) -> None:
        """``POST /v1/prompts/{prompt_id}/restore``."""
        await read_nothing(context)
        await self._changed(
            context, await self._store(context).restore(actor(context), context.parameters["prompt_id"])
        )

    async def render(self, context: Context) -> None:
        """``POST /v1/prompts/{prompt_id}/render``: what would be sent, and no call."""
        body = decode(await context.exchange.body() or b"{}", _RENDER)
        wanted = PRODUCTION if body.version is None else str(body.version)
        ready = await self._library.find(context.caller, context.parameters["prompt_id"], wanted)
        try:
            text = await rendered(ready.filler, values_of(body.variables or {}))
        except BadRequest as error:
            where = f"variables.{error.param}" if error.error_code == "invalid_variable" else "variables"
            raise BadRequest(error.message, param=where, code=error.error_code) from None
        content = ready.version.content
        shown = RenderAnswer(
            prompt=ready.version.prompt_id,
            version=ready.version.number,
            text=text,
            messages=[{"role": content.role, "content": text}],
            config=content.config,
            model=content.model,
        )
        await respond(context, shown)

    async def _changed(self, context: Context, prompt: Prompt) -> None:
        self._library.forget(context.caller)
        await send(context, answer(_shown(prompt)))

    def _store(self, context: Context) -> PromptStore:
        return self._library.store(context.caller)


async def _content(body: VersionBody) -> tuple[Content, Filler]:
    content = Content(
        template=body.template,
        syntax=body.syntax,
        role=body.role,
        defaults=body.defaults,
        config=sampling(body.config),
        model=body.model,
    )
    return content, await checked(content)


def _place(prompt: Prompt) -> Cursor:
    return prompt.created_at_ms, prompt.id


def _shown(prompt: Prompt) -> PromptAnswer:
    return PromptAnswer(
        id=prompt.id,
        name=prompt.name,
        latest=prompt.latest,
        labels=prompt.labels,
        archived=prompt.archived_at_ms is not None,
        created_at=moment(prompt.created_at_ms),
        created_by=prompt.created_by,
    )


def _version(version: Version, filler: Filler) -> VersionAnswer:
    content = version.content
    return VersionAnswer(
        prompt=version.prompt_id,
        name=version.name,
        version=version.number,
        template=content.template,
        syntax=content.syntax,
        role=content.role,
        variables=sorted(filler.variables),
        defaults=content.defaults,
        config=content.config,
        model=content.model,
        created_at=moment(version.created_at_ms),
        created_by=version.created_by,
    )
