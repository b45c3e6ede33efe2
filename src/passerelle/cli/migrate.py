"""``passerelle migrate``: where the database's schema is, and bringing it up to date before a start does."""

from __future__ import annotations

import json

import typer

from passerelle.cli.records import ConfigOption, DatabaseOption, HomeOption, JsonOption, on_database
from passerelle.storage.engine import Database
from passerelle.storage.migrations import HEAD, SchemaState, schema_state
from passerelle.storage.migrations import upgrade as bring_up

app = typer.Typer(help="See and upgrade the schema of the database.", no_args_is_help=True)


@app.command()
def status(
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Show the schema's version and the steps that are pending; change nothing."""
    state = on_database(config, home, database, schema_state, migrate=False)
    if as_json:
        pending = [{"version": step.version, "title": step.title} for step in state.pending]
        print(json.dumps({"version": state.version, "newest": HEAD, "pending": pending}, indent=2))
        return
    print(f"The schema is {state.version or 'not made yet'}; this Passerelle's is {HEAD}.")
    for step in state.pending:
        print(f"pending: {step.version}  {step.title}")


@app.command()
def upgrade(config: ConfigOption = None, home: HomeOption = None, database: DatabaseOption = None) -> None:
    """Bring the schema up to date; gateways of the release before may go on meanwhile."""

    async def work(opened: Database) -> SchemaState:
        before = await schema_state(opened)
        await bring_up(opened)
        return before

    before = on_database(config, home, database, work, migrate=False)
    done = ", ".join(step.version for step in before.pending)
    print(f"The schema is {HEAD}; done: {done}." if done else f"The schema is {HEAD}; there was nothing to do.")
