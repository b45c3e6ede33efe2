"""``passerelle model serve --driver vllm`` with the real vLLM: lent to a running gateway, guarded, taken back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.vllm.environment import Environment
from tests.vllm.servers import MAX_MODEL_LEN, SOURCE, STOP_TIMEOUT_S, VLLM_START_TIMEOUT_S, Gateway, wait_until

ARGUMENTS = ("--max-num-seqs", "4", "--enforce-eager")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway without a model that could answer."""
    far = {"name": "far", "targets": [{"url": "http://127.0.0.1:9/v1"}]}
    with Gateway(tmp_path_factory.mktemp("lent"), [far]) as running:
        yield running


def listed(gateway: Gateway) -> list[str]:
    headers = {"authorization": f"Bearer {gateway.key}"}
    return [model["id"] for model in httpx.get(f"{gateway.url}/v1/models", headers=headers).json()["data"]]


def processes_of(group: int) -> list[int]:
    """Returns the processes of a process group that are not zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.timeout(VLLM_START_TIMEOUT_S + 120)
def test_a_real_vllm_is_lent_guarded_and_taken_back(
    gateway: Gateway, vllm_environment: Environment, tmp_path: Path
) -> None:
    """It is listed at once, answers when loaded, asks for its key on every route, and ends as a whole."""
    command = [sys.executable, "-m", "passerelle", "model", "serve", str(vllm_environment.model), "--as", "lent"]
    command += ["--driver", "vllm", "--command", str(vllm_environment.vllm), "--dtype", "bfloat16"]
    command += ["--max-model-len", str(MAX_MODEL_LEN), "--", *ARGUMENTS]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    variables |= {"PASSERELLE_HOME": str(gateway.home), "PYTHONPATH": str(SOURCE)}
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        keeper = subprocess.Popen(command, env=os.environ | variables, stderr=output, cwd=tmp_path)
    try:
        wait_until("it is listed", lambda: "lent" in listed(gateway), timeout_s=30)

        def ready() -> bool:
            assert keeper.poll() is None, log.read_text()[-3000:]
            return "lent is ready" in log.read_text()

        wait_until("vLLM is ready", ready, timeout_s=VLLM_START_TIMEOUT_S)
        asked = {"model": "lent", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
        headers = {"authorization": f"Bearer {gateway.key}"}

        def answers() -> bool:
            answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=asked, headers=headers, timeout=120)
            return answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] > 0

        wait_until("it answers through the gateway", answers, timeout_s=60)
        found = re.search(r"Serving lent at (\S+)/v1, ", log.read_text())
        assert found is not None
        for path in ("/v1/models", "/invocations", "/tokenize", "/metrics", "/version"):
            assert httpx.get(found[1] + path).status_code == 401, path
        assert httpx.get(f"{found[1]}/health").status_code == 200
        router = httpx.get(f"{gateway.url}/admin/router", headers=headers).json()
        (child,) = [t["child"] for m in router["models"] if m["model"] == "lent" for t in m["targets"]]
        assert len(processes_of(child["pid"])) >= 3  # the guardian, vLLM and its engine
        keeper.send_signal(signal.SIGTERM)
        wait_until("it is listed no more", lambda: "lent" not in listed(gateway), timeout_s=10)
        assert keeper.wait(STOP_TIMEOUT_S + 20) == 0
        assert processes_of(child["pid"]) == []
    finally:
        keeper.kill()
        keeper.wait()
