"""Prompts, their versions, which never change, and labels, which point at one of them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, PrimaryKeyConstraint, Table, Text, UniqueConstraint

from passerelle.storage.tables.base import metadata

prompts = Table(
    "prompts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organisation", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    # The number of the newest version, from 1.
    Column("latest", Integer, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("archived_at_ms", BigInteger),
    UniqueConstraint("organisation", "project", "name", name="uq_prompts_name"),
)

prompt_versions = Table(
    "prompt_versions",
    metadata,
    Column("prompt_id", Text, ForeignKey("prompts.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    # The template, its defaults and its sampling, as JSON.
    Column("content", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    PrimaryKeyConstraint("prompt_id", "number", name="pk_prompt_versions"),
)

prompt_labels = Table(
    "prompt_labels",
    metadata,
    Column("prompt_id", Text, ForeignKey("prompts.id", ondelete="CASCADE"), nullable=False),
    Column("label", Text, nullable=False),
    Column("number", Integer, nullable=False),
    PrimaryKeyConstraint("prompt_id", "label", name="pk_prompt_labels"),
)
