"""People sign on with a password: a real server, seen as a browser and an administrator see it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.harness.people import BETTER, GOOD, People, code, people, refused_within_5_s

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """One gateway for the module, with two workers and a mail server."""
    with people(tmp_path_factory.mktemp("sign-on") / "home") as found:
        yield found


def test_from_registration_to_sign_out(world: People) -> None:
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


def test_who_exists_is_not_told(world: People) -> None:
    """Unknown name and wrong password are one answer."""
    ada = world.registered()
    wrong, unknown = ada.sign_in("wrong horse"), ada.sign_in(login=world.fresh())
    first, second = wrong.json()["error"], unknown.json()["error"]
    assert (wrong.status_code, first["code"], first["message"]) == (401, second["code"], second["message"])
    assert (unknown.status_code, second["code"]) == (401, "invalid_credentials")
    world.forget_attempts()


def test_a_session_has_the_rights_of_its_role(world: People) -> None:
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


def test_a_new_password_ends_all_other_sessions(world: People) -> None:
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


def test_a_forgotten_password(world: People) -> None:
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


def test_letters_are_not_a_weapon(world: People) -> None:
    """Asking again and again fills nobody's mailbox."""
    ada = world.registered()
    count = len(world.letters.all)
    statuses = [ada.post("/auth/password/forgot", {"login": ada.name}).status_code for _ in range(8)]
    assert statuses.count(202) == 3
    assert statuses[-1] == 429
    world.letters.wait(count + 3)
    assert len(world.letters.all) == count + 3
    world.forget_attempts()


def test_a_token_calls_models_until_it_is_signed_out(world: People) -> None:
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
def test_bad_bodies(world: People, body: Any) -> None:
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
def test_bad_registrations(world: People, change: dict[str, str]) -> None:
    """Names, addresses and passwords that are none are refused, and nobody gives themselves a role."""
    body = {"name": world.fresh(), "email": "a@example.org", "password": GOOD} | change
    answer = requests.post(world.gateway.url + "/auth/register", json=body, timeout=30)
    assert answer.status_code == 400, answer.text
    world.forget_attempts()


def test_nothing_secret_was_written_anywhere(world: People) -> None:
    """Passwords, cookies and tokens of all the tests before are in no log and in no file of the home folder."""
    ada = world.registered()
    ada.sign_in()
    token = ada.post("/auth/token", {"login": ada.name, "password": GOOD}).json()["token"]
    written = "".join(world.gateway.log + world.gateway.output).encode()
    for path in Path(world.gateway.home).rglob("passerelle.db*"):
        written += path.read_bytes()
    for secret in (GOOD, BETTER, ada.cookie, ada.csrf, token):
        assert secret.encode() not in written


def test_the_audit_log_is_for_those_who_may_read_it(world: People) -> None:
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
    until = time.monotonic() + 20
    while (status := ada.get("/admin/audit").status_code) == 200 and time.monotonic() < until:
        time.sleep(0.05)
    assert status == 403
    for bad in ("since=yesterday", "after=x", "limit=0", "more=1", "actor=%00"):
        assert world.gateway.get(f"/admin/audit?{bad}", key=world.gateway.key)[0] == 400
    assert world.gateway.get("/admin/audit")[0] == 401


def test_everything_was_noted_and_the_log_is_whole(world: People) -> None:
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
