"""``passerelle router``: how the targets of a running gateway are, and taking one out of work and back.

It speaks HTTP to the gateway, because the state of targets lives with the serving processes and nowhere else.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from passerelle.identity.bootstrap import ADMIN_KEY_FILE

app = typer.Typer(help="Show the targets of a running gateway; drain and undrain one.")

_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"))

UrlOption = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Where the gateway listens; http://127.0.0.1:8000 if left out."),
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="An API key; that of admin.key in the home folder when left out."),
]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", envvar="PASSERELLE_HOME", metavar="FOLDER", help="The folder that holds admin.key."),
]
VerbHomeOption = Annotated[
    Path | None, typer.Option("--home", metavar="FOLDER", help="The folder that holds admin.key.")
]
"""After a verb the variable does not count: it would win over the option before the verb."""
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TargetArgument = Annotated[
    str, typer.Argument(metavar="TARGET", help="The id of a target, as `passerelle router` lists.")
]

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_HOME = Path("~/.passerelle")


class RouterError(Exception):
    """The gateway could not be asked, or said no; the message is one line for a person."""


@dataclass(frozen=True, slots=True)
class _Gateway:
    """A running gateway, and the key to ask it with."""

    url: str
    key: str

    def ask(self, method: str, path: str) -> Any:
        """Returns the JSON of its answer. Raises RouterError."""
        base, connection = self._connection()
        if not self.key.isascii() or not self.key.isprintable():
            raise RouterError("The key holds characters that no key has; look at --key, or at admin.key.")
        try:
            connection.request(method, base + path, headers={"Authorization": f"Bearer {self.key}"})
            answer = connection.getresponse()
            status, body = answer.status, answer.read(_MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise RouterError(f"No gateway answers at {self.url} ({why}); start one, or name it with --url.") from error
        finally:
            connection.close()
        return _understood(self.url, status, body)

    def _connection(self) -> tuple[str, http.client.HTTPConnection]:
        """Returns the path in front of ours (empty for most), and a connection that is not open yet."""
        wrong = RouterError(f"{self.url!r} is not the address of a gateway: write http://host:port.")
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise wrong from None
        if parts.scheme not in ("http", "https") or not host or not (self.url.isascii() and self.url.isprintable()):
            raise wrong
        connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return quote(parts.path.rstrip("/")), connect(host, port, timeout=_TIMEOUT_S)


def _understood(url: str, status: int, body: bytes) -> Any:
    try:
        value = json.loads(body)
    except ValueError:
        raise RouterError(f"{url} answers {status}, but not as Passerelle does; name the gateway with --url.") from None
    if status == 200:
        return value
    error = value.get("error") if isinstance(value, Mapping) else None
    message = error.get("message") if isinstance(error, Mapping) else None
    raise RouterError(str(message) if message else f"{url} answers with status {status}.")


@app.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    url: UrlOption = None,
    key: KeyOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show each target's state, for how long and why, and the queue of each model.

    Of several workers any one answers: counts are of all of them.
    """
    context.obj = given = (url, key, home)
    if context.invoked_subcommand is not None:
        return
    state = _ask(given, "GET", "/admin/router")
    if as_json:
        print(json.dumps(state, indent=2))
    else:
        _print_state(state)


@app.command()
def drain(
    context: typer.Context,
    target: TargetArgument,
    url: UrlOption = None,
    key: KeyOption = None,
    home: VerbHomeOption = None,
) -> None:
    """Send no new requests to a target; running answers finish."""
    _move(context, (url, key, home), target, "drain")


@app.command()
def undrain(
    context: typer.Context,
    target: TargetArgument,
    url: UrlOption = None,
    key: KeyOption = None,
    home: VerbHomeOption = None,
) -> None:
    """Put a drained target back to work."""
    _move(context, (url, key, home), target, "undrain")


_Given = tuple[str | None, str | None, Path | None]


def _move(context: typer.Context, given: _Given, target: str, verb: str) -> None:
    """Options may stand before the verb or after it; after it wins."""
    before: _Given = context.obj
    url, key = given[0] or before[0], given[1] or before[1]
    _print_target(_ask((url, key, given[2] or before[2]), "POST", f"/admin/router/{quote(target, safe='')}/{verb}"))


def _ask(given: _Given, method: str, path: str) -> Any:
    """Returns the gateway's answer; an error ends the command with one line and exit code 2."""
    url, key, home = given
    try:
        return _Gateway(url or DEFAULT_URL, key or _admin_key((home or DEFAULT_HOME).expanduser())).ask(method, path)
    except RouterError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


def _admin_key(home: Path) -> str:
    path = home / ADMIN_KEY_FILE
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "not a key"
        raise RouterError(f"No key: {path} cannot be read ({why}); give one with --key, or name --home.") from error


def _print_state(state: Mapping[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "target", "where", "state", "for"):
        table.add_column(heading, no_wrap=True)
    table.add_column("why", overflow="fold")
    table.add_column("outstanding", justify="right", no_wrap=True)
    for model in state["models"]:
        name = model["model"]
        for target in model["targets"]:
            table.add_row(*(Text(str(cell)) for cell in (name, *_cells(target))))
            name = ""
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
    for model in state["models"]:
        queue = model["queue"]
        if queue is not None and queue["waiting"]:
            room = "" if queue["capacity"] is None else f" of {queue['capacity']}"
            print(f"{model['model']}: {queue['active']}{room} running, {queue['waiting']} waiting")
    if len(state["workers_running"]) != state["workers"]:
        print(f"{len(state['workers_running'])} of {state['workers']} workers are running", file=sys.stderr)
    if state["reload_error"] is not None:
        print("The configuration was changed, and the change is not in use:", file=sys.stderr)
        for problem in state["reload_error"]["problems"]:
            print(f"  {problem}", file=sys.stderr)
    if state["restart_needed_for"]:
        print(f"Changed, and waiting for a restart: {', '.join(state['restart_needed_for'])}", file=sys.stderr)


def _print_target(target: Mapping[str, Any]) -> None:
    print(f"{target['id']} ({target['model']}) is {target['state']}: {target['why']}; {_running(target)}")


def _running(target: Mapping[str, Any]) -> str:
    count = target["outstanding"]
    return f"{count} request{'' if count == 1 else 's'} outstanding"


def _cells(target: Mapping[str, Any]) -> tuple[str, ...]:
    state = f"{target['state']} (shadow)" if target["shadow"] else target["state"]
    return (
        target["id"],
        target["url"] or "this machine",
        state,
        show_age(time.time() - target["since"]),
        target["why"],
        str(target["outstanding"]),
    )


def show_age(age_s: float) -> str:
    """Returns a length of time in its two largest units: ``3d 4h``, ``2m 5s``, ``7s``."""
    rest = max(0, int(age_s))
    words: list[str] = []
    for size, unit in _UNITS:
        if rest >= size or words:
            words.append(f"{rest // size}{unit}")
            rest %= size
    words.append(f"{rest}s")
    return " ".join(words[:2])
