"""The model list, field for field as vLLM's OpenAI server shows it.

Aliases are entries of their own, with the model's own name in ``root``, so that a client that looks for the name it
was configured with finds it. A key sees the models it may call and no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from passerelle.catalog.snapshot import Snapshot
from passerelle.domain.model import Model
from passerelle.domain.principal import Principal

Window = Callable[[Model], int | None]
"""Returns a model's context window in tokens, the smallest of its targets, None when not known."""


def configured_window(model: Model) -> int | None:
    """The window that the configuration gives."""
    return model.context_window


def render_list(
    snapshot: Snapshot, principal: Principal, window: Window = configured_window, more: Iterable[Model] = ()
) -> bytes:
    """Returns the body of GET /v1/models; ``more`` are models that are not of the catalog."""
    entries = [_entry(name, model, window(model)) for name, model in _visible(snapshot, principal)]
    entries += [_entry(model.name, model, None) for model in more]
    return msgspec.json.encode({"object": "list", "data": entries})


def render_one(snapshot: Snapshot, principal: Principal, name: str, window: Window = configured_window) -> bytes | None:
    """Returns the body of GET /v1/models/{name}; None when there is no such model for this key."""
    model = snapshot.resolve(name)
    if model is None or not principal.may_call(model.name):
        return None
    return msgspec.json.encode(_entry(name, model, window(model)))


def render_other(model: Model) -> bytes:
    """Returns the body for a model that is not of the catalog."""
    return msgspec.json.encode(_entry(model.name, model, None))


def _visible(snapshot: Snapshot, principal: Principal) -> Iterator[tuple[str, Model]]:
    for model in snapshot.models.values():
        if principal.may_call(model.name):
            for name in (model.name, *model.aliases):
                yield name, model


def _entry(name: str, model: Model, window: int | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        "root": model.name,
        "parent": None,
        "max_model_len": window,
        "permission": [
            {
                # vLLM draws this at random at each start; derived from the name it is the same on every worker.
                "id": "modelperm-" + hashlib.sha256(name.encode()).hexdigest()[:32],
                "object": "model_permission",
                "created": model.created,
                "allow_create_engine": False,
                "allow_sampling": True,
                "allow_logprobs": True,
                "allow_search_indices": False,
                "allow_view": True,
                "allow_fine_tuning": False,
                "organization": "*",
                "group": None,
                "is_blocking": False,
            }
        ],
    }
