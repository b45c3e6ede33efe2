"""What ``/auth`` reads and answers, and its routes as documentation."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from passerelle.edge.dispatch import ANY_KEY
from passerelle.faces.admin.resource import Body
from passerelle.faces.described import Described

Login = Annotated[str, Meta(min_length=1, max_length=320)]
Password = Annotated[str, Meta(min_length=1, max_length=1024)]


class SignIn(Body):
    """``login`` is a name or an e-mail address."""

    login: Login
    password: Password


class Registration(Body):
    """A person who wants an account."""

    name: Annotated[
        str, Meta(min_length=1, max_length=100, pattern=r"^[^\s\x00-\x1f@/]([^\x00-\x1f@/]*[^\s\x00-\x1f@/])?\Z")
    ]
    email: Annotated[str, Meta(min_length=3, max_length=254)]
    password: Password


class Forgotten(Body):
    """``login`` is a name or an e-mail address."""

    login: Login


class Reset(Body):
    """``token`` is what the link has behind ``#``."""

    token: Annotated[str, Meta(min_length=1, max_length=2000)]
    password: Password


class Change(Body):
    """Both passwords of the person who is signed in."""

    old: Password
    new: Password


class Person(msgspec.Struct):
    """Who is signed in. ``project`` is the one this person is confined to, null for every one."""

    id: str
    name: str
    email: str | None
    role: str
    organisation: str
    project: str | None


class SignedIn(msgspec.Struct):
    """A session. ``csrf`` goes into the header ``x-csrf-token`` of requests that change something."""

    user: Person | None
    key: str
    scopes: list[str]
    organisation: str
    csrf: str | None
    expires_at_ms: int | None


class Token(msgspec.Struct):
    """A bearer token for the API."""

    token: str
    expires_in_s: int


class Registered(msgspec.Struct):
    """What became of a registration."""

    id: str
    message: str


class Methods(msgspec.Struct):
    """The ways to sign on that this installation has."""

    password: bool
    identity_provider: bool
    registration: bool
    password_reset: bool


class Accepted(msgspec.Struct):
    """It was done, or will be if it can be."""

    message: str


_TOO_MANY = {429: "Too many attempts; `Retry-After` says how long to wait."}
AUTH = (
    Described("GET", "/auth/methods", "Sign-on", "authMethods", "How can people sign on here?", None, Methods),
    Described(
        "POST",
        "/auth/sign-in",
        "Sign-on",
        "signIn",
        "Sign in with a password: a session cookie",
        None,
        SignedIn,
        SignIn,
        errors={401: "The name or the password is wrong.", 403: "Not confirmed, or disabled.", **_TOO_MANY},
    ),
    Described(
        "POST",
        "/auth/token",
        "Sign-on",
        "authToken",
        "Sign in with a password: a bearer token for programs",
        None,
        Token,
        SignIn,
        errors={401: "The name or the password is wrong.", 403: "Not confirmed, or disabled.", **_TOO_MANY},
    ),
    Described("POST", "/auth/sign-out", "Sign-on", "signOut", "End this session or token", ANY_KEY, Accepted),
    Described("GET", "/auth/session", "Sign-on", "session", "Who am I, and what may I do?", ANY_KEY, SignedIn),
    Described(
        "POST",
        "/auth/register",
        "Sign-on",
        "register",
        "Ask for an account, which an administrator confirms",
        None,
        Registered,
        Registration,
        status=201,
        errors={403: "Registration is closed.", 409: "The name or address is taken.", **_TOO_MANY},
    ),
    Described(
        "POST",
        "/auth/password/forgot",
        "Sign-on",
        "forgotPassword",
        "Send a link for a new password",
        None,
        Accepted,
        Forgotten,
        status=202,
        errors={409: "No mail is sent here.", **_TOO_MANY},
    ),
    Described(
        "POST",
        "/auth/password/reset",
        "Sign-on",
        "resetPassword",
        "Set a new password with a link's token",
        None,
        Accepted,
        Reset,
        errors=_TOO_MANY,
    ),
    Described(
        "GET",
        "/auth/password/reset",
        "Sign-on",
        "resetPasswordPage",
        "The page that a link leads to",
        None,
        None,
        content_type="text/html",
    ),
    Described(
        "POST",
        "/auth/password/change",
        "Sign-on",
        "changePassword",
        "Change one's own password",
        ANY_KEY,
        SignedIn,
        Change,
        errors=_TOO_MANY,
    ),
    Described(
        "GET",
        "/auth/oidc/login",
        "Sign-on",
        "oidcLogin",
        "Go to the identity provider to sign in",
        None,
        None,
        status=302,
        errors={409: "No identity provider is configured.", 503: "It does not answer."},
    ),
    Described(
        "GET",
        "/auth/oidc/callback",
        "Sign-on",
        "oidcCallback",
        "Come back from the identity provider",
        None,
        None,
        status=302,
        errors={
            400: "The sign-in did not begin here, or took too long.",
            401: "The provider did not sign the person in.",
            403: "No role here, or disabled.",
            409: "No identity provider is configured.",
            503: "It does not answer.",
        },
    ),
)
