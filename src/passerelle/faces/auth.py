"""``/auth``: how people sign on and off, register, and get new passwords, with a password or at their provider.

Whoever changes something here from a page sends JSON, from our own origin. What is guessed is throttled by account and
by address; whether a person exists is not told by answers, nor by their time.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs

import msgspec

from passerelle.domain.client import Headers
from passerelle.domain.errors import BadRequest, Conflict, Forbidden, Unauthenticated, UnsupportedMedia
from passerelle.domain.principal import Principal
from passerelle.edge.dispatch import Context
from passerelle.edge.exchange import credentials, header
from passerelle.faces.auth_page import CONTENT_SECURITY_POLICY, RESET_PAGE
from passerelle.faces.auth_wire import (
    Accepted,
    Change,
    Forgotten,
    Methods,
    Person,
    Registered,
    Registration,
    Reset,
    SignedIn,
    SignIn,
    Token,
)
from passerelle.faces.body import decode
from passerelle.faces.browser import Browser
from passerelle.identity.accounts import Account, Accounts, password_link
from passerelle.identity.audit import Actor
from passerelle.identity.authenticator import credential
from passerelle.identity.jwt import Tokens
from passerelle.identity.mail import Mailer, is_address
from passerelle.identity.oidc import Provider
from passerelle.identity.secrets import Secrets
from passerelle.identity.sessions import Opened, Sessions, csrf_token
from passerelle.identity.throttle import ACCOUNT, ADDRESS, LETTERS, Subject, Throttle

OIDC_COOKIE = "passerelle_oidc"
OIDC_COOKIE_S = 600
_OIDC_PATH = "/auth/oidc"
_OIDC_KEY = "oidc-state"
_LOCAL_PATH = re.compile(r"/(?![/\\])[A-Za-z0-9\-._~!$&'()*+,;=:@%/?#]{0,500}")


@dataclass(frozen=True, slots=True)
class AuthRules:
    """What an operator chose. ``public_url`` is the address that links lead to."""

    passwords: bool = True
    registration: bool = True
    registration_organisation: str = "default"
    public_url: str | None = None
    after_sign_in: str = "/"


@dataclass(frozen=True, slots=True)
class SignOn:
    """What stands behind the face."""

    accounts: Accounts
    sessions: Sessions
    tokens: Tokens
    throttle: Throttle
    secrets: Secrets
    browser: Browser
    mailer: Mailer | None
    provider: Provider | None


class AuthFace:
    """``/auth``."""

    def __init__(self, sign_on: SignOn, rules: AuthRules, *, token_lifetime_s: int, session_lifetime_s: float) -> None:
        self._on = sign_on
        self._rules = rules
        self._token_lifetime_s = token_lifetime_s
        self._session_lifetime_s = session_lifetime_s

    async def methods(self, context: Context) -> None:
        """``GET /auth/methods``: for a sign-in page."""
        has_mail = self._on.mailer is not None and self._rules.public_url is not None
        rules = self._rules
        found = Methods(
            rules.passwords,
            self._on.provider is not None,
            rules.passwords and rules.registration,
            rules.passwords and has_mail,
        )
        await _respond(context, found)

    async def sign_in(self, context: Context) -> None:
        """``POST /auth/sign-in``: a password becomes a session, always a new one."""
        account = await self._proved(context)
        opened = await self._open(context, account, "password")
        await self._welcome(context, account, opened)

    async def token(self, context: Context) -> None:
        """``POST /auth/token``: a password becomes a bearer token for programs."""
        account = await self._proved(context)
        token = await self._on.tokens.issue(account)
        await self._on.accounts.record_sign_in(account, "token", context.address, context.request_id)
        await _respond(context, Token(token, self._token_lifetime_s))

    async def sign_out(self, context: Context) -> None:
        """``POST /auth/sign-out``: ends the session, or the bearer token, that the request brings."""
        caller = context.caller
        actor = Actor.of(caller, context.address, context.request_id)
        token = credential(*credentials(context.exchange.headers))
        if token is None:
            session, _ = await self._on.browser.session(context.exchange)
            await self._on.sessions.close(session, actor)
        elif self._on.tokens.looks_like_one(token):
            await self._on.tokens.revoke(token, actor)
        else:
            raise Forbidden("A key does not sign out: revoke it instead.", code="not_a_session")
        cookie = self._on.browser.clear_cookie(self._on.browser.cookie_name)
        await _respond(context, Accepted("Signed out."), headers=[cookie])

    async def session(self, context: Context) -> None:
        """``GET /auth/session``: who the caller is, and the CSRF token of a session."""
        csrf = None
        if credential(*credentials(context.exchange.headers)) is None:
            _, cookie = await self._on.browser.session(context.exchange)
            csrf = csrf_token(cookie)
        caller = context.caller
        account = None if caller.user is None else await self._on.accounts.get(caller.user)
        await _respond(context, _signed_in(caller, account, csrf))

    async def register(self, context: Context) -> None:
        """``POST /auth/register``: makes an account that an administrator has to confirm."""
        if not (self._rules.passwords and self._rules.registration):
            raise Forbidden("Nobody registers here by themselves; ask an administrator.", code="registration_closed")
        body = await self._body(context, Registration)
        if not is_address(body.email.strip()):
            raise BadRequest("Field `email`: this is not an e-mail address.", param="email")
        await self._on.throttle.attempt([Subject(f"register:{_network(context.address)}", LETTERS)])
        account = await self._on.accounts.register(
            body.name,
            body.email,
            body.password,
            organisation=self._rules.registration_organisation,
            address=context.address,
            request_id=context.request_id,
        )
        await _respond(context, Registered(account.id, "User created. An admin must confirm the user."), status=201)

    async def forgot(self, context: Context) -> None:
        """``POST /auth/password/forgot``: sends a link, if there is such a person; the answer is always the same."""
        body = await self._body(context, Forgotten)
        mailer, public_url = self._on.mailer, self._rules.public_url
        if mailer is None or public_url is None or not self._rules.passwords:
            raise Conflict(
                "This installation sends no mail: ask an administrator for a link.", code="mail_not_configured"
            )
        login = body.login.strip().lower()
        subjects = [Subject(f"forgot:{login}", LETTERS), Subject(f"forgot:{_network(context.address)}", ADDRESS)]
        await self._on.throttle.attempt(subjects)
        account = await self._on.accounts.look_up(login)
        # The token is made for nobody too: the time it takes tells nothing.
        token = await self._on.accounts.reset_token(account or _NOBODY)
        if account is not None and account.email is not None and not account.disabled:
            mailer.post(account.email, "A new password", _letter(account, password_link(public_url, token)))
        await _respond(
            context, Accepted("If there is such an account, a link is on its way to its address."), status=202
        )

    async def reset(self, context: Context) -> None:
        """``POST /auth/password/reset``: a link becomes a new password, once."""
        body = await self._body(context, Reset)
        await self._on.throttle.attempt([Subject(f"reset:{_network(context.address)}", ADDRESS)])
        account = await self._on.accounts.reset_password(body.token, body.password, context.address, context.request_id)
        self._on.sessions.forget(account.id)
        await _respond(context, Accepted("The password was changed; sign in with it."))

    async def reset_page(self, context: Context) -> None:
        """``GET /auth/password/reset``: the page that a link leads to."""
        headers: Headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            (b"x-request-id", context.request_id.encode()),
        ]
        await context.exchange.client.respond(200, headers, RESET_PAGE.encode())

    async def change(self, context: Context) -> None:
        """``POST /auth/password/change``: a new password; every other session ends, this one gets a new cookie."""
        body = await self._body(context, Change)
        caller = context.caller
        if caller.user is None or not caller.key_id.startswith("session:"):
            raise Forbidden("Only a person who is signed in changes a password.", code="not_a_session")
        actor = Actor.of(caller, context.address, context.request_id)
        await self._on.throttle.attempt([Subject(f"change:{caller.user}", ACCOUNT)])
        await self._on.accounts.change_password(caller.user, body.old, body.new, actor)
        await self._on.throttle.succeeded(Subject(f"change:{caller.user}", ACCOUNT))
        self._on.sessions.forget(caller.user)
        account = await self._on.accounts.get(caller.user)
        assert account is not None
        opened = await self._on.sessions.open(account, address=context.address, agent=_agent(context))
        await self._welcome(context, account, opened)

    async def oidc_login(self, context: Context) -> None:
        """``GET /auth/oidc/login?next=/…``: sends the browser to the identity provider."""
        import jwt  # ten megabytes, cryptography with it, that a process without sign-on never needs

        provider = self._provider()
        (after,) = _query(context, "next")
        after = after if after is not None and _LOCAL_PATH.fullmatch(after) else self._rules.after_sign_in
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        url = await provider.authorization_url(state, nonce, verifier)
        # Browsers forget it by then; a copy has to end, too.
        end_s = int(time.time()) + OIDC_COOKIE_S
        kept = {"state": state, "nonce": nonce, "verifier": verifier, "next": after, "exp": end_s}
        value = jwt.encode(kept, await self._on.secrets.get(_OIDC_KEY), algorithm="HS256")
        cookie = self._on.browser.set_cookie(OIDC_COOKIE, value, max_age_s=OIDC_COOKIE_S, path=_OIDC_PATH)
        await _redirect(context, url, [cookie])

    async def oidc_callback(self, context: Context) -> None:
        """``GET /auth/oidc/callback``: whom the provider sends back gets a session."""
        provider = self._provider()
        kept = await self._kept(context)
        code, state, error = _query(context, "code", "state", "error")
        # Who did not begin here is not let in: else somebody could sign a person on to another's account.
        if kept is None or state is None or not secrets.compare_digest(state.encode(), kept["state"].encode()):
            raise BadRequest("This sign-in did not begin here, or took too long: begin again.", code="sign_in_expired")
        if error is not None or code is None:
            raise Unauthenticated("The identity provider did not sign you in.", code="sign_in_refused")
        try:
            named = provider.named(await provider.redeem(code, kept["nonce"], kept["verifier"]))
            account = await self._on.accounts.adopt(
                named.subject,
                name=named.name,
                email=named.email,
                role=named.role,
                organisation=named.organisation,
                project=named.project,
                create=provider.relation.create_users,
                address=context.address,
            )
        except (Unauthenticated, Forbidden) as refusal:
            await self._on.accounts.record_failure(
                "identity provider", refusal.error_code, context.address, context.request_id
            )
            raise
        opened = await self._open(context, account, "identity provider")
        cookies = [self._cookie(opened), self._on.browser.clear_cookie(OIDC_COOKIE, path=_OIDC_PATH)]
        await _redirect(context, kept["next"], cookies)

    async def _proved(self, context: Context) -> Account:
        """Returns the person whose password the body holds, throttled, with every failure in the audit log."""
        if not self._rules.passwords:
            raise Forbidden("Nobody signs in with a password here; use the identity provider.", code="passwords_off")
        body = await self._body(context, SignIn)
        known = await self._on.accounts.look_up(body.login)
        # By id: the name and the address of one person are one account to guess at.
        account = Subject(f"account:{known.id if known else body.login.strip().lower()}", ACCOUNT)
        address = Subject(f"address:{_network(context.address)}", ADDRESS)
        await self._on.throttle.attempt([account, address])
        try:
            found = await self._on.accounts.sign_in(body.login, body.password)
        except (Unauthenticated, Forbidden) as refusal:
            await self._on.accounts.record_failure(body.login, refusal.error_code, context.address, context.request_id)
            raise
        await self._on.throttle.succeeded(account, address)
        return found

    async def _open(self, context: Context, account: Account, how: str) -> Opened:
        try:
            before, _ = await self._on.browser.session(context.exchange)
        except Unauthenticated:
            pass
        else:
            await self._on.sessions.close(before, Actor.of(before.principal, context.address, context.request_id))
        opened = await self._on.sessions.open(account, address=context.address, agent=_agent(context))
        await self._on.accounts.record_sign_in(account, how, context.address, context.request_id)
        return opened

    async def _welcome(self, context: Context, account: Account, opened: Opened) -> None:
        answer = _signed_in(opened.session.principal, account, opened.csrf)
        await _respond(context, answer, headers=[self._cookie(opened)])

    def _cookie(self, opened: Opened) -> tuple[bytes, bytes]:
        browser = self._on.browser
        return browser.set_cookie(browser.cookie_name, opened.cookie, max_age_s=self._session_lifetime_s)

    async def _body(self, context: Context, kind: type[Any]) -> Any:
        """Reads a body that no form of another site can send."""
        self._on.browser.check_origin(context.exchange)
        kind_of_body = (header(context.exchange.headers, b"content-type") or b"").partition(b";")[0].strip().lower()
        if kind_of_body != b"application/json":
            raise UnsupportedMedia("Send JSON, with 'content-type: application/json'.")
        return decode(await context.exchange.body(), msgspec.json.Decoder(kind))

    async def _kept(self, context: Context) -> dict[str, str] | None:
        import jwt  # ten megabytes, cryptography with it, that a process without sign-on never needs

        value = self._on.browser.cookie(context.exchange, OIDC_COOKIE)
        if value is None:
            return None
        try:
            key = await self._on.secrets.get(_OIDC_KEY)
            return jwt.decode(value, key, algorithms=["HS256"], options={"require": ["exp"]})
        except (jwt.InvalidTokenError, ValueError):
            return None

    def _provider(self) -> Provider:
        if self._on.provider is None:
            raise Conflict("No identity provider is configured here.", code="oidc_not_configured")
        return self._on.provider


def _letter(account: Account, link: str) -> str:
    return (
        f"Hello {account.name},\n\nsomebody, probably you, asked for a new password. This link sets one, once, "
        f"within an hour:\n\n{link}\n\nIf it was not you, do nothing: your password stays as it is.\n"
    )


def _signed_in(caller: Principal, account: Account | None, csrf: str | None) -> SignedIn:
    person = None
    if account is not None:
        person = Person(account.id, account.name, account.email, account.role, account.organisation, account.project)
    expires_at_ms = None if caller.expires_at is None else int(caller.expires_at * 1000)
    scopes = sorted(scope.value for scope in caller.scopes)
    return SignedIn(person, caller.key_id, scopes, caller.organisation, csrf, expires_at_ms)


async def _respond(context: Context, value: object, *, status: int = 200, headers: Sequence[Any] = ()) -> None:
    all_headers: Headers = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"x-request-id", context.request_id.encode()),
        *headers,
    ]
    await context.exchange.client.respond(status, all_headers, msgspec.json.encode(value))


async def _redirect(context: Context, url: str, cookies: Sequence[tuple[bytes, bytes]]) -> None:
    headers: Headers = [
        (b"location", url.encode()),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
    ]
    headers += [(b"x-request-id", context.request_id.encode()), *cookies]
    await context.exchange.client.respond(302, headers, b"")


def _query(context: Context, *names: str) -> list[str | None]:
    """The parameters of those names. A provider may send others, so they are no mistake."""
    try:
        found = parse_qs(context.exchange.query.decode("ascii"), errors="strict", max_num_fields=50)
    except ValueError:
        raise BadRequest("The query of the address is malformed.") from None
    if any(len(found.get(name, ())) > 1 for name in names):
        raise BadRequest("A query parameter is there twice.")
    return [found[name][0] if name in found else None for name in names]


def _network(address: str | None) -> str:
    """What one household or machine can choose of its addresses: an IPv6 /64 is one place."""
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return "unknown"
    return str(parsed) if parsed.version == 4 else parsed.exploded[:19]


def _agent(context: Context) -> str | None:
    agent = header(context.exchange.headers, b"user-agent")
    return None if agent is None else agent.decode("latin-1").replace("\0", "")


def _nobody() -> Account:
    from passerelle.domain.principal import Role

    return Account("nobody", "", None, "", None, Role.VIEWER, False, True, False, 0, None, None)


_NOBODY = _nobody()
