"""What was used, what it may cost, and how much of it is allowed."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)

from passerelle.storage.tables.base import metadata

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
    # What the call cost, in billionths of the currency unit, by the price in force when it came.
    Column("cost_nano", BigInteger, nullable=False, server_default="0"),
    # The service (a document job's manifest) that made the call, if one did.
    Column("service", Text),
    Index("ix_usage_organisation_at_ms", "organisation", "at_ms"),
    Index("ix_usage_key_id_at_ms", "key_id", "at_ms"),
    Index("ix_usage_at_ms", "at_ms"),
    # On PostgreSQL there is a column more, `seq`, that counts the inserts, see accounting/rollup.py.
)

usage_rollups = Table(
    "usage_rollups",
    metadata,
    # "hour" or "day"; at_ms is the start of the period, in UTC.
    Column("period", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("user_id", Text, nullable=False, server_default=""),
    Column("key_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("service", Text, nullable=False, server_default=""),
    Column("calls", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("total_ms", Float, nullable=False),
    PrimaryKeyConstraint(
        "period",
        "at_ms",
        "organisation",
        "project",
        "user_id",
        "key_id",
        "model",
        "outcome",
        "service",
        name="pk_usage_rollups",
    ),
    Index("ix_usage_rollups_organisation_period_at_ms", "organisation", "period", "at_ms"),
)

watermarks = Table(
    "watermarks",
    metadata,
    # How far some work on another table has come: "usage_rollups", "usage_purged".
    Column("name", Text, primary_key=True),
    # The last row it took in, and where that was in the order of inserts; or a time in milliseconds.
    Column("row_id", Text),
    Column("position", BigInteger, nullable=False),
)

prices = Table(
    "prices",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    # Millionths of the currency unit for a million tokens; a call takes the price in force when it came.
    Column("input_micro", BigInteger, nullable=False),
    Column("cached_micro", BigInteger, nullable=False),
    Column("output_micro", BigInteger, nullable=False),
    Column("from_ms", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    UniqueConstraint("model", "from_ms"),
    Index("ix_prices_changed", "changed"),
)

limits = Table(
    "limits",
    metadata,
    Column("id", Text, primary_key=True),
    # The organisation whose admins see it; "*" for a limit on a model that all organisations share.
    Column("organisation", Text, nullable=False),
    # "organisation", "project", "user", "key" or "model".
    Column("subject_kind", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    # The one model it counts; empty for every model.
    Column("model", Text, nullable=False, server_default=""),
    # "requests", "tokens", "concurrent" or "cost".
    Column("measure", Text, nullable=False),
    # "minute", "day", "month"; empty for "concurrent", "total" for a budget without an end.
    Column("period", Text, nullable=False, server_default=""),
    # Requests, tokens, calls at once, or billionths of the currency unit.
    Column("value", BigInteger, nullable=False),
    # A soft limit warns and lets pass.
    Column("hard", Boolean, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    # The value of the sequence "keys" when it last changed; a removed limit leaves a row with removed_at_ms.
    Column("changed", BigInteger, nullable=False),
    Column("removed_at_ms", BigInteger),
    Column("version", Integer, nullable=False),
    Index("ix_limits_changed", "changed"),
    Index("ix_limits_organisation_subject", "organisation", "subject_kind", "subject_id"),
)
