"""Services as jobs: listed, tried without being run, and run (``POST /v1/services/{name}/jobs``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from passerelle.domain.errors import BadRequest, NotFound
from passerelle.domain.principal import Principal
from passerelle.edge.dispatch import Context
from passerelle.edge.exchange import header
from passerelle.faces.admin.resource import Body, answer, send
from passerelle.faces.body import decode
from passerelle.faces.health import respond_json
from passerelle.faces.jobs.access import StoreOf
from passerelle.faces.jobs.answers import job_answer
from passerelle.faces.multipart import Part, is_form
from passerelle.faces.services.intake import Intake, check_size, check_temperature, read_form
from passerelle.faces.services.linto import runnable
from passerelle.jobs.job import MAX_PRIORITY, NewJob
from passerelle.jobs.webhooks import BadSecret, signing_key
from passerelle.services.caller import GatewayCaller
from passerelle.services.estimate import Dry, Estimate, estimate
from passerelle.services.extract.extractor import Extractor
from passerelle.services.folder import ServiceHolder
from passerelle.services.job import KIND, flavor_of
from passerelle.services.manifest import ServiceManifest
from passerelle.services.work import Work

MAX_METADATA_BYTES = 16 * 1024
_OPTIONS = frozenset({"priority", "metadata", "webhook", "deadline_s", "retain_s", "max_attempts"})
_YEARS_S = 10 * 365 * 86_400
T = TypeVar("T")


class WebhookBody(Body):
    """Where to tell of the job's end, and the secret (``whsec_…``) that signs it."""

    url: Annotated[str, msgspec.Meta(min_length=8, max_length=2000)]
    secret: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class ServiceJobBody(Body):
    """A text and how to work on it; in a form, ``file`` in place of ``input``, and objects as JSON.

    ``priority`` is from -100 to 0: less may wait longer. ``metadata`` comes back with the job.
    """

    input: str
    flavor: Annotated[str, msgspec.Meta(max_length=1000)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    priority: Annotated[int, msgspec.Meta(ge=-MAX_PRIORITY, le=0)] = 0
    metadata: dict[str, Any] | None = None
    webhook: WebhookBody | None = None
    deadline_s: Annotated[float, msgspec.Meta(ge=0, le=_YEARS_S)] | None = None
    retain_s: Annotated[float, msgspec.Meta(ge=0, le=_YEARS_S)] | None = None
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None


class ServiceAnswer(msgspec.Struct):
    """A service that the key may run. ``model`` is its name on ``/v1/chat/completions``."""

    id: str
    name: str
    route: str
    type: str
    model: str
    description: dict[str, str]
    language: str | None
    strategy: str
    output: str
    flavors: list[dict[str, Any]]
    metadata: dict[str, Any]


class EstimateAnswer(msgspec.Struct):
    """What a job would do. ``cost`` is the most it can cost, at today's prices, in the currency."""

    estimate: Estimate
    cost: float
    currency: str


_body = msgspec.json.Decoder(ServiceJobBody)

CostNano = Callable[[str, int, int, int, int], int]
"""(model, milliseconds since the epoch, prompt, cached, completion tokens) -> billionths of the currency."""


class ServicesFace:
    """The endpoints. ``cost_nano`` knows prices, ``currency`` their unit."""

    def __init__(
        self,
        holder: ServiceHolder,
        store_of: StoreOf,
        extractor: Extractor,
        caller: GatewayCaller,
        *,
        cost_nano: CostNano,
        currency: str,
    ) -> None:
        self._holder = holder
        self._store_of = store_of
        self._extractor = extractor
        self._caller = caller
        self._cost_nano = cost_nano
        self._currency = currency

    async def list(self, context: Context) -> None:
        """``GET /v1/services``."""
        catalog = self._holder.current
        data = [service_answer(each) for each in runnable(self._holder, context.caller)]
        problems = [str(problem) for problem in catalog.problems]
        await respond_json(context, {"object": "list", "data": data, "problems": problems})

    async def submit(self, context: Context) -> None:
        """``POST /v1/services/{name}/jobs``: 202 with the job, durable. ``Idempotency-Key`` makes it once."""
        service = self._service(context)
        asked, body = await self._asked(context, service)
        key = header(context.exchange.headers, b"idempotency-key")
        labels = {name: value for name, value in (("file", asked.file), ("metadata", body.metadata)) if value}
        deadlines = [seconds for seconds in (body.deadline_s, service.limits.timeout_s) if seconds is not None]
        job = NewJob(
            kind=KIND,
            payload=asked.request(service),
            subject=service.name,
            priority=body.priority,
            labels=labels or None,
            webhook=None if body.webhook is None else _checked(body.webhook),
            deadline_s=min(deadlines, default=None),
            retain_s=body.retain_s,
            max_attempts=body.max_attempts,
            weight=context.caller.weight,
            idempotency_key=None if key is None else key.decode("latin-1"),
        )
        store = self._store_of(context.caller)
        accepted = await store.submit(job)
        made = answer(job_answer(await store.get(accepted.id), asked.warnings), status=202)
        made.headers.append((b"location", b"/v1/jobs/" + accepted.id.encode()))
        if accepted.again:
            made.headers.append((b"idempotent-replayed", b"true"))
        await send(context, made)

    async def validate(self, context: Context) -> None:
        """``POST /v1/services/{name}/validate``: the same request, and nothing is run."""
        service = self._service(context)
        asked, _ = await self._asked(context, service)
        flavor = flavor_of(service, asked.request(service))
        caller = self._caller.of(context.caller, service.name)
        work = Work(service, flavor, asked.text, caller, Dry())
        work.warnings.extend(asked.warnings)
        found = await estimate(work, lambda model, prompt, made: self._cost(model, prompt, made))
        await respond_json(context, EstimateAnswer(found, found.cost_nano / 1e9, self._currency))

    def _cost(self, model: str, prompt_tokens: int, completion_tokens: int) -> int:
        found = self._caller.model(model)
        name = model if found is None else found.name
        return self._cost_nano(name, int(time.time() * 1000), prompt_tokens, 0, completion_tokens)

    def _service(self, context: Context) -> ServiceManifest:
        return find_service(self._holder, context.caller, context.parameters["name"])

    async def _asked(self, context: Context, service: ServiceManifest) -> tuple[Intake, ServiceJobBody]:
        if is_form(header(context.exchange.headers, b"content-type")):
            asked = await read_form(context, self._extractor, more=_OPTIONS)
            body = _from_form(asked.rest)
        else:
            body = decode(await context.exchange.body(), _body)
            asked = Intake(body.input, body.flavor, body.temperature, body.top_p)
        check_temperature(asked.temperature)
        if not asked.text.strip():
            raise BadRequest("The text is empty: there is nothing to work on.", param="input")
        if asked.flavor is not None and service.flavor(asked.flavor) is None:
            there = ", ".join(f"'{flavor.name}'" for flavor in service.flavors)
            raise BadRequest(
                f"The service '{service.name}' has no flavor '{asked.flavor[:100]}'; it has: {there}.", param="flavor"
            )
        if len(msgspec.json.encode(body.metadata)) > MAX_METADATA_BYTES:
            raise BadRequest(f"`metadata` takes {MAX_METADATA_BYTES} bytes at most.", param="metadata")
        check_size(service, asked.text)
        return replace(asked, rest={}), body


def find_service(holder: ServiceHolder, caller: Principal, name: str) -> ServiceManifest:
    """Returns the service of that id, name or route. Raises NotFound; one the caller may not run is not there."""
    service = holder.current.find(name)
    if service is None or not caller.may_run(service.name):
        raise NotFound("There is no such service, or it is not yours to use: GET /v1/services lists them.")
    return service


def service_answer(service: ServiceManifest) -> ServiceAnswer:
    """Returns a service as it is shown."""
    flavors = [
        {
            "name": flavor.name,
            "model": flavor.model,
            "context_length": flavor.context_tokens,
            "max_generation": flavor.max_generation_tokens,
            "temperature": flavor.temperature,
            "top_p": flavor.top_p,
            "type": flavor.type,
        }
        for flavor in service.flavors
    ]
    return ServiceAnswer(
        id=service.id,
        name=service.name,
        route=service.route,
        type=service.type,
        model=f"service/{service.name}",
        description=dict(service.description),
        language=service.language,
        strategy=service.strategy.value,
        output=service.output.type,
        flavors=flavors,
        metadata=dict(service.metadata),
    )


def _from_form(parts: Mapping[str, Part]) -> ServiceJobBody:
    """Returns the options of a form, whose values are JSON."""
    given: dict[str, Any] = {"input": ""}
    for name, part in parts.items():
        try:
            given[name] = msgspec.json.decode(part.text)
        except msgspec.DecodeError:
            raise BadRequest(f"Field `{name}` is not JSON.", param=name) from None
    return decode(msgspec.json.encode(given), _body)


def _checked(webhook: WebhookBody) -> Mapping[str, str]:
    url = urlsplit(webhook.url)
    if url.scheme not in ("http", "https") or not url.hostname or url.username is not None or url.fragment:
        raise BadRequest("A webhook's address is a URL: https://example.org/hooks.", param="webhook.url")
    try:
        signing_key(webhook.secret)
    except BadSecret as error:
        raise BadRequest(str(error), param="webhook.secret") from None
    return {"url": webhook.url, "secret": webhook.secret}
