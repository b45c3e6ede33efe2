"""The composition root: the only file that knows everyone. It reads like the picture in docs/architecture.md."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

from passerelle.accounting.journal import Journal
from passerelle.accounting.ledger import Ledger
from passerelle.accounting.retention import Retention
from passerelle.accounting.rollup import Rollup
from passerelle.batches.job import BatchJobs
from passerelle.batches.store import BatchStore
from passerelle.catalog.holder import Catalog, Reloaded
from passerelle.catalog.problem import ConfigurationError, Mark, Problem
from passerelle.catalog.schema import MANAGED
from passerelle.catalog.snapshot import Snapshot
from passerelle.catalog.watch import Watcher
from passerelle.domain.client import Headers
from passerelle.domain.guardrail import Verdict
from passerelle.domain.model import Target
from passerelle.domain.principal import Principal, Scope
from passerelle.edge.application import AsgiApplication
from passerelle.edge.dispatch import Dispatcher, RouteTable
from passerelle.edge.exchange import credentials
from passerelle.edge.origins import TrustedOrigins
from passerelle.edge.protocol import DirectPath, EdgeLimits
from passerelle.engines.base import Engine
from passerelle.engines.gpt4all import gpt4all_engine
from passerelle.engines.managed import ChildAddress, ManagedEngine
from passerelle.engines.openai import OpenAIEngine
from passerelle.engines.tgi import TgiEngine
from passerelle.engines.transport import Transport
from passerelle.engines.triton import TritonEngine
from passerelle.engines.vllm_legacy import VllmLegacyEngine
from passerelle.faces.admin.audit import AuditFace
from passerelle.faces.admin.keys import KeysFace
from passerelle.faces.admin.limits import LimitsFace
from passerelle.faces.admin.me import MeFace
from passerelle.faces.admin.organisations import OrganisationsFace
from passerelle.faces.admin.prices import PricesFace
from passerelle.faces.admin.projects import ProjectsFace
from passerelle.faces.admin.resource import Repeats
from passerelle.faces.admin.router import RouterFace
from passerelle.faces.admin.usage import UsageFace
from passerelle.faces.admin.users import UsersFace
from passerelle.faces.anthropic.endpoints import AnthropicFace
from passerelle.faces.calls import Calls
from passerelle.faces.docs import DocsFace
from passerelle.faces.health import HealthFace
from passerelle.faces.jobs.access import stores
from passerelle.faces.jobs.endpoints import JobsFace
from passerelle.faces.jobs.following import FollowingFace
from passerelle.faces.jobs.tickets import Tickets
from passerelle.faces.media.endpoints import MediaFace
from passerelle.faces.opea.endpoints import OpeaFace
from passerelle.faces.openai import errors
from passerelle.faces.openai.batches import BatchesFace, prepare
from passerelle.faces.openai.endpoints import OpenAIFace
from passerelle.faces.openai.files import FilesFace
from passerelle.faces.openai.remote import PictureRules, RemotePictures
from passerelle.faces.prompts.endpoints import PromptsFace
from passerelle.faces.prompts.references import PromptReferences
from passerelle.faces.prompts.studio import StudioFace
from passerelle.faces.rerank.endpoints import RerankFace
from passerelle.faces.responses.background import ResponseJobs
from passerelle.faces.responses.endpoints import ResponsesFace
from passerelle.faces.routes import Faces, direct_paths, routes
from passerelle.faces.services.endpoints import ServicesFace
from passerelle.faces.services.linto import LintoFace
from passerelle.faces.services.model import ServiceModels
from passerelle.faces.services.sockets import LintoSockets
from passerelle.faces.sockets import Origins, Presence
from passerelle.faces.tgi.endpoints import TgiFace
from passerelle.faces.triton.endpoints import TritonFace
from passerelle.files.expiry import Expiry
from passerelle.files.store import FileRules, FileStore
from passerelle.gateway.admit import Admission, AdmissionRules
from passerelle.gateway.attempt import Attempts
from passerelle.gateway.context import ContextAdmission
from passerelle.gateway.gateway import Gateway
from passerelle.gateway.guard import Guard, log_verdict
from passerelle.gateway.health import HealthRules, HealthState
from passerelle.gateway.limits import Reservations
from passerelle.gateway.policies import make_policy
from passerelle.gateway.probe import Prober
from passerelle.gateway.retry import RetryRules
from passerelle.gateway.settle import Recorder, Settlement
from passerelle.gateway.shadow import Shadows
from passerelle.gateway.shared import SYNC_S, Seat
from passerelle.gateway.targets import Fleet, StateChange
from passerelle.gateway.windows import Windows
from passerelle.identity.authenticator import Authenticator
from passerelle.identity.credentials import Credentials
from passerelle.identity.idempotency import IdempotentAnswers
from passerelle.identity.secrets import Secrets
from passerelle.identity.verdicts import VerdictLog
from passerelle.jobs.context import Kinds
from passerelle.jobs.failpoint import Failpoint
from passerelle.jobs.job import Claim
from passerelle.jobs.queue import JobQueue, QueueRules
from passerelle.jobs.runner import LocalRunner, Runner
from passerelle.jobs.webhooks import Webhooks
from passerelle.limits.board import LimitBoard
from passerelle.limits.keeper import open_limits
from passerelle.models.served import ChildReport, ReportFile, ServedModels, is_served
from passerelle.net.fetch import Fetcher, FetchRules
from passerelle.net.public import PublicPost
from passerelle.prompts.library import PromptLibrary
from passerelle.responses.store import ResponseStore
from passerelle.services.caller import GatewayCaller
from passerelle.services.extract.extractor import Extractor
from passerelle.services.folder import ServiceCatalog
from passerelle.services.upstream import ServiceUpstream
from passerelle.settings import Configuration, Settings, reloader
from passerelle.sign_on import PeopleSignOn, translate
from passerelle.storage.engine import open_database
from passerelle.telemetry.logs import CallLog
from passerelle.telemetry.metrics import Metrics
from passerelle.workshop import Workshop

_TICK_S = 0.25


NOBODY = Principal(key_id="nobody", key_name="nobody", scopes=frozenset({Scope.INFERENCE, Scope.SERVICES}))
"""Who calls without a key, where the configuration lets them."""


class Passerelle:
    """One process's gateway. ``start`` and ``stop`` are run by the server's lifespan.

    ``children`` says where the model servers of this machine listen, by target id. ``seat`` is this worker's place
    among several, and ``metrics_folder`` where they keep their metrics then. ``reports`` says how the children are.
    """

    def __init__(
        self,
        configuration: Configuration,
        environ: Mapping[str, str],
        children: Mapping[str, ChildAddress],
        seat: Seat | None = None,
        metrics_folder: Path | None = None,
        limit_board: LimitBoard | None = None,
        reports: ReportFile | None = None,
    ) -> None:
        settings = configuration.settings
        self.settings = settings
        self.metrics = Metrics(metrics_folder)
        self.seat = seat
        self._reports = reports
        self._swapped = False
        self.draining = False
        self.drained_at_s: float | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._open_records(settings, limit_board)
        self._open_jobs(settings)
        self._open_catalog(configuration, environ, children)
        self._open_gateway(settings)
        self._open_services(configuration, environ)
        self._open_doors(settings, RouteTable(routes(self._faces(settings), settings.server.docs_path)))

    def _open_records(self, settings: Settings, limit_board: LimitBoard | None) -> None:
        """Storage, identity, accounting, limits."""
        self.database = open_database(settings.database, settings.home)
        self.credentials = Credentials(self.database)
        self.authenticator = Authenticator(self.credentials, static_key=settings.auth.api_key)
        self.people = PeopleSignOn(self.database, settings.auth)
        self.authenticator.take_tokens(self.people.tokens)
        self.ledger = Ledger(
            self.database,
            flush_interval_s=settings.accounting.flush_interval_s,
            on_lost=self._note_lost,
        )
        strict = settings.accounting.durability == "strict"
        self.journal = Journal(settings.home / "journal", self.ledger) if strict else None
        self.rollup = Rollup(self.database)
        keep_days = settings.accounting.keep_days
        self.retention = None if keep_days is None else Retention(self.database, keep_days)
        self.call_log = CallLog(sys.stderr, settings.logging.format, slow_s=settings.logging.slow_request_s)

        self.limits = open_limits(
            self.database,
            redis=settings.redis,
            board=limit_board,
            worker=0 if self.seat is None else self.seat.worker,
            currency=settings.accounting.currency,
            on_reached=lambda rule: self.metrics.limits_reached.labels(
                rule.measure.value, "hard" if rule.hard else "soft"
            ).inc(),
        )

    def _open_jobs(self, settings: Settings) -> None:
        self.jobs = JobQueue(
            self.database,
            rules=_queue_rules(settings),
            failpoint=Failpoint(settings.jobs.failpoint),
            on_ended=lambda kind, state: self.metrics.job_attempts.labels(kind, state.value).inc(),
        )
        self.kinds = Kinds()
        self.runner = _runner(settings, self.jobs, self.kinds)
        networks = [ip_network(network, strict=False) for network in settings.jobs.webhook_networks]
        self.webhooks = Webhooks(self.jobs, PublicPost(networks))
        self.kinds.add(self.webhooks.kind)

    def _open_catalog(
        self, configuration: Configuration, environ: Mapping[str, str], children: Mapping[str, ChildAddress]
    ) -> None:
        """The models, the engines that reach them, and what notices changes."""
        self.catalog = Catalog(configuration.snapshot)
        openai = OpenAIEngine(Transport())
        managed = ManagedEngine(openai, children)
        self.served = ServedModels(configuration.settings.home)
        self.engines: dict[str, Engine] = {
            "openai": openai,
            "tgi": TgiEngine(Transport()),
            "triton": TritonEngine(),
            "vllm-legacy": VllmLegacyEngine(Transport()),
            **dict.fromkeys(MANAGED, managed),
            "gpt4all": gpt4all_engine(Transport(), children),
        }
        self.watcher = Watcher(
            self.catalog,
            configuration.files,
            self._reloader(reloader(configuration, environ)),
            on_result=lambda error: self.metrics.reloads.labels("ok" if error is None else "error").inc(),
        )

    def _open_gateway(self, settings: Settings) -> None:
        """The request path, and what it asks on its way."""
        seat = self.seat
        self.fleet = Fleet(make_policy, rules=_health_rules(settings), on_change=self._note_state, seat=seat)
        self.windows = Windows()
        self.prober = Prober(
            self.fleet,
            self.engines,
            interval_s=settings.health.probe_interval_s,
            timeout_s=settings.health.probe_timeout_s,
            managed=_is_managed,
            known=self.windows.note,
        )
        self.admission = Admission(AdmissionRules(settings.queue.max_waiting, settings.queue.max_wait_s), seat=seat)
        self.shadows = Shadows(self.engines)
        context = ContextAdmission(self.engines, self.windows.of)
        reservations = Reservations(self.limits.limiter, context, self.windows.of)
        self.settlement = Settlement(self.metrics, self._recorders(), reservations=reservations)
        self.verdicts = VerdictLog(self.database)
        self.fetcher = Fetcher(_fetch_rules(settings))
        self.gateway = Gateway(
            self.fleet,
            context,
            self.admission,
            Attempts(self.engines, _retry_rules(settings), self.shadows),
            self.settlement,
            self.metrics,
            errors.stream_event,
            reservations=reservations,
            durable=None if self.journal is None else self.journal.durable,
            guard=Guard(self.metrics, self._note_verdict),
            fetch_pictures=RemotePictures(
                self.fetcher, PictureRules(settings.fetch.max_pictures, settings.fetch.max_total_bytes)
            ),
        )

    def _open_services(self, configuration: Configuration, environ: Mapping[str, str]) -> None:
        """Services, batches, background responses: what makes jobs."""
        settings = self.settings
        self.workshop = Workshop(
            configuration,
            environ,
            GatewayCaller(
                self.gateway,
                self.catalog,
                self.fleet,
                self.engines,
                self.windows.of,
                timeout_s=settings.services.call_timeout_s or settings.server.request_timeout_s,
                max_parallel=settings.services.max_parallel_calls,
            ),
            self.kinds,
            self._holder_of,
            on_loaded=self._note_services,
        )
        self.upstream = ServiceUpstream(settings.services.api_base, settings.services.api_key)
        self.workshop.holder.subscribe(lambda before, after: self._extend_catalog())
        self._file_rules = FileRules(settings.files.max_file_bytes, settings.files.quota_bytes, settings.files.retain_s)
        self.expiry = Expiry(self.database)
        batch_jobs = BatchJobs(
            self.database, self.workshop.caller, self._holder_of, self._kept_files, prepare, errors.envelope
        )
        self.kinds.add(batch_jobs.kind)
        self.kinds.add(ResponseJobs(self.workshop.caller, self._holder_of, self._kept_responses).kind)

    def _kept_responses(self, caller: Principal) -> ResponseStore:
        return ResponseStore.of(self.database, caller, retain_s=self.settings.responses.retain_s)

    def _kept_files(self, caller: Principal) -> FileStore:
        return FileStore.of(self.database, self._file_rules, caller)

    def _faces(self, settings: Settings) -> Faces:
        """Every dialect and every page of the API."""
        library = PromptLibrary(self.database)
        references = PromptReferences(library)
        presence, origins = Presence(), Origins(TrustedOrigins(settings.server.trusted_origins))
        self.authenticator.on_revoked(presence.end)
        self.people.on_ended(presence.end)
        store_of, extractor = stores(self.jobs, nobody=NOBODY.key_id), Extractor()
        service_models = ServiceModels(
            self.workshop.holder, self.jobs, store_of, timeout_s=settings.server.request_timeout_s
        )
        tickets = Tickets(Secrets(self.database), IdempotentAnswers(self.database), self._holder)
        calls = Calls(self.gateway, self.catalog, request_timeout_s=settings.server.request_timeout_s)
        opea = OpeaFace(
            calls,
            self.catalog,
            name=settings.opea.name,
            openai_chunks=settings.opea.stream_format == "openai",
        )
        health = HealthFace(
            self.catalog, self.fleet, self.prober, self.metrics, lambda: self.draining, _starts_here, self.seat
        )
        repeats, changed = Repeats(IdempotentAnswers(self.database)), self.authenticator.catch_up
        return Faces(
            openai=OpenAIFace(calls, self.catalog, self.windows.of, opea, service_models, references),
            prompts=PromptsFace(library),
            studio=StudioFace(calls, self.catalog),
            anthropic=AnthropicFace(calls),
            opea=opea,
            rerank=RerankFace(calls, self.catalog),
            media=MediaFace(calls),
            tgi=TgiFace(calls, self.catalog, self.windows.of),
            triton=TritonFace(calls, self.catalog, health.is_ready),
            health=health,
            router=RouterFace(self.catalog, self.fleet, self.admission, self.prober, self.seat, self._child_reports),
            usage=UsageFace(self.database),
            me=MeFace(),
            organisations=OrganisationsFace(self.database, self.catalog, repeats, changed),
            projects=ProjectsFace(self.database, self.catalog, repeats, changed),
            users=UsersFace(self.database, repeats, changed),
            keys=KeysFace(self.database, self.catalog, repeats, changed),
            limits=LimitsFace(self.database, self.limits, repeats),
            prices=PricesFace(self.database, self.limits, repeats),
            docs=DocsFace(settings.server.name),
            auth=self.people.face,
            audit=AuditFace(self.database),
            files=FilesFace(self._kept_files),
            batches=BatchesFace(lambda caller: BatchStore.of(self.database, caller), self._kept_files, self.jobs.store),
            responses=ResponsesFace(
                calls,
                self.catalog,
                self._kept_responses,
                self.jobs.store,
                self.workshop.holder,
                references,
                events=self.jobs.events,
            ),
            linto=LintoFace(self.workshop.holder, store_of, extractor),
            linto_sockets=LintoSockets(
                self.jobs, store_of, presence, origins, interval_s=settings.services.ws_polling_interval_s
            ),
            services=ServicesFace(
                self.workshop.holder,
                store_of,
                extractor,
                self.workshop.caller,
                cost_nano=self.limits.limiter.cost_nano,
                currency=settings.accounting.currency,
            ),
            jobs=JobsFace(store_of, tickets, None if settings.services.font is None else Path(settings.services.font)),
            following=FollowingFace(self.jobs, store_of, tickets, presence, origins),
        )

    def _open_doors(self, settings: Settings, table: RouteTable) -> None:
        """The ways in: each request meets its route, whatever server carries it."""
        self.metrics.before_expose = self._publish
        self.authenticator.on_revoked(self.gateway.end_calls_of)
        self.people.on_ended(self.gateway.end_calls_of)
        self.dispatcher = Dispatcher(
            table,
            self.identify,
            errors.render,
            now=time.monotonic,
            trusted_hosts=frozenset(host.lower() for host in settings.server.trusted_hosts),
            trusted_proxies=tuple(ip_network(network, strict=False) for network in settings.server.trusted_proxies),
            trusted_origins=TrustedOrigins(settings.server.trusted_origins),
            identify_session=self.people.browser.identify,
            translate=translate,
        )
        self.direct = DirectPath(direct_paths(table), self.dispatcher, _edge_limits(settings))
        self.application = AsgiApplication(
            self.dispatcher, max_body_bytes=settings.server.max_body_bytes, start=self.start, stop=self.stop
        )

    def identify(self, headers: Headers, _peer: str | None) -> Principal | Awaitable[Principal]:
        """Returns who calls; at once when the key is known already."""
        authorization, x_api_key = credentials(headers)
        if authorization is None and x_api_key is None and not self.settings.auth.required:
            return NOBODY
        return self.authenticator.authenticate(authorization, x_api_key)

    async def start(self) -> None:
        """Begins to follow what changes: keys, configuration, targets."""
        await self.authenticator.start()
        self.people.start()
        await self.limits.start()
        self.ledger.start()
        if self.journal is not None:
            await self.journal.start()
        self.rollup.start()
        self.expiry.start()
        if self.retention is not None:
            self.retention.start()
        self.verdicts.start()
        self._look_for_served()
        self.fleet.adopt(self.catalog.current.models.values())
        self.fleet.sync()
        self.prober.adopt()
        await self.workshop.start()
        self._adopt()
        await self.jobs.start()
        await self.runner.start()
        await self.webhooks.start()
        self.metrics.generation.set(self.catalog.current.generation)
        self.catalog.subscribe(lambda before, after: self._adopt())
        self._tasks = [
            asyncio.create_task(self.watcher.run(), name="watch configuration"),
            asyncio.create_task(self._tick(), name="tick"),
        ]
        if self.seat is not None:
            self._tasks.append(asyncio.create_task(self._sync(), name="hear other workers"))

    def begin_draining(self) -> None:
        """Says no on /ready and sends away those who wait; running answers go on."""
        self.draining = True
        self.drained_at_s = time.monotonic()
        self.admission.close()
        self.runner.drain()

    async def stop(self) -> None:
        """Ends everything in the opposite order; nothing accounted is lost."""
        await self.runner.stop(self._grace_left_s())
        await self.webhooks.aclose()
        await self.jobs.aclose()
        await self.workshop.aclose()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.shadows.aclose()
        await self.prober.aclose()
        for engine in set(self.engines.values()):
            await engine.aclose()
        await self.fetcher.aclose()
        self.call_log.flush()
        await self.verdicts.aclose()
        await self.limits.aclose()
        if self.retention is not None:
            await self.retention.aclose()
        await self.expiry.aclose()
        await self.rollup.aclose()
        await self.ledger.aclose()
        if self.journal is not None:
            await self.journal.aclose()
        self.served.close()
        await self.people.aclose()
        await self.authenticator.aclose()
        await self.database.aclose()

    def _grace_left_s(self) -> float:
        """What running answers have left of the grace that jobs may take too."""
        since_s = 0.0 if self.drained_at_s is None else time.monotonic() - self.drained_at_s
        return max(0.0, self.settings.server.grace_s - since_s)

    async def _holder_of(self, claim: Claim) -> Principal | None:
        """Returns whose rights a job has now."""
        return await self._holder(claim.key_id, claim.user)

    async def _holder(self, key_id: str, user: str | None) -> Principal | None:
        """Returns whose rights a key, or a person who signed on, has now; None when they ended."""
        if key_id == NOBODY.key_id:
            return None if self.settings.auth.required else NOBODY
        if key_id == self.authenticator.static.key_id:
            return None if self.settings.auth.api_key is None else self.authenticator.static
        if user is not None and key_id == f"session:{user}":
            account = await self.people.accounts.get(user)
            if account is None or account.disabled or account.archived or not account.confirmed:
                return None
            return account.principal()
        return await self.credentials.holder(key_id)

    def _reloader(self, load: Callable[[], Reloaded]) -> Callable[[], Reloaded]:
        """Adds the models that services name, and those that `model serve` runs, to those of the files."""

        def loaded() -> Reloaded:
            found = load()
            return replace(found, snapshot=self._extended(found.snapshot))

        return loaded

    def _extend_catalog(self) -> None:
        before, error = self.catalog.current, self.catalog.last_error
        after = self._extended(before)
        if after.models != before.models:
            self.catalog.swap(after)
            if error is not None:
                self.catalog.refuse(error)

    def _extended(self, snapshot: Snapshot) -> Snapshot:
        served = replace(snapshot, models=self.served.extend(self.upstream.without(snapshot.models)))
        return self.upstream.extend(served, self._named_by_services())

    def _look_for_served(self) -> None:
        """Takes in what `model serve` began or ended since, and tells it whose requests have all ended."""
        if self.served.look() or self._swapped:
            self._swapped = False  # a reload began with what was served then
            self._extend_catalog()
        self.served.let_go(lambda target_id: self.fleet.state(target_id) is None)

    def _child_reports(self) -> Mapping[str, ChildReport]:
        """How the model servers of this machine are, by target id."""
        ours = {} if self._reports is None else self._reports.read()
        return ours | self.served.reports()

    def _named_by_services(self) -> list[str]:
        services = self.workshop.holder.current.services.values()
        return [name for service in services for name in service.models]

    def _note_services(self, catalog: ServiceCatalog) -> None:
        self.metrics.services.set(len(catalog.services))
        self.metrics.service_problems.set(len(catalog.problems))

    def _adopt(self) -> None:
        self._swapped = True
        self.fleet.adopt(self.catalog.current.models.values())
        self.prober.adopt()
        self.metrics.generation.set(self.catalog.current.generation)

    async def _tick(self) -> None:
        """Lets time pass for targets that wait to come back, and for the gauges."""
        while True:
            self._publish()
            self.fleet.tick()
            self.fleet.sweep()
            self._look_for_served()
            for name, queue in self.admission.queues().items():
                self.metrics.waiting.labels(name).set(queue.waiting)
            await asyncio.sleep(_TICK_S)

    async def _sync(self) -> None:
        """Takes in what other workers know, and tells them whom our probes found ready."""
        told: set[str] = set()
        while True:
            for target_id in self.prober.seen_ready - told:
                state = self.fleet.state(target_id)
                if state is not None and state.cell is not None:
                    state.cell.note_ready()
            told = set(self.prober.seen_ready)
            self.fleet.sync()
            await asyncio.sleep(SYNC_S)

    def _publish(self) -> None:
        """Puts into the metrics what was counted on the request path."""
        self.settlement.publish()
        self.metrics.in_flight.set(self.gateway.in_flight())
        self.metrics.jobs_running.set(self.runner.running)

    def _note_verdict(self, verdict: Verdict) -> None:
        log_verdict(verdict)
        self.verdicts.record(verdict)

    def _recorders(self) -> tuple[Recorder, ...]:
        """Who keeps usage rows."""
        rows = (self.ledger, self.call_log)
        return rows if self.journal is None else (*rows, self.journal)

    def _note_lost(self, count: int) -> None:
        self.metrics.usage_lost.inc(count)
        if self.journal is not None:
            self.journal.doubt()

    def _note_state(self, change: StateChange) -> None:
        target = change.target.id
        self.metrics.target_state.labels(change.model, target, change.old.value).set(0)
        self.metrics.target_state.labels(change.model, target, change.new.value).set(1)
        log_state(change)


def log_state(change: StateChange) -> None:
    """Tells the operator that a target went down, or came back from it, and why; other states come and go with load."""
    if HealthState.DOWN in (change.old, change.new):
        level = logging.WARNING if change.new is HealthState.DOWN else logging.INFO
        words = (change.target.id, change.model, change.new.value, change.why)
        logging.getLogger(__name__).log(level, "target %s of %s is %s: %s", *words)


def _queue_rules(settings: Settings) -> QueueRules:
    lease_s = settings.jobs.lease_s
    return QueueRules(
        lease_s=lease_s, heartbeat_s=lease_s / 3, reap_s=min(5.0, lease_s / 6), retain_s=settings.jobs.retain_s
    )


def _runner(settings: Settings, queue: JobQueue, kinds: Kinds) -> Runner:
    if settings.jobs.engine == "local":
        return LocalRunner(queue, kinds, concurrency=settings.jobs.concurrency)
    try:
        from passerelle.jobs.celery import CeleryRunner, celery_application  # an extra, and a second of a start
    except ModuleNotFoundError as error:
        message = f"Celery cannot be imported ({error}): install passerelle[celery]"
        raise ConfigurationError([Problem(Mark("jobs.engine"), "jobs.engine", message)]) from error
    return CeleryRunner(queue, celery_application(settings.jobs.broker))


def _is_managed(target: Target) -> bool:
    return target.engine in MANAGED


def _starts_here(target: Target) -> bool:
    """Whether it is a child of this gateway, for whose first load readiness waits."""
    return _is_managed(target) and not is_served(target)


def _health_rules(settings: Settings) -> HealthRules:
    health = settings.health
    return HealthRules(failures_in_row=health.failures, ejection_s=health.eject_s, max_ejection_s=health.max_eject_s)


def _retry_rules(settings: Settings) -> RetryRules:
    return RetryRules(max_extra_attempts=settings.retry.max_extra_attempts, ratio=settings.retry.budget_ratio)


def _fetch_rules(settings: Settings) -> FetchRules:
    fetch = settings.fetch
    networks = tuple(ip_network(network, strict=False) for network in fetch.allow_networks)
    return FetchRules(networks, fetch.allow_ports, fetch.max_bytes, fetch.timeout_s)


def _edge_limits(settings: Settings) -> EdgeLimits:
    server = settings.server
    return EdgeLimits(
        max_body_bytes=server.max_body_bytes,
        head_timeout_s=server.head_timeout_s,
        body_min_rate_bytes_s=server.body_min_rate_bytes_s,
        keep_alive_s=server.keep_alive_s,
        max_connections=server.max_connections,
    )
