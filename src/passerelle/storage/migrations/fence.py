"""The second fence between tenants: row-level security on PostgreSQL, for the migrations that make tables.

Every statement of Passerelle runs as the role ``passerelle_app``, which owns nothing and cannot bypass policies, in a
transaction that says whose rows it may see: ``passerelle.organisation`` is an organisation's id, or ``*`` for the
system's own work (see `passerelle.storage.engine`). A session that says nothing sees no row. The one exception is a
session of the tables' *owner* in which that setting was never made: the release before this one, still running beside
a new schema, and an operator's ``psql``.

A migration that makes a table with a column ``organisation`` calls `protect`; a test fails when one is forgotten. On
SQLite all of this does nothing.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import DDL

_MAKE_ROLE = """
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'passerelle_app') THEN
    BEGIN
      CREATE ROLE passerelle_app NOLOGIN NOSUPERUSER NOBYPASSRLS;
    EXCEPTION
      WHEN duplicate_object OR unique_violation THEN NULL;
    END;
  END IF;
  IF NOT pg_has_role(current_user, 'passerelle_app',
    CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END)
  THEN
    EXECUTE format('GRANT passerelle_app TO %I', current_user);
  END IF;
  EXECUTE format('GRANT USAGE ON SCHEMA %I TO passerelle_app', current_schema());
  EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO passerelle_app', current_schema());
  EXECUTE format('GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA %I TO passerelle_app', current_schema());
  EXECUTE format(
    'ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO passerelle_app',
    current_schema());
  EXECUTE format(
    'ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT USAGE, SELECT ON SEQUENCES TO passerelle_app', current_schema());
EXCEPTION WHEN insufficient_privilege THEN
  RAISE WARNING 'the role passerelle_app cannot be created or granted by this user';
END $$
"""
_FENCE = (
    "ALTER TABLE %(name)s ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE %(name)s FORCE ROW LEVEL SECURITY",
    "CREATE POLICY tenant ON %(name)s USING (%(tenant)s = '*' OR %(own)s)",
    "CREATE POLICY owner ON %(name)s TO CURRENT_USER USING (%(tenant)s IS NULL)",
)
_TENANT = "(SELECT current_setting('passerelle.organisation', true))"


def make_role() -> None:
    """Makes the role of all statements, and lets it use the tables there are and those that will be.

    A user who may not create roles goes on without: the policies hold for the owner too, because they are forced.
    """
    if _is_postgres():
        op.execute(_MAKE_ROLE)


def protect(table: str, column: str = "organisation") -> None:
    """Lets a transaction see and write only the rows of ``table`` whose ``column`` is its tenant."""
    _fence(table, f"{table}.{column} = {_TENANT}")


def protect_by_parent(table: str, column: str, parent: str, key: str = "id") -> None:
    """Lets a transaction see and write only the rows of ``table`` whose row in ``parent`` it may see."""
    _fence(table, f"EXISTS (SELECT FROM {parent} WHERE {parent}.{key} = {table}.{column})")


def _fence(table: str, is_own: str) -> None:
    if _is_postgres():
        for statement in _FENCE:
            values = {"name": table, "tenant": _TENANT, "own": is_own}
            op.execute(DDL(statement, context=values))  # type: ignore[no-untyped-call]


def _is_postgres() -> bool:
    return op.get_bind().dialect.name == "postgresql"
