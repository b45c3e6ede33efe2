"""Albert's ways to write models: the routing table and LLM_TABLE."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from passerelle.catalog.compile import prepare
from passerelle.catalog.problem import ConfigurationError
from passerelle.catalog.snapshot import Snapshot
from passerelle.catalog.sources import gather

LIGHT = {
    "env": "dinum",
    "api_port": 8090,
    "hf_repo_id": "AgentPublic/albertlight-7b",
    "driver": "vllm",
    "model_port": 8082,
    "model_host": "gpu-1",
    "gpu_mem_use": 0.4,
    "tensor_parralel_size": 1,
    "model_file": None,
    "force_download": False,
}


def table(folder: Path, entries: object, name: str = "llm_routing_table.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(entries, indent=2))
    return path


def snapshot_of(config: Path | None, environ: dict[str, str] | None = None) -> Snapshot:
    return prepare(gather(config, environ or {}, {}))


def problems(config: Path | None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        snapshot_of(config, environ)
    return [str(problem) for problem in caught.value.problems]


def test_a_routing_table_is_a_configuration(tmp_path: Path) -> None:
    """Given as the file itself, each service is a model with its repository as alias."""
    other = LIGHT | {"hf_repo_id": "AgentPublic/albert-v1", "model_host": "10.0.0.2", "model_port": "8083"}
    snapshot = snapshot_of(table(tmp_path, {"albert-light": LIGHT, "albert": other | {"model_port": 8083}}))
    assert snapshot.names() == ("albert-light", "albert")
    model = snapshot.resolve("AgentPublic/albertlight-7b")
    assert model is not None
    assert model is snapshot.resolve("albert-light")
    target = model.targets[0]
    assert (target.engine, target.url, target.model) == ("openai", "http://gpu-1:8082/v1", "AgentPublic/albertlight-7b")
    assert snapshot.models["albert"].targets[0].url == "http://10.0.0.2:8083/v1"


def test_a_routing_table_adds_to_the_yaml(tmp_path: Path) -> None:
    """``models_file`` is found beside the YAML, and watched with it; its models join the others."""
    path = table(tmp_path, {"albert-light": LIGHT})
    config = tmp_path / "passerelle.yaml"
    config.write_text(
        f"models_file: {path.name}\nmodels: [{{name: a, targets: [{{engine: llamacpp}}], "
        "fallbacks: {error: [albert-light]}}]\n"
    )
    document = gather(config, {}, {})
    assert document.files == (config, path)
    assert prepare(document).names() == ("a", "albert-light")


def test_services_of_one_repository_keep_their_names(tmp_path: Path) -> None:
    """Two environments may serve the same model: the first has the alias, both have their names."""
    snapshot = snapshot_of(table(tmp_path, {"one": LIGHT, "two": LIGHT | {"env": "franceservices"}}))
    assert snapshot.names() == ("one", "two")
    assert snapshot.resolve("AgentPublic/albertlight-7b") is snapshot.models["one"]


def test_a_driver_that_cannot_be_a_target_is_said_so(tmp_path: Path) -> None:
    """gpt4all's server speaks another format; the line says which drivers do."""
    path = table(tmp_path, {"albert-light": LIGHT, "tiny": LIGHT | {"driver": "gpt4all", "hf_repo_id": "x/y"}})
    (line,) = problems(path)
    assert line.startswith(f"{path}:18:15: tiny.driver: servers of this driver do not speak OpenAI's format")
    assert line.endswith("(accepted: vllm)")


def test_a_broken_entry_says_what_it_lacks(tmp_path: Path) -> None:
    """What Albert calls mandatory is mandatory here, by line and key."""
    lines = problems(table(tmp_path, {"a": {"hf_repo_id": "x/y", "model_host": "http://h", "model_port": 0}, "b": 3}))
    assert [line.partition("json:")[2].partition(" (")[0] for line in lines] == [
        "4:19: a.model_host: 'http://h' is not accepted",
        "5:19: a.model_port: '0' is not accepted",
        "7:8: b: expected keys and values, found '3'",
    ]


def test_a_missing_table_names_its_path(tmp_path: Path) -> None:
    """A ``models_file`` that is not there is one line."""
    config = tmp_path / "passerelle.yaml"
    config.write_text("models_file: nope.json\nmodels: []\n")
    assert problems(config) == [f"{tmp_path / 'nope.json'}: the file cannot be read: No such file or directory"]


def test_other_json_is_an_ordinary_configuration(tmp_path: Path) -> None:
    """A JSON file with our own keys is read like the YAML."""
    path = table(tmp_path, {"models": [{"name": "a", "targets": [{"url": "http://h/v1"}]}]}, "c.json")
    assert snapshot_of(path).names() == ("a",)


def test_llm_table_lists_servers() -> None:
    """The variable's Python literal names models; a bare address gets the path of OpenAI's routes."""
    value = '[("albert-light", "http://host:8082"), ("other", "https://h/api/v1/")]'
    snapshot = snapshot_of(None, {"LLM_TABLE": value})
    assert {name: model.targets[0].url for name, model in snapshot.models.items()} == {
        "albert-light": "http://host:8082/v1",
        "other": "https://h/api/v1",
    }


@pytest.mark.parametrize("value", ["nonsense", "[1]", "[('a',)]", "__import__('os')", "[" * 5000, "('a', 'b', 'c')"])
def test_llm_table_that_is_none_is_one_line_a_mistake(value: str) -> None:
    """Anything but a list of pairs is refused by name, and never run."""
    for line in problems(None, {"LLM_TABLE": value}):
        assert line.startswith("LLM_TABLE: models")
        assert "(accepted: " in line


def test_llm_table_with_a_bad_url_names_the_variable() -> None:
    """What comes from the variable is checked like everything else."""
    (line,) = problems(None, {"LLM_TABLE": '[("a", "host:8082")]'})
    assert line.startswith("LLM_TABLE: models[0].targets[0].url: this is not a URL")
