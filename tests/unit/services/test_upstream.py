"""The server for models that services name and the catalog does not know."""

from __future__ import annotations

from passerelle.catalog.snapshot import Snapshot
from passerelle.domain.model import Model
from passerelle.services.upstream import ServiceUpstream

KNOWN = Snapshot.of([Model("m", (), aliases=("alias",))], generation=7)


def test_unknown_names_become_models() -> None:
    """A name that neither a model nor an alias has gets a target; the generation and the others stay."""
    upstream = ServiceUpstream("http://vllm:8000/v1/", "secret")
    extended = upstream.extend(KNOWN, ["m", "alias", "far", "far"])
    assert extended.names() == ("m", "far")
    assert extended.generation == 7
    model = extended.resolve("far")
    assert model is not None
    (target,) = model.targets
    assert (target.url, target.model, target.engine, target.api_key) == (
        "http://vllm:8000/v1",
        "far",
        "openai",
        "secret",
    )
    assert "secret" not in repr(extended)


def test_what_is_named_no_more_goes() -> None:
    """Extending again takes away what no service names now, and does nothing when nothing changes."""
    upstream = ServiceUpstream("http://vllm:8000/v1")
    extended = upstream.extend(KNOWN, ["far"])
    assert upstream.extend(extended, ["far"]) is extended
    assert upstream.extend(extended, []).names() == ("m",)
    assert ServiceUpstream(None).extend(KNOWN, ["far"]) is KNOWN
