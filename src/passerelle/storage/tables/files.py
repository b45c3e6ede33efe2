"""What clients of OpenAI's API leave here: files in pieces, batches made of them, and answers that are kept."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
)

from passerelle.storage.tables.base import metadata

files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organisation", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("user_id", Text),
    # Empty until an upload has said it.
    Column("purpose", Text, nullable=False),
    # The name its owner gave, for people: it is never a path here.
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    # How many rows of file_chunks are its own.
    Column("chunks", Integer, nullable=False),
    # writing or ready; only ready ones are shown.
    Column("state", Text, nullable=False),
    # SHA-256 of the whole, in hexadecimal, once it is ready.
    Column("sha256", Text),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger),
    Index("ix_files_tenant", "organisation", "project", "created_at_ms", "id"),
    Index("ix_files_expires_at_ms", "expires_at_ms"),
)

file_chunks = Table(
    "file_chunks",
    metadata,
    # The bytes of a file in order, numbers from 0 without gaps.
    Column("file_id", Text, ForeignKey("files.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
    PrimaryKeyConstraint("file_id", "number", name="pk_file_chunks"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organisation", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("job_id", Text),
    Column("endpoint", Text, nullable=False),
    Column("input_file_id", Text, nullable=False),
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    Column("metadata", Text),
    Column("status", Text, nullable=False),
    # A list of what is wrong with the input, as JSON.
    Column("errors", Text),
    # The attempt of its job that wrote last: an older one writes nothing more.
    Column("attempt", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("in_progress_at_ms", BigInteger),
    Column("finalizing_at_ms", BigInteger),
    Column("cancelling_at_ms", BigInteger),
    # When it came to its end, whichever that is.
    Column("ended_at_ms", BigInteger),
    Index("ix_batches_tenant", "organisation", "project", "created_at_ms", "id"),
)

responses = Table(
    "responses",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organisation", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("previous_id", Text),
    Column("status", Text, nullable=False),
    # The answer as it is shown, and the items of its input, as JSON.
    Column("document", Text, nullable=False),
    Column("input", Text, nullable=False),
    # The job that makes it, for one in the background, and the attempt that wrote last.
    Column("job_id", Text),
    Column("attempt", Integer, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger),
    Index("ix_responses_expires_at_ms", "expires_at_ms"),
)
