"""A service as `GET /services` lists it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from passerelle.faces.services.linto import listed
from passerelle.services.folder import ServiceCatalog, ServiceLoader, find_folders


def shown(root: Path, manifest: str) -> list[dict[str, Any]]:
    """Returns what is listed for a manifest, as a client reads it."""
    (root / "services").mkdir()
    (root / "prompts").mkdir()
    (root / "prompts" / "minutes.txt").write_text("Minutes of:\n{}\n")
    (root / "services" / "minutes.yaml").write_text(manifest)
    catalog = ServiceLoader(find_folders(root), {}).prepare(ServiceCatalog())
    assert catalog.problems == ()
    found: list[dict[str, Any]] = msgspec.json.decode(
        msgspec.json.encode([listed(each) for each in catalog.services.values()])
    )
    return found


def test_what_a_manifest_leaves_out_is_filled_in(tmp_path: Path) -> None:
    """A client of the original finds the name, the route, and a flavor to ask for, in the shortest manifest of ours."""
    (service,) = shown(tmp_path, "team/minutes: {model: m, prompt: minutes, description: Minutes, metadata: {v: 1}}")
    flavor = service.pop("flavor")
    assert service == {
        "type": "summary",
        "fields": 1,
        "name": "team-minutes",
        "route": "team/minutes",
        "description": {"en": "Minutes"},
        "model": "m",
        "prompt": "minutes",
        "metadata": {"v": 1},
    }
    assert [(each["name"], each["modelName"], each["maxGenerationLength"]) for each in flavor] == [
        ("default", "m", 2048)
    ]


def test_what_is_written_is_shown_as_it_is(tmp_path: Path) -> None:
    """Keys that nothing reads are clients' to read; a flavor that says only its name has its parameters beside it."""
    text = """
minutes:
  type: report
  fields: 1
  route: /one/two/
  backend: vLLM
  flavor:
    - {name: llama, modelName: m, tokenizerClass: LlamaTokenizer, maxNewTurns: 4, top_p: 0.5}
    - {name: other, model: n}
"""
    (service,) = shown(tmp_path, text)
    assert (service["type"], service["route"], service["backend"]) == ("report", "one/two", "vLLM")
    assert service["flavor"][0]["tokenizerClass"] == "LlamaTokenizer"
    assert [(each["modelName"], each["maxNewTurns"]) for each in service["flavor"]] == [("m", 4), ("n", 9)]
    assert [each["top_p"] for each in service["flavor"]] == [0.5, None]
