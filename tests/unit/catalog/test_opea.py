"""OPEA's config.ini is read as a configuration of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from passerelle.catalog.problem import ConfigurationError
from passerelle.settings import load_configuration

INI = """# OPEA LLM Microservice Configuration File
[Logging]
# env - LOG_LEVEL
log_level=DEBUG
log_path=/var/log/opea/llm.log

[OPEA_Microservice]
name=opea_service@llm
host=127.0.0.1
port=9001

[Model]
model_name="Intel/neural-chat-7b-v3-3"
framework="langchain"
model_server="tgi"
model_server_endpoint="http://localhost:8080"
"""


def written(folder: Path, text: str = INI) -> Path:
    path = folder / "config.ini"
    path.write_text(text)
    return path


def test_the_readme_file(tmp_path: Path) -> None:
    """The README's own example: one model on one TGI server, no key asked."""
    found = load_configuration(written(tmp_path), {"HOME": str(tmp_path)})
    assert (found.settings.server.host, found.settings.server.port) == ("127.0.0.1", 9001)
    assert found.settings.logging.level == "debug"
    assert found.settings.logging.file == "/var/log/opea/llm.log"
    assert found.settings.auth.required is False
    model = found.snapshot.resolve("Intel/neural-chat-7b-v3-3")
    assert model is not None
    (target,) = model.targets
    assert (target.engine, target.url, target.model) == ("tgi", "http://localhost:8080", "Intel/neural-chat-7b-v3-3")


def test_variables_win(tmp_path: Path) -> None:
    """Each variable of the README overrides its key; vLLM's endpoint gets its /v1."""
    environ = {
        "HOME": str(tmp_path),
        "LLM_LOG_LEVEL": "ERROR",
        "USVC_NAME": "mine",
        "USVC_HOST": "0.0.0.0",
        "USVC_PORT": "9999",
        "LLM_NAME": "phi",
        "MODEL_SERVER": "vllm",
        "LLM_MODEL_SERVER_ENDPOINT": "http://gpu:8008/",
    }
    found = load_configuration(written(tmp_path), environ)
    assert (found.settings.server.host, found.settings.server.port) == ("0.0.0.0", 9999)
    assert (found.settings.opea.name, found.settings.logging.level) == ("mine", "error")
    model = found.snapshot.resolve("phi")
    assert model is not None
    assert (model.targets[0].engine, model.targets[0].url) == ("openai", "http://gpu:8008/v1")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"tgi"', '"triton"', "config.ini:15:14: Model.model_server: Invalid model server (accepted: tgi, vllm, ray)"),
        ('"Intel/neural-chat-7b-v3-3"', '""', "Model.model_name: a value is required"),
        ("DEBUG", "LOUD", "Logging.log_level: this is not a level"),
        ("port=9001", "port=many", "server.port"),
        ("[Logging]", "Logging]", "this is not an ini file"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, old: str, new: str, problem: str) -> None:
    """A wrong value names the file, its line and what is accepted."""
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(written(tmp_path, INI.replace(old, new)), {"HOME": str(tmp_path)})
    assert any(problem in str(each) for each in caught.value.problems), caught.value.problems
