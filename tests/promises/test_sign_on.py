"""People sign on with a password: a real server, seen as a browser, an attacker and an administrator see it."""

from __future__ import annotations

import email
import json
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import requests
from aiosmtpd.controller import Controller
from tests.harness.gateway import GatewayProcess

pytestmark = pytest.mark.slow

GOOD, BETTER = "correct horse", "battery staple"
MODELS = [{"name": "m", "targets": [{"url": "http://127.0.0.1:9/v1"}]}]


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


class World:
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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One gateway for the module, with two workers and a mail server."""
    letters = Letters()
    mail_port, port = free_port(), free_port()
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
    config = {"models": MODELS, "server": {"workers": 2}, "auth": auth}
    home = tmp_path_factory.mktemp("sign-on") / "home"
    with GatewayProcess(home, config, arguments=("--port", str(port))) as gateway:
        made = World(gateway, letters)
        yield made
        for person in made.people:
            person.close()
    mail.stop()


def free_port() -> int:
    """A port that nobody listens on; links have to name it before the server starts."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def code(answer: requests.Response) -> tuple[int, str]:
    """Status and error code."""
    return answer.status_code, answer.json()["error"]["code"]


def refused_within_5_s(ask: Callable[[], requests.Response]) -> bool:
    """Whether every worker refuses, 5 seconds from now at the latest: twenty refusals in a row."""
    until, refusals = time.monotonic() + 5, 0
    while time.monotonic() < until and refusals < 20:
        refusals = refusals + 1 if ask().status_code in (401, 403) else 0
    return refusals >= 20


def test_from_registration_to_sign_out(world: World) -> None:
    """A person registers, waits for an administrator, signs in, sees who they are, and signs out."""
    ada = world.person()
    body = {"name": ada.name, "email": f"{ada.name}@example.org", "password": GOOD}
    assert ada.post("/auth/register", body).json()["message"] == "User created. An admin must confirm the user."
    assert code(ada.sign_in()) == (403, "user_not_confirmed")
    world.change(ada, confirmed_at_ms=1)
    answer = ada.sign_in()
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=Lax", "Path=/"))
    assert answer.headers["cache-control"] == "no-store"
    shown = ada.get("/auth/session").json()
    assert (shown["user"]["name"], shown["user"]["role"], shown["csrf"]) == (ada.name, "member", ada.csrf)
    assert "inference" in shown["scopes"]
    assert ada.post("/auth/sign-out").status_code == 200
    assert code(ada.get("/auth/session")) == (401, "invalid_api_key")


def test_a_stolen_cookie_is_worth_nothing_after_the_sign_out(world: World) -> None:
    """Row I7: the cookie and the CSRF token that were copied before are refused by every worker within 5 seconds."""
    ada, thief = world.registered(), world.person()
    ada.sign_in()
    stolen = {"cookie": f"passerelle_session={ada.cookie}"}
    for _ in range(10):
        assert thief.get("/auth/session", **stolen).status_code == 200
    ada.post("/auth/sign-out")
    assert refused_within_5_s(lambda: thief.get("/auth/session", **stolen))
    answer = thief.post("/auth/password/change", {"old": GOOD, "new": BETTER}, **stolen, **{"x-csrf-token": ada.csrf})
    assert answer.status_code == 401


def test_a_session_cannot_be_planted(world: World) -> None:
    """Row I7, fixation: a cookie that was there before the sign-in is not the session's, before or after."""
    ada, attacker = world.registered(), world.person()
    planted = "A" * 43
    answer = ada.post("/auth/sign-in", {"login": ada.name, "password": GOOD}, cookie=f"passerelle_session={planted}")
    assert planted not in answer.headers["set-cookie"]
    assert attacker.get("/auth/session", cookie=f"passerelle_session={planted}").status_code == 401
    first = ada.cookie
    ada.sign_in()
    assert ada.cookie != first
    assert refused_within_5_s(lambda: attacker.get("/auth/session", cookie=f"passerelle_session={first}"))


def test_guessing_gets_slow(world: World) -> None:
    """Row I7, brute force: of forty guesses at once over all workers five are tried; then even the right one waits."""
    ada = world.registered()

    def guess(number: int) -> requests.Response:
        body = {"login": ada.name.upper() if number % 2 else ada.name, "password": f"wrong horse {number}"}
        return requests.post(world.gateway.url + "/auth/sign-in", json=body, timeout=30)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(guess, range(40)))
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(429) == 40 - statuses.count(401)
    assert statuses.count(401) <= 8  # five, and one more for each second that the forty took
    slowed = next(answer for answer in answers if answer.status_code == 429)
    assert code(slowed) == (429, "too_many_attempts")
    assert int(slowed.headers["retry-after"]) >= 1
    world.forget_attempts()
    until = time.monotonic() + 20
    while (answer := ada.sign_in()).status_code == 429 and time.monotonic() < until:
        time.sleep(0.05)
    assert answer.status_code == 200
    failed = [row for row in world.audit(ada.name) if row["action"] == "sign_in.failed"]
    assert failed
    assert all(row["address"] == "127.0.0.1" and row["request_id"] for row in failed)


def test_who_exists_is_not_told(world: World) -> None:
    """Unknown name and wrong password are one answer."""
    ada = world.registered()
    wrong, unknown = ada.sign_in("wrong horse"), ada.sign_in(login=world.fresh())
    first, second = wrong.json()["error"], unknown.json()["error"]
    assert (wrong.status_code, first["code"], first["message"]) == (401, second["code"], second["message"])
    assert (unknown.status_code, second["code"]) == (401, "invalid_credentials")
    world.forget_attempts()


@pytest.mark.parametrize(
    "headers",
    [
        {"x-csrf-token": ""},
        {"x-csrf-token": "A" * 43},
        {"origin": "https://evil.example.org"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_another_page_changes_nothing(world: World, headers: dict[str, str]) -> None:
    """Row I5: a request of another site's page is refused although the browser adds the cookie; so is a wrong token."""
    ada = world.registered(role="owner")
    ada.sign_in()
    for path, body in (("/auth/password/change", {"old": GOOD, "new": BETTER}), ("/auth/sign-out", None)):
        answer = ada.post(path, body, **headers)
        assert answer.status_code == 403, answer.text
        assert answer.json()["error"]["code"] in ("cross_site", "csrf_token_invalid")
    assert ada.get("/auth/session").status_code == 200
    world.forget_attempts()
    assert world.person(ada.name).sign_in(GOOD).status_code == 200


def test_a_form_of_another_site_signs_nobody_in(world: World) -> None:
    """Sign-in, registration and reset take JSON only, which no form can send, and no foreign origin."""
    ada = world.registered()
    for path in ("/auth/sign-in", "/auth/register", "/auth/password/forgot", "/auth/password/reset", "/auth/token"):
        url = world.gateway.url + path
        text = json.dumps({"login": ada.name, "password": GOOD})
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            answer = requests.post(url, data=text, headers={"content-type": kind}, timeout=30)
            assert answer.status_code == 415
        answer = requests.post(url, json={}, headers={"origin": "https://evil.example.org"}, timeout=30)
        assert code(answer) == (403, "cross_site")


def test_cookies_never_call_models_and_keys_are_never_in_cookies(world: World) -> None:
    """Row D5 and promise 27: a session is nobody on /v1; a key in a cookie or a query is no key, and in no log."""
    ada = world.registered()
    ada.sign_in()
    key = world.gateway.key
    assert world.gateway.get("/v1/models", key=key)[0] == 200
    assert ada.get("/v1/models").status_code == 401
    assert ada.post("/v1/chat/completions", {"model": "m", "messages": []}).status_code == 401
    for name in ("passerelle_session", "authorization", "x-api-key", "api_key"):
        for path in ("/v1/models", "/admin/router", "/auth/session"):
            answer = requests.get(world.gateway.url + path, headers={"cookie": f"{name}={key}"}, timeout=30)
            assert answer.status_code == 401
    for query in (f"api_key={key}", f"key={key}", f"access_token={key}"):
        assert requests.get(f"{world.gateway.url}/v1/models?{query}", timeout=30).status_code == 401
    assert key not in "".join(world.gateway.log)


def test_a_session_has_the_rights_of_its_role(world: World) -> None:
    """Promise 13: the cookie opens what the role may, no more; a key beside it counts alone."""
    member, viewer = world.registered(), world.registered(role="viewer")
    member.sign_in()
    viewer.sign_in()
    assert code(member.get("/admin/router")) == (403, "permission_denied")
    assert viewer.get("/admin/router").status_code == 200
    answer = viewer.post("/admin/router/none/drain")
    assert code(answer) == (403, "permission_denied")
    assert viewer.get("/admin/router", authorization="Bearer sk-pas-wrong").status_code == 401
    with_key = member.get("/auth/session", authorization=f"Bearer {world.gateway.key}").json()
    assert (with_key["user"], with_key["csrf"]) == (None, None)
    assert "admin" in with_key["scopes"]


def test_two_cookies_of_one_name_are_none(world: World) -> None:
    """A second cookie, which another host of the domain may have set, does not become anybody's session."""
    ada, bob = world.registered(), world.registered()
    ada.sign_in()
    bob.sign_in()
    both = f"passerelle_session={ada.cookie}; passerelle_session={bob.cookie}"
    assert requests.get(world.gateway.url + "/auth/session", headers={"cookie": both}, timeout=30).status_code == 401


def test_a_new_password_ends_all_other_sessions(world: World) -> None:
    """After a change the old password and all other sessions are over; this browser goes on with a new cookie."""
    ada, elsewhere = world.registered(), world.person()
    elsewhere.name = ada.name
    ada.sign_in()
    elsewhere.sign_in()
    before = ada.cookie
    assert code(ada.post("/auth/password/change", {"old": "wrong horse", "new": BETTER})) == (
        403,
        "wrong_password",
    )
    assert code(ada.post("/auth/password/change", {"old": GOOD, "new": "password1"})) == (400, "weak_password")
    answer = ada.post("/auth/password/change", {"old": GOOD, "new": BETTER})
    assert answer.status_code == 200
    assert ada.cookie != before
    assert ada.get("/auth/session").status_code == 200
    assert refused_within_5_s(lambda: elsewhere.get("/auth/session"))
    assert elsewhere.sign_in(GOOD).status_code == 401
    assert elsewhere.sign_in(BETTER).status_code == 200


def test_a_forgotten_password(world: World) -> None:
    """The letter's link leads to our own address, whatever Host said, and sets a password once."""
    ada = world.registered()
    count = len(world.letters.all)
    unknown = ada.post("/auth/password/forgot", {"login": world.fresh()})
    known = ada.post("/auth/password/forgot", {"login": f"{ada.name}@EXAMPLE.org"}, host="evil.example.org")
    assert (known.status_code, known.json()) == (unknown.status_code, unknown.json()) == (202, known.json())
    letter = world.letters.wait(count + 1)
    assert letter["to"] == f"{ada.name}@example.org"
    text = letter.get_payload(decode=True)
    assert isinstance(text, bytes)
    link = re.search(r"http\S+", text.decode())
    assert link is not None
    address, _, token = link[0].partition("#")
    assert address == world.gateway.url + "/auth/password/reset"
    page = requests.get(address, timeout=30)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    ada.sign_in()
    assert code(ada.post("/auth/password/reset", {"token": token, "password": "12345678"})) == (400, "weak_password")
    assert ada.post("/auth/password/reset", {"token": token, "password": BETTER}).status_code == 200
    assert code(ada.post("/auth/password/reset", {"token": token, "password": GOOD})) == (400, "invalid_link")
    assert refused_within_5_s(lambda: ada.get("/auth/session"))
    assert ada.sign_in(BETTER).status_code == 200
    assert len(world.letters.all) == count + 1
    world.forget_attempts()


def test_letters_are_not_a_weapon(world: World) -> None:
    """Asking again and again fills nobody's mailbox."""
    ada = world.registered()
    count = len(world.letters.all)
    statuses = [ada.post("/auth/password/forgot", {"login": ada.name}).status_code for _ in range(8)]
    assert statuses.count(202) == 3
    assert statuses[-1] == 429
    world.letters.wait(count + 3)
    assert len(world.letters.all) == count + 3
    world.forget_attempts()


def test_a_token_calls_models_until_it_is_signed_out(world: World) -> None:
    """A bearer token is its person on /v1, and ends everywhere by sign-out; an ended one is refused on both workers."""
    ada = world.registered()
    token = ada.post("/auth/token", {"login": ada.name, "password": GOOD}).json()["token"]
    bearer = {"authorization": f"Bearer {token}"}

    def models() -> requests.Response:
        return requests.get(world.gateway.url + "/v1/models", headers=bearer, timeout=30)

    for _ in range(10):
        assert models().status_code == 200
    assert requests.get(world.gateway.url + "/admin/router", headers=bearer, timeout=30).status_code == 403
    assert requests.post(world.gateway.url + "/auth/sign-out", headers=bearer, timeout=30).status_code == 200
    assert refused_within_5_s(models)
    assert code(models()) == (401, "invalid_token")


def test_disabling_a_person_ends_everything_of_theirs(world: World) -> None:
    """Sessions and tokens of a person who was disabled are refused within 5 seconds, by every worker."""
    ada = world.registered(role="viewer")
    ada.sign_in()
    token = ada.post("/auth/token", {"login": ada.name, "password": GOOD}).json()["token"]
    bearer = {"authorization": f"Bearer {token}"}
    ask = [
        lambda: ada.get("/admin/router"),
        lambda: requests.get(world.gateway.url + "/auth/session", headers=bearer, timeout=30),
    ]
    assert [each().status_code for each in ask] == [200, 200]
    world.change(ada, disabled_at_ms=int(time.time() * 1000))
    assert all(refused_within_5_s(each) for each in ask)
    assert code(ada.sign_in()) == (403, "user_disabled")


@pytest.mark.parametrize(
    "body",
    [
        {"login": None, "password": None},
        [],
        {},
        {"login": "x"},
        {"login": 1, "password": 2},
        {"login": "", "password": ""},
        {"login": "x" * 400, "password": "x"},
        {"login": "x", "password": "x" * 2000},
        {"login": "x", "password": "x", "more": 1},
        {"login": "\ud800\0", "password": "\0"},
    ],
    ids=lambda body: str(body)[:40],
)
def test_bad_bodies(world: World, body: Any) -> None:
    """A malformed body is the caller's mistake, told with the field."""
    answer = requests.post(world.gateway.url + "/auth/sign-in", json=body, timeout=30)
    assert answer.status_code in (400, 401)
    assert answer.json()["error"]["message"]
    world.forget_attempts()


@pytest.mark.parametrize(
    "change",
    [
        {"name": " "},
        {"name": "a@b"},
        {"name": "line\nbreak"},
        {"email": "nobody"},
        {"email": "a@b\r\nBcc: c@d"},
        {"email": "<a@example.org>"},
        {"password": "short"},
        {"password": "password123"},
        {"role": "owner"},
    ],
    ids=str,
)
def test_bad_registrations(world: World, change: dict[str, str]) -> None:
    """Names, addresses and passwords that are none are refused, and nobody gives themselves a role."""
    body = {"name": world.fresh(), "email": "a@example.org", "password": GOOD} | change
    answer = requests.post(world.gateway.url + "/auth/register", json=body, timeout=30)
    assert answer.status_code == 400, answer.text
    world.forget_attempts()


def test_nothing_secret_was_written_anywhere(world: World) -> None:
    """Passwords, cookies and tokens of all the tests before are in no log and in no file of the home folder."""
    ada = world.registered()
    ada.sign_in()
    token = ada.post("/auth/token", {"login": ada.name, "password": GOOD}).json()["token"]
    written = "".join(world.gateway.log + world.gateway.output).encode()
    for path in Path(world.gateway.home).rglob("passerelle.db*"):
        written += path.read_bytes()
    for secret in (GOOD, BETTER, ada.cookie, ada.csrf, token):
        assert secret.encode() not in written


def test_the_audit_log_is_for_those_who_may_read_it(world: World) -> None:
    """An owner and an auditor see their organisation's entries; a member, an admin and strangers see none."""
    ada = world.registered(role="owner")
    ada.sign_in()
    answer = ada.get("/admin/audit?limit=5&action=sign_in")
    assert answer.status_code == 200
    page = answer.json()
    assert len(page["data"]) == 5
    assert all(entry["action"].startswith("sign_in.") for entry in page["data"])
    more = ada.get(f"/admin/audit?limit=5&action=sign_in&after={page['next']}").json()
    assert more["data"][0]["number"] < page["data"][-1]["number"]
    assert {entry["organisation"] for entry in more["data"]} == {"default"}
    for elsewhere in ("other", "*"):
        assert ada.get(f"/admin/audit?organisation={elsewhere}").status_code == 404
    everything = world.gateway.get("/admin/audit?organisation=*&limit=500", key=world.gateway.key)
    assert everything[0] == 200
    assert "*" in {entry["organisation"] for entry in json.loads(everything[1])["data"]}
    for role, status in (("auditor", 200), ("member", 403), ("admin", 403), ("viewer", 403)):
        bob = world.registered(role=role)
        bob.sign_in()
        assert bob.get("/admin/audit").status_code == status
    world.change(ada, project="default")
    until = time.monotonic() + 5
    while (status := ada.get("/admin/audit").status_code) == 200 and time.monotonic() < until:
        time.sleep(0.05)
    assert status == 403
    for bad in ("since=yesterday", "after=x", "limit=0", "more=1", "actor=%00"):
        assert world.gateway.get(f"/admin/audit?{bad}", key=world.gateway.key)[0] == 400
    assert world.gateway.get("/admin/audit")[0] == 401


def test_everything_was_noted_and_the_log_is_whole(world: World) -> None:
    """Registrations, sign-ins, failures, new passwords and sign-outs are in the audit log, whose chain holds."""
    actions = {row["action"] for row in world.audit()}
    assert actions >= {
        "user.register",
        "sign_in.done",
        "sign_in.failed",
        "sign_out.done",
        "user.change_password",
        "user.reset_password",
    }
    command = [sys.executable, "-m", "passerelle", "audit", "verify", "--home", str(world.gateway.home)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "none changed, removed or moved" in result.stdout
