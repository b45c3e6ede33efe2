"""What somebody may give to others, and to whose things they may reach: nobody gives more than they have.

A key or a user is made by somebody (a `Maker`) whose rights are read inside the very transaction, so a maker that was
revoked a moment ago makes nothing any more. `excess` says what would be too much, in words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, ip_network
from math import inf

from passerelle.domain.errors import Forbidden
from passerelle.domain.principal import Network, Principal, Scope
from passerelle.identity.audit import Actor

Names = frozenset[str] | None
"""Names of models or services; None is all of them."""


@dataclass(frozen=True, slots=True)
class Maker:
    """Who does it: ``actor`` for the audit log, ``principal`` for what they may; None for the operator at the machine,
    whom nothing limits."""

    actor: Actor
    principal: Principal | None = None

    @property
    def created_by(self) -> str:
        """What objects remember of their maker: an id, or the tool: "cli", "bootstrap"."""
        return "cli" if self.actor.kind == "cli" else self.actor.id

    def having(self, rights: Rights) -> Maker:
        """Returns the same maker with the rights that were just read: what a process remembers of them may be older."""
        principal = self.principal
        if principal is None:
            return self
        project = rights.project if rights.confined and rights.project is not None else principal.project
        return replace(
            self, principal=replace(principal, scopes=rights.scopes, confined=rights.confined, project=project)
        )


@dataclass(frozen=True, slots=True)
class Rights:
    """What a maker has, or a key is to have. ``project`` None is every project of the organisation; ``networks`` None
    is every address; ``expires_at_ms`` None is never. ``confined``: whoever has them belongs to that one project, and
    so must everybody whom they are given to."""

    scopes: frozenset[Scope]
    project: str | None = None
    models: Names = None
    services: Names = None
    networks: tuple[Network, ...] | None = None
    expires_at_ms: int | None = None
    weight: float = 1.0
    confined: bool = False

    @property
    def everywhere(self) -> bool:
        """Whether they hold in every organisation."""
        return Scope.ADMIN in self.scopes


OPERATOR = Rights(frozenset({Scope.ADMIN}), weight=inf)
"""Of whoever works on the database itself."""


def excess(having: Rights, giving: Rights) -> list[str]:
    """Returns what of ``giving`` is more than ``having``, in words for the one who asked; empty when nothing is."""
    found = []
    if not having.everywhere:
        found += [f"the scope '{scope}'" for scope in sorted(giving.scopes - having.scopes)]
        if having.project is not None and giving.project != having.project:
            found.append("another project")
        if giving.weight > having.weight:
            found.append(f"a weight above {having.weight:g}")
    found += _more_names("model", having.models, giving.models)
    found += _more_names("service", having.services, giving.services)
    found += _more_networks(having.networks, giving.networks)
    if having.expires_at_ms is not None and not (giving.expires_at_ms or inf) <= having.expires_at_ms:
        found.append("a later end than your own")
    return found


def check(having: Rights, giving: Rights) -> None:
    """Raises Forbidden when ``giving`` is more than ``having``."""
    found = excess(having, giving)
    if found:
        words = ", ".join(found[:8])
        raise Forbidden(
            f"This is more than you have yourself: {words}. Leave it out, or ask somebody who has it.",
            code="insufficient_scope",
        )


def _more_names(what: str, having: Names, giving: Names) -> list[str]:
    if having is None:
        return []
    if giving is None:
        return [f"every {what}"]
    return [f"the {what} '{name}'" for name in sorted(giving - having)]


def _more_networks(having: tuple[Network, ...] | None, giving: tuple[Network, ...] | None) -> list[str]:
    if having is None:
        return []
    if giving is None:
        return ["every address"]
    return [f"the network {network}" for network in giving if not any(_is_inside(network, own) for own in having)]


def _is_inside(network: Network, other: Network) -> bool:
    if isinstance(network, IPv4Network):
        return isinstance(other, IPv4Network) and network.subnet_of(other)
    return not isinstance(other, IPv4Network) and network.subnet_of(other)


@dataclass(frozen=True, slots=True)
class Reach:
    """Whose keys somebody sees or changes: those of a project, of a user; None is all of them."""

    project: str | None = None
    user: str | None = None

    def covers(self, project: str, user: str | None) -> bool:
        """Whether a key of that project and user is within reach."""
        return self.project in (None, project) and self.user in (None, user)


ALL = Reach()


def reach(principal: Principal | None, broad: Scope) -> Reach:
    """Returns whose keys a caller reaches: with the scope ``broad`` those of the organisation (of its project, for a
    user who is confined to one), else their own; a key that is nobody's reaches those of its project."""
    if principal is None or Scope.ADMIN in principal.scopes:
        return ALL
    if broad in principal.scopes:
        return Reach(project=principal.project) if principal.confined else ALL
    return Reach(project=principal.project) if principal.user is None else Reach(user=principal.user)


def parse_networks(texts: Iterable[str] | None) -> tuple[Network, ...] | None:
    """Returns networks from their texts, as the database keeps them. Raises ValueError."""
    return None if texts is None else tuple(ip_network(text, strict=False) for text in texts)


def common(*names: Names) -> Names:
    """Returns what all of them allow."""
    some = [each for each in names if each is not None]
    return frozenset.intersection(*some) if some else None
