"""People as they sign on: who holds which password, registration, reset links, and who an identity provider names.

What an administrator does to users (roles, confirmation, disabling) is in `passerelle.identity.users`. Whoever signs
on gets the rights of their role, within what their organisation and project may use.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, case, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.errors import BadRequest, Conflict, Forbidden, NotFound, Unauthenticated, Unavailable
from passerelle.domain.ids import new_id
from passerelle.domain.principal import ROLE_SCOPES, Principal, Role
from passerelle.identity.audit import EVERYWHERE, Actor, append
from passerelle.identity.keys import end_keys_of_user
from passerelle.identity.passwords import Passwords, check
from passerelle.identity.secrets import Secrets
from passerelle.storage.engine import Database, StorageRejected
from passerelle.storage.tables import organisations, projects, revoked_tokens, sequences, sessions, users

RESET_S = 3600
"""How long a reset link can be used."""
MAX_PENDING = 1000
"""People who registered and wait for an administrator; more are told to come back."""
_RESET_KEY = "password-reset"
_RESET_AUDIENCE = "password-reset"


@dataclass(frozen=True, slots=True)
class Account:
    """A person as far as sign-on goes. Times are milliseconds since the epoch; ``models`` None means every model."""

    id: str
    organisation: str
    project: str | None
    name: str
    email: str | None
    role: Role
    confirmed: bool
    disabled: bool
    archived: bool
    """Their organisation or project was archived."""
    signed_out_at_ms: int
    models: frozenset[str] | None
    services: frozenset[str] | None
    password_hash: str | None = field(default=None, repr=False)

    def principal(self, expires_at: float | None = None) -> Principal:
        """Returns the caller that this person is once signed on."""
        return Principal(
            key_id=f"session:{self.id}",
            key_name=self.name,
            organisation=self.organisation,
            project=self.project or "default",
            user=self.id,
            scopes=ROLE_SCOPES[self.role],
            models=self.models,
            services=self.services,
            expires_at=expires_at,
            role=self.role,
            confined=self.project is not None,
        )

    def actor(self, address: str | None = None, request_id: str | None = None) -> Actor:
        """Returns who the audit log says that did it."""
        return Actor("user", self.id, self.name, address, request_id)

    def admit(self) -> Account:
        """Returns the account when it may sign on. Raises Forbidden with the reason."""
        if self.disabled or self.archived:
            raise Forbidden("This account is disabled; ask an administrator.", code="user_disabled")
        if not self.confirmed:
            raise Forbidden("An administrator has to confirm this account first.", code="user_not_confirmed")
        return self


class Accounts:
    """The accounts of a database. ``clock`` gives seconds since the epoch. Every method may raise StorageError."""

    def __init__(
        self, database: Database, passwords: Passwords, secrets: Secrets, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._secrets = secrets
        self._clock = clock

    async def sign_in(self, login: str, password: str) -> Account:
        """Returns the person with this name or e-mail address and password.

        Raises Unauthenticated, always the same one and after the same time, and Forbidden with the reason only to who
        knows the password.
        """
        account = await self.look_up(login)
        right, better = await self._passwords.verify(password, None if account is None else account.password_hash)
        if account is None or not right:
            raise Unauthenticated("The name or the password is wrong.", code="invalid_credentials")
        account.admit()
        async with self._database.write() as connection:
            values: dict[str, Any] = {"last_seen_at_ms": self._now_ms()}
            if better is not None:
                values["password_hash"] = better
            await connection.execute(update(users).where(users.c.id == account.id).values(**values))
        return account

    async def get(self, user_id: str) -> Account | None:
        """Returns a person by id."""
        return await self._one(_query().where(users.c.id == user_id))

    async def find(self, login: str) -> Account:
        """Returns the person whom an administrator means by e-mail address, name or id. Raises NotFound."""
        found = await self.look_up(login) or await self.get(login)
        if found is None:
            raise NotFound(f"There is no user {login!r}.")
        return found

    async def register(
        self, name: str, email: str, password: str, *, organisation: str, address: str | None, request_id: str | None
    ) -> Account:
        """Makes an account that may do nothing until an administrator confirms it.

        Raises BadRequest for a weak password, Conflict when the name or address is taken, and Unavailable when too many
        wait for confirmation.
        """
        email = email.strip().lower()
        check(password, (name, email))
        hashed = await self._passwords.hash(password)
        user_id = new_id("user")
        try:
            async with self._database.write() as connection:
                pending = select(func.count()).select_from(users).where(users.c.confirmed_at_ms.is_(None))
                if (await connection.execute(pending)).scalar_one() >= MAX_PENDING:
                    raise Unavailable("Too many accounts wait for confirmation; try again later.", retry_after_s=3600.0)
                await self._add(connection, user_id, organisation, name, email, Role.MEMBER, password_hash=hashed)
                after = {"name": name, "email": email, "role": Role.MEMBER, "confirmed": False}
                await append(
                    connection,
                    Actor("user", user_id, name, address, request_id),
                    action="user.register",
                    organisation=organisation,
                    subject_kind="user",
                    subject_id=user_id,
                    after=after,
                )
        except StorageRejected:
            raise Conflict("This name or e-mail address is taken.", code="user_exists") from None
        found = await self.get(user_id)
        assert found is not None
        return found

    async def change_password(self, user_id: str, old: str, new: str, actor: Actor) -> None:
        """Replaces a password by who knows it, and ends all sessions. Raises Forbidden and BadRequest."""
        account = await self.get(user_id)
        right, _ = await self._passwords.verify(old, None if account is None else account.password_hash)
        if account is None or not right:
            raise Forbidden("The current password is wrong.", code="wrong_password")
        await self.set_password(account, new, actor, action="user.change_password")

    async def set_password(
        self, account: Account, new: str, actor: Actor, *, action: str = "user.set_password"
    ) -> None:
        """Gives a person a password; whatever they signed on with before is over. Raises BadRequest for a weak one."""
        check(new, (account.name, account.email))
        hashed = await self._passwords.hash(new)
        async with self._database.write() as connection:
            await self._store_password(connection, account, hashed, actor, action)

    async def reset_token(self, account: Account) -> str:
        """Returns a token that gives this person a new password, once, within an hour."""
        import jwt  # ten megabytes, cryptography with it, that a process without sign-on never needs

        now_s = int(self._clock())
        claims = {
            "aud": _RESET_AUDIENCE,
            "sub": account.id,
            "iat": now_s,
            "exp": now_s + RESET_S,
            "jti": new_id("reset"),
            # It dies with the password it was made for, however that is replaced.
            "for": _fingerprint(account),
        }
        return jwt.encode(claims, await self._secrets.get(_RESET_KEY), algorithm="HS256")

    async def reset_password(self, token: str, new: str, address: str | None, request_id: str | None) -> Account:
        """Replaces a password by who holds a reset token. Raises BadRequest for a token or password that is no good."""
        import jwt  # ten megabytes, cryptography with it, that a process without sign-on never needs

        key = await self._secrets.get(_RESET_KEY)
        try:
            # The clock of the claims is ours, not the library's: tests move it, and leeway has no place here.
            options: Any = {"verify_exp": False, "verify_iat": False, "require": ["exp", "sub", "aud", "for", "jti"]}
            claims = jwt.decode(token, key, algorithms=["HS256"], audience=_RESET_AUDIENCE, options=options)
        except (jwt.InvalidTokenError, UnicodeEncodeError):
            raise _bad_link() from None
        account = await self.get(str(claims["sub"]))
        if account is None or account.disabled or int(claims["exp"]) <= self._clock():
            raise _bad_link()
        if claims["for"] != _fingerprint(account):
            raise _bad_link()
        check(new, (account.name, account.email))
        hashed = await self._passwords.hash(new)
        digest = _token_digest(str(claims["jti"]))
        try:
            async with self._database.write() as connection:
                # Its digest is unique: of two requests with one link, one is refused here.
                await connection.execute(
                    insert(revoked_tokens).values(digest=digest, expires_at_ms=int(claims["exp"]) * 1000)
                )
                actor = account.actor(address, request_id)
                await self._store_password(connection, account, hashed, actor, "user.reset_password")
        except StorageRejected:
            raise _bad_link() from None
        return account

    async def adopt(
        self,
        subject: str,
        *,
        name: str,
        email: str | None,
        role: Role,
        organisation: str,
        project: str | None,
        create: bool,
        address: str | None = None,
    ) -> Account:
        """Returns the person an identity provider names by ``subject`` ("issuer|sub"); makes them the first time.

        Role, organisation and project follow what the provider says. Raises Forbidden for a disabled person, an unknown
        one when ``create`` is false, or an organisation that does not exist.
        """
        account = await self._one(_query().where(users.c.subject == subject))
        if account is None:
            if not create:
                raise Forbidden("There is no account for this person; ask an administrator.", code="user_unknown")
            account = await self._create_from_provider(subject, name, email, role, organisation, project, address)
        elif (account.role, account.organisation, account.project) != (role, organisation, project):
            account = await self._follow_provider(account, role, organisation, project, address)
        return account.admit()

    async def record_link(self, account: Account, actor: Actor) -> None:
        """Writes into the audit log that somebody made a link for a new password."""
        async with self._database.write() as connection:
            await append(
                connection,
                actor,
                action="user.reset_link",
                organisation=account.organisation,
                subject_kind="user",
                subject_id=account.id,
            )

    async def record_sign_in(self, account: Account, how: str, address: str | None, request_id: str | None) -> None:
        """Writes into the audit log that somebody signed in."""
        async with self._database.write() as connection:
            await append(
                connection,
                account.actor(address, request_id),
                action="sign_in.done",
                organisation=account.organisation,
                subject_kind="user",
                subject_id=account.id,
                after={"how": how},
            )

    async def record_failure(self, login: str, why: str, address: str | None, request_id: str | None) -> None:
        """Writes into the audit log that a sign-in failed; in the log of the person's organisation if there is one.

        What was typed for nobody's name is kept as a digest: now and then it is a password.
        """
        account = await self.look_up(login)
        after = {"why": why}
        if account is None:
            after["typed_sha256"] = hashlib.sha256(login.encode("utf-8", "replace")).hexdigest()[:16]
        async with self._database.write() as connection:
            await append(
                connection,
                account.actor(address, request_id)
                if account
                else Actor("user", "unknown", "unknown", address, request_id),
                action="sign_in.failed",
                organisation=account.organisation if account else EVERYWHERE,
                subject_kind="user",
                subject_id=account.id if account else "unknown",
                after=after,
            )

    async def look_up(self, login: str) -> Account | None:
        """Returns the person of that e-mail address, else the one of that name if only one in all organisations has it.

        Who registered and waits for an administrator takes nobody's name away: it means who is confirmed. One question,
        whoever exists: its time tells nothing.
        """
        text = login.strip()
        if not text or "\0" in text or len(text) > 320:
            text = ""
        named = (users.c.email == text.lower()) | (users.c.name == text)
        # The address first: however many people were given it as their name, it means who has it.
        first = case((users.c.email == text.lower(), 0), (users.c.confirmed_at_ms.is_not(None), 1), else_=2)
        query = _query().where(named, users.c.kind == "person").order_by(first).limit(3)
        async with self._database.read() as connection:
            found = [_account(dict(row)) for row in (await connection.execute(query)).mappings()]
        addressed = [account for account in found if account.email == text.lower()]
        chosen = addressed or [account for account in found if account.confirmed] or found
        return chosen[0] if len(chosen) == 1 else None

    async def _one(self, query: Select[Any]) -> Account | None:
        async with self._database.read() as connection:
            rows = (await connection.execute(query.limit(2))).mappings().all()
        return _account(dict(rows[0])) if len(rows) == 1 else None

    async def _add(
        self,
        connection: AsyncConnection,
        user_id: str,
        organisation: str,
        name: str,
        email: str | None,
        role: Role,
        **values: Any,
    ) -> None:
        row = {
            "id": user_id,
            "organisation": organisation,
            "kind": "person",
            "name": name,
            "email": email,
            "role": role.value,
            "created_at_ms": self._now_ms(),
            "created_by": "registration",
            "changed": await next_change(connection),
            "version": 1,
        }
        await connection.execute(insert(users).values(**(row | values)))

    async def _store_password(
        self, connection: AsyncConnection, account: Account, hashed: str, actor: Actor, action: str
    ) -> None:
        values = {
            "password_hash": hashed,
            "signed_out_at_ms": self._now_ms(),
            "changed": await next_change(connection),
            "version": users.c.version + 1,
        }
        await connection.execute(update(users).where(users.c.id == account.id).values(**values))
        await connection.execute(delete(sessions).where(sessions.c.user_id == account.id))
        await append(
            connection,
            actor,
            action=action,
            organisation=account.organisation,
            subject_kind="user",
            subject_id=account.id,
            after={"signed_out_everywhere": True},
        )

    async def _create_from_provider(
        self,
        subject: str,
        name: str,
        email: str | None,
        role: Role,
        organisation: str,
        project: str | None,
        address: str | None,
    ) -> Account:
        user_id = new_id("user")
        await self._must_exist(organisation, project)
        for tried in (name, f"{name} ({user_id[-8:]})"):
            try:
                async with self._database.write() as connection:
                    await self._add(
                        connection,
                        user_id,
                        organisation,
                        tried,
                        # An address that is taken belongs to somebody else as far as we know: it is no proof.
                        None if tried != name else email,
                        role,
                        project=project,
                        subject=subject,
                        confirmed_at_ms=self._now_ms(),
                        created_by="oidc",
                    )
                    await append(
                        connection,
                        Actor("user", user_id, tried, address),
                        action="user.create",
                        organisation=organisation,
                        subject_kind="user",
                        subject_id=user_id,
                        after={"name": tried, "role": role, "subject": subject, "project": project},
                    )
            except StorageRejected:
                found = await self._one(_query().where(users.c.subject == subject))  # another worker was first
                if found is not None:
                    return found
            else:
                break
        found = await self.get(user_id)
        if found is None:
            raise Conflict("An account for this person cannot be made: the name is taken.", code="user_exists")
        return found

    async def _follow_provider(
        self, account: Account, role: Role, organisation: str, project: str | None, address: str | None
    ) -> Account:
        await self._must_exist(organisation, project)
        before = {"role": account.role, "organisation": account.organisation, "project": account.project}
        after = {"role": role, "organisation": organisation, "project": project}
        async with self._database.write() as connection:
            changed = await next_change(connection)
            values = {**after, "changed": changed, "version": users.c.version + 1}
            await connection.execute(update(users).where(users.c.id == account.id).values(**values))
            await self._end_keys(connection, account, role, organisation, project, changed)
            await append(
                connection,
                Actor("system", "oidc", "oidc", address),
                action="user.update",
                organisation=organisation,
                subject_kind="user",
                subject_id=account.id,
                before=before,
                after=after,
            )
        found = await self.get(account.id)
        assert found is not None
        return found

    async def _end_keys(
        self,
        connection: AsyncConnection,
        account: Account,
        role: Role,
        organisation: str,
        project: str | None,
        changed: int,
    ) -> None:
        """Revokes the person's keys that may do more than the new place, as when an administrator moves them."""
        if organisation == account.organisation:
            bounds: dict[str, Any] = {"beyond": ROLE_SCOPES[role], "outside": project}
        else:
            bounds = {}
        await end_keys_of_user(connection, account.id, changed=changed, now_ms=self._now_ms(), **bounds)

    async def _must_exist(self, organisation: str, project: str | None) -> None:
        async with self._database.read() as connection:
            query = select(organisations.c.archived_at_ms).where(organisations.c.id == organisation)
            found = (await connection.execute(query)).first()
            inside = None
            if project is not None:
                named = select(projects.c.archived_at_ms).where(
                    projects.c.id == project, projects.c.organisation == organisation
                )
                inside = (await connection.execute(named)).first()
        gone = found is None or found[0] is not None
        if gone or (project is not None and (inside is None or inside[0] is not None)):
            raise Forbidden(
                "The organisation or project of this person does not exist here; ask an administrator.",
                code="organisation_unknown",
            )

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def password_link(public_url: str, token: str) -> str:
    """Returns the link that a token is sent in. Behind ``#`` it is in no server's log and no referrer."""
    return f"{public_url.rstrip('/')}/auth/password/reset#{token}"


def _query() -> Select[Any]:
    inside = (projects.c.id == users.c.project) & (projects.c.organisation == users.c.organisation)
    return (
        select(
            users,
            organisations.c.archived_at_ms.label("organisation_archived_at_ms"),
            organisations.c.models.label("organisation_models"),
            organisations.c.services.label("organisation_services"),
            projects.c.archived_at_ms.label("project_archived_at_ms"),
            projects.c.models.label("project_models"),
            projects.c.services.label("project_services"),
        )
        .join(organisations, organisations.c.id == users.c.organisation)
        .outerjoin(projects, inside)
    )


def _account(row: dict[str, Any]) -> Account:
    return Account(
        id=row["id"],
        organisation=row["organisation"],
        project=row["project"],
        name=row["name"],
        email=row["email"],
        # A role that a newer version wrote may only look.
        role=Role(row["role"]) if row["role"] in {role.value for role in Role} else Role.VIEWER,
        confirmed=row["confirmed_at_ms"] is not None,
        disabled=row["disabled_at_ms"] is not None or row["kind"] != "person",
        archived=row["organisation_archived_at_ms"] is not None or row["project_archived_at_ms"] is not None,
        signed_out_at_ms=row["signed_out_at_ms"] or 0,
        models=_both(row["organisation_models"], row["project_models"]),
        services=_both(row["organisation_services"], row["project_services"]),
        password_hash=row["password_hash"],
    )


def _both(above: list[str] | None, below: list[str] | None) -> frozenset[str] | None:
    """What both lists allow; None allows everything."""
    if above is None or below is None:
        rest = below if above is None else above
        return None if rest is None else frozenset(rest)
    return frozenset(above) & frozenset(below)


def _fingerprint(account: Account) -> str:
    return _token_digest(account.password_hash or "none").hex()[:32]


def _token_digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _bad_link() -> BadRequest:
    return BadRequest("This link is not valid any more; ask for a new one.", param="token", code="invalid_link")


async def next_change(connection: AsyncConnection) -> int:
    """Raises the sequence by which all processes see what changed of keys and people."""
    named = sequences.c.name == "keys"
    await connection.execute(update(sequences).where(named).values(value=sequences.c.value + 1))
    return int((await connection.execute(select(sequences.c.value).where(named))).scalar_one())
