"""People before browsers, the gateway they sign on to, and the mail server that gets its letters."""

from __future__ import annotations

import email
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from email.message import Message
from pathlib import Path
from typing import Any

import requests
from aiosmtpd.controller import Controller
from tests.harness.gateway import GatewayProcess
from tests.harness.ports import unused_port

GOOD, BETTER = "correct horse", "battery staple"
NOWHERE = "http://127.0.0.1:9/v1"
"""A model server that nobody needs."""


class Letters:
    """A mail server's memory."""

    def __init__(self) -> None:
        self.all: list[Message] = []
        self._came = threading.Condition()

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - the library's name
        """Takes a letter."""
        with self._came:
            self.all.append(email.message_from_bytes(envelope.content))
            self._came.notify_all()
        return "250 OK"

    def wait(self, count: int) -> Message:
        """Returns the last letter once there are ``count``."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.all) >= count, 20)
        return self.all[-1]


class Person:
    """A browser with one person before it: cookies, an origin, a CSRF token."""

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self.name = name
        self.http = requests.Session()
        self.csrf = ""

    def post(self, path: str, body: Any = None, **headers: str) -> requests.Response:
        """Sends JSON as a page of ours does."""
        given = {"origin": self.url, "x-csrf-token": self.csrf} | headers
        return self.http.post(self.url + path, json=body, headers=given, timeout=30)

    def get(self, path: str, **headers: str) -> requests.Response:
        """Reads as a page of ours does."""
        return self.http.get(self.url + path, headers=headers, timeout=30, allow_redirects=False)

    def sign_in(self, password: str = GOOD, login: str | None = None) -> requests.Response:
        """Signs in, and keeps the CSRF token."""
        answer = self.post("/auth/sign-in", {"login": login or self.name, "password": password})
        if answer.ok:
            self.csrf = answer.json()["csrf"]
        return answer

    @property
    def cookie(self) -> str:
        """The session's cookie."""
        return str(self.http.cookies["passerelle_session"])

    def close(self) -> None:
        """Closes its connections."""
        self.http.close()


class People:
    """A gateway, its mail server, and the people."""

    def __init__(self, gateway: GatewayProcess, letters: Letters) -> None:
        self.gateway = gateway
        self.letters = letters
        self.people: list[Person] = []
        self._count = 0

    def person(self, name: str | None = None) -> Person:
        """A browser of its own."""
        self.people.append(Person(self.gateway.url, name or self.fresh()))
        return self.people[-1]

    def fresh(self) -> str:
        """A name that nobody has."""
        self._count += 1
        return f"person-{self._count}"

    def registered(self, *, role: str = "member") -> Person:
        """Somebody who registered and was confirmed."""
        person = self.person()
        answer = person.post(
            "/auth/register", {"name": person.name, "email": f"{person.name}@example.org", "password": GOOD}
        )
        assert answer.status_code == 201, answer.text
        self.change(person, confirmed_at_ms=1, role=role)
        self.forget_attempts()
        return person

    def change(self, person: Person, **values: Any) -> None:
        """Changes a user's row as an administrator's command does, beside the running server."""
        columns = ", ".join(f"{name} = ?" for name in values)
        with closing(self._database()) as database, database:
            database.execute("update sequences set value = value + 1 where name = 'keys'")
            changed = "changed = (select value from sequences where name = 'keys')"
            statement = f"update users set {columns}, {changed} where name = ?"
            database.execute(statement, (*values.values(), person.name))

    def forget_attempts(self) -> None:
        """Everything here comes from one address: what one test tried does not slow the next."""
        with closing(self._database()) as database, database:
            database.execute("delete from attempts")

    def audit(self, subject: str | None = None) -> list[dict[str, Any]]:
        """The audit log, oldest first."""
        with closing(self._database()) as database:
            database.row_factory = sqlite3.Row
            rows = [dict(row) for row in database.execute("select * from audit order by number")]
        return [row for row in rows if subject is None or row["actor_name"] == subject]

    def _database(self) -> sqlite3.Connection:
        return sqlite3.connect(self.gateway.home / "passerelle.db", timeout=20)


@contextmanager
def people(home: Path, target: str = NOWHERE) -> Iterator[People]:
    """One gateway with two workers, a mail server, and the model ``m`` at ``target``."""
    letters = Letters()
    mail_port, port = unused_port(), unused_port()
    mail = Controller(letters, hostname="127.0.0.1", port=mail_port)
    mail.start()
    auth = {
        "public_url": f"http://127.0.0.1:{port}",
        "mail": {
            "host": "127.0.0.1",
            "port": mail_port,
            "sender": "llm@example.org",
            "security": "none",
        },
    }
    config = {"models": [{"name": "m", "targets": [{"url": target}]}], "server": {"workers": 2}, "auth": auth}
    with GatewayProcess(home, config, arguments=("--port", str(port))) as gateway:
        made = People(gateway, letters)
        try:
            yield made
        finally:
            for person in made.people:
                person.close()
            mail.stop()


def code(answer: requests.Response) -> tuple[int, str]:
    """Status and error code."""
    return answer.status_code, answer.json()["error"]["code"]


def refused_within_5_s(ask: Callable[[], requests.Response]) -> bool:
    """Whether the last time that a worker let it pass is no later than 5 seconds from now.

    Which worker answers is chance: it has to be refused for two seconds without exception.
    """
    began = passed = time.monotonic()
    while (now := time.monotonic()) - passed < 2 and now - began < 8:
        if ask().status_code not in (401, 403):
            passed = time.monotonic()
        time.sleep(0.02)
    return passed - began < 5
