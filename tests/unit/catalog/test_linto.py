"""LinTO's variables and its config.yaml as defaults of our settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from passerelle.catalog.linto import SETTINGS
from passerelle.catalog.problem import ConfigurationError
from passerelle.settings import Settings, load_settings

ENVIRON = {
    "OPENAI_API_BASE": "http://vllm-backend:8000/v1",
    "OPENAI_API_TOKEN": "token",
    "MAX_RETRIES": "2",
    "MAX_RETRY_DELAY": "4",
    "TIMEOUT": "30",
    "WS_POLLING_INTERVAL": "1.5",
    "MAX_CONCURRENT_INFERENCES": "5",
    "HTTP_PORT": "8123",
    "CONCURRENCY": "2",
    "SWAGGER_URL": "/swagger",
    "SERVICE_NAME": "LLM_Gateway",
    "SERVICES_BROKER": "redis://task-broker-redis:6379/0",
    "BROKER_PASS": "p@ss",
}
CONFIG = """
defaults:
  - services: [en]
api_params:
  api_base: ${oc.env:OPENAI_API_BASE,http://localhost:9000/v1}
  api_key: ${oc.env:OPENAI_API_TOKEN,EMPTY}
  max_retries: ${oc.env:MAX_RETRIES,6}
  service_port: 8001
  ws_polling_interval: ${oc.env:WS_POLLING_INTERVAL,3}
semaphore:
  max_concurrent_inferences: 3
services_broker:
  url: redis://broker:6379
  password: EMPTY
"""


def load(folder: Path, environ: dict[str, str], config: str | None = None, ours: str = "") -> Settings:
    """Returns the settings for a folder as LinTO's users have it."""
    (folder / ".hydra-conf" / "services").mkdir(parents=True)
    if config is not None:
        (folder / ".hydra-conf" / "config.yaml").write_text(config)
    (folder / "passerelle.yaml").write_text(ours)
    return load_settings(folder / "passerelle.yaml", {"PASSERELLE_HOME": str(folder / "home"), **environ})


def test_every_variable_sets_what_it_says(tmp_path: Path) -> None:
    """Each of the original's variables reaches the setting that does it."""
    settings = load(tmp_path, ENVIRON)
    assert set(ENVIRON) == set(SETTINGS)
    services, server = settings.services, settings.server
    assert (services.api_base, services.api_key) == ("http://vllm-backend:8000/v1", "token")
    assert (services.max_retries, services.max_retry_delay_s, services.call_timeout_s) == (2, 4.0, 30.0)
    assert (services.ws_polling_interval_s, services.max_parallel_calls) == (1.5, 5)
    assert (server.port, server.workers, server.docs_path, server.name) == (8123, 2, "/swagger", "LLM_Gateway")
    assert settings.jobs.broker == "redis://:p%40ss@task-broker-redis:6379/0"


def test_the_configuration_file_counts_below_variables(tmp_path: Path) -> None:
    """config.yaml is read with its interpolations; EMPTY is nothing."""
    settings = load(tmp_path, {"MAX_RETRIES": "9", "MAX_CONCURRENT_INFERENCES": "7"}, CONFIG)
    assert (settings.services.api_base, settings.services.api_key) == ("http://localhost:9000/v1", None)
    assert (settings.services.max_retries, settings.services.max_parallel_calls) == (9, 7)
    assert (settings.server.port, settings.jobs.broker) == (8001, "redis://broker:6379")


def test_what_is_ours_goes_before_it(tmp_path: Path) -> None:
    """passerelle.yaml and our own variables win."""
    ours = "services: {max_retries: 1}\nserver: {port: 9000}\n"
    settings = load(tmp_path, {**ENVIRON, "PASSERELLE_SERVER__WORKERS": "3"}, CONFIG, ours)
    assert (settings.services.max_retries, settings.server.port, settings.server.workers) == (1, 9000, 3)


def test_without_such_a_folder_the_variables_mean_nothing(tmp_path: Path) -> None:
    """TIMEOUT and HTTP_PORT are anybody's names: in Kubernetes HTTP_PORT may be an address."""
    (tmp_path / "services").mkdir()
    (tmp_path / "passerelle.yaml").write_text("")
    environ = {"PASSERELLE_HOME": str(tmp_path), "HTTP_PORT": "tcp://10.0.0.1:80", "OPENAI_API_BASE": "nothing"}
    settings = load_settings(tmp_path / "passerelle.yaml", environ)
    assert (settings.server.port, settings.services.api_base) == (8000, None)


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    """The error says which variable, and which key of ours it sets."""
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, {"MAX_RETRIES": "many"})
    (problem,) = caught.value.problems
    assert str(problem).startswith("MAX_RETRIES: services.max_retries:")
