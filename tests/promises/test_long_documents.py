"""A document four times as long takes little more memory, and few requests to be counted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.oracles import becomes
from tests.harness.upstreamd import Upstream, UpstreamThread

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
SPEAKERS = ("Alice", "Bob", "Chloé")
MANIFEST = {
    "name": "notes",
    "fields": 1,
    "flavor": [{"name": "f", "modelName": "m", "totalContextLength": 8192, "maxGenerationLength": 16}],
}
BYTES_FOR_A_BYTE = 24
"""The most that a byte more of a document may add to the peak; 14 were measured, and 35 while a document was kept as
lists of turns. One character that Latin-1 has not makes every text twice as large in memory: this one has it."""
BYTES_FOR_A_REQUEST = 8_192
"""What one request of the tokenizer counts at least, on average; 16,000 were measured,
and 300 when each line was one."""


def transcript(words: int) -> str:
    """Returns turns of forty words, no two alike, some of them long; with letters that take two bytes."""
    lines = []
    for number in range(words // 40):
        said = " ".join(f"point{number * 40 + word}" for word in range(37))
        lines.append(f"{SPEAKERS[number % 3]} : As to … {said}.")
    return "\n".join(lines)


class Office:
    """A gateway with one service, in front of a model that answers at once."""

    def __init__(self, folder: Path, upstream: Upstream) -> None:
        for name, content in (("services/notes.yaml", json.dumps(MANIFEST)), ("prompts/notes.txt", "Note:\n{}\n")):
            (folder / name).parent.mkdir()
            (folder / name).write_text(content)
        target = {"url": upstream.url, "model": "m", "max_concurrent": 16}
        self.process = GatewayProcess(folder / "home", {"models": [{"name": "m", "targets": [target]}]})

    def peak_bytes(self) -> int:
        """The largest resident memory since this was last asked."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])

    async def run(self, text: str) -> dict[str, Any]:
        """Works on a text to the end; returns the facts beside the result."""
        headers = {"authorization": f"Bearer {self.process.key}"}
        async with httpx.AsyncClient(base_url=self.process.url, headers=headers, timeout=60) as client:
            answer = await client.post("/v1/services/notes/jobs", json={"input": text})
            assert answer.status_code == 202, answer.text
            path = f"/v1/jobs/{answer.json()['id']}"

            async def ended() -> bool:
                job = (await client.get(path)).json()
                assert job["status"] in ("queued", "running", "succeeded"), job
                return bool(job["status"] == "succeeded")

            assert await becomes(ended, 200)
            return dict((await client.get(f"{path}/result")).json()["details"])


async def test_memory_hardly_grows_with_a_document(tmp_path: Path) -> None:
    """The peak of the process, after a short document, for one of 50,000 words and one of 200,000."""
    with UpstreamThread(kind="llamacpp", context_window=8192) as upstream:
        office = Office(tmp_path, upstream)
        with office.process:
            office.process.wait_ready()
            await office.run(transcript(2_000))
            sizes, peaks = [], []
            for words in (50_000, 200_000):
                text = transcript(words)
                office.peak_bytes()
                asked = len(upstream.requests)
                details = await office.run(text)
                counted = sum("/tokenize" in seen.path for seen in upstream.requests[asked:])
                assert details["coverage"]["complete"]
                sizes.append(len(text.encode()))
                peaks.append(office.peak_bytes())
                assert sizes[-1] / counted > BYTES_FOR_A_REQUEST
            assert peaks[1] - peaks[0] < BYTES_FOR_A_BYTE * (sizes[1] - sizes[0])
