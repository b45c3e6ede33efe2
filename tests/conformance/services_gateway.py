"""A gateway process with a service, a scripted model server behind it, and clients with keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import Upstream
from websockets.asyncio.client import connect

MANIFEST = """
summarize/en:
  type: summary
  fields: 1
  name: summarize-en
  description: {fr: English summary}
  backend: vLLM
  flavor:
    - {name: llama, modelName: m, totalContextLength: 200, maxGenerationLength: 40, maxNewTurns: 3, type: abstractive}
"""
TEXT = "\n".join(f"{'AB'[n % 2]} : said number {n} and more" for n in range(12))
"""Four calls of the service."""
VARIABLES = {
    "OPENAI_API_TOKEN": "upstream-token",
    "MAX_RETRIES": "3",
    "MAX_RETRY_DELAY": "0.1",
    "TIMEOUT": "1",
    "MAX_CONCURRENT_INFERENCES": "2",
    "WS_POLLING_INTERVAL": "0.1",
    "SWAGGER_URL": "/api-docs",
    "SERVICE_NAME": "LLM_Gateway",
    "PASSERELLE_MODELS": '[{"name": "other", "targets": [{"url": "http://127.0.0.1:9/v1"}]}]',
}
"""LinTO's, and a model of ours that no service uses."""


class ServiceClient:
    """A client with a key, and what it talks to."""

    def __init__(self, gateway: GatewayProcess, upstream: Upstream, key: str | None) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.key = key
        self.headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self.http = httpx.AsyncClient(base_url=gateway.url, headers=self.headers, timeout=30)
        self._others: list[ServiceClient] = []

    def move(self, gateway: GatewayProcess) -> None:
        """Talks to another gateway from now on."""
        self.gateway = gateway
        self.http.base_url = gateway.url

    async def generate(self, data: bytes = TEXT.encode(), name: str = "a.txt", **fields: str) -> httpx.Response:
        """Uploads a document as LinTO's clients do."""
        form = {"flavor": "llama", **fields}
        return await self.http.post("/services/summarize/en/generate", files={"file": (name, data)}, data=form)

    async def submit(self, text: str = TEXT, *, key: str | None = None, **fields: Any) -> httpx.Response:
        """Submits a job."""
        headers = {} if key is None else {"idempotency-key": key}
        body = {"input": text, **fields}
        return await self.http.post("/v1/services/summarize-en/jobs", json=body, headers=headers)

    async def job(self, **fields: Any) -> str:
        """Submits a job and returns its id."""
        answer = await self.submit(**fields)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def ended(self, job_id: str, within_s: float = 30.0) -> dict[str, Any]:
        """Returns a job once it has ended."""
        async with asyncio.timeout(within_s):
            while (job := (await self.http.get(f"/v1/jobs/{job_id}")).json())["status"] in ("queued", "running"):
                await asyncio.sleep(0.02)
        return dict(job)

    async def done(self, job_id: str) -> dict[str, Any]:
        """Returns the last state of a job in LinTO's words."""
        async with asyncio.timeout(30):
            while (answer := await self.http.get(f"/results/{job_id}")).status_code == 202:
                await asyncio.sleep(0.02)
        return {"http": answer.status_code, **answer.json()}

    async def asked(self, count: int = 1) -> None:
        """Returns once the model was asked so often."""
        await self.upstream.until(lambda: len(self.chats) >= count, 30)

    @property
    def chats(self) -> list[dict[str, Any]]:
        """What the model was asked."""
        return [json.loads(seen.body) for seen in self.upstream.requests if "chat" in seen.path]

    def socket(self, path: str, **headers: str) -> connect:
        """Opens a websocket, with the key."""
        return connect(self.gateway.url.replace("http", "ws") + path, additional_headers={**self.headers, **headers})

    async def ticket(self, job_id: str) -> str:
        """Returns the path of the job's websocket, with a ticket in it."""
        answer = await self.http.post(f"/v1/jobs/{job_id}/ticket")
        assert answer.status_code == 201, answer.text
        return str(answer.json()["path"])

    async def made(self, path: str, body: Mapping[str, Any]) -> Any:
        """Makes something by the admin API."""
        answer = await self.http.post(path, json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def other(
        self, *, scopes: list[str] | None = None, role: str = "member", tenant: bool = False
    ) -> ServiceClient:
        """Returns a client of another user: of this organisation, or of one of its own."""
        where = ""
        if tenant:
            where = f"?organisation={(await self.made('/admin/organisations', {'name': 'other'}))['id']}"
        user = (await self.made(f"/admin/users{where}", {"name": role, "role": role}))["id"]
        body = {"name": role, "user": user, "scopes": ["services", "inference"]}
        made = await self.made(f"/admin/keys{where}", body)
        client = ServiceClient(self.gateway, self.upstream, made["key"])
        client.key_id = made["id"]
        self._others.append(client)
        return client

    key_id = ""

    async def aclose(self) -> None:
        """Closes connections."""
        await self.http.aclose()
        for other in self._others:
            await other.aclose()


@asynccontextmanager
async def service_gateway(
    folder: Path,
    *,
    from_variables: bool = False,
    keyless: bool = False,
    environ: Mapping[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[ServiceClient]:
    """The gateway on a folder as LinTO's users have it; the client is the operator.

    ``from_variables``: the model is found by LinTO's variables, in place of a configuration of ours.
    ``keyless``: nobody needs a key, and the client has none.
    """
    if keyless:
        settings["auth"] = {"required": False}
    conf = folder / ".hydra-conf" / "services"
    conf.mkdir(parents=True)
    (conf / "en.yaml").write_text(MANIFEST)
    (folder / ".hydra-conf" / "config.yaml").write_text("defaults:\n  - services: [en]\nprompt_path: ./prompts/\n")
    (folder / "prompts").mkdir()
    (folder / "prompts" / "summarize-en.txt").write_text("Summarize:\n{}\n")
    async with Upstream(kind="vllm") as upstream:
        model = {"name": "m", "targets": [{"url": upstream.url, "model": "m"}]}
        if from_variables:
            gateway = GatewayProcess(folder / "home", environ=VARIABLES | {"OPENAI_API_BASE": upstream.url})
        else:
            gateway = GatewayProcess(folder / "home", {"models": [model], **settings}, environ=environ)
        await asyncio.to_thread(gateway.start)
        client = ServiceClient(gateway, upstream, None if keyless else gateway.key)
        try:
            yield client
        finally:
            await client.aclose()
            await asyncio.to_thread(gateway.stop)
