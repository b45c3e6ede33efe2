"""Who is asking, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """A right that a route asks for and a key carries."""

    INFERENCE = "inference"
    """Call models: chat, completions, embeddings, tokenize."""
    USAGE_READ = "usage:read"
    """Read usage and cost."""
    METRICS_READ = "metrics:read"
    """Read /metrics."""
    ROUTER_READ = "router:read"
    """Read targets' state."""
    ROUTER_WRITE = "router:write"
    """Drain and undrain targets."""
    KEYS_WRITE = "keys:write"
    """Create, rotate and revoke keys."""
    ADMIN = "admin"
    """Everything."""


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller of one request; stores are built for one.

    ``models`` is the set of model names this key may call, None for all. ``expires_at`` is seconds since the epoch.
    ``key_id`` is the database id of the key, never the secret. ``weight`` is the share in the fair queue.
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

    def allows(self, scope: Scope) -> bool:
        """Whether this principal may use a route that declares ``scope``."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def may_call(self, model: str) -> bool:
        """Whether this principal may call the model of that catalog name."""
        return self.models is None or model in self.models
