"""Every table, as the code uses them; ``migrations/versions`` is how a database gets there, and a test compares both.

Times are integers, milliseconds since the epoch. Each row of a tenant names its organisation and project, so that a
query without a tenant is never needed.
"""

from __future__ import annotations

from passerelle.storage.tables.accounting import limits, prices, usage, usage_rollups, watermarks
from passerelle.storage.tables.base import metadata, secrets, sequences
from passerelle.storage.tables.files import batches, file_chunks, files, responses
from passerelle.storage.tables.identity import (
    audit,
    idempotent_answers,
    key_secrets,
    keys,
    organisations,
    projects,
    revoked_tokens,
    sessions,
    users,
)
from passerelle.storage.tables.jobs import job_events, job_results, job_steps, jobs
from passerelle.storage.tables.prompts import prompt_labels, prompt_versions, prompts

__all__ = [
    "audit",
    "batches",
    "file_chunks",
    "files",
    "idempotent_answers",
    "job_events",
    "job_results",
    "job_steps",
    "jobs",
    "key_secrets",
    "keys",
    "limits",
    "metadata",
    "organisations",
    "prices",
    "projects",
    "prompt_labels",
    "prompt_versions",
    "prompts",
    "responses",
    "revoked_tokens",
    "secrets",
    "sequences",
    "sessions",
    "usage",
    "usage_rollups",
    "users",
    "watermarks",
]
