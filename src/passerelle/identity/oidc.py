"""OpenID Connect: people sign on at their own identity provider, and bring its tokens to the API.

The provider is known by its discovery document and its published keys; both are fetched when first needed, kept for an
hour, and fetched anew when no key that we have fits a token, at most every 10 seconds. A provider that does not
answer makes 503, never 401: being unable to check a token says nothing about it.

Sources: OpenID Connect Core 1.0 (3.1, the code flow; 3.1.3.7, what to check of an ID token), Discovery 1.0, RFC 7636
(PKCE), RFC 8725 (what goes wrong with JWTs).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from passerelle.domain.errors import Forbidden, PasserelleError, Unauthenticated, Unavailable
from passerelle.domain.principal import Role

LEEWAY_S = 60
"""How far the provider's clock may be from ours."""
KEEP_S = 3600.0
REFETCH_S = 10.0
"""Between two fetches of the keys because of tokens that no known one fits."""
RETRY_S = 2.0
"""After a fetch that failed."""
MAX_TOKEN_BYTES = 16_384
MAX_CLAIM_CHARACTERS = 255

_ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
"""Signatures by kind of key. No shared secrets: a public key must never become one."""
_log = logging.getLogger("passerelle.identity")
_T = TypeVar("_T")


class Fetch(Protocol):
    """How documents are fetched: returns status and body, raises OSError without an answer."""

    async def __call__(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, bytes]:
        """Sends one request."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """How the provider's claims become a place here. Keys of the tables are the claims' values."""

    role_claim: str | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    default_role: Role | None = None
    organisation_claim: str | None = None
    organisations: Mapping[str, str] = field(default_factory=dict)
    organisation: str = "default"
    project_claim: str | None = None
    projects: Mapping[str, str] = field(default_factory=dict)
    name_claim: str | None = None


@dataclass(frozen=True, slots=True)
class Relation:
    """What Passerelle and the provider agreed on. ``audience`` None: bearer tokens of it are not taken by the API."""

    issuer: str
    client_id: str
    redirect_url: str
    client_secret: str | None = field(default=None, repr=False)
    audience: str | None = None
    scopes: Sequence[str] = ("openid", "profile", "email")
    create_users: bool = True
    mapped: Mapped = Mapped()


@dataclass(frozen=True, slots=True)
class Named:
    """Whom the provider named, and as what."""

    subject: str
    """``issuer|sub``."""
    name: str
    email: str | None
    role: Role
    organisation: str
    project: str | None


class Metadata(msgspec.Struct):
    """The discovery document, as far as it is used."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    token_endpoint_auth_methods_supported: list[str] = msgspec.field(default_factory=lambda: ["client_secret_basic"])


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]


class _Tokens(msgspec.Struct):
    id_token: str
    access_token: str | None = None


class Provider:
    """An identity provider. Its methods raise Unavailable when it does not answer, or not as it should."""

    def __init__(self, relation: Relation, fetch: Fetch) -> None:
        self.relation = relation
        self._fetch = fetch
        self._metadata: Metadata | None = None
        self._metadata_at_s = -inf
        self._keys: list[dict[str, Any]] = []
        self._keys_at_s = -inf
        self._failed_at_s = -inf
        self._fetching = asyncio.Lock()

    async def authorization_url(self, state: str, nonce: str, verifier: str) -> str:
        """Returns where to send a person to sign on."""
        metadata = await self._discovered()
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self.relation.client_id,
                "redirect_uri": self.relation.redirect_url,
                "scope": " ".join(self.relation.scopes),
                "state": state,
                "nonce": nonce,
                "code_challenge": _challenge(verifier),
                "code_challenge_method": "S256",
            }
        )
        return f"{metadata.authorization_endpoint}{'&' if '?' in metadata.authorization_endpoint else '?'}{query}"

    async def redeem(self, code: str, nonce: str, verifier: str) -> Mapping[str, Any]:
        """Returns the claims about the person who came back with ``code``. Raises Unauthenticated for a bad one."""
        metadata = await self._discovered()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.relation.redirect_url,
            "client_id": self.relation.client_id,
            "code_verifier": verifier,
        }
        headers = {"content-type": "application/x-www-form-urlencoded"}
        secret = self.relation.client_secret
        if secret is not None and "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
            pair = f"{quote(self.relation.client_id, safe='')}:{quote(secret, safe='')}"
            headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        elif secret is not None:
            form["client_secret"] = secret
        status, body = await self._ask("POST", metadata.token_endpoint, headers, urlencode(form).encode())
        if status in (400, 401, 403):
            _log.warning("the identity provider refused a code: %s %s", status, _error_code(body))
            raise _refused()
        tokens = self._decoded(_Tokens, status, body, "the token endpoint")
        claims = await self.verify(tokens.id_token, self.relation.client_id)
        authorized = claims.get("azp", self.relation.client_id)
        if authorized != self.relation.client_id or not _same(claims.get("nonce"), nonce):
            raise _refused()
        return await self._completed(claims, metadata, tokens.access_token)

    async def verify(self, token: str, audience: str) -> Mapping[str, Any]:
        """Returns the claims of a token that the provider signed for ``audience`` and that holds now.

        Raises Unauthenticated, always the same one.
        """
        import jwt  # ten megabytes, cryptography with it, that a process without sign-on never needs

        if len(token) > MAX_TOKEN_BYTES:
            raise _refused()
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.InvalidTokenError, UnicodeError, ValueError, RecursionError):
            raise _refused() from None
        algorithm, kid = header.get("alg"), header.get("kid")
        known = [name for names in _ALGORITHMS.values() for name in names]
        if algorithm not in known or "crit" in header or not isinstance(kid, str | None):
            raise _refused()
        try:
            try:
                claims = self._read(token, await self._key(algorithm, kid), algorithm, audience)
            except jwt.InvalidSignatureError:
                # A new key may have come under the old name, or without one.
                await self._fetch_keys(REFETCH_S)
                claims = self._read(token, await self._key(algorithm, kid), algorithm, audience)
        except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError) as error:
            _log.info("a token of the identity provider was refused: %s", type(error).__name__)
            raise _refused() from None
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_CLAIM_CHARACTERS or "\0" in subject:
            raise _refused()
        return claims

    def _read(self, token: str, key: Any, algorithm: str, audience: str) -> dict[str, Any]:
        import jwt  # ten megabytes, cryptography with it, that a process without sign-on never needs

        options: Any = {"require": ["exp", "iat", "iss", "aud", "sub"]}
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=audience,
            issuer=self.relation.issuer,
            leeway=LEEWAY_S,
            options=options,
        )
        return claims

    def named(self, claims: Mapping[str, Any]) -> Named:
        """Returns who these claims are about. Raises Forbidden when they give no role here."""
        mapped = self.relation.mapped
        role = _role(mapped, claims)
        if role is None:
            raise Forbidden("Your identity provider gives you no role here; ask an administrator.", code="no_role")
        email = _text(claims.get("email"))
        if claims.get("email_verified") is False or email is None or "@" not in email:
            email = None
        names = (mapped.name_claim, "preferred_username", "name", "email", "sub")
        name = next(filter(None, (_text(_claim(claims, each)) for each in names if each)), "?")
        return Named(
            subject=f"{self.relation.issuer}|{claims['sub']}",
            name=name,
            email=None if email is None else email.lower(),
            role=role,
            organisation=_place(claims, mapped.organisation_claim, mapped.organisations) or mapped.organisation,
            project=_place(claims, mapped.project_claim, mapped.projects),
        )

    async def _completed(
        self, claims: Mapping[str, Any], metadata: Metadata, access_token: str | None
    ) -> Mapping[str, Any]:
        """Adds what the provider says only at its userinfo endpoint: groups and names often stand there alone."""
        mapped = self.relation.mapped
        wanted = [each for each in (mapped.role_claim, mapped.organisation_claim, mapped.project_claim) if each]
        wanted.append(mapped.name_claim or "preferred_username")
        if access_token is None or metadata.userinfo_endpoint is None:
            return claims
        if all(_claim(claims, each) is not None for each in wanted):
            return claims
        headers = {"authorization": f"Bearer {access_token}"}
        status, body = await self._ask("GET", metadata.userinfo_endpoint, headers)
        more = self._decoded(dict[str, Any], status, body, "the userinfo endpoint")
        if more.get("sub") != claims["sub"]:
            raise _refused()
        return {**more, **claims}

    async def _key(self, algorithm: str, kid: str | None) -> Any:
        if time.monotonic() - self._keys_at_s > KEEP_S:
            await self._fetch_keys(KEEP_S)
        found = self._fitting(algorithm, kid)
        if len(found) != 1:
            await self._fetch_keys(REFETCH_S)
            found = self._fitting(algorithm, kid)
        if len(found) != 1:
            raise _refused()
        return found[0]

    def _fitting(self, algorithm: str, kid: str | None) -> list[Any]:
        """The keys that a signature of this algorithm may be of; a key for something else is none."""
        import jwt  # ten megabytes, cryptography with it, that a process without sign-on never needs

        found = []
        for document in self._keys:
            if algorithm not in _ALGORITHMS.get(str(document.get("kty")), ()):
                continue
            if document.get("use", "sig") != "sig" or document.get("alg", algorithm) != algorithm:
                continue
            if kid is not None and document.get("kid") != kid:
                continue
            try:
                found.append(jwt.PyJWK.from_dict(document, algorithm=algorithm).key)
            except (jwt.PyJWTError, ValueError, TypeError):
                continue
        return found

    async def _fetch_keys(self, older_than_s: float) -> None:
        """Fetches the keys unless that was done lately; a provider that is down leaves those we have for a day."""
        async with self._fetching:
            age_s = time.monotonic() - self._keys_at_s
            if age_s < older_than_s:
                return
            try:
                metadata = await self._discovered_alone()
                status, body = await self._ask("GET", metadata.jwks_uri)
                self._keys = self._decoded(_KeySet, status, body, "the keys").keys
            except Unavailable:
                if not self._keys or age_s > 24 * KEEP_S or older_than_s == REFETCH_S:
                    raise
            else:
                self._keys_at_s = time.monotonic()

    async def _discovered(self) -> Metadata:
        if self._metadata is not None and time.monotonic() - self._metadata_at_s < KEEP_S:
            return self._metadata
        async with self._fetching:
            return await self._discovered_alone()

    async def _discovered_alone(self) -> Metadata:
        if self._metadata is not None and time.monotonic() - self._metadata_at_s < KEEP_S:
            return self._metadata
        url = self.relation.issuer.rstrip("/") + "/.well-known/openid-configuration"
        status, body = await self._ask("GET", url)
        metadata = self._decoded(Metadata, status, body, "the discovery document")
        if metadata.issuer != self.relation.issuer:
            _log.error("the identity provider calls itself %r, not %r", metadata.issuer[:200], self.relation.issuer)
            raise _down()
        self._metadata, self._metadata_at_s = metadata, time.monotonic()
        return metadata

    async def _ask(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, bytes]:
        if time.monotonic() - self._failed_at_s < RETRY_S:
            raise _down()
        try:
            return await self._fetch(method, url, headers, body)
        except OSError as error:
            self._failed_at_s = time.monotonic()
            _log.warning("the identity provider does not answer: %s", error)
            raise _down() from None

    def _decoded(self, kind: type[_T], status: int, body: bytes, what: str) -> _T:
        try:
            if status == 200:
                return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        _log.warning("the identity provider answered %s to %s, not as it should", status, what)
        raise _down()


def _role(mapped: Mapped, claims: Mapping[str, Any]) -> Role | None:
    """The role with the most rights of those the claims give."""
    values = set() if mapped.role_claim is None else _values(_claim(claims, mapped.role_claim))
    given = {mapped.roles[value] for value in values if value in mapped.roles}
    return next((role for role in Role if role in given), mapped.default_role)


def _place(claims: Mapping[str, Any], claim: str | None, table: Mapping[str, str]) -> str | None:
    if claim is None:
        return None
    found = sorted({table[value] for value in _values(_claim(claims, claim)) if value in table})
    if len(found) > 1:
        raise Forbidden(
            "Your identity provider puts you into several places here; ask an administrator.", code="no_role"
        )
    return found[0] if found else None


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by the way to it: ``realm_access.roles``."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _values(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    return {each for each in value if isinstance(each, str)} if isinstance(value, list) else set()


def _text(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    return " ".join("".join(c for c in value if c.isprintable()).split())[:100] or None


def _challenge(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def _same(one: Any, other: str) -> bool:
    return isinstance(one, str) and hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())


def _error_code(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body, type=dict[str, Any]).get("error", ""))[:50]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _refused() -> PasserelleError:
    return Unauthenticated(
        "The token is not valid here, or not any more: sign in again.",
        code="invalid_token",
        headers=((b"www-authenticate", b'Bearer error="invalid_token"'),),
    )


def _down() -> Unavailable:
    return Unavailable(
        "The identity provider cannot be reached right now; retry in a few seconds.",
        code="identity_provider_unavailable",
        retry_after_s=5.0,
    )
