"""Alembic's entry: runs the versions on the connection, and in the transaction, that the caller hands over."""

from __future__ import annotations

from alembic import context

from passerelle.storage.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
