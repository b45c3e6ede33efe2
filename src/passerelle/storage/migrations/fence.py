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

APP_ROLE = "passerelle_app"
_ON_TABLES = "SELECT, INSERT, UPDATE, DELETE"
_ON_SEQUENCES = "USAGE, SELECT"
_TENANT = "(SELECT current_setting('passerelle.organisation', true))"


def make_role() -> None:
    """Makes the role of all statements, and lets it use the tables there are and those that will be.

    A user who may not create roles goes on without: the policies hold for the owner too, because they are forced.
    """
    if not _is_postgres():
        return
    op.execute(
        f"""
        DO $$ BEGIN
          IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{APP_ROLE}') THEN
            BEGIN
              CREATE ROLE {APP_ROLE} NOLOGIN NOSUPERUSER NOBYPASSRLS;
            EXCEPTION
              WHEN duplicate_object OR unique_violation THEN NULL;
            END;
          END IF;
          IF NOT pg_has_role(current_user, '{APP_ROLE}',
            CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END)
          THEN
            EXECUTE format('GRANT {APP_ROLE} TO %I', current_user);
          END IF;
          EXECUTE format('GRANT USAGE ON SCHEMA %I TO {APP_ROLE}', current_schema());
          EXECUTE format('GRANT {_ON_TABLES} ON ALL TABLES IN SCHEMA %I TO {APP_ROLE}', current_schema());
          EXECUTE format('GRANT {_ON_SEQUENCES} ON ALL SEQUENCES IN SCHEMA %I TO {APP_ROLE}', current_schema());
          EXECUTE format(
            'ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT {_ON_TABLES} ON TABLES TO {APP_ROLE}', current_schema());
          EXECUTE format(
            'ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT {_ON_SEQUENCES} ON SEQUENCES TO {APP_ROLE}', current_schema());
        EXCEPTION WHEN insufficient_privilege THEN
          RAISE WARNING 'the role {APP_ROLE} cannot be created or granted by this user';
        END $$
        """
    )


def protect(table: str, column: str = "organisation") -> None:
    """Lets a transaction see and write only the rows of ``table`` whose ``column`` is its tenant."""
    _fence(table, f"{table}.{column} = {_TENANT}")


def protect_by_parent(table: str, column: str, parent: str, key: str = "id") -> None:
    """Lets a transaction see and write only the rows of ``table`` whose row in ``parent`` it may see."""
    _fence(table, f"EXISTS (SELECT FROM {parent} WHERE {parent}.{key} = {table}.{column})")


def _fence(table: str, is_own: str) -> None:
    if not _is_postgres():
        return
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON {table} USING ({_TENANT} = '*' OR {is_own})")
    op.execute(f"CREATE POLICY owner ON {table} TO CURRENT_USER USING ({_TENANT} IS NULL)")


def _is_postgres() -> bool:
    return op.get_bind().dialect.name == "postgresql"
