"""Ray Serve LLM with real vLLM: what the shipped configuration asks of a cluster, and a model served without a GPU.

It needs vLLM's environment beside Ray's: `make test-vllm` builds it. No GPU is used: the parallel settings are checked
by what Ray makes of them, and by a small model on processors.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pyarrow
import pytest
import yaml
from tests.harness.gateway import GatewayProcess
from tests.rayserve.cluster import DEPLOY, RayCluster, ray_cluster
from tests.rayserve.test_embedded import until
from tests.vllm.environment import Environment, default_folder

READ = """
import json, sys, yaml
import gpus, msgspec
from ray.serve.llm import LLMConfig
arguments = msgspec.convert(yaml.safe_load(open(sys.argv[1]))["applications"][0]["args"], gpus.GpuArguments)
made = {}
for model in arguments.models:
    config = LLMConfig(**gpus.llm_config(model)).get_engine_config()
    made[model.name] = {"bundles": config.placement_bundles, "devices": config.num_devices}
print(json.dumps(made))
"""


@pytest.fixture(scope="module")
def vllm() -> Environment:
    """The environment with vLLM for processors."""
    environment = Environment(default_folder().expanduser().resolve())
    if not environment.ready:
        pytest.skip("vLLM's environment is not there; `make test-vllm` builds it")
    return environment


@pytest.fixture(scope="module")
def paths(vllm: Environment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """vLLM's packages, and pyarrow, which Ray Serve LLM imports and ``ray[llm]`` would bring."""
    (site,) = vllm.venv.glob("lib/python*/site-packages")
    links = tmp_path_factory.mktemp("links")
    (links / "pyarrow").symlink_to(Path(pyarrow.__file__).parent)
    return (links, site)


def test_what_the_shipped_configuration_takes(ray_bin: Path, paths: tuple[Path, ...]) -> None:
    """Ray Serve LLM reads it, and wants as many GPUs for a replica as both kinds of parallelism need."""
    environ = {**os.environ, "PYTHONPATH": ":".join(map(str, (*paths, DEPLOY))), "HF_HUB_OFFLINE": "1"}
    command = [str(ray_bin / "python"), "-c", READ, str(DEPLOY / "gpus.yaml")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads(done.stdout.splitlines()[-1])
    assert {name: each["devices"] for name, each in made.items()} == {"qwen3-32b": 2, "qwen3-235b": 16}
    assert all(bundle["GPU"] == 1 for each in made.values() for bundle in each["bundles"])
    assert len(made["qwen3-235b"]["bundles"]) == 16


@pytest.fixture(scope="module")
def cluster(
    vllm: Environment, paths: tuple[Path, ...], ray_bin: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RayCluster]:
    """The application with a small model on processors."""
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "gpus.yaml").read_text())
    model = {"name": "small", "source": str(vllm.model), "accelerator": "CPU", "max_model_len": 1024}
    model |= {"options": {"enforce_eager": True, "dtype": "bfloat16", "max_num_seqs": 4}}
    document["applications"][0]["args"] = {"models": [model]}
    folder = tmp_path_factory.mktemp("gpus")
    environ = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    options: dict[str, Any] = {"health": "/v1/models", "processors": 3, "paths": paths, "environ": environ}
    with ray_cluster(ray_bin, folder, document, **options) as running:
        until(lambda: _answers(running), "an answer of vLLM", within_s=900)
        yield running


def _answers(cluster: RayCluster) -> bool:
    """Whether a replica is up: until then Serve answers 503, or lets a request wait."""
    body = {"model": "small", "prompt": "a", "max_tokens": 1}
    try:
        return httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=30).status_code == 200
    except httpx.TimeoutException:
        return False


def test_served_by_vllm(cluster: RayCluster, tmp_path: Path) -> None:
    """Answers and streams of vLLM come through Serve and the gateway, with usage."""
    models = [{"name": "fleet", "targets": [{"url": f"{cluster.url}/v1", "model": "small"}]}]
    with (
        GatewayProcess(tmp_path / "home", {"models": models}) as gateway,
        openai.OpenAI(base_url=gateway.wait_ready().url + "/v1", api_key=gateway.key, max_retries=0) as client,
    ):
        answer = client.chat.completions.create(
            model="fleet", messages=[{"role": "user", "content": "Name a colour."}], max_tokens=6, temperature=0
        )
        assert answer.choices[0].message.content
        assert answer.usage is not None
        stream = client.chat.completions.create(
            model="fleet",
            messages=[{"role": "user", "content": "Name a colour."}],
            max_tokens=6,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        events = list(stream)
        text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
        assert text == answer.choices[0].message.content
        assert events[-1].usage == answer.usage
