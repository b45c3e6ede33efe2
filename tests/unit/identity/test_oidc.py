"""The identity provider's tokens: what is believed, what never is, and a provider that is away or odd."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passerelle.domain.errors import Forbidden, PasserelleError, Unauthenticated, Unavailable
from passerelle.domain.principal import Role
from passerelle.identity import oidc
from passerelle.identity.oidc import LEEWAY_S, Mapped, Provider, Relation

ISSUER, AUDIENCE = "https://sso.example.org/realm", "passerelle-api"
RSA = {name: rsa.generate_private_key(public_exponent=65537, key_size=2048) for name in ("one", "two")}
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def public(key: Any, algorithm: str, **more: Any) -> dict[str, Any]:
    """A published key."""
    name = {"R": jwt.algorithms.RSAAlgorithm, "E": jwt.algorithms.ECAlgorithm}[algorithm[0]]
    if algorithm == "EdDSA":
        name = jwt.algorithms.OKPAlgorithm
    document: dict[str, Any] = name.to_jwk(key.public_key(), as_dict=True)
    return {**document, **more}


class FakeServer:
    """A provider whose every answer is chosen by the test."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [public(RSA["one"], "RS256", kid="one", use="sig")]
        self.metadata: dict[str, Any] = {
            "issuer": ISSUER,
            "authorization_endpoint": f"{ISSUER}/authorize",
            "token_endpoint": f"{ISSUER}/token",
            "jwks_uri": f"{ISSUER}/keys",
            "userinfo_endpoint": f"{ISSUER}/userinfo",
        }
        self.answers: dict[str, tuple[int, Any]] = {}
        self.down = False
        self.asked: list[str] = []
        self.form: dict[str, list[str]] = {}
        self.headers: Mapping[str, str] = {}

    async def __call__(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, bytes]:
        """Answers one request."""
        path = url.removeprefix(ISSUER)
        self.asked.append(path)
        if self.down:
            raise ConnectionError("connection refused")
        if path == "/token":
            self.form, self.headers = parse_qs(body.decode()), headers or {}
        documents = {"/.well-known/openid-configuration": self.metadata, "/keys": {"keys": self.keys}}
        status, value = self.answers.get(path, (200, documents.get(path, {})))
        return status, value if isinstance(value, bytes) else json.dumps(value).encode()


@pytest.fixture
def server() -> FakeServer:
    """A provider that is well."""
    return FakeServer()


def provider_of(server: FakeServer, **changes: Any) -> Provider:
    """What Passerelle knows of it."""
    relation = {
        "issuer": ISSUER,
        "client_id": "passerelle",
        "redirect_url": "https://llm.example.org/auth/oidc/callback",
        "client_secret": "s:ecret%",
        "mapped": Mapped(role_claim="groups", roles={"users": Role.MEMBER, "admins": Role.ADMIN}),
    } | changes
    return Provider(Relation(**relation), server)


@pytest.fixture
def provider(server: FakeServer) -> Provider:
    """The usual provider."""
    return provider_of(server)


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims, but for the changes; None leaves one out."""
    now_s = int(time.time())
    found = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now_s, "exp": now_s + 300} | changes
    return {name: value for name, value in found.items() if value is not None}


def signed(algorithm: str = "RS256", key: Any = RSA["one"], kid: str | None = "one", **changes: Any) -> str:
    """A token; ``headers`` adds to its header."""
    headers = {"kid": kid} | changes.pop("headers", {})
    return jwt.encode(
        claims(**changes), key, algorithm=algorithm, headers={k: v for k, v in headers.items() if v is not None}
    )


async def test_a_good_token(provider: Provider) -> None:
    """What the provider signed for us, and holds now, is believed."""
    assert (await provider.verify(signed(), AUDIENCE))["sub"] == "ada"
    assert (await provider.verify(signed(aud=["other", AUDIENCE]), AUDIENCE))["sub"] == "ada"


@pytest.mark.parametrize(
    ("algorithm", "key"), [("RS512", RSA["one"]), ("PS256", RSA["one"]), ("ES256", EC), ("EdDSA", ED)], ids=str
)
async def test_the_signatures_in_use(server: FakeServer, algorithm: str, key: Any) -> None:
    """RSA, RSA-PSS, elliptic curves and Ed25519."""
    server.keys = [public(key, algorithm if algorithm[0] in "RE" else "RS256", kid="one")]
    await provider_of(server).verify(signed(algorithm, key), AUDIENCE)


def unsigned(header: Mapping[str, Any], payload: Any, signature: bytes = b"") -> str:
    """A token put together by hand."""
    parts = (json.dumps(header).encode(), json.dumps(payload).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def public_pem() -> bytes:
    """The published key as a shared secret, as a confused verifier would take it."""
    return RSA["one"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def hmac_with_the_public_key() -> str:
    """HS256 with the public key: the classic confusion. Made by hand, because the library refuses to."""
    import hmac

    head = unsigned({"alg": "HS256", "kid": "one"}, claims()).rsplit(".", 1)[0]
    digest = hmac.digest(public_pem(), head.encode(), "sha256")
    return f"{head}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


BAD = {
    "another key": lambda: signed(key=RSA["two"]),
    "unknown kid": lambda: signed(kid="three"),
    "none": lambda: unsigned({"alg": "none"}, claims()),
    "None": lambda: unsigned({"alg": "None", "kid": "one"}, claims()),
    "HS256 with the public key": hmac_with_the_public_key,
    "an algorithm of another kind of key": lambda: signed("ES256", EC),
    "a key of its own": lambda: signed(key=RSA["two"], headers={"jwk": public(RSA["two"], "RS256")}),
    "an address for keys": lambda: signed(key=RSA["two"], kid=None, headers={"jku": "https://evil.example.org"}),
    "a critical extension": lambda: signed(headers={"crit": ["b64"], "b64": True}),
    "another audience": lambda: signed(aud="other"),
    "no audience": lambda: signed(aud=None),
    "another issuer": lambda: signed(iss="https://evil.example.org"),
    "nearly the issuer": lambda: signed(iss=ISSUER + "/"),
    "expired": lambda: signed(exp=int(time.time()) - LEEWAY_S - 5),
    "no end": lambda: signed(exp=None),
    "not yet": lambda: signed(nbf=int(time.time()) + LEEWAY_S + 60),
    "from the future": lambda: signed(iat=int(time.time()) + LEEWAY_S + 60),
    "no subject": lambda: signed(sub=None),
    "an empty subject": lambda: signed(sub=""),
    "a long subject": lambda: signed(sub="x" * 300),
    "a subject with NUL": lambda: signed(sub="a\0b"),
    "an end that is no number": lambda: unsigned({"alg": "RS256", "kid": "one"}, claims(exp="soon"), b"x"),
    "a kid that is no text": lambda: unsigned({"alg": "RS256", "kid": 1}, claims(), b"x"),
    "no claims": lambda: unsigned({"alg": "RS256", "kid": "one"}, [], b"x"),
    "changed claims": lambda: signed().replace(".", ".e30", 1),
    "two parts": lambda: signed().rsplit(".", 1)[0],
    "huge": lambda: signed(more="x" * 20_000),
    "nothing": lambda: "",
    "dots": lambda: "..",
    "not ASCII": lambda: "é.é.é",
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_tokens_are_all_refused_alike(provider: Provider, name: str) -> None:
    """Each way to be no good gets the one same answer."""
    with pytest.raises(Unauthenticated) as caught:
        await provider.verify(BAD[name](), AUDIENCE)
    assert caught.value.error_code == "invalid_token"
    assert caught.value.message == "The token is not valid here, or not any more: sign in again."


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.text(max_size=80) | st.binary(max_size=60).map(lambda data: base64.urlsafe_b64encode(data).decode() + ".."))
async def test_any_text_is_refused(text: str) -> None:
    """Garbage never makes anything but the refusal."""
    with pytest.raises(Unauthenticated):
        await provider_of(FakeServer()).verify(text, AUDIENCE)


@pytest.mark.parametrize("changes", [{"exp": -30}, {"iat": 30}, {"nbf": 30}], ids=str)
async def test_clocks_may_differ_a_little(provider: Provider, changes: dict[str, int]) -> None:
    """Half a minute between the provider's clock and ours refuses nobody."""
    now_s = int(time.time())
    await provider.verify(signed(**{name: now_s + value for name, value in changes.items()}), AUDIENCE)


@pytest.mark.parametrize(
    "change",
    [
        {"kty": "oct", "k": "c2VjcmV0"},
        {"use": "enc"},
        {"alg": "RS512"},
        {"n": "AQAB"},
        {"n": "???"},
        {"kty": None},
        {"e": 3},
    ],
    ids=str,
)
async def test_keys_for_something_else_verify_nothing(server: FakeServer, change: dict[str, Any]) -> None:
    """A key for encryption, another algorithm or a shared secret, and a broken one, is no key here."""
    server.keys = [server.keys[0] | change]
    with pytest.raises(Unauthenticated):
        await provider_of(server).verify(signed(), AUDIENCE)


async def test_a_token_without_kid(server: FakeServer) -> None:
    """It is verified when only one key can have signed it, and refused when several could."""
    provider = provider_of(server)
    await provider.verify(signed(kid=None), AUDIENCE)
    server.keys.append(public(RSA["two"], "RS256", kid="two"))
    with pytest.raises(Unauthenticated):
        await provider_of(server).verify(signed(kid=None), AUDIENCE)


async def test_rotation_is_seen_at_once_and_asked_for_rarely(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new key's first token makes one fetch; a flood of invented kids makes none more."""
    monkeypatch.setattr(oidc, "REFETCH_S", 0.0)
    provider = provider_of(server)
    await provider.verify(signed(), AUDIENCE)
    server.keys = [public(RSA["two"], "RS256", kid="two")]
    await provider.verify(signed(key=RSA["two"], kid="two"), AUDIENCE)
    assert server.asked.count("/keys") == 2
    with pytest.raises(Unauthenticated):
        await provider.verify(signed(), AUDIENCE)
    monkeypatch.setattr(oidc, "REFETCH_S", 10.0)
    before = len(server.asked)
    for number in range(50):
        with pytest.raises(Unauthenticated):
            await provider.verify(signed(kid=f"invented-{number}"), AUDIENCE)
    assert len(server.asked) == before


@pytest.mark.parametrize("kid", [None, "one"])
async def test_rotation_under_the_same_name_is_seen_too(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, kid: str | None
) -> None:
    """A provider that names its keys not at all, or all alike, may change them."""
    monkeypatch.setattr(oidc, "REFETCH_S", 0.0)
    provider = provider_of(server)
    await provider.verify(signed(kid=kid), AUDIENCE)
    server.keys = [public(RSA["two"], "RS256", kid=kid)]
    await provider.verify(signed(key=RSA["two"], kid=kid), AUDIENCE)
    with pytest.raises(Unauthenticated):
        await provider.verify(signed(kid=kid), AUDIENCE)


async def test_a_provider_that_is_down_is_no_bad_token(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys it is 503, with known ones tokens go on; when it is back, everything does, without a restart."""
    monkeypatch.setattr(oidc, "RETRY_S", 0.0)
    server.down = True
    provider = provider_of(server)
    with pytest.raises(Unavailable) as caught:
        await provider.verify(signed(), AUDIENCE)
    assert caught.value.error_code == "identity_provider_unavailable"
    server.down = False
    await provider.verify(signed(), AUDIENCE)
    server.down = True
    await provider.verify(signed(), AUDIENCE)
    monkeypatch.setattr(oidc, "KEEP_S", 0.0)
    monkeypatch.setattr(oidc, "REFETCH_S", 0.0)
    with pytest.raises(Unavailable):
        await provider.verify(signed(kid="two"), AUDIENCE)


async def test_a_provider_that_is_down_is_not_asked_by_everybody(server: FakeServer) -> None:
    """After a failure there is a pause: tokens do not make a flood against a provider in trouble."""
    server.down = True
    provider = provider_of(server)
    for _ in range(20):
        with pytest.raises(Unavailable):
            await provider.verify(signed(), AUDIENCE)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/.well-known/openid-configuration", (404, b"not here")),
        ("/.well-known/openid-configuration", (200, b"<html>")),
        ("/.well-known/openid-configuration", (200, {"issuer": "https://evil.example.org"})),
        ("/.well-known/openid-configuration", (302, b"")),
        ("/keys", (500, b"")),
        ("/keys", (200, {"keys": "none"})),
        ("/keys", (200, b"\xff")),
    ],
)
async def test_odd_documents(server: FakeServer, path: str, answer: tuple[int, Any]) -> None:
    """A document that is none, or somebody else's, is the provider's trouble: 503."""
    server.answers[path] = answer
    with pytest.raises(Unavailable):
        await provider_of(server).verify(signed(), AUDIENCE)


async def test_a_discovery_document_of_somebody_else(server: FakeServer) -> None:
    """The document must say the issuer that was configured (Discovery 1.0, 4.3)."""
    server.metadata["issuer"] = "https://evil.example.org"
    with pytest.raises(Unavailable):
        await provider_of(server).authorization_url("s", "n", "v")


async def test_the_way_to_the_provider_has_pkce_state_and_nonce(provider: Provider) -> None:
    """The address holds the challenge of the verifier, never the verifier."""
    url = await provider.authorization_url("state-1", "nonce-1", "verifier-1")
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    challenge = base64.urlsafe_b64encode(hashlib.sha256(b"verifier-1").digest()).decode().rstrip("=")
    assert query == {
        "response_type": "code",
        "client_id": "passerelle",
        "redirect_uri": "https://llm.example.org/auth/oidc/callback",
        "scope": "openid profile email",
        "state": "state-1",
        "nonce": "nonce-1",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }


def answer_with(server: FakeServer, *, userinfo: Any = None, **changes: Any) -> None:
    """The token endpoint gives an ID token; the userinfo endpoint what it is told."""
    values = {"aud": "passerelle", "nonce": "nonce-1", "groups": ["users"], "preferred_username": "ada"} | changes
    server.answers["/token"] = (200, {"id_token": signed(**values), "access_token": "opaque", "token_type": "Bearer"})
    if userinfo is not None:
        server.answers["/userinfo"] = (200, userinfo)


async def test_a_code_is_redeemed(server: FakeServer, provider: Provider) -> None:
    """The code, the verifier and the client's secret go to the token endpoint; the ID token comes back as claims."""
    answer_with(server)
    found = await provider.redeem("code-1", "nonce-1", "verifier-1")
    assert found["sub"] == "ada"
    assert server.form["code"] == ["code-1"]
    assert server.form["code_verifier"] == ["verifier-1"]
    assert "client_secret" not in server.form
    pair = base64.b64decode(server.headers["authorization"].removeprefix("Basic ")).decode()
    assert pair == "passerelle:s%3Aecret%25"
    assert "/userinfo" not in server.asked


async def test_a_secret_in_the_form_when_only_that_is_taken(server: FakeServer) -> None:
    """``client_secret_post`` is used where the provider says so; a public client sends no secret."""
    server.metadata["token_endpoint_auth_methods_supported"] = ["client_secret_post"]
    answer_with(server)
    await provider_of(server).redeem("code-1", "nonce-1", "verifier-1")
    assert server.form["client_secret"] == ["s:ecret%"]
    await provider_of(server, client_secret=None).redeem("code-1", "nonce-1", "verifier-1")
    assert "client_secret" not in server.form


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"nonce": 1},
        {"aud": "other"},
        {"azp": "other"},
        {"exp": 1},
        {"iss": "https://evil.example.org"},
    ],
    ids=str,
)
async def test_id_tokens_of_another_sign_in(server: FakeServer, provider: Provider, changes: dict[str, Any]) -> None:
    """A token for another client, sign-in or time signs nobody in."""
    answer_with(server, **changes)
    with pytest.raises(Unauthenticated):
        await provider.redeem("code-1", "nonce-1", "verifier-1")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((400, {"error": "invalid_grant"}), Unauthenticated),
        ((401, {"error": "invalid_client"}), Unauthenticated),
        ((400, b"<html>"), Unauthenticated),
        ((500, b""), Unavailable),
        ((200, {}), Unavailable),
        ((200, {"id_token": "x"}), Unauthenticated),
    ],
    ids=str,
)
async def test_codes_that_are_refused(
    server: FakeServer, provider: Provider, answer: tuple[int, Any], error: type[PasserelleError]
) -> None:
    """A code that is used or invented is the caller's matter, a broken answer the provider's."""
    server.answers["/token"] = answer
    with pytest.raises(error):
        await provider.redeem("code-1", "nonce-1", "verifier-1")


async def test_what_the_id_token_lacks_is_asked_for(server: FakeServer, provider: Provider) -> None:
    """Groups that only userinfo has are taken from there; what the ID token says wins; another person's are refused."""
    answer_with(server, groups=None, userinfo={"sub": "ada", "groups": ["admins"], "preferred_username": "mallory"})
    named = provider.named(await provider.redeem("code-1", "nonce-1", "verifier-1"))
    assert (named.role, named.name) == (Role.ADMIN, "ada")
    answer_with(server, groups=None, userinfo={"sub": "mallory", "groups": ["admins"]})
    with pytest.raises(Unauthenticated):
        await provider.redeem("code-1", "nonce-1", "verifier-1")


@pytest.mark.parametrize(
    ("found", "role"),
    [
        ({"groups": ["users"]}, Role.MEMBER),
        ({"groups": "users"}, Role.MEMBER),
        ({"groups": ["users", "admins", "x"]}, Role.ADMIN),
        ({"groups": []}, None),
        ({"groups": ["Users"]}, None),
        ({"groups": [["users"], {"users": 1}, 3]}, None),
        ({"groups": {"users": True}}, None),
        ({}, None),
    ],
    ids=str,
)
def test_roles_come_from_claims(found: dict[str, Any], role: Role | None) -> None:
    """Exact values only, the most powerful of several; without one nobody gets in."""
    provider = provider_of(FakeServer())
    if role is None:
        with pytest.raises(Forbidden) as caught:
            provider.named(claims(**found))
        assert caught.value.error_code == "no_role"
    else:
        assert provider.named(claims(**found)).role is role


def test_claims_deep_inside_and_with_dots_in_their_names() -> None:
    """``realm_access.roles`` is a way, and a claim that is a URL is a name."""
    deep = Mapped(role_claim="realm_access.roles", roles={"u": Role.MEMBER})
    url = Mapped(role_claim="https://example.org/roles", roles={"u": Role.MEMBER})
    named = provider_of(FakeServer(), mapped=deep).named(claims(realm_access={"roles": ["u"]}))
    assert named.role is Role.MEMBER
    named = provider_of(FakeServer(), mapped=url).named(claims(**{"https://example.org/roles": ["u"]}))
    assert named.role is Role.MEMBER
    with pytest.raises(Forbidden):
        provider_of(FakeServer(), mapped=deep).named(claims(realm_access="u"))


def test_places_come_from_claims() -> None:
    """Organisation and project follow their tables; two places at once are none."""
    mapped = Mapped(
        default_role=Role.VIEWER,
        organisation_claim="tenant",
        organisations={"a": "org_a", "b": "org_b"},
        project_claim="team",
        projects={"x": "prj_x"},
    )
    provider = provider_of(FakeServer(), mapped=mapped)
    named = provider.named(claims(tenant="a", team=["x", "y"]))
    assert (named.organisation, named.project, named.role) == ("org_a", "prj_x", Role.VIEWER)
    named = provider.named(claims(tenant="c"))
    assert (named.organisation, named.project) == ("default", None)
    with pytest.raises(Forbidden):
        provider.named(claims(tenant=["a", "b"]))


@pytest.mark.parametrize(
    ("found", "name", "email"),
    [
        ({"preferred_username": "ada", "name": "Ada L.", "email": "Ada@Example.org"}, "ada", "ada@example.org"),
        ({"name": "Ada\n L.\0"}, "Ada L.", None),
        ({"email": "a@b.org", "email_verified": False}, "a@b.org", None),
        ({"email": "a@b.org", "email_verified": True}, "a@b.org", "a@b.org"),
        ({"email": ["a@b.org"], "name": 7}, "ada", None),
    ],
    ids=str,
)
def test_names_and_addresses(found: dict[str, Any], name: str, email: str | None) -> None:
    """Names are made printable; an address that the provider did not verify is none."""
    provider = provider_of(FakeServer(), mapped=Mapped(default_role=Role.MEMBER))
    named = provider.named(claims(**found))
    assert (named.name, named.email, named.subject) == (name, email, f"{ISSUER}|ada")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nothing secret is in the repr of what is configured."""
    yield
    assert "s:ecret%" not in repr(provider_of(FakeServer()).relation)
