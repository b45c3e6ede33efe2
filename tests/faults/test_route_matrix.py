"""Every route for every kind of caller: a route without a row here fails the build (promises 13, 15; rows D7, D13).

The rows are the table below; the routes come from the code. A caller who is let in but sends an empty body gets 400:
that they are let in is what counts here.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.architecture.test_documents import table
from tests.faults.table import row
from tests.harness.gateway import GatewayProcess

from passerelle.domain.principal import ROLE_SCOPES, Role, Scope

pytestmark = pytest.mark.slow

CALLERS = ("anonymous", "no scope", "other user", "other tenant", "tenant admin", "operator")
"""Nobody; a key of the tenant without scopes; a member of it; the owner of another tenant; its owner; the scope admin.
What has an id belongs to a colleague of theirs in the tenant."""

ROWS = """
GET /health                                        200 200 200 200 200 200
GET /ready                                         503 503 503 503 503 503
GET /version                                       200 200 200 200 200 200
GET /metrics                                       401 403 403 403 403 200
GET /docs                                          200 200 200 200 200 200
GET /docs/{file}                                   200 200 200 200 200 200
GET /openapi.json                                  200 200 200 200 200 200
GET /admin/router                                  401 403 403 200 200 200
POST /admin/router/{target}/drain                  401 403 403 403 403 200
POST /admin/router/{target}/undrain                401 403 403 403 403 200
GET /admin/usage                                   401 403 200 200 200 200
GET /admin/me                                      401 200 200 200 200 200
GET /admin/organisations                           401 403 403 200 200 200
POST /admin/organisations                          401 403 403 403 403 201
GET /admin/organisations/{organisation}            401 403 403 404 200 200
PATCH /admin/organisations/{organisation}          401 403 403 403 403 200
POST /admin/organisations/{organisation}/archive   401 403 403 403 403 200
POST /admin/organisations/{organisation}/restore   401 403 403 403 403 200
GET /admin/projects                                401 403 403 200 200 200
POST /admin/projects                               401 403 403 201 201 201
GET /admin/projects/{project}                      401 403 403 404 200 200
PATCH /admin/projects/{project}                    401 403 403 404 200 200
POST /admin/projects/{project}/archive             401 403 403 404 200 200
POST /admin/projects/{project}/restore             401 403 403 404 200 200
GET /admin/users                                   401 403 403 200 200 200
POST /admin/users                                  401 403 403 201 201 201
GET /admin/users/{user}                            401 403 403 404 200 200
PATCH /admin/users/{user}                          401 403 403 404 200 200
GET /admin/keys                                    401 403 200 200 200 200
POST /admin/keys                                   401 403 201 201 201 201
GET /admin/keys/{key}                              401 403 404 404 200 200
PATCH /admin/keys/{key}                            401 403 404 404 200 200
POST /admin/keys/{key}/rotate                      401 403 404 404 200 200
POST /admin/keys/{key}/revoke                      401 403 404 404 200 200
GET /admin/me/limits                               401 200 200 200 200 200
GET /admin/limits                                  401 403 403 200 200 200
POST /admin/limits                                 401 403 403 400 400 400
GET /admin/limits/{limit}                          401 403 403 404 200 200
PATCH /admin/limits/{limit}                        401 403 403 404 200 200
DELETE /admin/limits/{limit}                       401 403 403 404 204 204
GET /admin/prices                                  401 403 403 200 200 200
POST /admin/prices                                 401 403 403 403 403 400
DELETE /admin/prices/{price}                       401 403 403 403 403 204
GET /admin/audit                                   401 403 403 200 200 200
GET /v1/services                                   401 403 200 200 200 200
POST /v1/services/{name:path}/jobs                 401 403 404 404 404 404
POST /v1/services/{name:path}/validate             401 403 404 404 404 404
GET /v1/jobs                                       401 403 200 200 200 200
GET /v1/jobs/{id}                                  401 403 404 404 404 404
DELETE /v1/jobs/{id}                               401 403 404 404 404 404
POST /v1/jobs/{id}/cancel                          401 403 404 404 404 404
POST /v1/jobs/{id}/replay                          401 403 404 404 404 404
GET /v1/jobs/{id}/result                           401 403 404 404 404 404
PATCH /v1/jobs/{id}/result                         401 403 400 400 400 400
GET /v1/jobs/{id}/export                           401 403 404 404 404 404
GET /v1/jobs/{id}/results                          401 403 404 404 404 404
POST /v1/jobs/{id}/results/{version}/restore       401 403 404 404 404 404
GET /v1/jobs/{id}/events                           401 403 404 404 404 404
POST /v1/jobs/{id}/ticket                          401 403 404 404 404 404
WEBSOCKET /v1/jobs/{id}/ws                         403 403 403 403 403 403
GET /healthcheck                                   200 200 200 200 200 200
GET /services                                      401 403 404 404 404 404
POST /services/{route:path}/generate               401 403 404 404 404 404
GET /results/{id}                                  401 403 404 404 404 404
WEBSOCKET /ws/results                              401 403 101 101 101 101
WEBSOCKET /ws/results/{id}                         401 403 101 101 101 101
GET /v1/models                                     401 403 200 200 200 200
GET /v1/models/{id:path}                           401 403 200 200 200 200
POST /v1/chat/completions                          401 403 400 400 400 400
POST /v1/completions                               401 403 400 400 400 400
POST /v1/embeddings                                401 403 400 400 400 400
POST /v1/tokenize                                  401 403 400 400 400 400
POST /v1/detokenize                                401 403 400 400 400 400
POST /v2/rerank                                    401 403 400 400 400 400
POST /v1/rerank                                    401 403 400 400 400 400
POST /rerank                                       401 403 400 400 400 400
POST /v1/score                                     401 403 400 400 400 400
POST /score                                        401 403 400 400 400 400
POST /v1/audio/transcriptions                      401 403 415 415 415 415
POST /v1/audio/translations                        401 403 415 415 415 415
POST /v1/audio/speech                              401 403 400 400 400 400
POST /v1/images/generations                        401 403 400 400 400 400
GET /models                                        401 403 200 200 200 200
GET /models/{id:path}                              401 403 200 200 200 200
POST /chat/completions                             401 403 400 400 400 400
POST /completions                                  401 403 400 400 400 400
POST /embeddings                                   401 403 400 400 400 400
POST /tokenize                                     401 403 400 400 400 400
POST /detokenize                                   401 403 400 400 400 400
POST /v1/messages                                  401 403 400 400 400 400
POST /v1/messages/count_tokens                     401 403 400 400 400 400
POST /v1/responses                                 401 403 400 400 400 400
GET /v1/responses/{response_id}                    401 403 200 404 200 404
DELETE /v1/responses/{response_id}                 401 403 200 404 200 404
POST /v1/responses/{response_id}/cancel            401 403 200 404 200 404
GET /v1/responses/{response_id}/input_items        401 403 200 404 200 404
POST /v1/batches                                   401 403 400 400 400 400
GET /v1/batches                                    401 403 200 200 200 200
GET /v1/batches/{batch_id}                         401 403 200 404 200 404
POST /v1/batches/{batch_id}/cancel                 401 403 200 404 200 404
POST /prompt                                       401 403 400 400 400 400
GET /v1/prompts                                    401 403 200 200 200 200
POST /v1/prompts                                   401 403 201 201 201 201
GET /v1/prompts/{prompt_id}                        401 403 200 404 200 404
GET /v1/prompts/{prompt_id}/versions               401 403 200 404 200 404
POST /v1/prompts/{prompt_id}/versions              401 403 201 404 201 404
GET /v1/prompts/{prompt_id}/versions/{version}     401 403 200 404 200 404
PUT /v1/prompts/{prompt_id}/labels/{label}         401 403 200 404 200 404
DELETE /v1/prompts/{prompt_id}/labels/{label}      401 403 200 404 200 404
POST /v1/prompts/{prompt_id}/archive               401 403 200 404 200 404
POST /v1/prompts/{prompt_id}/restore               401 403 200 404 200 404
POST /v1/prompts/{prompt_id}/render                401 403 200 404 200 404
POST /v1/files                                     401 403 415 415 415 415
GET /v1/files                                      401 403 200 200 200 200
GET /v1/files/{file_id}                            401 403 200 404 200 404
GET /v1/files/{file_id}/content                    401 403 200 404 200 404
DELETE /v1/files/{file_id}                         401 403 200 404 200 404
POST /responses                                    401 403 400 400 400 400
GET /responses/{response_id}                       401 403 200 404 200 404
DELETE /responses/{response_id}                    401 403 200 404 200 404
POST /responses/{response_id}/cancel               401 403 200 404 200 404
GET /responses/{response_id}/input_items           401 403 200 404 200 404
POST /batches                                      401 403 400 400 400 400
GET /batches                                       401 403 200 200 200 200
GET /batches/{batch_id}                            401 403 200 404 200 404
POST /batches/{batch_id}/cancel                    401 403 200 404 200 404
POST /files                                        401 403 415 415 415 415
GET /files                                         401 403 200 200 200 200
GET /files/{file_id}                               401 403 200 404 200 404
GET /files/{file_id}/content                       401 403 200 404 200 404
DELETE /files/{file_id}                            401 403 200 404 200 404
GET /v1/health_check                               200 200 200 200 200 200
GET /v1/statistics                                 401 403 200 200 200 200
POST /                                             401 403 422 422 422 422
POST /generate                                     401 403 422 422 422 422
POST /generate_stream                              401 403 422 422 422 422
GET /info                                          401 403 200 200 200 200
POST /tgi/{model}                                  401 403 422 422 422 422
POST /tgi/{model}/generate                         401 403 422 422 422 422
POST /tgi/{model}/generate_stream                  401 403 422 422 422 422
GET /tgi/{model}/info                              401 403 200 200 200 200
GET /v2                                            401 403 200 200 200 200
GET /v2/health/live                                200 200 200 200 200 200
GET /v2/health/ready                               503 503 503 503 503 503
POST /v2/repository/index                          401 403 200 200 200 200
POST /v2/models/{model:path}/versions/{version}/infer 401 403 400 400 400 400
POST /v2/models/{model:path}/versions/{version}/generate 401 403 400 400 400 400
POST /v2/models/{model:path}/versions/{version}/generate_stream 401 403 400 400 400 400
GET /v2/models/{model:path}/versions/{version}/ready 401 403 503 503 503 503
GET /v2/models/{model:path}/versions/{version}     401 403 200 200 200 200
POST /v2/models/{model:path}/infer                 401 403 400 400 400 400
POST /v2/models/{model:path}/generate              401 403 400 400 400 400
POST /v2/models/{model:path}/generate_stream       401 403 400 400 400 400
GET /v2/models/{model:path}/ready                  401 403 503 503 503 503
GET /v2/models/{model:path}                        401 403 200 200 200 200
GET /auth/methods                                  200 200 200 200 200 200
POST /auth/sign-in                                 400 400 400 400 400 400
POST /auth/token                                   400 400 400 400 400 400
POST /auth/sign-out                                401 403 403 403 403 403
GET /auth/session                                  401 200 200 200 200 200
POST /auth/register                                400 400 400 400 400 400
POST /auth/password/forgot                         400 400 400 400 400 400
POST /auth/password/reset                          400 400 400 400 400 400
GET /auth/password/reset                           200 200 200 200 200 200
POST /auth/password/change                         401 400 400 400 400 400
GET /auth/oidc/login                               409 409 409 409 409 409
GET /auth/oidc/callback                            409 409 409 409 409 409
"""
_names = itertools.count()

BODIES: dict[str, Callable[[], Any]] = {
    "POST /admin/organisations": lambda: {"name": f"n{next(_names)}"},
    "POST /admin/projects": lambda: {"name": f"n{next(_names)}"},
    "POST /admin/users": lambda: {"name": f"n{next(_names)}", "role": "member"},
    "POST /admin/keys": lambda: {"name": f"n{next(_names)}"},
    "POST /v1/prompts": lambda: {"name": f"n{next(_names)}", "template": "text"},
    "POST /v1/prompts/{prompt_id}/versions": lambda: {"template": "text"},
    "PUT /v1/prompts/{prompt_id}/labels/{label}": lambda: {"version": 1},
}
"""What is sent where something else than an empty object is needed."""


def expected() -> dict[str, dict[str, int]]:
    """Returns the rows: route -> caller -> status."""
    rows = {}
    for line in ROWS.strip().splitlines():
        words = line.split()
        rows[" ".join(words[:2])] = dict(zip(CALLERS, map(int, words[2:]), strict=True))
    return rows


def named(method: str, path: str) -> str:
    """Returns a route as rows name it."""
    return f"{method} {path}"


@dataclass
class Realm:
    """A gateway with two tenants, and a key for each kind of caller."""

    gateway: GatewayProcess
    keys: dict[str, str | None]
    organisation: str
    connection: http.client.HTTPConnection

    def ask(self, method: str, path: str, key: str | None, body: Any = None) -> tuple[int, dict[str, str], bytes]:
        """Sends one request; bodies of GET are not sent."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        content = None
        if method == "WEBSOCKET":
            headers |= {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
            headers["sec-websocket-key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
            self.connection.close()  # what was switched to websockets is not HTTP any more
            method = "GET"
        elif method != "GET":
            content, headers["content-type"] = json.dumps({} if body is None else body), "application/json"
        self.connection.request(method, path, content, headers)
        with self.connection.getresponse() as answer:
            found = {name.lower(): value for name, value in answer.getheaders()}
            if answer.status == 101:
                self.connection.close()
                return 101, found, b""
            return answer.status, found, answer.read()

    def make(self, path: str, body: Any) -> Any:
        """Makes something in the tenant, as the operator."""
        status, _, answer = self.ask("POST", f"{path}?organisation={self.organisation}", self.keys["operator"], body)
        assert status == 201, answer
        return json.loads(answer)

    def filled(self, path: str) -> str:
        """Returns a path whose parts are the ids of things that exist, made for this route."""
        for name in re.findall(r"\{(\w+)", path):
            path = re.sub(r"\{" + name + r"(:path)?\}", self._id(name, path), path)
        return path

    def _id(self, name: str, path: str) -> str:
        if name == "organisation":
            if not path.endswith(("archive", "restore")):
                return self.organisation
            body = {"name": f"n{next(_names)}"}
            status, _, answer = self.ask("POST", "/admin/organisations", self.keys["operator"], body)
            assert status == 201
            return str(json.loads(answer)["id"])
        if name in ("project", "user"):
            return str(self.make(f"/admin/{name}s", {"name": f"n{next(_names)}"})["id"])
        if name == "key":
            colleague = self.make("/admin/users", {"name": f"n{next(_names)}"})["id"]
            return str(self.make("/admin/keys", {"name": f"n{next(_names)}", "user": colleague})["id"])
        if name == "limit":
            body = {"subject_kind": "project", "subject_id": self._id("project", ""), "measure": "requests"}
            return str(self.make("/admin/limits", body | {"period": "day", "value": 10_000})["id"])
        if name == "price":
            body = {"model": f"m{next(_names)}", "input": "1", "cached": "0", "output": "2"}
            status, _, answer = self.ask("POST", "/admin/prices", self.keys["operator"], body)
            assert status == 201, answer
            return str(json.loads(answer)["id"])
        if name == "target":
            models = json.loads(self.ask("GET", "/admin/router", self.keys["operator"])[2])["models"]
            return str(models[0]["targets"][0]["id"])
        if name == "file_id":
            return self._file_id()
        if name == "batch_id":
            request = {"custom_id": "a", "method": "POST", "url": "/v1/completions"}
            text = json.dumps({**request, "body": {"model": "far", "prompt": "x"}})
            body = {"input_file_id": self._file_id(text, "batch"), "endpoint": "/v1/completions"}
            body["completion_window"] = "24h"
            return str(json.loads(self.ask("POST", "/v1/batches", self.keys["tenant admin"], body)[2])["id"])
        if name == "prompt_id":
            body = {"name": f"n{next(_names)}", "template": "text", "labels": ["far"]}
            return str(json.loads(self.ask("POST", "/v1/prompts", self.keys["tenant admin"], body)[2])["id"])
        if name == "response_id":
            body = {"model": "far", "input": "text", "background": True}
            return str(json.loads(self.ask("POST", "/v1/responses", self.keys["tenant admin"], body)[2])["id"])
        if name == "id" and "/jobs/" in path:
            return "job_" + "1" * 36
        return {"file": "swagger-ui.css", "version": "1"}.get(name, "far")

    def _file_id(self, text: str = "text", purpose: str = "user_data") -> str:
        lines = ["--cut", 'Content-Disposition: form-data; name="purpose"', "", purpose]
        lines += ["--cut", 'Content-Disposition: form-data; name="file"; filename="f"', "", text, "--cut--", ""]
        headers = {"content-type": "multipart/form-data; boundary=cut"}
        headers["authorization"] = f"Bearer {self.keys['tenant admin']}"
        self.connection.request("POST", "/v1/files", "\r\n".join(lines), headers)
        with self.connection.getresponse() as answer:
            return str(json.loads(answer.read())["id"])

    def as_seen(self, caller: str, path: str) -> str:
        """The operator says in which organisation they act."""
        scoped = path.startswith(("/admin/projects/", "/admin/users/", "/admin/keys/", "/admin/limits/"))
        return f"{path}?organisation={self.organisation}" if caller == "operator" and scoped else path


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    """The gateway, its tenants and their callers."""
    config = {"models": [{"name": "far", "targets": [{"url": "http://127.0.0.1:9/v1"}]}]}
    with GatewayProcess(tmp_path_factory.mktemp("matrix") / "home", config) as gateway:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
        made = Realm(gateway, {"anonymous": None, "operator": gateway.key}, "", connection)
        for organisation in ("theirs", "tenant"):
            answer = made.ask("POST", "/admin/organisations", gateway.key, {"name": organisation})[2]
            made.organisation = json.loads(answer)["id"]
            owner = "tenant admin" if organisation == "tenant" else "other tenant"
            made.keys[owner] = _key_of(made, Role.OWNER)
        made.keys["other user"] = _key_of(made, Role.MEMBER)
        made.keys["no scope"] = made.make("/admin/keys", {"name": "none", "scopes": []})["key"]
        yield made
        connection.close()


def _key_of(realm: Realm, role: Role) -> str:
    user = realm.make("/admin/users", {"name": role.value, "role": role.value})["id"]
    body = {"name": role.value, "user": user, "scopes": sorted(ROLE_SCOPES[role])}
    return str(realm.make("/admin/keys", body)["key"])


@row("D7")
def test_every_route_has_a_row_and_every_row_a_route() -> None:
    """Who adds a route says here whom it lets in."""
    assert {named(route.method, route.path) for route in table()} == set(expected())


@row("D7", "D13")
@pytest.mark.parametrize("route", expected())
def test_who_is_let_in(realm: Realm, route: str) -> None:
    """Each caller gets the status of the row, and what is another's looks exactly as what is not there."""
    method, path = route.split()
    missing = re.sub(r"\{(\w+)(:path)?\}", r"\1_00000000000000000000000000000000", path)
    for caller, status in expected()[route].items():
        there, body = realm.filled(path), BODIES.get(route, dict)()
        got, _, answer = realm.ask(method, realm.as_seen(caller, there), realm.keys[caller], body)
        assert got == status, (caller, answer)
        if status == 404 and "{" in path:
            again, _, absent = realm.ask(method, realm.as_seen(caller, missing), realm.keys[caller], body)
            assert (again, _without_id(absent, missing)) == (404, _without_id(answer, there)), caller


def _without_id(answer: bytes, path: str = "") -> Any:
    """An error without the request's id, and without the ids of the path, which a message may repeat."""
    document = json.loads(answer)
    if "detail" in document:
        return document
    document = document["error"]
    document.pop("request_id")
    for part in path.split("/"):
        if "_" in part:
            document["message"] = document["message"].replace(part, "ID")
    return document


@row("D7")
def test_public_routes_are_those_declared_public() -> None:
    """Nobody without a key gets past a route that declares a scope, and nobody needs one where none is declared."""
    public = {named(route.method, route.path) for route in table() if route.scope is None}
    assert {route for route, row in expected().items() if row["anonymous"] != 401} == public


@row("D7")
@pytest.mark.parametrize("carrier", ["authorization", "x-api-key"])
def test_both_carriers_of_a_key_are_held_to_the_same(realm: Realm, carrier: str) -> None:
    """A key without the scope is refused on every route, whichever header brings it (CVE-2026-45339)."""
    key = realm.keys["no scope"]
    value = f"Bearer {key}" if carrier == "authorization" else str(key)
    held = [route for route in table() if isinstance(route.scope, Scope) and route.method != "WEBSOCKET"]
    assert held
    for route in held:
        path = re.sub(r"\{(\w+)(:path)?\}", r"\1", route.path)
        realm.connection.request(route.method, path, headers={carrier: value, "content-length": "0"})
        with realm.connection.getresponse() as answer:
            answer.read()
            assert answer.status == 403, route


@row("D13")
def test_no_query_names_another_tenant(realm: Realm) -> None:
    """``?organisation=`` with another tenant's id, or one that nobody has, is the same 404 on every route that has it;
    a cookie or a query carries no key."""
    for path in ("/admin/projects", "/admin/users", "/admin/keys"):
        key = realm.keys["other tenant"]
        answers = []
        for organisation in (realm.organisation, "org_00000000000000000000000000000000", "default"):
            status, _, answer = realm.ask("GET", f"{path}?organisation={organisation}", key)
            assert status == 404
            answers.append(_without_id(answer))
        assert answers[0] == answers[1] == answers[2]
        assert realm.ask("GET", f"{path}?key={realm.keys['operator']}", None)[0] == 401


@row("D6")
@pytest.mark.parametrize("caller", ["other user", "tenant admin"])
def test_nobody_makes_or_becomes_more_than_they_are(realm: Realm, caller: str) -> None:
    """A wider key, a wider edit, a higher role and another tenant's project are refused, and nothing has changed.

    Every sequence of such attempts is tried in tests/unit/identity/test_rights.py.
    """
    key = realm.keys[caller]
    me = json.loads(realm.ask("GET", "/admin/me", key)[2])
    theirs = json.loads(realm.ask("GET", "/admin/projects", realm.keys["other tenant"])[2])["data"][0]["id"]
    attempts: list[tuple[str, str, Any, tuple[int, ...]]] = [
        ("POST", "/admin/keys", {"name": "k", "scopes": ["admin"]}, (403,)),
        ("POST", "/admin/keys", {"name": "k", "scopes": ["metrics:read"]}, (403,)),
        ("POST", "/admin/keys", {"name": "k", "weight": 900}, (403,)),
        ("POST", "/admin/keys", {"name": "k", "project": theirs}, (404,)),
        ("PATCH", f"/admin/keys/{me['id']}", {"scopes": [*me["scopes"], "router:write"]}, (403,)),
        ("PATCH", f"/admin/users/{me['user']}", {"role": "owner"}, (403,)),
        ("PATCH", f"/admin/users/{me['user']}", {"disabled": False}, (403,)),
        ("PATCH", f"/admin/organisations/{realm.organisation}", {"models": None}, (403,)),
    ]
    for method, path, body, refusals in attempts:
        status, _, answer = realm.ask(method, path, key, body)
        assert status in refusals, (path, body, answer)
    assert json.loads(realm.ask("GET", "/admin/me", key)[2]) == me


@row("D6")
def test_a_restricted_owner_hands_on_its_restrictions(realm: Realm) -> None:
    """A key with bounds makes no key without them, and appoints nobody, who would have none."""
    user = realm.make("/admin/users", {"name": "bounded", "role": "owner"})["id"]
    body = {"name": "b", "user": user, "models": ["far"], "scopes": sorted(ROLE_SCOPES[Role.OWNER])}
    key = realm.make("/admin/keys", body)["key"]
    made = json.loads(realm.ask("POST", "/admin/keys", key, {"name": "child"})[2])
    assert made["models"] == ["far"]
    for path, wider in (
        ("/admin/keys", {"name": "k", "models": None}),
        ("/admin/projects", {"name": "p", "models": None}),
        ("/admin/users", {"name": "u", "role": "member"}),
    ):
        status, _, answer = realm.ask("POST", path, key, wider)
        assert (status, json.loads(answer)["error"]["code"]) == (403, "insufficient_scope"), path
