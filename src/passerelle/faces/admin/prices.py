"""``/admin/prices``: what tokens cost. One table for all organisations, which the operator writes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from passerelle.domain.errors import BadRequest
from passerelle.domain.principal import Scope
from passerelle.edge.dispatch import Context
from passerelle.faces.admin.resource import (
    Answer,
    Body,
    Cursor,
    Listed,
    Name,
    Repeats,
    actor,
    answer,
    listed,
    moment,
    page,
    query,
    respond,
    send,
)
from passerelle.faces.body import decode
from passerelle.faces.described import AFTER, IDEMPOTENCY_KEY, LIMIT, Described, Parameter
from passerelle.limits.keeper import BookKeeper
from passerelle.limits.price import MICRO, Price, parse_amount, price_text
from passerelle.limits.store import PriceStore
from passerelle.storage.engine import Database

Amount = Annotated[str, msgspec.Meta(description='Currency units for a million tokens, as a text: "0.15".')]


class PriceBody(Body):
    """A new price. ``cached`` is that of ``input`` when left out; ``begins_at`` is now."""

    model: Name
    input: Amount
    output: Amount
    cached: Amount | None = None
    begins_at: datetime | None = None


class PriceAnswer(msgspec.Struct, forbid_unknown_fields=True, tag_field="object", tag="price"):
    """What a model's tokens cost from a moment on."""

    id: str
    model: str
    input: Amount
    cached: Amount
    output: Amount
    begins_at: datetime | None


_BODY = msgspec.json.Decoder(PriceBody)


class PricesFace:
    """The endpoints. ``keeper`` has this process's book, which follows each change at once."""

    def __init__(self, database: Database, keeper: BookKeeper, repeats: Repeats) -> None:
        self._store = PriceStore(database)
        self._keeper = keeper
        self._repeats = repeats

    async def list(self, context: Context) -> None:
        """``GET /admin/prices``: of the models that are the caller's to call."""
        parameters = query(context, "limit", "after", "model")
        asked = page(parameters, str, int)
        after: Any = asked.after
        found = await self._store.page(
            asked.limit + 1, after, model=parameters.get("model"), among=context.caller.models
        )
        shown = listed(found, asked, _place)
        await respond(context, Listed([_answer(each) for each in shown.data], shown.has_more, shown.next))

    async def create(self, context: Context) -> None:
        """``POST /admin/prices``: the price from a moment on; the past keeps its own."""
        query(context)
        raw = await context.exchange.body()
        body = decode(raw, _BODY)
        begins = body.begins_at
        if begins is not None and begins.tzinfo is None:
            begins = begins.replace(tzinfo=UTC)
        costs = {
            "input_micro": _micro("input", body.input),
            "cached_micro": _micro("cached", body.input if body.cached is None else body.cached),
            "output_micro": _micro("output", body.output),
        }
        from_ms = None if begins is None else int(begins.timestamp() * 1000)

        async def work() -> Answer:
            made = await self._store.set(body.model, **costs, actor=actor(context), from_ms=from_ms)
            await self._keeper.catch_up()
            return answer(_answer(made), status=201)

        await self._repeats.once(context, raw, work)

    async def remove(self, context: Context) -> None:
        """``DELETE /admin/prices/{price}``: the one before it is in force again."""
        query(context)
        await self._store.remove(context.parameters["price"], actor(context))
        await self._keeper.catch_up()
        await send(context, Answer(204, [], b""))


def _micro(name: str, text: str) -> int:
    try:
        return parse_amount(text, MICRO)
    except ValueError as error:
        raise BadRequest(f"`{name}`: {error}", param=name) from None


def _answer(price: Price) -> PriceAnswer:
    return PriceAnswer(
        id=price.id,
        model=price.model,
        input=price_text(price.input_micro),
        cached=price_text(price.cached_micro),
        output=price_text(price.output_micro),
        begins_at=moment(price.from_ms),
    )


def _place(price: Price) -> Cursor:
    return price.model, price.from_ms


_TAG = "Limits"
_PATH = "/admin/prices"
_LIST = Listed[PriceAnswer]

PRICES = (
    Described(
        *("GET", _PATH, _TAG, "listPrices", "List prices", Scope.LIMITS_READ, _LIST),
        parameters=(LIMIT, AFTER, Parameter("model", "Of one model.")),
    ),
    Described(
        *("POST", _PATH, _TAG, "createPrice", "Set what a model's tokens cost", Scope.ADMIN),
        *(PriceAnswer, PriceBody, 201, (IDEMPOTENCY_KEY,)),
    ),
    Described(
        *("DELETE", f"{_PATH}/{{price}}", _TAG, "removePrice", "Remove a price", Scope.ADMIN, None),
        status=204,
    ),
)
"""What /docs says of these routes."""
