"""Rows on people's sessions: theft, fixation, guessing, other sites' pages."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from tests.faults.table import row
from tests.harness.people import BETTER, GOOD, People, code, people, refused_within_5_s
from tests.harness.upstreamd import UpstreamThread, end, headers, tokens

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """One gateway for the module, with two workers and a mail server."""
    home = tmp_path_factory.mktemp("sign-on") / "home"
    slow = UpstreamThread(scenario=[headers(), tokens(2000, 0.05), end()])
    with slow as upstream, people(home, upstream.url) as found:
        yield found


@row("I7")
def test_a_stolen_cookie_is_worth_nothing_after_the_sign_out(world: People) -> None:
    """the cookie and the CSRF token that were copied before are refused by every worker within 5 seconds."""
    ada, thief = world.registered(), world.person()
    ada.sign_in()
    stolen = {"cookie": f"passerelle_session={ada.cookie}"}
    for _ in range(10):
        assert thief.get("/auth/session", **stolen).status_code == 200
    ada.post("/auth/sign-out")
    assert refused_within_5_s(lambda: thief.get("/auth/session", **stolen))
    answer = thief.post("/auth/password/change", {"old": GOOD, "new": BETTER}, **stolen, **{"x-csrf-token": ada.csrf})
    assert answer.status_code == 401


@row("I7")
def test_a_session_cannot_be_planted(world: People) -> None:
    """a cookie that was there before the sign-in is not the session's, before or after."""
    ada, attacker = world.registered(), world.person()
    planted = "A" * 43
    answer = ada.post("/auth/sign-in", {"login": ada.name, "password": GOOD}, cookie=f"passerelle_session={planted}")
    assert planted not in answer.headers["set-cookie"]
    assert attacker.get("/auth/session", cookie=f"passerelle_session={planted}").status_code == 401
    first = ada.cookie
    ada.sign_in()
    assert ada.cookie != first
    assert refused_within_5_s(lambda: attacker.get("/auth/session", cookie=f"passerelle_session={first}"))


@row("I7")
def test_guessing_gets_slow(world: People) -> None:
    """of forty guesses at once over all workers five are tried; then even the right one waits."""
    ada = world.registered()

    def guess(number: int) -> requests.Response:
        body = {"login": f"{ada.name}@example.org" if number % 2 else ada.name, "password": f"wrong horse {number}"}
        return requests.post(world.gateway.url + "/auth/sign-in", json=body, timeout=30)

    began_s = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(guess, range(40)))
    took_s = time.monotonic() - began_s
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(429) == 40 - statuses.count(401)
    assert statuses.count(401) <= 6 + took_s  # five, and one more for each second that the forty took
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


@row("I5")
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
def test_another_page_changes_nothing(world: People, headers: dict[str, str]) -> None:
    """a request of another site's page is refused although the browser adds the cookie; so is a wrong token."""
    ada = world.registered(role="owner")
    ada.sign_in()
    for path, body in (("/auth/password/change", {"old": GOOD, "new": BETTER}), ("/auth/sign-out", None)):
        answer = ada.post(path, body, **headers)
        assert answer.status_code == 403, answer.text
        assert answer.json()["error"]["code"] in ("cross_site", "csrf_token_invalid")
    assert ada.get("/auth/session").status_code == 200
    world.forget_attempts()
    assert world.person(ada.name).sign_in(GOOD).status_code == 200


@row("I5")
def test_a_form_of_another_site_signs_nobody_in(world: People) -> None:
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


@row("D5")
def test_cookies_never_call_models_and_keys_are_never_in_cookies(world: People) -> None:
    """a session is nobody on /v1; a key in a cookie or a query is no key, and in no log."""
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


@row("I5")
def test_two_cookies_of_one_name_are_none(world: People) -> None:
    """A second cookie, which another host of the domain may have set, does not become anybody's session."""
    ada, bob = world.registered(), world.registered()
    ada.sign_in()
    bob.sign_in()
    both = f"passerelle_session={ada.cookie}; passerelle_session={bob.cookie}"
    assert requests.get(world.gateway.url + "/auth/session", headers={"cookie": both}, timeout=30).status_code == 401


@row("D3")
def test_disabling_a_person_ends_everything_of_theirs(world: People) -> None:
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


@row("D3")
def test_a_stream_ends_with_its_person(world: People) -> None:
    """An answer that runs with a bearer token ends within 5 seconds after its person was disabled."""
    ada = world.registered()
    token = ada.post("/auth/token", {"login": ada.name, "password": GOOD}).json()["token"]
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "go on"}]}
    with requests.post(
        world.gateway.url + "/v1/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {token}"},
        stream=True,
        timeout=30,
    ) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith(b"data: ")
        world.change(ada, disabled_at_ms=int(time.time() * 1000))
        disabled_at_s = time.monotonic()
        try:
            count = sum(line.startswith(b"data: ") for line in lines)
        except requests.ConnectionError:
            count = 0  # cut in the middle: that is an end too
        assert time.monotonic() - disabled_at_s < 5
        assert count < 1000
