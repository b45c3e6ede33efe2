"""The model list, field for field."""

from __future__ import annotations

import json
import re

from passerelle.catalog.snapshot import Snapshot
from passerelle.domain.model import Model, Target
from passerelle.domain.principal import Principal
from passerelle.faces.openai.models import render_list, render_one

TARGET = Target(id="t", url="http://127.0.0.1:1/v1", engine="openai", model="phi")
PHI = Model(
    name="phi-3-mini",
    targets=(TARGET,),
    aliases=("microsoft/Phi-3-mini-4k-instruct",),
    context_window=4096,
    owned_by="vllm",
    created=1722780548,
)
SECRET = Model(name="secret", targets=(TARGET,), aliases=("org/secret",))
SNAPSHOT = Snapshot.of([PHI, SECRET])
ANYBODY = Principal(key_id="1", key_name="all")
PHI_ONLY = Principal(key_id="2", key_name="phi only", models=frozenset({"phi-3-mini"}))


def test_an_entry_is_what_vllm_shows() -> None:
    """Every field of the list that the first seed's README prints, for an alias."""
    entry = json.loads(render_list(SNAPSHOT, ANYBODY))["data"][1]
    permission = entry["permission"][0]
    assert re.fullmatch("modelperm-[0-9a-f]{32}", permission.pop("id"))
    assert entry == {
        "id": "microsoft/Phi-3-mini-4k-instruct",
        "object": "model",
        "created": 1722780548,
        "owned_by": "vllm",
        "root": "phi-3-mini",
        "parent": None,
        "max_model_len": 4096,
        "permission": [permission],
    }
    assert permission == {
        "object": "model_permission",
        "created": 1722780548,
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


def test_names_and_aliases_are_listed_in_order() -> None:
    """A client finds the name it was configured with, and sees which model is behind it."""
    answer = json.loads(render_list(SNAPSHOT, ANYBODY))
    assert answer["object"] == "list"
    assert [(entry["id"], entry["root"]) for entry in answer["data"]] == [
        ("phi-3-mini", "phi-3-mini"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi-3-mini"),
        ("secret", "secret"),
        ("org/secret", "secret"),
    ]
    assert answer["data"][2]["max_model_len"] is None


def test_a_key_sees_only_the_models_it_may_call() -> None:
    """A forbidden model is absent, and asking for it by name or alias is like asking for one that is not there."""
    assert {entry["root"] for entry in json.loads(render_list(SNAPSHOT, PHI_ONLY))["data"]} == {"phi-3-mini"}
    for name in ("secret", "org/secret", "missing"):
        assert render_one(SNAPSHOT, PHI_ONLY, name) is None
    assert render_one(SNAPSHOT, ANYBODY, "org/secret") is not None


def test_one_model_is_the_entry_of_the_list() -> None:
    """By name and by alias, slashes included."""
    listed = {entry["id"]: entry for entry in json.loads(render_list(SNAPSHOT, PHI_ONLY))["data"]}
    for name, entry in listed.items():
        shown = render_one(SNAPSHOT, PHI_ONLY, name)
        assert shown is not None
        assert json.loads(shown) == entry


def test_the_window_may_come_from_the_targets() -> None:
    """What the probes found is shown instead of what was configured."""
    shown = render_one(SNAPSHOT, ANYBODY, "secret", window=lambda model: 2048)
    assert shown is not None
    assert json.loads(shown)["max_model_len"] == 2048
