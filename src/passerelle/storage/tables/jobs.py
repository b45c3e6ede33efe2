"""Jobs: work that outlives the request that asked for it, its events, its finished steps and its results.

What code reads of JSON is text here: it is passed on as it is far more often than it is looked into.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from passerelle.storage.tables.base import metadata

_TOLD = text("webhook IS NOT NULL")

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organisation", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("user_id", Text),
    # What to do, and with what: which handler, the version of the payload's form, the payload as JSON.
    Column("kind", Text, nullable=False),
    Column("payload_version", Integer, nullable=False),
    Column("payload", Text, nullable=False),
    # What the job is about, for lists: the name of a service, the id of a batch.
    Column("subject", Text),
    Column("labels", Text),
    Column("webhook", Text),
    Column("state", Text, nullable=False),
    # Less is sooner. The turn orders jobs of equal urgency so that keys alternate, see jobs/statements.py.
    Column("urgency", Integer, nullable=False),
    Column("turn", Float, nullable=False),
    # How many jobs of this key may run at once; NULL for any number.
    Column("max_running", Integer),
    # The attempt is the fence: every claim raises it, and a write names the one it belongs to. Tries are the attempts
    # that count: an attempt given back at a shutdown does not.
    Column("attempt", Integer, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("available_at_ms", BigInteger, nullable=False),
    Column("worker", Text),
    Column("lease_until_ms", BigInteger),
    Column("cancel_requested_at_ms", BigInteger),
    Column("deadline_at_ms", BigInteger),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("started_at_ms", BigInteger),
    Column("finished_at_ms", BigInteger),
    # How long it is kept after its end, NULL for ever; the end of that once it has ended.
    Column("retain_ms", BigInteger),
    Column("expires_at_ms", BigInteger),
    Column("last_seq", BigInteger, nullable=False),
    Column("progress", Text),
    Column("error", Text),
    Column("result_version", Integer, nullable=False),
    Column("idempotency_key", Text),
    # SHA-256 of what was asked for: the same idempotency key with another request is a mistake of the caller.
    Column("digest", Text),
    Column("replay_of", Text),
    UniqueConstraint("organisation", "project", "key_id", "idempotency_key", name="uq_jobs_idempotency_key"),
    Index("ix_jobs_tenant", "organisation", "project", "id"),
    # The indexes below are partial, see the migration: saying so here would load both dialects at every start.
    Index("ix_jobs_queued", "urgency", "turn", "id"),
    Index("ix_jobs_queued_key", "urgency", "key_id", "turn"),
    Index("ix_jobs_running", "key_id", "lease_until_ms"),
    Index("ix_jobs_webhook", "finished_at_ms", sqlite_where=_TOLD, postgresql_where=_TOLD),
    Index("ix_jobs_expires_at_ms", "expires_at_ms"),
)

job_events = Table(
    "job_events",
    metadata,
    # Numbers are dense from 1; the last one of a job that has ended is its end.
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("data", Text, nullable=False),
    PrimaryKeyConstraint("job_id", "seq", name="pk_job_events"),
)

job_steps = Table(
    "job_steps",
    metadata,
    # The output of a finished step, found again by its name and the SHA-256 of its input.
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("input_hash", Text, nullable=False),
    Column("output", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("job_id", "name", "input_hash", name="pk_job_steps"),
)

job_results = Table(
    "job_results",
    metadata,
    # Version 1 is what the job made; the others are edits of it, and restored ones.
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("content", Text, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("details", Text),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("restored_from", Integer),
    PrimaryKeyConstraint("job_id", "version", name="pk_job_results"),
)
