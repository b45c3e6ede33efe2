"""``GET /admin/me``: who the caller is, and what they may do, as this process sees it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from passerelle.domain.principal import Role, Scope
from passerelle.edge.dispatch import ANY_KEY, Context
from passerelle.faces.admin.resource import moment, query, respond
from passerelle.faces.described import Described


class MeAnswer(msgspec.Struct, tag_field="object", tag="me"):
    """The caller. Models and services are what key, project and organisation all allow, null for all.

    ``address`` is where the call came from, as networks of keys are compared with it.
    """

    kind: Literal["key", "user"]
    id: str
    name: str
    organisation: str
    project: str
    user: str | None
    role: Role | None
    confined: bool
    scopes: list[Scope]
    models: list[str] | None
    services: list[str] | None
    networks: list[str] | None
    address: str | None
    weight: float
    expires_at: datetime | None


class MeFace:
    """The endpoint."""

    async def show(self, context: Context) -> None:
        """``GET /admin/me``."""
        query(context)
        caller = context.caller
        signed_on = caller.user is not None and caller.key_id.startswith("session:")
        await respond(
            context,
            MeAnswer(
                kind="user" if signed_on else "key",
                id=caller.user if signed_on and caller.user is not None else caller.key_id,
                name=caller.key_name,
                organisation=caller.organisation,
                project=caller.project,
                user=caller.user,
                role=caller.role,
                confined=caller.confined,
                scopes=sorted(caller.scopes),
                models=None if caller.models is None else sorted(caller.models),
                services=None if caller.services is None else sorted(caller.services),
                networks=None if caller.networks is None else [str(network) for network in caller.networks],
                address=context.address,
                weight=caller.weight,
                expires_at=None if caller.expires_at is None else moment(int(caller.expires_at * 1000)),
            ),
        )


ME = (Described("GET", "/admin/me", "Keys", "showMe", "Who am I, and what may I do?", ANY_KEY, MeAnswer),)
"""What /docs says of this route."""
