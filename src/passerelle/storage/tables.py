"""Every table, as the code uses them; ``migrations/versions`` is how a database gets there, and a test compares both.

Times are integers, milliseconds since the epoch. Each row names its organisation and project (``default`` until there
are others), so that a query without a tenant is never needed.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

sequences = Table(
    "sequences",
    metadata,
    # One row per sequence, raised inside the transaction that makes the change: its row lock makes the order of the
    # numbers the order of the commits, so a reader that saw N has seen everything up to N.
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
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
    Index("ix_keys_changed", "changed"),
    Index("ix_keys_organisation_project", "organisation", "project"),
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

usage = Table(
    "usage",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("user_id", Text),
    Column("key_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("requested_model", Text, nullable=False),
    Column("target", Text),
    Column("operation", Text, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("status", Integer, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("error_code", Text),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("token_source", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("fallback_from", Text),
    Column("queue_ms", Float, nullable=False),
    Column("first_byte_ms", Float),
    Column("total_ms", Float, nullable=False),
    Index("ix_usage_organisation_at_ms", "organisation", "at_ms"),
    Index("ix_usage_key_id_at_ms", "key_id", "at_ms"),
)
