"""The job that runs a service: from the text to the result, and the facts beside it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import msgspec

from passerelle.domain.principal import Principal
from passerelle.jobs.context import JobContext, JobFailed, Kind
from passerelle.jobs.job import Claim, Result
from passerelle.services import strategies
from passerelle.services.caller import GatewayCaller
from passerelle.services.folder import ServiceHolder
from passerelle.services.manifest import Flavor, ServiceManifest
from passerelle.services.work import CallRules, Work

KIND: Final = "service"
_MEDIA_TYPES = {
    "text": "text/plain; charset=utf-8",
    "markdown": "text/markdown; charset=utf-8",
    "json": "application/json",
}

FindPrincipal = Callable[[Claim], Awaitable[Principal | None]]
"""Returns whose rights a job has now, None when its key was ended."""


class ServiceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The payload. ``service`` is an id, ``flavor`` None the first; ``temperature`` and ``top_p`` override its own.

    ``warnings`` are sentences about the input that go beside the result.
    """

    service: str
    text: str
    flavor: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    warnings: tuple[str, ...] = ()


class ServiceJobs:
    """Runs jobs of the kind ``service``."""

    def __init__(
        self, holder: ServiceHolder, caller: GatewayCaller, principal: FindPrincipal, rules: CallRules | None = None
    ) -> None:
        self._holder = holder
        self._caller = caller
        self._principal = principal
        self._rules = rules or CallRules()

    @property
    def kind(self) -> Kind:
        """What to register with the runner."""
        return Kind(KIND, self.run)

    async def run(self, context: JobContext) -> Result:
        """Works on one job. Raises JobFailed in words for its user, or PasserelleError."""
        asked = context.payload(ServiceRequest)
        manifest = self._holder.current.services.get(asked.service)
        if manifest is None:
            raise JobFailed(f"The service '{asked.service}' does not exist any more.", code="service_not_found")
        principal = await self._principal(context.job)
        if principal is None:
            raise JobFailed("The key of this job was revoked or has expired.", code="key_ended")
        if not principal.may_run(manifest.name):
            raise JobFailed(f"This key may not run the service '{manifest.name}' any more.", code="permission_denied")
        caller = self._caller.of(principal, manifest.name)
        work = Work(manifest, flavor_of(manifest, asked), asked.text, caller, context, self._rules)
        work.warnings.extend(asked.warnings)
        return await make(work)


def flavor_of(manifest: ServiceManifest, asked: ServiceRequest) -> Flavor:
    """Returns the flavor with what the request overrides. Raises JobFailed when there is none of that name."""
    flavor = manifest.flavor(asked.flavor)
    if flavor is None:
        raise JobFailed(f"The service '{manifest.name}' has no flavor '{asked.flavor}'.", code="flavor_not_found")
    if asked.temperature is not None:
        flavor = replace(flavor, temperature=asked.temperature)
    if asked.top_p is not None and 0 < asked.top_p <= 1:
        flavor = replace(flavor, top_p=asked.top_p)
    return flavor


async def make(work: Work) -> Result:
    """Runs the strategy and returns its result. Raises JobFailed or PasserelleError."""
    if not work.text.strip():
        raise JobFailed("The text is empty: there is nothing to work on.", code="empty_input")
    most = work.manifest.limits.max_input_tokens
    if most is not None and (tokens := await work.measure(work.text)) > most:
        raise JobFailed(f"The text has {tokens} tokens; this service takes {most}.", code="input_too_long")
    strategy, content = await strategies.run(work)
    details = {"strategy": strategy.value, **work.details()}
    return Result(content=content, media_type=_MEDIA_TYPES[work.manifest.output.type], details=details)
