"""Who there is: organisations, their projects and users, keys, sessions, and the log of what was done to them."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from passerelle.storage.tables.base import metadata

organisations = Table(
    "organisations",
    metadata,
    # Rows elsewhere name an organisation or project by its id; the first of each has the id "default".
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    # What its keys may call at most; NULL is everything.
    Column("models", JSON(none_as_null=True)),
    Column("services", JSON(none_as_null=True)),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    # Archived: its keys and users are refused, its records stay.
    Column("archived_at_ms", BigInteger),
    # The value of the sequence "keys" when it last changed in a way that callers with its keys must see.
    Column("changed", BigInteger, nullable=False),
    # Raised by every update; the ETag of the admin API.
    Column("version", Integer, nullable=False),
    Index("ix_organisations_changed", "changed"),
)

projects = Table(
    "projects",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organisation", Text, ForeignKey("organisations.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("models", JSON(none_as_null=True)),
    Column("services", JSON(none_as_null=True)),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("archived_at_ms", BigInteger),
    Column("changed", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    UniqueConstraint("organisation", "name"),
    Index("ix_projects_changed", "changed"),
)

users = Table(
    "users",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organisation", Text, ForeignKey("organisations.id"), nullable=False),
    # The one project a user is confined to; NULL for every project of the organisation.
    Column("project", Text),
    # "person" signs on; "service" is an account that only holds keys.
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    # Lower case; people sign on with it or with their name.
    Column("email", Text, unique=True),
    Column("role", Text, nullable=False),
    Column("password_hash", Text),
    # "issuer|subject" of an identity provider.
    Column("subject", Text, unique=True),
    # A person who registered alone may do nothing until an admin confirms.
    Column("confirmed_at_ms", BigInteger),
    Column("disabled_at_ms", BigInteger),
    # Sessions and tokens made before are not valid any more.
    Column("signed_out_at_ms", BigInteger),
    Column("last_seen_at_ms", BigInteger),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    UniqueConstraint("organisation", "name"),
    Index("ix_users_changed", "changed"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("user_id", Text),
    Column("scopes", JSON, nullable=False),
    # JSON null is a database NULL here: every model is allowed.
    Column("models", JSON(none_as_null=True)),
    Column("weight", Float, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    # The key that made this one, or the tool that did: "cli", "bootstrap".
    Column("created_by", Text, nullable=False),
    Column("expires_at_ms", BigInteger),
    Column("revoked_at_ms", BigInteger),
    Column("last_used_at_ms", BigInteger),
    # The value of the sequence "keys" when this row, or a secret of it, last changed in a way callers must see.
    Column("changed", BigInteger, nullable=False),
    # JSON null is a database NULL here too: every service, every address.
    Column("services", JSON(none_as_null=True)),
    Column("networks", JSON(none_as_null=True)),
    Column("version", Integer, nullable=False, server_default="1"),
    Index("ix_keys_changed", "changed"),
    Index("ix_keys_organisation_project", "organisation", "project"),
    Index("ix_keys_organisation_created_at_ms_id", "organisation", "created_at_ms", "id"),
    Index("ix_keys_user_id", "user_id"),
)

key_secrets = Table(
    "key_secrets",
    metadata,
    # A key outlives its secrets: a rotation adds one and sets an end to the others, so limits and usage go on.
    Column("public_id", Text, primary_key=True),
    Column("key_id", Text, ForeignKey("keys.id", ondelete="CASCADE"), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger),
    Index("ix_key_secrets_key_id", "key_id"),
)

sessions = Table(
    "sessions",
    metadata,
    # SHA-256 of the cookie: who reads the database cannot sign on with what is in it.
    Column("digest", LargeBinary(32), primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("organisation", Text, nullable=False),
    Column("csrf_digest", LargeBinary(32), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("last_seen_at_ms", BigInteger, nullable=False),
    Column("address", Text),
    Column("agent", Text),
    Index("ix_sessions_user_id", "user_id"),
    Index("ix_sessions_expires_at_ms", "expires_at_ms"),
)

revoked_tokens = Table(
    "revoked_tokens",
    metadata,
    # Bearer tokens that were signed out before their end, by digest; kept until that end.
    Column("digest", LargeBinary(32), primary_key=True),
    Column("expires_at_ms", BigInteger, nullable=False),
    Index("ix_revoked_tokens_expires_at_ms", "expires_at_ms"),
)

attempts = Table(
    "attempts",
    metadata,
    # SHA-256 of what is throttled: an account's name, an address.
    Column("subject", LargeBinary(32), primary_key=True),
    # Attempts that did not succeed since the last that did.
    Column("count", Integer, nullable=False),
    Column("last_at_ms", BigInteger, nullable=False),
    # No further attempt before.
    Column("until_ms", BigInteger, nullable=False),
    Index("ix_attempts_last_at_ms", "last_at_ms"),
)

audit = Table(
    "audit",
    metadata,
    # Dense, from 1; the chain of digests follows it over all organisations.
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("actor_kind", Text, nullable=False),
    Column("actor_id", Text, nullable=False),
    Column("actor_name", Text, nullable=False),
    Column("address", Text),
    Column("request_id", Text),
    Column("action", Text, nullable=False),
    Column("subject_kind", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    # Canonical JSON text, as it went into the digest.
    Column("before", Text),
    Column("after", Text),
    Column("previous", LargeBinary(32), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Index("ix_audit_organisation_number", "organisation", "number"),
)

idempotent_answers = Table(
    "idempotent_answers",
    metadata,
    # SHA-256 of (principal, route, Idempotency-Key).
    Column("digest", LargeBinary(32), primary_key=True),
    # SHA-256 of the request: the same key with another request is refused.
    Column("request_digest", LargeBinary(32), nullable=False),
    # NULL while the first request is at work.
    Column("status", Integer),
    Column("headers", JSON(none_as_null=True)),
    Column("body", LargeBinary),
    Column("created_at_ms", BigInteger, nullable=False),
    Index("ix_idempotent_answers_created_at_ms", "created_at_ms"),
)
