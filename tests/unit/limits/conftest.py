"""Both databases, for every test here."""

from tests.harness.databases import database, database_url, postgres

__all__ = ["database", "database_url", "postgres"]
