"""Jobs whose end somebody wants to hear of are found without a search.

Revision: 0006, after 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    told = sa.text("webhook IS NOT NULL")
    op.create_index("ix_jobs_webhook", "jobs", ["finished_at_ms"], sqlite_where=told, postgresql_where=told)
