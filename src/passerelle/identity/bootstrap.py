"""The administrator's key of a new installation, in ``$PASSERELLE_HOME/admin.key``.

There is always one way in: a start without that file makes a key with the scope ``admin`` and writes it there, for the
owner alone (mode 0600). To get a new one, delete the file and start again; the keys before it stay valid until revoked.
A file whose key was revoked, or has expired, is left alone: that was somebody's decision.
"""

from __future__ import annotations

import os
from pathlib import Path

from passerelle.domain.principal import Scope
from passerelle.identity.audit import Actor
from passerelle.identity.credentials import Credentials
from passerelle.identity.keys import KeyOptions, KeyStore
from passerelle.identity.organisations import FIRST
from passerelle.identity.rights import Maker
from passerelle.identity.token import parse
from passerelle.storage.engine import Database, StorageError

ADMIN_KEY_FILE = "admin.key"
_MAX_FILE_BYTES = 4096


async def ensure_admin_key(database: Database, home: Path) -> bool:
    """Makes the administrator's key unless its file names one that the database knows; returns whether it was made.

    Several processes may do this at once: one file wins, and the other's key is revoked. Raises StorageError.
    """
    keys = KeyStore(database, FIRST)
    by = Maker(Actor("system", "bootstrap", "bootstrap"))
    path = home / ADMIN_KEY_FILE
    stale = _read(path)
    if stale is not None and await _is_known(database, stale):
        return False
    made = await keys.create(by, KeyOptions(name="admin", scopes=frozenset({Scope.ADMIN})))
    try:
        won = _write(path, made.token, replace=stale is not None)
    except OSError as error:
        await keys.revoke(by, made.key.id)
        raise StorageError(
            f"The administrator's key cannot be written to {path} ({error.strerror}): make its folder writable."
        ) from error
    if not won:
        await keys.revoke(by, made.key.id)
    return won


async def _is_known(database: Database, text: bytes) -> bool:
    parsed = parse(text)
    if parsed is None:
        return False
    found = await Credentials(database).look_up(parsed[0])
    return found is not None and found.digest == parsed[1]


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES).strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"The file {path} cannot be read ({error.strerror}).") from error


def _write(path: Path, token: str, *, replace: bool) -> bool:
    """Writes the whole file or nothing; returns False when another process was first."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        if replace:
            draft.replace(path)
        else:
            os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
    return True
