"""The services that ship as examples, as somebody tries them: checked by the command, run on the embedded model."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.harness.gateway import GatewayProcess

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"
MEETING = "Anna : The fence is broken. Ben, can you mend it by Friday?\nBen : Yes, I will mend it by Friday.\n"


def test_the_command_finds_them_sound() -> None:
    """`passerelle service check` says how many there are, and nothing is wrong."""
    command = [sys.executable, "-m", "passerelle", "service", "check", str(EXAMPLES)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.fullmatch(r"7 services, all sound\n", ran.stdout), ran.stdout


async def test_each_runs_on_the_embedded_model(tmp_path: Path) -> None:
    """All of them, with answers cut short for time, make something of a short meeting; that of actions is JSON."""
    shutil.copytree(EXAMPLES / "prompts", tmp_path / "prompts")
    (tmp_path / "services").mkdir()
    for path in (EXAMPLES / "services").iterdir():
        shorter = re.sub(r"maxGenerationLength: \d+", "maxGenerationLength: 12", path.read_text())
        # JSON that is cut off is none: what a small model would go on with is bounded by the schema in its place.
        shorter = shorter.replace("type: array\n", "type: array\n          maxItems: 1\n")
        shorter = shorter.replace("{type: string}", "{type: string, maxLength: 30}")
        shorter = re.sub(r"12(\n      maxNewTurns: 60\n      temperature: 0\n)", r"120\1", shorter)
        (tmp_path / "services" / path.name).write_text(shorter)
    gateway = GatewayProcess(tmp_path / "home")
    await asyncio.to_thread(gateway.start)
    try:
        await asyncio.to_thread(gateway.wait_ready, 120)
        headers = {"authorization": f"Bearer {gateway.key}"}
        async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=30) as client:
            names = [service["name"] for service in (await client.get("/v1/services")).json()["data"]]
            assert len(names) == 7
            made = {}
            for name in names:
                answer = await client.post(f"/v1/services/{name}/jobs", json={"input": MEETING})
                assert answer.status_code == 202, answer.text
                made[name] = f"/v1/jobs/{answer.json()['id']}"
            async with asyncio.timeout(270):
                for name, path in made.items():
                    while (job := (await client.get(path)).json())["status"] in ("queued", "running"):
                        await asyncio.sleep(0.1)
                    assert job["status"] == "succeeded", (name, job["error"])
            results = {name: (await client.get(f"{path}/result")).json() for name, path in made.items()}
    finally:
        await asyncio.to_thread(gateway.stop)
    assert all(result["content"].strip() and result["details"]["coverage"]["complete"] for result in results.values())
    assert isinstance(json.loads(results["actions"]["content"])["actions"], list)


def test_the_long_transcript_is_long_and_the_same_each_time() -> None:
    """The script writes at least 100,000 tokens of turns of four speakers, twice the same."""
    command = [sys.executable, str(EXAMPLES / "long_transcript.py")]
    one, two = (subprocess.run(command, capture_output=True, timeout=30, check=True).stdout for _ in range(2))
    lines = one.decode().splitlines()
    assert one == two
    assert len(one.split()) >= 75_000
    assert {line.partition(" : ")[0] for line in lines} == {"Amina", "Benoît", "Chiara", "David"}
