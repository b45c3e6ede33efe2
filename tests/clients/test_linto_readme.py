"""The README of LinTO's LLM Gateway followed by its users' hands, with the embedded model: mount, upload, wait, edit.

Of its manifest nothing is changed but the name of the model, and the length of answers, which a test has no time for.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.harness.gateway import GatewayProcess
from websockets.asyncio.client import connect

pytestmark = pytest.mark.slow

MANIFEST = """\
summarize/en: # This is the service endpoint that will be generated
  type: summary
  fields: 2
  name: summarize-en
  description:
    fr: English summary
  backend: vLLM  # Deprecated, as the app is now backend-agnostic
  flavor:
    - name: llama
      modelName: smollm2-135m-instruct  # Ensure the model is available on the inference server or it will cause errors
      totalContextLength: 128000  # Maximum context length, including prompt, user input, and generated tokens
      maxGenerationLength: 24  # Maximum length for model output
      tokenizerClass: LlamaTokenizer
      createNewTurnAfter: 250  # New "virtual turns" created after this number of tokens
      summaryTurns: 3  # Number of turns to summarize
      maxNewTurns: 9  # Maximum number of turns processed; fewer may be used if the token count is too high
      temperature: 0.2  # Controls creativity, with a value close to zero for more accurate summaries
      top_p: 0.7  # Controls the variety of word choices in generation
      reduceSummary: false  # Option to reduce the summary (can be adjusted based on use case)
      consolidateSummary: false  # Option to consolidate the summary (can be adjusted based on use case)
      reduce_prompt: reduce-file # Specify a custom prompt to be used in the reduce step.
      type: abstractive #  abstractive, extractive or markdown
"""
CONFIG = """\
defaults:
  - services:
      - en
  - _self_

service_name: ${oc.env:SERVICE_NAME,LLM_Gateway}
debug: false
prompt_path: ./prompts/

api_params:
  api_base: ${oc.env:OPENAI_API_BASE,http://localhost:9000/v1}
  api_key: ${oc.env:OPENAI_API_TOKEN,EMPTY}
  ws_polling_interval: ${oc.env:WS_POLLING_INTERVAL,3}
"""
PROMPT = """\
Summarize each speech turn in one line.

### Speech turns summarized so far (do not repeat…)
{}

### Speech turns to process
{}

### Speech turns summarized (in English)
"""
TRANSCRIPT = (Path(__file__).parents[2] / "examples" / "documents" / "garden-en.txt").read_text()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """`passerelle serve` in a folder with `.hydra-conf/` and `prompts/`, and nothing of ours configured."""
    folder = tmp_path_factory.mktemp("src")
    services = folder / ".hydra-conf" / "services"
    services.mkdir(parents=True)
    (services / "en.yaml").write_text(MANIFEST)
    (folder / ".hydra-conf" / "config.yaml").write_text(CONFIG)
    (folder / "prompts").mkdir()
    (folder / "prompts" / "summarize-en.txt").write_text(PROMPT)
    (folder / "prompts" / "reduce-file.txt").write_text("Reduce:\n{}\n")
    (folder / "meeting.txt").write_text(TRANSCRIPT)
    with GatewayProcess(folder / "home", environ={"WS_POLLING_INTERVAL": "0.2"}) as started:
        yield started.wait_ready(120)


def curl(gateway: GatewayProcess, path: str, *options: str) -> Any:
    """Returns what curl prints, decoded."""
    command = ["curl", "-sS", "--max-time", "60", "-H", f"Authorization: Bearer {gateway.key}", *options]
    ran = subprocess.run(
        [*command, gateway.url + path], capture_output=True, text=True, timeout=90, cwd=gateway.home.parent
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def upload(gateway: GatewayProcess) -> str:
    """Sends the transcript and returns the job's id."""
    answer = curl(gateway, "/services/summarize/en/generate", "-F", "file=@meeting.txt", "-F", "flavor=llama")
    assert answer["message"] == "Request successfully queued", answer
    return str(answer["jobId"])


async def test_from_the_folder_to_the_summary(gateway: GatewayProcess) -> None:
    """The upload becomes a job, the websocket tells its states to the end, and the result is there for polling too."""
    assert curl(gateway, "/healthcheck") == "1"
    (service,) = curl(gateway, "/services")
    assert service["flavor"][0]["maxNewTurns"] == 9
    job_id = await asyncio.to_thread(upload, gateway)
    address = f"{gateway.url.replace('http', 'ws')}/ws/results/{job_id}"
    async with connect(address, additional_headers={"Authorization": f"Bearer {gateway.key}"}) as socket:
        async with asyncio.timeout(270):
            states = [json.loads(message) async for message in socket]
    assert {state["status"] for state in states[:-1]} <= {"queued", "started", "processing"}
    assert states[-1]["status"] == "complete", states[-1]
    assert states[-1]["summarization"]
    assert await asyncio.to_thread(curl, gateway, f"/results/{job_id}") == states[-1]


def test_an_edit_is_seen_without_a_restart(gateway: GatewayProcess) -> None:
    """A changed parameter is in the list within seconds; a new file is a new endpoint, though nobody listed it."""
    services = gateway.home.parent / ".hydra-conf" / "services"
    (services / "en.yaml").write_text(MANIFEST.replace("maxNewTurns: 9", "maxNewTurns: 4"))
    (services / "fr.yaml").write_text(
        MANIFEST.replace("summarize/en", "summarize/fr").replace("name: summarize-en", "name: summarize-en-2")
    )
    (gateway.home.parent / "prompts" / "summarize-en-2.txt").write_text(PROMPT)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = curl(gateway, "/services")
        if [service["flavor"][0]["maxNewTurns"] for service in found] == [4, 9]:
            break
        time.sleep(0.05)
    else:
        raise AssertionError(found)
    answer = curl(gateway, "/services/summarize/fr/generate", "-F", "file=@meeting.txt", "-F", "flavor=none")
    assert answer == {"detail": "Flavor not found"}
