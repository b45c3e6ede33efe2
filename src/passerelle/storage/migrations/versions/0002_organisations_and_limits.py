"""Organisations, projects, users, sessions, the audit log; limits, prices and roll-ups; what keys may reach.

Revision: 0002, after 0001. What it adds to tables that were there has defaults: the release before goes on writing.
"""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _organisations()
    _sessions()
    _audit()
    _accounting()
    _keys()
    _first_rows()


def _organisations() -> None:
    op.create_table(
        "organisations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("models", sa.JSON(none_as_null=True)),
        sa.Column("services", sa.JSON(none_as_null=True)),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("archived_at_ms", sa.BigInteger()),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_organisations"),
        sa.UniqueConstraint("name", name="uq_organisations_name"),
    )
    op.create_index("ix_organisations_changed", "organisations", ["changed"])
    op.create_table(
        "projects",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organisation", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("models", sa.JSON(none_as_null=True)),
        sa.Column("services", sa.JSON(none_as_null=True)),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("archived_at_ms", sa.BigInteger()),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["organisation"], ["organisations.id"], name="fk_projects_organisation"),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.UniqueConstraint("organisation", "name", name="uq_projects_organisation_name"),
    )
    op.create_index("ix_projects_changed", "projects", ["changed"])
    op.create_table(
        "users",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organisation", sa.Text(), nullable=False),
        sa.Column("project", sa.Text()),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("email", sa.Text()),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text()),
        sa.Column("subject", sa.Text()),
        sa.Column("confirmed_at_ms", sa.BigInteger()),
        sa.Column("disabled_at_ms", sa.BigInteger()),
        sa.Column("signed_out_at_ms", sa.BigInteger()),
        sa.Column("last_seen_at_ms", sa.BigInteger()),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["organisation"], ["organisations.id"], name="fk_users_organisation"),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("email", name="uq_users_email"),
        sa.UniqueConstraint("organisation", "name", name="uq_users_organisation_name"),
        sa.UniqueConstraint("subject", name="uq_users_subject"),
    )
    op.create_index("ix_users_changed", "users", ["changed"])


def _sessions() -> None:
    op.create_table(
        "attempts",
        sa.Column("subject", sa.LargeBinary(length=32), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("last_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", name="pk_attempts"),
    )
    op.create_index("ix_attempts_last_at_ms", "attempts", ["last_at_ms"])
    op.create_table(
        "revoked_tokens",
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_revoked_tokens"),
    )
    op.create_index("ix_revoked_tokens_expires_at_ms", "revoked_tokens", ["expires_at_ms"])
    op.create_table(
        "secrets",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_secrets"),
    )
    op.create_table(
        "sessions",
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("organisation", sa.Text(), nullable=False),
        sa.Column("csrf_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("address", sa.Text()),
        sa.Column("agent", sa.Text()),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_sessions_user_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("digest", name="pk_sessions"),
    )
    op.create_index("ix_sessions_expires_at_ms", "sessions", ["expires_at_ms"])
    op.create_index("ix_sessions_user_id", "sessions", ["user_id"])


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("organisation", sa.Text(), nullable=False),
        sa.Column("actor_kind", sa.Text(), nullable=False),
        sa.Column("actor_id", sa.Text(), nullable=False),
        sa.Column("actor_name", sa.Text(), nullable=False),
        sa.Column("address", sa.Text()),
        sa.Column("request_id", sa.Text()),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject_kind", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("before", sa.Text()),
        sa.Column("after", sa.Text()),
        sa.Column("previous", sa.LargeBinary(length=32), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_audit"),
    )
    op.create_index("ix_audit_organisation_number", "audit", ["organisation", "number"])
    op.create_table(
        "idempotent_answers",
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("request_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("headers", sa.JSON(none_as_null=True)),
        sa.Column("body", sa.LargeBinary()),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_idempotent_answers"),
    )
    op.create_index("ix_idempotent_answers_created_at_ms", "idempotent_answers", ["created_at_ms"])


def _accounting() -> None:
    op.create_table(
        "limits",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organisation", sa.Text(), nullable=False),
        sa.Column("subject_kind", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), server_default="", nullable=False),
        sa.Column("measure", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), server_default="", nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("hard", sa.Boolean(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("removed_at_ms", sa.BigInteger()),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_limits"),
    )
    op.create_index("ix_limits_changed", "limits", ["changed"])
    op.create_index("ix_limits_organisation_subject", "limits", ["organisation", "subject_kind", "subject_id"])
    op.create_table(
        "prices",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("input_micro", sa.BigInteger(), nullable=False),
        sa.Column("cached_micro", sa.BigInteger(), nullable=False),
        sa.Column("output_micro", sa.BigInteger(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_prices"),
        sa.UniqueConstraint("model", "from_ms", name="uq_prices_model_from_ms"),
    )
    op.create_index("ix_prices_changed", "prices", ["changed"])
    op.create_table(
        "usage_rollups",
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("organisation", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), server_default="", nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.Column("total_ms", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint(
            "period",
            "at_ms",
            "organisation",
            "project",
            "user_id",
            "key_id",
            "model",
            "outcome",
            name="pk_usage_rollups",
        ),
    )
    op.create_index("ix_usage_rollups_organisation_period_at_ms", "usage_rollups", ["organisation", "period", "at_ms"])
    op.add_column("usage", sa.Column("cost_nano", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("usage", sa.Column("service", sa.Text()))


def _keys() -> None:
    op.add_column("keys", sa.Column("services", sa.JSON(none_as_null=True)))
    op.add_column("keys", sa.Column("networks", sa.JSON(none_as_null=True)))
    op.add_column("keys", sa.Column("version", sa.Integer(), server_default="1", nullable=False))
    op.create_index("ix_keys_organisation_created_at_ms_id", "keys", ["organisation", "created_at_ms", "id"])
    op.create_index("ix_keys_user_id", "keys", ["user_id"])


def _first_rows() -> None:
    """What every installation has: the organisation and project that existing rows name already."""
    sequences = sa.table("sequences", sa.column("name"), sa.column("value"))
    op.bulk_insert(sequences, [{"name": "audit", "value": 0}])
    made: dict[str, str | int] = {
        "id": "default",
        "name": "default",
        "created_by": "bootstrap",
        "changed": 0,
        "version": 1,
    }
    made["created_at_ms"] = int(time.time() * 1000)
    organisations = sa.table("organisations", *(sa.column(name) for name in made))
    op.bulk_insert(organisations, [made])
    projects = sa.table("projects", *(sa.column(name) for name in (*made, "organisation")))
    op.bulk_insert(projects, [{**made, "organisation": "default"}])
    _adopt(organisations, projects, made)


def _adopt(organisations: sa.TableClause, projects: sa.TableClause, made: dict[str, str | int]) -> None:
    """Keys could name any organisation and project before there were rows for them: each name becomes a row."""
    keys = sa.table("keys", sa.column("organisation"), sa.column("project"))
    query = sa.select(keys.c.organisation, keys.c.project).distinct().order_by(keys.c.organisation, keys.c.project)
    organisation_ids, project_ids = {"default"}, {"default"}
    for organisation, project in op.get_bind().execute(query).all():
        if organisation not in organisation_ids:
            organisation_ids.add(organisation)
            op.bulk_insert(organisations, [{**made, "id": organisation, "name": organisation}])
        if project not in project_ids:
            project_ids.add(project)
            row = {**made, "id": project, "name": project, "organisation": organisation}
            op.bulk_insert(projects, [row])
