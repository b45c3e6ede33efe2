"""The services, prompts and transcripts that ship as examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from passerelle.services.folder import ServiceCatalog, ServiceLoader, find_folders
from passerelle.services.turns import parse_turns

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_every_example_is_sound_and_uses_each_strategy() -> None:
    """No file has a problem, every prompt is used, and the model can be named by a variable."""
    catalog = ServiceLoader(find_folders(EXAMPLES), {"MODEL": "other"}).prepare(ServiceCatalog())
    assert catalog.problems == ()
    assert {service.strategy.value for service in catalog.services.values()} == {"rolling", "map_reduce", "extract"}
    assert {model for service in catalog.services.values() for model in service.models} == {"other"}
    used = {service.prompt.name for service in catalog.services.values()}
    used |= {
        flavor.reduce_prompt.name for s in catalog.services.values() for flavor in s.flavors if flavor.reduce_prompt
    }
    assert used == {path.stem for path in (EXAMPLES / "prompts").iterdir()}


@pytest.mark.parametrize(("name", "speakers"), [("garden-en.txt", 4), ("reunion-fr.txt", 4)])
def test_every_turn_of_a_transcript_has_a_speaker(name: str, speakers: int) -> None:
    """The sample meetings are read turn by turn, each with who speaks."""
    turns = parse_turns((EXAMPLES / "documents" / name).read_text())
    assert len(turns) > 15
    assert len({turn.speaker for turn in turns}) == speakers
