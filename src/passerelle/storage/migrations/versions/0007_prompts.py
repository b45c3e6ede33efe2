"""Prompts, their versions and labels.

Revision: 0007, after 0006.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from passerelle.storage.migrations.fence import protect, protect_by_parent

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "prompts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organisation", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("latest", sa.Integer(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("archived_at_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_prompts"),
        sa.UniqueConstraint("organisation", "project", "name", name="uq_prompts_name"),
    )
    op.create_table(
        "prompt_versions",
        sa.Column("prompt_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("prompt_id", "number", name="pk_prompt_versions"),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompts.id"], name="fk_prompt_versions_prompt_id", ondelete="CASCADE"),
    )
    op.create_table(
        "prompt_labels",
        sa.Column("prompt_id", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("prompt_id", "label", name="pk_prompt_labels"),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompts.id"], name="fk_prompt_labels_prompt_id", ondelete="CASCADE"),
    )
    protect("prompts")
    for table in ("prompt_versions", "prompt_labels"):
        protect_by_parent(table, "prompt_id", "prompts")
