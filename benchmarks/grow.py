"""A Passerelle that has grown: a database of many keys."""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import create_engine, func, insert, select, update

from passerelle.identity.token import mint, parse
from passerelle.storage.tables import key_secrets, keys, sequences

BATCH = 5_000


def seed_keys(home: Path, count: int, wanted: int) -> list[str]:
    """Adds ``count`` well-formed keys, as ``key create`` would write them; returns ``wanted`` of them.

    The database must exist and no server may be using it. The keys that are returned are spread over all of them.
    """
    now_ms = int(time.time() * 1000)
    step = max(1, count // wanted)
    kept: list[str] = []
    engine = create_engine(f"sqlite:///{home / 'passerelle.db'}")
    with engine.begin() as connection:
        changed = (connection.scalar(select(func.max(keys.c.changed))) or 0) + 1
        connection.execute(update(sequences).where(sequences.c.name == "keys").values(value=changed))
        for first in range(0, count, BATCH):
            rows, secrets = [], []
            for index in range(first, min(first + BATCH, count)):
                key = mint()
                public_id, digest = parse(key)
                if index % step == 0 and len(kept) < wanted:
                    kept.append(key)
                identity = f"bench-{index:06d}"
                rows.append(
                    {
                        "id": identity,
                        "name": identity,
                        "organisation": f"organisation-{index % 100}",
                        "project": "default",
                        "scopes": ["inference"],
                        "weight": 1.0,
                        "created_at_ms": now_ms,
                        "created_by": "bench",
                        "changed": changed,
                    }
                )
                secrets.append({"public_id": public_id, "key_id": identity, "digest": digest, "created_at_ms": now_ms})
            connection.execute(insert(keys), rows)
            connection.execute(insert(key_secrets), secrets)
    engine.dispose()
    return kept
