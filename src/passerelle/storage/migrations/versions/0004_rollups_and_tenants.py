"""Roll-ups by service, the order of usage rows, and row-level security on PostgreSQL.

Revision: 0004, after 0003. The release before writes no roll-ups, so their table is made anew. It goes on writing usage
rows, which number themselves, and as the tables' owner it goes on seeing all rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from passerelle.storage.migrations.fence import make_role, protect, protect_by_parent

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_OF_AN_ORGANISATION = (
    "projects",
    "users",
    "keys",
    "sessions",
    "audit",
    "usage",
    "usage_rollups",
    "limits",
    "jobs",
)


def upgrade() -> None:
    _usage()
    _rollups()
    make_role()
    for table in _OF_AN_ORGANISATION:
        protect(table)
    protect("organisations", "id")
    protect_by_parent("key_secrets", "key_id", "keys")
    for table in ("job_events", "job_steps", "job_results"):
        protect_by_parent(table, "job_id", "jobs")


def _usage() -> None:
    op.create_index("ix_usage_at_ms", "usage", ["at_ms"])
    watermarks = op.create_table(
        "watermarks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("row_id", sa.Text()),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_watermarks"),
    )
    op.bulk_insert(watermarks, [{"name": "usage_purged", "position": 0}])
    if op.get_bind().dialect.name == "postgresql":
        # SQLite has its rowid for this.
        op.execute("ALTER TABLE usage ADD COLUMN seq BIGINT GENERATED ALWAYS AS IDENTITY")
        op.execute("CREATE INDEX ix_usage_seq ON usage (seq)")


def _rollups() -> None:
    op.drop_table("usage_rollups")
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
        sa.Column("service", sa.Text(), server_default="", nullable=False),
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
            "service",
            name="pk_usage_rollups",
        ),
    )
    op.create_index("ix_usage_rollups_organisation_period_at_ms", "usage_rollups", ["organisation", "period", "at_ms"])
