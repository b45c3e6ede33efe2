"""What ``passerelle triton add`` writes is loaded by the real server, and answers through the gateway.

The vLLM and TensorRT-LLM backends are in place of NVIDIA's: they need GPUs. Triton, its reader of configurations, its
ensembles and its Python backend are real.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from tests.harness.gateway import GatewayProcess
from tests.triton.server import MODELS, Triton, build, default_folder, triton

HERE = Path(__file__).parent


def add(repository: Path, *arguments: str) -> None:
    """Runs the command."""
    command = [sys.executable, "-m", "passerelle", "triton", "add", *arguments, "--repository", str(repository)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A server whose repository the command has written: one model for each backend."""
    folder = tmp_path_factory.mktemp("repository")
    repository = folder / "made"
    add(repository, "written-for.vllm", "--model", "é/model", "--tensor-parallel", "2", "--set", "enforce_eager=true")
    (folder / "engine").mkdir()
    trt = ["--backend", "tensorrtllm", "--model", str(folder / "engine"), "--tokenizer", str(folder)]
    add(repository, "trt", *trt, "--templates", str(HERE / "templates"), "--max-batch", "4")
    add(repository, "mine", "--backend", "python", "--model", str(MODELS / "phi3" / "1" / "model.py"))
    with triton(build(default_folder()), folder, models=repository, backends=HERE / "backends") as running:
        yield running


@pytest.fixture(scope="module")
def client(made: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    models = [
        {"name": name, "targets": [{"url": made.url, "engine": "triton", "model": name}]}
        for name in ("written-for.vllm", "trt", "mine")
    ]
    with (
        GatewayProcess(tmp_path_factory.mktemp("gateway") / "home", {"models": models}) as gateway,
        openai.OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0) as client,
    ):
        yield client


def test_vllm(client: openai.OpenAI) -> None:
    """The backend finds its arguments."""
    answer = client.completions.create(model="written-for.vllm", prompt="a", max_tokens=4)
    found = json.loads(answer.choices[0].text)
    assert found == {"model": "é/model", "tensor_parallel_size": 2, "enforce_eager": True}


def test_tensorrt_llm(made: Triton, client: openai.OpenAI) -> None:
    """The ensemble and its three steps work together under the names they were given."""
    assert client.completions.create(model="trt", prompt="abé", max_tokens=5).choices[0].text == "abéab"
    config = httpx.get(f"{made.http}/v2/models/trt_tensorrt_llm/config").json()
    assert config["max_batch_size"] == 4
    assert config["parameters"]["medusa_choices"]["string_value"] == "${medusa_choices}"


def test_python(client: openai.OpenAI) -> None:
    """A model of one's own has all tensors of the vLLM backend."""
    answer = client.completions.create(model="mine", prompt="one two", max_tokens=2)
    assert answer.choices[0].text == "tok0 tok1 "
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 2
