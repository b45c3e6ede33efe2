"""What every table shares: one collection, and how constraints are named."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, MetaData, Table, Text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

sequences = Table(
    "sequences",
    metadata,
    # One row per sequence, raised inside the transaction that makes the change: its row lock makes the order of the
    # numbers the order of the commits, so a reader that saw N has seen everything up to N.
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

secrets = Table(
    "secrets",
    metadata,
    # Keys with which this installation signs (reset links, cursors); every replica must hold the same ones.
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)
