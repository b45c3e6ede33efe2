"""Puts sign-on together from the settings: accounts, sessions, tokens, mail and the identity provider."""

from __future__ import annotations

from collections.abc import Callable

from passerelle.domain.errors import BadRequest, PasserelleError, Unavailable
from passerelle.domain.principal import Role
from passerelle.engines.fetch import Fetcher
from passerelle.engines.transport import Transport
from passerelle.faces.auth import AuthFace, AuthRules, SignOn
from passerelle.faces.browser import Browser
from passerelle.identity.accounts import Accounts
from passerelle.identity.changes import PeopleChanges
from passerelle.identity.jwt import LIFETIME_S, Tokens
from passerelle.identity.mail import Mailer, MailServer
from passerelle.identity.oidc import Mapped, Provider, Relation
from passerelle.identity.passwords import Passwords
from passerelle.identity.secrets import Secrets
from passerelle.identity.sessions import Sessions
from passerelle.identity.throttle import Throttle
from passerelle.settings import AuthSection, OidcSection
from passerelle.storage.engine import Database, StorageCannotHold, StorageUnavailable

CALLBACK = "/auth/oidc/callback"


class PeopleSignOn:
    """Everything about people for one process. ``start`` before use, ``aclose`` after."""

    def __init__(self, database: Database, settings: AuthSection) -> None:
        secrets = Secrets(database)
        self._passwords = Passwords()
        self._changes = PeopleChanges(database)
        accounts = self.accounts = Accounts(database, self._passwords, secrets)
        sessions = Sessions(
            database,
            accounts,
            self._changes,
            lifetime_s=settings.session_lifetime_s,
            idle_s=settings.session_idle_s,
        )
        self._fetcher: Fetcher | None = None
        provider = None
        if settings.oidc is not None:
            self._fetcher = Fetcher(Transport(), ca_file=settings.oidc.ca_file)
            provider = Provider(_relation(settings.oidc, settings.public_url or ""), self._fetcher)
        self.tokens = Tokens(database, accounts, secrets, self._changes, provider)
        self._mailer = None if settings.mail is None else Mailer(mail_server(settings))
        self.browser = Browser(sessions, settings.public_url)
        self.face = AuthFace(
            SignOn(accounts, sessions, self.tokens, Throttle(database), secrets, self.browser, self._mailer, provider),
            AuthRules(
                settings.passwords,
                settings.registration,
                settings.registration_organisation,
                settings.public_url,
                settings.after_sign_in,
            ),
            token_lifetime_s=LIFETIME_S,
            session_lifetime_s=settings.session_lifetime_s,
        )

    def on_ended(self, callback: Callable[[str], None]) -> None:
        """Calls ``callback(key_id)`` when a person who used a token was disabled."""
        self.tokens.on_ended(callback)

    def start(self) -> None:
        """Begins to follow changes of people."""
        self._changes.start()

    async def aclose(self) -> None:
        """Ends what runs."""
        await self._changes.aclose()
        if self._mailer is not None:
            await self._mailer.aclose()
        if self._fetcher is not None:
            await self._fetcher.aclose()
        self._passwords.close()


def mail_server(settings: AuthSection) -> MailServer:
    """Returns how letters leave, for settings that say it."""
    mail = settings.mail
    assert mail is not None
    return MailServer(mail.host, mail.port, mail.sender, mail.security, mail.username, mail.password)


def translate(error: Exception) -> PasserelleError | None:
    """Returns what callers are told when the database fails, or cannot keep what they sent; None for anything else."""
    if isinstance(error, StorageUnavailable):
        return Unavailable("The database does not answer right now; retry in a few seconds.", retry_after_s=2.0)
    if isinstance(error, StorageCannotHold):
        return BadRequest("A text of the request holds a NUL character (U+0000), which no text may: leave it out.")
    return None


def _relation(section: OidcSection, public_url: str) -> Relation:
    return Relation(
        issuer=section.issuer,
        client_id=section.client_id,
        redirect_url=public_url.rstrip("/") + CALLBACK,
        client_secret=section.client_secret,
        audience=section.audience,
        scopes=section.scopes,
        create_users=section.create_users,
        mapped=Mapped(
            role_claim=section.role_claim,
            roles={value: Role(role) for value, role in section.roles.items()},
            default_role=None if section.default_role is None else Role(section.default_role),
            organisation_claim=section.organisation_claim,
            organisations=section.organisations,
            organisation=section.organisation,
            project_claim=section.project_claim,
            projects=section.projects,
            name_claim=section.name_claim,
        ),
    )
