"""Organisations, projects, users and keys over the admin API: versions, repeats, pages, and what is shown once."""

from __future__ import annotations

import http.client
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import msgspec
import pytest
from tests.architecture.test_documents import table
from tests.harness.gateway import GatewayProcess

from passerelle.domain.principal import ROLE_SCOPES, Role
from passerelle.faces.admin.keys import KeyAnswer, NewKeyAnswer
from passerelle.faces.admin.me import MeAnswer
from passerelle.faces.admin.organisations import OrganisationAnswer
from passerelle.faces.admin.projects import ProjectAnswer
from passerelle.faces.admin.resource import Listed
from passerelle.faces.admin.users import UserAnswer
from passerelle.identity.token import parse

pytestmark = pytest.mark.slow


class Client:
    """Asks with one key."""

    def __init__(self, gateway: GatewayProcess, key: str) -> None:
        self.gateway = gateway
        self.key = key
        self.connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
        self.headers: dict[str, str] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Returns status and body; headers of the answer are kept."""
        sent = {"authorization": f"Bearer {self.key}", **{name.replace("_", "-"): v for name, v in headers.items()}}
        self.connection.request(method, path, None if body is None else json.dumps(body), sent)
        with self.connection.getresponse() as answer:
            self.headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, json.loads(answer.read())

    def made(self, path: str, body: Any) -> Any:
        """Makes something."""
        status, answer = self.ask("POST", path, body)
        assert status == 201, answer
        return answer


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The operator of a gateway with two models."""
    targets = [{"url": "http://127.0.0.1:9/v1"}]
    config = {
        "models": [{"name": "near", "aliases": ["alias"], "targets": targets}, {"name": "far", "targets": targets}],
        "server": {"trusted_proxies": ["127.0.0.1"]},
    }
    home = tmp_path_factory.mktemp("identity") / "home"
    with GatewayProcess(home, config) as gateway, Client(gateway, gateway.key) as client:
        yield client


def test_answers_are_as_described(operator: Client) -> None:
    """Each decodes into the structure that /docs shows, lists too."""
    paths = {
        "/admin/organisations": ({"name": "described"}, OrganisationAnswer),
        "/admin/projects": ({"name": "described"}, ProjectAnswer),
        "/admin/users": ({"name": "described", "email": "d@x.example"}, UserAnswer),
        "/admin/keys": ({"name": "described"}, KeyAnswer),
    }
    for path, (body, structure) in paths.items():
        made = operator.made(path, body)
        shown = operator.ask("GET", f"{path}/{made['id']}")[1]
        assert msgspec.convert(shown, structure, strict=False).id == made["id"]
        assert set(shown) == {*structure.__struct_fields__, "object"}
        listed = msgspec.convert(operator.ask("GET", path)[1], Listed[structure], strict=False)  # type: ignore[valid-type]
        assert made["id"] in [each.id for each in listed.data]
    assert set(operator.ask("GET", "/admin/me")[1]) == {*MeAnswer.__struct_fields__, "object"}


def test_a_secret_is_shown_once(operator: Client) -> None:
    """In the answer that made it; not when the request is repeated, and not by showing the key."""
    body = {"name": "once", "scopes": ["inference"]}
    first = operator.ask("POST", "/admin/keys", body, idempotency_key="once")
    assert parse(first[1]["key"]) is not None
    second = operator.ask("POST", "/admin/keys", body, idempotency_key="once")
    assert operator.headers["idempotent-replayed"] == "true"
    assert (second[0], second[1]) == (201, first[1] | {"key": None})
    assert set(first[1]) == {*NewKeyAnswer.__struct_fields__, "object"}
    status, other = operator.ask("POST", "/admin/keys", body | {"name": "x"}, idempotency_key="once")
    assert (status, other["error"]["code"]) == (422, "idempotency_key_reused")
    key_id = first[1]["id"]
    rotated = operator.ask("POST", f"/admin/keys/{key_id}/rotate", {"overlap_s": 60}, idempotency_key="r")[1]
    again = operator.ask("POST", f"/admin/keys/{key_id}/rotate", {"overlap_s": 60}, idempotency_key="r")[1]
    assert parse(rotated["key"]) is not None and again == rotated | {"key": None}
    assert len(rotated["public_ids"]) == 2
    assert "key" not in operator.ask("GET", f"/admin/keys/{key_id}")[1]
    secrets = [secret[20:63] for secret in (first[1]["key"], rotated["key"])]
    database = b"".join(path.read_bytes() for path in operator.gateway.home.glob("passerelle.db*"))
    log = "".join(operator.gateway.log)
    assert not any(secret.encode() in database or secret in log for secret in secrets)


def test_an_update_is_held_to_the_version_that_was_read(operator: Client) -> None:
    """The ETag is the version; If-Match with an older one is 412, and nothing was changed."""
    for path in ("/admin/organisations", "/admin/projects", "/admin/users", "/admin/keys"):
        made = operator.made(path, {"name": "versions"})
        one = f"{path}/{made['id']}"
        operator.ask("GET", one)
        tag = operator.headers["etag"]
        status, changed = operator.ask("PATCH", one, {"name": "renamed"}, if_match=tag)
        assert (status, changed["name"], changed["version"]) == (200, "renamed", 2)
        assert operator.headers["etag"] == '"2"'
        status, refused = operator.ask("PATCH", one, {"name": "again"}, if_match=tag)
        assert (status, refused["error"]["code"]) == (412, "stale_version")
        assert operator.ask("GET", one)[1] == changed
        assert operator.ask("PATCH", one, {"name": "unconditional"})[0] == 200


def test_pages_lead_from_one_to_the_next(operator: Client) -> None:
    """``next`` is ``after``; what was added meanwhile is not missed, and nothing comes twice."""
    organisation = operator.made("/admin/organisations", {"name": "pages"})["id"]
    path = f"/admin/projects?organisation={organisation}&limit=2"
    for number in range(4):
        operator.made(f"/admin/projects?organisation={organisation}", {"name": f"p{number}"})
    found, after = [], ""
    while True:
        page = operator.ask("GET", path + after)[1]
        found += [each["name"] for each in page["data"]]
        if len(found) == 2:
            operator.made(f"/admin/projects?organisation={organisation}", {"name": "late"})
        if not page["has_more"]:
            assert page["next"] is None
            break
        after = f"&after={page['next']}"
    assert found == ["default", "p0", "p1", "p2", "p3", "late"]
    for query in ("limit=0", "after=nonsense", "color=red"):
        assert operator.ask("GET", f"/admin/projects?{query}")[0] == 400


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/admin/keys", {}, "name"),
        ("/admin/keys", {"name": "k", "scopes": ["root"]}, "scopes[0]"),
        ("/admin/keys", {"name": "k", "models": ["nope"]}, "models"),
        ("/admin/keys", {"name": "k", "networks": ["10.0.0.0/99"]}, "networks"),
        ("/admin/keys", {"name": "k", "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ("/admin/keys", {"name": "k", "expires_at": "2101-01-01T00:00:00"}, "expires_at"),
        ("/admin/keys", {"name": "k", "expires_at": "9999-12-31T23:59:59-23:59"}, "expires_at"),
        ("/admin/keys", {"name": "k", "weight": 0}, "weight"),
        ("/admin/keys", {"name": "k", "admin": True}, "admin"),
        ("/admin/keys", {"name": "a\u0000b"}, "name"),
        ("/admin/users", {"name": "u", "role": "king"}, "role"),
        ("/admin/users", {"name": "u", "email": "nonsense"}, "email"),
        ("/admin/users", {"name": "u", "password_hash": "x"}, "password_hash"),
        ("/admin/organisations", {"name": 3}, "name"),
        ("/admin/projects", {"name": "p", "models": [""]}, "models[0]"),
    ],
)
def test_a_wrong_field_is_named(operator: Client, path: str, body: Any, param: str) -> None:
    """400, and the error says which."""
    status, answer = operator.ask("POST", path, body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_what_takes_no_body_refuses_one(operator: Client) -> None:
    """A field that does nothing would look as if it did."""
    made = operator.made("/admin/projects", {"name": "bodies"})
    for action in ("archive", "restore"):
        path = f"/admin/projects/{made['id']}/{action}"
        status, answer = operator.ask("POST", path, {"reason": "x"})
        assert (status, answer["error"]["param"]) == (400, "reason")
        assert operator.ask("POST", path)[0] == 200


def test_an_alias_is_kept_as_the_models_own_name(operator: Client) -> None:
    """A key is held to names of the catalog: an alias would allow nothing."""
    assert operator.made("/admin/keys", {"name": "k", "models": ["alias", "far"]})["models"] == ["far", "near"]


def test_a_key_is_held_to_its_networks_behind_a_trusted_proxy(operator: Client) -> None:
    """The proxy's word counts for where the caller is, and only the last hop of it."""
    made = operator.made("/admin/keys", {"name": "k", "networks": ["192.0.2.0/24"]})
    with Client(operator.gateway, made["key"]) as caller:
        for hops, status in (("192.0.2.7", 200), ("192.0.2.7, 198.51.100.1", 403), ("198.51.100.1, 192.0.2.7", 200)):
            assert caller.ask("GET", "/admin/me", x_forwarded_for=hops)[0] == status
        status, answer = caller.ask("GET", "/admin/me")
        assert (status, answer["error"]["code"]) == (403, "address_not_allowed")
        assert caller.ask("GET", "/v1/models")[0] == 403


def test_me_is_who_asks_and_what_they_may_do(operator: Client) -> None:
    """What key, project and organisation all allow."""
    organisation = operator.made("/admin/organisations", {"name": "me", "models": ["near"]})["id"]
    query = f"?organisation={organisation}"
    user = operator.made(f"/admin/users{query}", {"name": "ann", "role": "viewer"})["id"]
    body = {"name": "k", "user": user, "scopes": ["keys:read"], "models": ["near", "far"], "weight": 2}
    with Client(operator.gateway, operator.made(f"/admin/keys{query}", body)["key"]) as caller:
        me = caller.ask("GET", "/admin/me")[1]
        assert (me["organisation"], me["user"], me["role"]) == (organisation, user, "viewer")
        assert (me["scopes"], me["models"], me["services"], me["weight"]) == (["keys:read"], ["near"], None, 2.0)
        assert (me["kind"], me["address"]) == ("key", "127.0.0.1")


def test_a_tenant_learns_no_names_of_models_that_are_not_theirs(operator: Client) -> None:
    """Neither by suggestion nor by a different answer."""
    made = operator.made("/admin/keys", {"name": "k", "models": ["near"], "scopes": ["keys:write", "inference"]})
    with Client(operator.gateway, made["key"]) as caller:
        messages = [caller.ask("POST", "/admin/keys", {"name": "x", "models": [name]})[1] for name in ("far", "zar")]
        assert messages[0]["error"]["message"].replace("far", "zar") == messages[1]["error"]["message"]


def test_who_belongs_to_a_project_does_not_lift_its_budget(operator: Client) -> None:
    """The limits of their project were set for them; those of its keys are theirs to set, of others' are not there."""
    project = operator.made("/admin/projects", {"name": "bounded"})["id"]
    user = operator.made("/admin/users", {"name": "lead", "role": "admin", "project": project})["id"]
    scopes = ["inference", "limits:read", "limits:write", "organisation:read", "organisation:write"]
    key = operator.made("/admin/keys", {"name": "lead", "user": user, "project": project, "scopes": scopes})
    other = operator.made("/admin/keys", {"name": "of another project"})["id"]
    day = {"measure": "requests", "period": "day", "value": 5}
    budget = operator.made("/admin/limits", {"subject_kind": "project", "subject_id": project, **day})["id"]
    elsewhere = operator.made("/admin/limits", {"subject_kind": "key", "subject_id": other, **day})["id"]
    with Client(operator.gateway, key["key"]) as lead:
        assert lead.ask("PATCH", f"/admin/limits/{budget}", {"value": 500})[0] == 403
        assert lead.ask("DELETE", f"/admin/limits/{budget}")[0] == 403
        tokens = {"measure": "tokens", "period": "day", "value": 5}
        assert lead.ask("POST", "/admin/limits", {"subject_kind": "project", "subject_id": project, **tokens})[0] == 403
        assert lead.ask("GET", f"/admin/limits/{budget}")[1]["value"] == 5
        assert lead.ask("GET", f"/admin/limits/{elsewhere}")[0] == 404
        assert lead.ask("POST", "/admin/limits", {"subject_kind": "key", "subject_id": other, **tokens})[0] == 404
        assert lead.ask("POST", "/admin/limits", {"subject_kind": "key", "subject_id": key["id"], **tokens})[0] == 201


def test_nobody_lifts_a_limit_that_was_set_for_them(operator: Client) -> None:
    """An administrator's own, as a user or by any key of theirs, is another's to change; so nothing is won by the right
    to set limits of others. A tighter one they may give themselves."""
    user = operator.made("/admin/users", {"name": "self", "role": "admin"})["id"]
    scopes = ["inference", "limits:read", "limits:write", "organisation:read", "organisation:write", "keys:read"]
    key = operator.made("/admin/keys", {"name": "self", "user": user, "scopes": scopes})
    second = operator.made("/admin/keys", {"name": "second", "user": user})["id"]
    other = operator.made("/admin/keys", {"name": "somebody else's"})["id"]
    fields = {"measure": "requests", "period": "day", "value": 5}
    with Client(operator.gateway, key["key"]) as admin:
        for kind, subject in (("user", user), ("key", key["id"]), ("key", second)):
            limit = operator.made("/admin/limits", {"subject_kind": kind, "subject_id": subject, **fields})["id"]
            for method, body in (("PATCH", {"value": 500}), ("PATCH", {"hard": False}), ("DELETE", None)):
                assert admin.ask(method, f"/admin/limits/{limit}", body)[0] == 403, (kind, method)
            assert admin.ask("GET", f"/admin/limits/{limit}")[1]["value"] == 5
        tighter = {"subject_kind": "user", "subject_id": user, "measure": "tokens", "period": "day", "value": 5}
        assert admin.ask("POST", "/admin/limits", tighter)[0] == 201
        theirs = operator.made("/admin/limits", {"subject_kind": "key", "subject_id": other, **fields})["id"]
        assert admin.ask("PATCH", f"/admin/limits/{theirs}", {"value": 6})[0] == 200


def test_a_tenant_sees_targets_and_prices_of_its_models_only(operator: Client) -> None:
    """Names of others, where model servers are, and what is wrong with the configuration are the operator's to see."""
    organisation = operator.made("/admin/organisations", {"name": "one model", "models": ["near"]})["id"]
    user = operator.made(f"/admin/users?organisation={organisation}", {"name": "o", "role": "owner"})["id"]
    body = {"name": "o", "user": user, "scopes": ["router:read", "limits:read"]}
    key = operator.made(f"/admin/keys?organisation={organisation}", body)["key"]
    for model in ("near", "far"):
        operator.made("/admin/prices", {"model": model, "input": "1", "output": "2"})
    with Client(operator.gateway, key) as tenant:
        status, shown = tenant.ask("GET", "/admin/router")
        assert status == 200, shown

        assert [each["model"] for each in shown["models"]] == ["near"]
        assert [target["url"] for target in shown["models"][0]["targets"]] == [None]
        assert shown["reload_error"] is None
        assert [each["model"] for each in tenant.ask("GET", "/admin/prices")[1]["data"]] == ["near"]
        assert tenant.ask("GET", "/admin/prices?model=far")[1]["data"] == []
    whole = operator.ask("GET", "/admin/router")[1]
    assert {each["model"]: each["targets"][0]["url"] for each in whole["models"]} == dict.fromkeys(
        ("near", "far"), "http://127.0.0.1:9/v1"
    )
    assert {each["model"] for each in operator.ask("GET", "/admin/prices")[1]["data"]} == {"near", "far"}


def test_a_cursor_of_another_tenant_leads_nowhere_else(operator: Client) -> None:
    """It is a place in an order, not a right: the page that follows is of who asks."""
    two = {}
    for name in ("first tenant", "second tenant"):
        organisation = operator.made("/admin/organisations", {"name": name})["id"]
        user = operator.made(f"/admin/users?organisation={organisation}", {"name": "o", "role": "owner"})["id"]
        scopes = ["organisation:read", "keys:read", "limits:read", "usage:read", "audit:read"]
        body = {"name": "o", "user": user, "scopes": scopes}
        two[name] = (organisation, operator.made(f"/admin/keys?organisation={organisation}", body)["key"])
    first, second = two["first tenant"][0], two["second tenant"][1]
    for path in ("projects", "users", "keys", "audit"):
        for number in range(2):
            if path != "audit":
                operator.made(f"/admin/{path}?organisation={first}", {"name": f"n{number}"})
        page = operator.ask("GET", f"/admin/{path}?organisation={first}&limit=1")[1]
        assert page["next"], path
        with Client(operator.gateway, second) as stranger:
            status, found = stranger.ask("GET", f"/admin/{path}?after={page['next']}")
            assert status == 200
            assert {each["organisation"] for each in found["data"]} <= {two["second tenant"][0]}, path
            assert stranger.ask("GET", f"/admin/{path}?organisation={first}&after={page['next']}")[0] == 404


def test_an_idempotency_key_is_its_callers(operator: Client) -> None:
    """The same one of another caller, in another tenant too, is another request: nobody is told what others did."""
    organisation = operator.made("/admin/organisations", {"name": "repeats"})["id"]
    user = operator.made(f"/admin/users?organisation={organisation}", {"name": "o", "role": "owner"})["id"]
    body = {"name": "o", "user": user, "scopes": ["organisation:read", "organisation:write"]}
    key = operator.made(f"/admin/keys?organisation={organisation}", body)["key"]
    mine = operator.ask("POST", "/admin/projects", {"name": "same"}, idempotency_key="shared")[1]
    with Client(operator.gateway, key) as tenant:
        theirs = tenant.ask("POST", "/admin/projects", {"name": "same"}, idempotency_key="shared")[1]
        assert "idempotent-replayed" not in tenant.headers
        assert (theirs["organisation"], theirs["id"] != mine["id"]) == (organisation, True)
        status, told = tenant.ask("POST", "/admin/projects", {"name": "other"}, idempotency_key="shared")
        assert (status, told["error"]["code"]) == (422, "idempotency_key_reused")
    query = f"/admin/projects?organisation={organisation}"
    assert operator.ask("POST", query, {"name": "same"}, idempotency_key="shared")[0] == 422


@pytest.mark.parametrize("tag", ['W/"1"', '"01"', "1", '"1', '"-1"', '"*"', '"1","2"', "*, *", '"99999999999"'])
def test_no_odd_entity_tag_passes_for_the_version(operator: Client, tag: str) -> None:
    """Only the very tag of the present version, or the star that asks for none, lets a change through."""
    made = operator.made("/admin/projects", {"name": f"tag {tag}"})
    one = f"/admin/projects/{made['id']}"
    assert operator.ask("PATCH", one, {"name": "passed"}, if_match=tag)[0] in (400, 412)
    assert operator.ask("GET", one)[1] == made


def test_an_end_beyond_every_calendar_spoils_no_list(operator: Client) -> None:
    """The last time there is may be a key's end; a later one is refused when a key is changed, too; and one that the
    database has all the same is shown as the last."""
    made = operator.made("/admin/keys", {"name": "late", "expires_at": "9999-12-31T23:59:59.999Z"})
    assert made["expires_at"] == "9999-12-31T23:59:59.999000Z"
    one = f"/admin/keys/{made['id']}"
    later = {"expires_at": "9999-12-31T23:59:59-12:00"}
    assert operator.ask("PATCH", one, later)[1]["error"]["param"] == "expires_at"
    with closing(sqlite3.connect(operator.gateway.home / "passerelle.db", timeout=20)) as database, database:
        database.execute("update keys set expires_at_ms = ? where id = ?", (2**52, made["id"]))
    assert operator.ask("GET", one)[1]["expires_at"] == "9999-12-31T23:59:59.999000Z"
    assert operator.ask("GET", "/admin/keys?limit=500")[0] == 200


def test_another_project_does_not_exist_for_who_belongs_to_one(operator: Client) -> None:
    """Every route of the admin API that takes an id of a project, user, key or limit: those of another project of the
    same organisation answer as ids that nobody has, and lists leave them out; the organisation itself can be seen."""
    organisation = operator.made("/admin/organisations", {"name": "two projects"})["id"]
    query = f"?organisation={organisation}"
    mine, theirs = (operator.made(f"/admin/projects{query}", {"name": name})["id"] for name in ("mine", "theirs"))
    chief = operator.made(f"/admin/users{query}", {"name": "chief", "role": "owner", "project": mine})["id"]
    stranger = operator.made(f"/admin/users{query}", {"name": "stranger", "project": theirs})["id"]
    everywhere = operator.made(f"/admin/users{query}", {"name": "everywhere", "role": "viewer"})["id"]
    own = {"name": "chief", "user": chief, "project": mine, "scopes": sorted(ROLE_SCOPES[Role.OWNER])}
    key = operator.made(f"/admin/keys{query}", own)
    other = operator.made(f"/admin/keys{query}", {"name": "k", "project": theirs, "user": stranger})["id"]
    day = {"subject_kind": "key", "subject_id": other, "measure": "requests", "period": "day", "value": 5}
    ids = {
        "project": [theirs],
        "user": [stranger, everywhere],
        "key": [other],
        "limit": [operator.made(f"/admin/limits{query}", day)["id"]],
    }
    asked = []
    with Client(operator.gateway, key["key"]) as confined:
        for route in table():
            kind = re.fullmatch(r"/admin/\w+/\{(project|user|key|limit)\}(/\w+)?", route.path)
            for found in ids[kind[1]] if kind else ():
                for named in (found, f"{found}0"):
                    asked.append((route.method, route.path))
                    body = None if route.method in ("GET", "DELETE") else {}
                    status, answer = confined.ask(route.method, route.path.replace(f"{{{kind[1]}}}", named), body)
                    assert (status, answer["error"]["code"]) == (404, "not_found"), (route, named, answer)
        for what in ("projects", "users", "keys", "limits"):
            shown = {each["id"] for each in confined.ask("GET", f"/admin/{what}?limit=500")[1]["data"]}
            assert not shown & {each for some in ids.values() for each in some}, what
        for path, body in (
            ("/admin/keys", {"name": "k", "project": theirs}),
            ("/admin/keys", {"name": "k", "user": stranger}),
            ("/admin/keys", {"name": "k", "user": everywhere}),
            ("/admin/users", {"name": "u", "project": theirs}),
            ("/admin/users", {"name": "u", "project": None}),
            ("/admin/projects", {"name": "p"}),
            ("/admin/limits", {**day, "measure": "tokens"}),
            ("/admin/limits", {**day, "subject_kind": "project", "subject_id": mine}),
            ("/admin/limits", {**day, "subject_kind": "model", "subject_id": "near"}),
        ):
            assert confined.ask("POST", path, body)[0] in (400, 403, 404), (path, body)
        assert confined.ask("GET", "/admin/audit")[0] == 403
        assert confined.ask("GET", f"/admin/usage?project={theirs}")[1]["data"] == []
        assert confined.ask("GET", f"/admin/organisations/{organisation}")[0] == 200
    assert len(set(asked)) >= 12
