"""Routing policies by the names that a configuration uses. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from passerelle.gateway.policies.base import Policy, RoutingHint
from passerelle.gateway.policies.latency import Latency
from passerelle.gateway.policies.least_busy import LeastBusy
from passerelle.gateway.policies.prefix_affine import PrefixAffine
from passerelle.gateway.policies.round_robin import RoundRobin
from passerelle.gateway.policies.session import Session
from passerelle.gateway.policies.weighted import Weighted

POLICIES: Mapping[str, Callable[[], Policy]] = MappingProxyType(
    {
        "round_robin": RoundRobin,
        "weighted": Weighted,
        "least_busy": LeastBusy,
        "latency": Latency,
        "session": Session,
        "prefix_affine": PrefixAffine,
    }
)


def make_policy(name: str) -> Policy:
    """Returns a new policy of that name. Raises KeyError; the catalog has checked the name before."""
    return POLICIES[name]()


__all__ = ["POLICIES", "Policy", "RoutingHint", "make_policy"]
