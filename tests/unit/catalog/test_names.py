"""Names of models as people give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from passerelle.catalog.names import own_names
from passerelle.catalog.snapshot import Snapshot
from passerelle.domain.errors import BadRequest
from passerelle.settings import load_configuration


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """Two models, one with an alias."""
    path = tmp_path / "passerelle.yaml"
    path.write_text(
        "models:\n"
        "  - {name: mistral-small, aliases: [gpt-4], targets: [{url: 'http://127.0.0.1:9/v1'}]}\n"
        "  - {name: phi-3, targets: [{url: 'http://127.0.0.1:9/v1'}]}\n"
    )
    return load_configuration(path, {"PASSERELLE_HOME": str(tmp_path)}).snapshot


def test_aliases_become_the_models_own_names(snapshot: Snapshot) -> None:
    """What is kept is the name that calls are checked against."""
    assert own_names(snapshot, ["gpt-4", "phi-3", "mistral-small"]) == {"mistral-small", "phi-3"}
    assert own_names(snapshot, []) == frozenset()


def test_an_unknown_model_is_refused_with_what_is_meant(snapshot: Snapshot) -> None:
    """Close names first, else those there are."""
    with pytest.raises(BadRequest, match="did you mean: 'mistral-small'"):
        own_names(snapshot, ["mistral-smal"])
    with pytest.raises(BadRequest, match="there are: 'mistral-small', 'phi-3'"):
        own_names(snapshot, ["xyz"])


def test_what_somebody_may_not_call_is_not_there(snapshot: Snapshot) -> None:
    """Neither is it accepted nor suggested, and the refusal is that of a name nothing has."""
    with pytest.raises(BadRequest) as hidden:
        own_names(snapshot, ["phi-3"], lambda name: name == "mistral-small")
    with pytest.raises(BadRequest) as missing:
        own_names(snapshot, ["phi-4"], lambda name: name == "mistral-small")
    assert hidden.value.message.replace("phi-3", "phi-4") == missing.value.message
