"""Who is asking, and what they may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address
from types import MappingProxyType
from typing import Any


class Scope(StrEnum):
    """A right that a route asks for and a key carries."""

    INFERENCE = "inference"
    """Call models: chat, completions, embeddings, tokenize."""
    SERVICES = "services"
    """Run services, and see and steer one's own jobs."""
    USAGE_READ = "usage:read"
    """Read usage and cost."""
    METRICS_READ = "metrics:read"
    """Read /metrics."""
    ROUTER_READ = "router:read"
    """Read targets' state."""
    ROUTER_WRITE = "router:write"
    """Drain and undrain targets."""
    KEYS_READ = "keys:read"
    """See keys, never their secrets."""
    KEYS_WRITE = "keys:write"
    """Create, rotate and revoke keys."""
    ORGANISATION_READ = "organisation:read"
    """See one's organisation, its projects and users."""
    ORGANISATION_WRITE = "organisation:write"
    """Change projects and users of one's organisation."""
    LIMITS_READ = "limits:read"
    """See limits, budgets and prices."""
    LIMITS_WRITE = "limits:write"
    """Set limits and budgets within one's organisation."""
    AUDIT_READ = "audit:read"
    """Read the audit log."""
    ADMIN = "admin"
    """Everything, in every organisation."""


class Role(StrEnum):
    """What a user is in an organisation; `ROLE_SCOPES` says what it may do."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"
    AUDITOR = "auditor"


_READ = frozenset({Scope.USAGE_READ, Scope.ROUTER_READ, Scope.KEYS_READ, Scope.ORGANISATION_READ, Scope.LIMITS_READ})
_USE = frozenset({Scope.INFERENCE, Scope.SERVICES})
_MANAGE = _READ | _USE | {Scope.KEYS_WRITE, Scope.ORGANISATION_WRITE, Scope.LIMITS_WRITE}

ROLE_SCOPES: Mapping[Role, frozenset[Scope]] = MappingProxyType(
    {
        Role.OWNER: _MANAGE | {Scope.AUDIT_READ},
        Role.ADMIN: _MANAGE,
        Role.MEMBER: _USE | {Scope.USAGE_READ, Scope.KEYS_READ, Scope.KEYS_WRITE},
        Role.VIEWER: _READ,
        Role.AUDITOR: frozenset({Scope.AUDIT_READ, Scope.USAGE_READ, Scope.LIMITS_READ, Scope.ORGANISATION_READ}),
    }
)
"""The most a user of a role may do, within one organisation. `Scope.ADMIN` belongs to no role: who operates the
installation holds it by a key. A member sees and makes only keys of their own."""

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller of one request; stores are built for one.

    ``models`` is the set of model names this key may call, None for all. ``expires_at`` is seconds since the epoch.
    ``key_id`` is the database id of the key, never the secret; a person who signed on has "session:<user id>" there.
    ``organisation`` and ``project`` are ids. ``weight`` is the share in the fair queue. ``services`` is like
    ``models``, for services. ``networks`` are where calls may come from, None for anywhere. ``confined``: the user
    belongs to this one project of the organisation.
    """

    key_id: str
    key_name: str
    organisation: str = "default"
    project: str = "default"
    user: str | None = None
    scopes: frozenset[Scope] = frozenset()
    models: frozenset[str] | None = None
    expires_at: float | None = None
    weight: float = 1.0
    services: frozenset[str] | None = None
    networks: tuple[Network, ...] | None = None
    role: Role | None = None
    confined: bool = False
    plan: Any = field(default=None, init=False, repr=False, compare=False)
    """What the limits remember of this caller, see `passerelle.limits.book`: found without a search."""

    def allows(self, scope: Scope) -> bool:
        """Whether this principal may use a route that declares ``scope``."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def may_call(self, model: str) -> bool:
        """Whether this principal may call the model of that catalog name."""
        return self.models is None or model in self.models

    def may_run(self, service: str) -> bool:
        """Whether this principal may run the service of that name."""
        return self.services is None or service in self.services

    def may_come_from(self, address: str | None) -> bool:
        """Whether this principal may call from there; an address that is not known is in no network."""
        if self.networks is None:
            return True
        try:
            found = ip_address(address or "")
        except ValueError:
            return False
        found = getattr(found, "ipv4_mapped", None) or found
        return any(found in network for network in self.networks)
