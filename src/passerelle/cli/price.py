"""``passerelle price``: what tokens cost. Running servers follow within five seconds."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from passerelle.cli.duration import parse_moment_s, show_moment
from passerelle.cli.records import ConfigOption, DatabaseOption, HomeOption, JsonOption, on_database, operator
from passerelle.cli.table import print_fields, print_json, print_table
from passerelle.limits.price import MICRO, Price, parse_amount, price_text
from passerelle.limits.store import PriceStore
from passerelle.storage.engine import Database

app = typer.Typer(help="Set, list and remove what tokens cost.", no_args_is_help=True)

_UNIT = "Currency units for a million tokens: 0.15."


@app.command("set")
def set_price(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Its name in the configuration.")],
    of_input: Annotated[str, typer.Option("--input", metavar="AMOUNT", help=_UNIT)],
    of_output: Annotated[str, typer.Option("--output", metavar="AMOUNT", help=_UNIT)],
    of_cached: Annotated[
        str | None, typer.Option("--cached", metavar="AMOUNT", help="Of cached input; as input when left out.")
    ] = None,
    begins: Annotated[str | None, typer.Option("--from", help="When it begins: 2027-01-01; now when left out.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Set what a model's tokens cost from a moment on. Calls that came before keep the price they had."""
    costs = {
        "input_micro": _micro("--input", of_input),
        "cached_micro": _micro("--cached", of_input if of_cached is None else of_cached),
        "output_micro": _micro("--output", of_output),
    }
    from_ms = None if begins is None else int(parse_moment_s(begins, time.time(), past=False) * 1000)

    async def work(opened: Database) -> Price:
        return await PriceStore(opened).set(model, **costs, actor=operator().actor, from_ms=from_ms)

    print_fields(_fields(on_database(config, home, database, work)), as_json)


@app.command("list")
def list_prices(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Of one model only.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """List prices, for a million tokens."""
    found = on_database(config, home, database, lambda opened: _list(opened, model))
    if as_json:
        print_json([_fields(each) for each in found])
        return
    print_table(
        ("id", "model", "input", "cached", "output", "from"),
        [
            (
                each.id,
                each.model,
                price_text(each.input_micro),
                price_text(each.cached_micro),
                price_text(each.output_micro),
                show_moment(each.from_ms),
            )
            for each in found
        ],
    )


@app.command("rm")
def remove(
    price: Annotated[str, typer.Argument(metavar="PRICE", help="Its id.")],
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Remove a price; the one before it is in force again."""

    async def work(opened: Database) -> None:
        await PriceStore(opened).remove(price, operator().actor)

    on_database(config, home, database, work)
    print(f"Removed {price}; running servers follow within 5 seconds.", file=sys.stderr)


def _micro(option: str, text: str) -> int:
    try:
        return parse_amount(text, MICRO)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None


async def _list(database: Database, model: str | None) -> list[Price]:
    store = PriceStore(database)
    found: list[Price] = []
    after = None
    while page := await store.page(500, after, model=model):
        found += page
        after = (page[-1].model, page[-1].from_ms)
    return found


def _fields(price: Price) -> dict[str, Any]:
    return {
        "id": price.id,
        "model": price.model,
        "input": price_text(price.input_micro),
        "cached": price_text(price.cached_micro),
        "output": price_text(price.output_micro),
        "from_ms": price.from_ms,
    }
