"""People sign on at a real OpenID Connect provider, and bring its tokens to the API of a real server."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
import requests
from tests.harness.gateway import GatewayProcess
from tests.harness.identityprovider import IdentityProvider
from tests.harness.people import refused_within_5_s
from tests.harness.ports import unused_port

pytestmark = pytest.mark.slow

CLIENT = "passerelle"
PEOPLE = [
    {"sub": "ada", "preferred_username": "ada", "email": "ada@example.org", "groups": ["llm-users"]},
    {"sub": "grace", "preferred_username": "grace", "groups": ["llm-admins", "llm-users"]},
    {"sub": "mallory", "preferred_username": "mallory", "groups": ["cleaning"]},
    {"sub": "changing", "preferred_username": "changing", "groups": ["llm-users"]},
    {"sub": "leaving", "preferred_username": "leaving", "groups": ["llm-users"]},
]


class World:
    """A gateway and its provider."""

    def __init__(self, gateway: GatewayProcess, provider: IdentityProvider) -> None:
        self.gateway = gateway
        self.provider = provider

    def begin(self, browser: requests.Session, after: str = "/docs") -> str:
        """Goes to the sign-in; returns the provider's address."""
        answer = browser.get(
            f"{self.gateway.url}/auth/oidc/login", params={"next": after}, allow_redirects=False, timeout=30
        )
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    def sign_in(self, browser: requests.Session, person: str) -> requests.Response:
        """The whole way of a browser; returns what it is answered when it comes back."""
        back = self.provider.consent(self.begin(browser), person)
        return browser.get(back, allow_redirects=False, timeout=30)

    def bearer(self, token: str, path: str = "/v1/models") -> requests.Response:
        """Calls with a token."""
        headers = {"authorization": f"Bearer {token}"}
        return requests.get(self.gateway.url + path, headers=headers, timeout=30)

    def token(self, person: str, client_id: str = CLIENT) -> str:
        """A token of the provider."""
        return str(self.provider.tokens(person, client_id)["id_token"])

    def change(self, name: str, **values: Any) -> None:
        """Changes a user's row as an administrator's command does."""
        columns = ", ".join(f"{column} = ?" for column in values)
        with closing(sqlite3.connect(self.gateway.home / "passerelle.db", timeout=20)) as database, database:
            database.execute("update sequences set value = value + 1 where name = 'keys'")
            changed = "changed = (select value from sequences where name = 'keys')"
            database.execute(f"update users set {columns}, {changed} where name = ?", (*values.values(), name))

    def users(self) -> dict[str, dict[str, Any]]:
        """The users by name."""
        with closing(sqlite3.connect(self.gateway.home / "passerelle.db", timeout=20)) as database:
            database.row_factory = sqlite3.Row
            return {row["name"]: dict(row) for row in database.execute("select * from users")}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway that knows the provider, with two workers."""
    port = unused_port()
    with IdentityProvider(PEOPLE) as provider:
        oidc = {
            "issuer": provider.issuer,
            "client_id": CLIENT,
            "client_secret": "a secret of the client",
            "audience": CLIENT,
            "role_claim": "groups",
            "roles": {"llm-admins": "admin", "llm-users": "member"},
        }
        config = {
            "models": [{"name": "m", "targets": [{"url": "http://127.0.0.1:9/v1"}]}],
            "server": {"workers": 2},
            "auth": {"public_url": f"http://127.0.0.1:{port}", "passwords": False, "oidc": oidc},
        }
        home = tmp_path_factory.mktemp("provider") / "home"
        with GatewayProcess(home, config, arguments=("--port", str(port))) as gateway:
            yield World(gateway, provider)


@pytest.fixture
def browser() -> Iterator[requests.Session]:
    """A browser with no cookies."""
    with requests.Session() as found:
        yield found


def test_a_person_signs_on_at_the_provider(world: World, browser: requests.Session) -> None:
    """The first sign-on makes the account, with the role of the claims; the browser lands where it wanted to go."""
    answer = world.sign_in(browser, "ada")
    assert (answer.status_code, answer.headers["location"]) == (302, "/docs")
    shown = browser.get(f"{world.gateway.url}/auth/session", timeout=30).json()
    assert (shown["user"]["name"], shown["user"]["email"], shown["user"]["role"]) == (
        "ada",
        "ada@example.org",
        "member",
    )
    first = world.users()["ada"]
    assert first["subject"] == f"{world.provider.issuer}|ada"
    assert first["password_hash"] is None
    world.sign_in(browser, "ada")
    assert world.users()["ada"]["id"] == first["id"]


def test_the_most_powerful_role_counts_and_strangers_stay_out(world: World, browser: requests.Session) -> None:
    """Groups give roles; who is in none that has one is refused, and no account is made."""
    world.sign_in(browser, "grace")
    shown = browser.get(f"{world.gateway.url}/auth/session", timeout=30).json()
    assert shown["user"]["role"] == "admin"
    assert browser.get(f"{world.gateway.url}/admin/router", timeout=30).status_code == 200
    with requests.Session() as stranger:
        answer = world.sign_in(stranger, "mallory")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "no_role")
    assert "mallory" not in world.users()


def test_a_role_follows_the_provider(world: World, browser: requests.Session) -> None:
    """What the provider says at the next sign-on is the role from then on."""
    world.sign_in(browser, "changing")
    world.provider.change("changing", {"preferred_username": "changing", "groups": ["llm-admins"]})
    world.sign_in(browser, "changing")
    assert world.users()["changing"]["role"] == "admin"


def test_a_sign_on_that_did_not_begin_here(world: World, browser: requests.Session) -> None:
    """An attacker's code in somebody's browser signs nobody on: state and cookie belong together, once."""
    with requests.Session() as attacker:
        back = world.provider.consent(world.begin(attacker), "ada")
    answer = browser.get(back, allow_redirects=False, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "sign_in_expired")
    world.begin(browser)
    answer = browser.get(back, allow_redirects=False, timeout=30)
    assert answer.json()["error"]["code"] == "sign_in_expired"
    mine = world.provider.consent(world.begin(browser), "ada")
    assert browser.get(mine, allow_redirects=False, timeout=30).status_code == 302
    assert browser.get(mine, allow_redirects=False, timeout=30).status_code == 400
    assert browser.get(f"{world.gateway.url}/auth/oidc/callback?state=x&state=y", timeout=30).status_code == 400


def test_a_sign_on_that_took_too_long(world: World, browser: requests.Session) -> None:
    """What the browser was given ends by itself: a copy that somebody kept is worth nothing after ten minutes."""
    back = world.provider.consent(world.begin(browser), "ada")
    kept = browser.cookies["passerelle_oidc"]
    claims = jwt.decode(kept, options={"verify_signature": False})
    assert 0 < claims["exp"] - time.time() <= 600
    with closing(sqlite3.connect(world.gateway.home / "passerelle.db", timeout=20)) as database:
        (secret,) = database.execute("select value from secrets where name = 'oidc-state'").fetchone()
    without = {name: value for name, value in claims.items() if name != "exp"}
    for changed in (claims | {"exp": int(time.time()) - 1}, without):
        old = jwt.encode(changed, bytes.fromhex(secret), algorithm="HS256")
        answer = requests.get(back, cookies={"passerelle_oidc": old}, allow_redirects=False, timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "sign_in_expired")
    assert browser.get(back, allow_redirects=False, timeout=30).status_code == 302


def test_a_code_of_another_sign_on(world: World, browser: requests.Session) -> None:
    """A code that was made for another nonce is refused although the state is right."""
    with requests.Session() as attacker:
        stolen = parse_qs(urlsplit(world.provider.consent(world.begin(attacker), "grace")).query)["code"][0]
    state = parse_qs(urlsplit(world.begin(browser)).query)["state"][0]
    url = f"{world.gateway.url}/auth/oidc/callback"
    answer = browser.get(url, params={"code": stolen, "state": state}, allow_redirects=False, timeout=30)
    assert answer.status_code == 401
    assert browser.get(f"{world.gateway.url}/auth/session", timeout=30).status_code == 401


def test_who_says_no_at_the_provider(world: World, browser: requests.Session) -> None:
    """A denial is told as one."""
    begun = world.begin(browser)
    back = world.provider.consent(begun, "ada", deny=True)
    state = parse_qs(urlsplit(begun).query)["state"][0]
    url = back if "state=" in back else f"{back}&state={state}"
    answer = browser.get(url, allow_redirects=False, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "sign_in_refused")


@pytest.mark.parametrize(
    "after",
    ["https://evil.example.org/", "//evil.example.org", "/\\evil.example.org", "javascript:x", "/x\r\ny: z", ""],
)
def test_nobody_is_led_elsewhere(world: World, browser: requests.Session, after: str) -> None:
    """After the sign-on the browser goes to a page of ours, whatever the link said."""
    back = world.provider.consent(world.begin(browser, after), "ada")
    answer = browser.get(back, allow_redirects=False, timeout=30)
    assert answer.headers["location"] == "/"


def test_passwords_are_off(world: World) -> None:
    """With the provider alone, no password signs anybody on."""
    for path in ("/auth/sign-in", "/auth/token"):
        answer = requests.post(world.gateway.url + path, json={"login": "ada", "password": "x"}, timeout=30)
        assert answer.json()["error"]["code"] == "passwords_off"
    shown = requests.get(world.gateway.url + "/auth/methods", timeout=30).json()
    assert shown == {"password": False, "identity_provider": True, "registration": False, "password_reset": False}


def test_tokens_of_the_provider_call_models(world: World) -> None:
    """A token for our audience is its person on the API, one for another audience is nobody."""
    token = world.token("ada")
    assert world.bearer(token).status_code == 200
    assert world.bearer(token, "/admin/router").status_code == 403
    assert world.bearer(token, "/auth/session").json()["user"]["name"] == "ada"
    assert world.bearer(world.token("ada", "another-client")).status_code == 401
    assert world.bearer(token[:-5] + "AAAAA").status_code == 401
    assert world.bearer(world.token("mallory")).status_code == 403
    both = {"authorization": f"Bearer {token}", "x-api-key": world.gateway.key}
    assert requests.get(world.gateway.url + "/v1/models", headers=both, timeout=30).status_code == 400


def test_a_disabled_person_brings_tokens_in_vain(world: World, browser: requests.Session) -> None:
    """Sessions and tokens of a disabled person end within 5 seconds on every worker, and no new ones are taken."""
    world.sign_in(browser, "leaving")
    token = world.token("leaving")
    for _ in range(10):
        assert world.bearer(token).status_code == 200
    world.change("leaving", disabled_at_ms=int(time.time() * 1000))
    assert refused_within_5_s(lambda: world.bearer(token))
    assert refused_within_5_s(lambda: browser.get(f"{world.gateway.url}/auth/session", timeout=30))
    with requests.Session() as again:
        assert world.sign_in(again, "leaving").json()["error"]["code"] == "user_disabled"


def test_a_token_can_be_signed_out(world: World) -> None:
    """After a sign-out the token is refused everywhere before its end; another one of the person goes on."""
    token, other = world.token("grace"), None
    while other is None or other == token:  # two tokens of one second are the same
        other = world.token("grace")
    for _ in range(10):
        assert world.bearer(token).status_code == 200
    headers = {"authorization": f"Bearer {token}"}
    assert requests.post(f"{world.gateway.url}/auth/sign-out", headers=headers, timeout=30).status_code == 200
    assert refused_within_5_s(lambda: world.bearer(token))
    assert world.bearer(other).status_code == 200


def test_keys_rotate_and_the_provider_goes_away(world: World, browser: requests.Session) -> None:
    """Known tokens go on while the provider is away; what needs it gets 503; a new key is taken without restart."""
    old = world.token("ada")
    assert world.bearer(old).status_code == 200
    world.provider.stop()
    try:
        assert world.bearer(old).status_code == 200
        answer = browser.get(
            f"{world.gateway.url}/auth/oidc/callback?code=x&state=y", allow_redirects=False, timeout=30
        )
        assert answer.status_code == 400
    finally:
        world.provider.start()  # with another key
    new = world.token("ada")
    until = time.monotonic() + 30  # at most every 10 s keys are asked for because of an unknown one
    while (status := world.bearer(new).status_code) != 200 and time.monotonic() < until:
        assert status in (401, 503)
        time.sleep(0.2)
    assert status == 200
    assert world.sign_in(browser, "ada").status_code == 302


def test_a_provider_that_is_down_at_the_start(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The server starts without it; sign-on answers 503 and works once the provider is there."""
    port, provider = unused_port(), IdentityProvider(PEOPLE)
    auth = {
        "public_url": f"http://127.0.0.1:{port}",
        "oidc": {
            "issuer": provider.issuer,
            "client_id": CLIENT,
            "client_secret": "any",
            "audience": CLIENT,
            "default_role": "viewer",
        },
    }
    config = {"models": [{"name": "m", "targets": [{"url": "http://127.0.0.1:9/v1"}]}], "auth": auth}
    home = tmp_path_factory.mktemp("down") / "home"
    with GatewayProcess(home, config, arguments=("--port", str(port))) as gateway, requests.Session() as browser:
        world = World(gateway, provider)
        answer = browser.get(f"{gateway.url}/auth/oidc/login", allow_redirects=False, timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "identity_provider_unavailable")
        assert "retry-after" in answer.headers
        with provider:
            token = world.token("mallory")
            until = time.monotonic() + 20
            while (status := world.bearer(token).status_code) == 503 and time.monotonic() < until:
                time.sleep(0.05)
            assert status == 403  # known, and a viewer calls no models
            assert world.sign_in(browser, "ada").status_code == 302
        with provider:
            fresh = world.token("grace")
        assert world.bearer(fresh).status_code in (401, 503)
        assert world.bearer(token).status_code == 403
