"""Keys, users and organisations made for tests, as the operator makes them."""

from __future__ import annotations

from typing import Any

from passerelle.domain.principal import Scope
from passerelle.identity.audit import Actor
from passerelle.identity.keys import KeyOptions, KeyStore, NewKey
from passerelle.identity.organisations import FIRST, Organisation, OrganisationOptions, OrganisationStore
from passerelle.identity.rights import Maker
from passerelle.identity.users import Kind, User, UserOptions, UserStore
from passerelle.storage.engine import Database

OPERATOR = Maker(Actor("cli", "test", "test"))


async def make_key(database: Database, name: str = "k", *, organisation: str = FIRST, **options: Any) -> NewKey:
    """Makes a key that may call models; ``options`` are those of `KeyOptions`."""
    wanted = KeyOptions(name=name, **{"scopes": frozenset({Scope.INFERENCE}), **options})
    return await KeyStore(database, organisation).create(OPERATOR, wanted)


async def make_organisation(database: Database, name: str, **options: Any) -> Organisation:
    """Makes an organisation with its first project."""
    return await OrganisationStore(database, None).create(OPERATOR, OrganisationOptions(name=name, **options))


async def make_user(
    database: Database, name: str, *, organisation: str = FIRST, kind: Kind = "person", **options: Any
) -> User:
    """Makes a user; ``options`` are those of `UserOptions`."""
    return await UserStore(database, organisation).create(OPERATOR, UserOptions(name=name, **options), kind)
