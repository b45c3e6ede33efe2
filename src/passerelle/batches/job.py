"""The job that works on a batch: each line through the gateway, as many at once as the model's servers bear.

Calls have a job's priority, and the rights and limits the key has at that moment. A line that fails for a reason that
passes is asked again until the window closes; what it then is, an answer or an error, is written once. Results are
written together, several times a second, in one transaction with their counts: after a crash the lines that are written
are not asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from passerelle.batches.lines import Line, requests, validate
from passerelle.batches.store import Batch, BatchLog, InputError, line_id, lines_of
from passerelle.domain.errors import (
    NotFound,
    PasserelleError,
    QuotaExhausted,
    RateLimited,
    RequestTimeout,
    Unavailable,
)
from passerelle.domain.principal import Principal
from passerelle.domain.request import Request
from passerelle.files.store import FileStore, now_ms
from passerelle.gateway.queue import Priority
from passerelle.jobs.context import JobContext, Kind
from passerelle.jobs.job import Claim
from passerelle.services.caller import PARALLEL_WITHOUT_LIMIT, GatewayCaller
from passerelle.storage.engine import Database, StorageError

KIND: Final = "batch"
FLUSH_S: Final = 0.2
"""Results are written this often at most."""
LOOK_S: Final = 1.0
"""How often it is looked whether the batch was cancelled, at least."""
RIGHTS_S: Final = 5.0
"""How often it is looked whether the key still has its rights."""
MAX_RETRIES: Final = 6
"""Of one line, when a model server breaks; one that is only busy is waited for."""
MAX_DELAY_S: Final = 30.0
_MOST_WAITING: Final = 2000
"""Results that wait to be written; more lines are not asked meanwhile."""


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The payload. ``output_s`` is how long output files are kept, None for the rule."""

    batch: str
    output_s: float | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """One line as a request, and what makes the body to write of the gateway's answer."""

    request: Request
    render: Callable[[bytes], bytes]


Prepare = Callable[[str, bytes], Prepared]
"""(endpoint, body) -> the request. Raises PasserelleError."""
RenderError = Callable[[PasserelleError, str], dict[str, Any]]
"""(error, request id) -> the body of an error."""


class BatchJobs:
    """Runs jobs of the kind ``batch``. ``principal`` says whose rights a job has now."""

    def __init__(
        self,
        database: Database,
        caller: GatewayCaller,
        principal: Callable[[Claim], Awaitable[Principal | None]],
        files: Callable[[Principal], FileStore],
        prepare: Prepare,
        render_error: RenderError,
    ) -> None:
        self.database = database
        self.caller = caller
        self.principal = principal
        self.files = files
        self.prepare = prepare
        self.render_error = render_error

    @property
    def kind(self) -> Kind:
        """What to register with the runner."""
        return Kind(KIND, self.run)

    async def run(self, context: JobContext) -> None:
        """Works on one batch. Raises LeaseLost, Unavailable."""
        asked = context.payload(BatchRequest)
        log = BatchLog(self.database.of(context.job.organisation), asked.batch, context.job.attempt)
        batch = await log.begin()
        if batch is None:
            return
        principal = await self.principal(context.job)
        if principal is None:
            await log.end("failed", [_key_ended()], None)
            return
        files = self.files(principal)
        try:
            if batch.status == "validating":
                total, errors = await validate(files.pieces(batch.input_file_id), batch.endpoint)
                if errors:
                    await log.end("failed", errors, None)
                    return
                batch = await log.start(total, files)
            status, errors = await _Run(self, context, log, batch, files, principal).work()
        except NotFound:
            status, errors = "failed", [_input_gone()]
        await log.finalize()
        kept_s = files.rules.retain_s if asked.output_s is None else asked.output_s
        await log.end(status, errors, now_ms() + int(kept_s * 1000))


class _Run:
    """One attempt at the lines of one batch."""

    def __init__(
        self,
        jobs: BatchJobs,
        context: JobContext,
        log: BatchLog,
        batch: Batch,
        files: FileStore,
        principal: Principal,
    ) -> None:
        self._jobs = jobs
        self._context = context
        self._log = log
        self._batch = batch
        self._files = files
        self._principal = principal
        self._stop: str | None = None
        """The state it is to end in before all lines are asked."""
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: Counter[str] = Counter()
        self._output: list[bytes] = []
        self._errors: list[bytes] = []
        self._done: set[str] = set()
        self._asked = asyncio.Event()
        """Nothing more will be asked."""
        self._defect: BaseException | None = None
        self._why = _key_ended()
        """What it failed of, where it fails."""

    async def work(self) -> tuple[str, list[InputError]]:
        """Asks the lines that were not asked; returns the state the batch ends in, and why."""
        for file_id in (self._batch.output_file_id, self._batch.error_file_id):
            if file_id is not None:
                async for _, line in lines_of(self._files.written(file_id), 2**62):
                    self._done.add(msgspec.json.decode(line, type=_Written).custom_id)
        self._heed()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write_on())
                watcher = group.create_task(self._watch())
                try:
                    await self._ask_all()
                finally:
                    for task in self._tasks:
                        task.cancel()
                    await asyncio.gather(*self._tasks, return_exceptions=True)
                    watcher.cancel()
                    self._asked.set()
        except BaseExceptionGroup as broken:
            raise broken.exceptions[0] from None
        if self._defect is not None:
            raise self._defect
        if self._stop == "expired":
            await self._write_expired()
        errors = [self._why] if self._stop == "failed" else []
        return self._stop or "completed", errors

    async def _ask_all(self) -> None:
        try:
            async for line in requests(self._files.pieces(self._batch.input_file_id), self._batch.endpoint):
                if line.custom_id in self._done:
                    continue
                await self._place(line)
                if self._stop is not None:
                    break
        except NotFound:
            self._why = _input_gone()
            self._halt("failed")
        while self._tasks:
            await asyncio.wait(self._tasks, timeout=LOOK_S)
            if self._stop not in (None, "cancelled"):
                for task in self._tasks:
                    task.cancel()

    async def _place(self, line: Line) -> None:
        """Begins a line once its model has a place for it."""
        try:
            prepared = self._jobs.prepare(self._batch.endpoint, line.body)
        except PasserelleError as error:
            self._note_error(line, error, "")
            await asyncio.sleep(0)
            return
        model = prepared.request.model
        while self._stop is None and (
            self._running[model] >= self._parallel(model) or len(self._output) + len(self._errors) > _MOST_WAITING
        ):
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(FLUSH_S)
        if self._stop is not None:
            return
        self._running[model] += 1
        task = asyncio.create_task(self._ask(line, prepared), name=f"{self._batch.id}:{line.number}")
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._free(ended, model))

    def _parallel(self, model: str) -> int:
        capacity = self._jobs.caller.capacity_of(model)
        return PARALLEL_WITHOUT_LIMIT if capacity is None else max(1, capacity)

    def _free(self, task: asyncio.Task[None], model: str) -> None:
        self._tasks.discard(task)
        self._running[model] -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            self._note_defect(error)

    def _note_defect(self, error: BaseException) -> None:
        """An error that is not the line's ends the attempt: the job's own rule decides."""
        self._defect = self._defect or error
        self._halt("defect")

    async def _ask(self, line: Line, prepared: Prepared) -> None:
        """Asks one line until it is answered, or cannot be."""
        tries = 0
        while True:
            try:
                call, body = await self._jobs.caller.run(self._principal, None, Priority.JOB, prepared.request)
            except PasserelleError as error:
                tries += 1
                delay_s = _delay_s(error, tries)
                if delay_s is None:
                    self._note_error(line, error, "")
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), delay_s)
                if self._stop is not None:
                    return
                prepared = self._jobs.prepare(self._batch.endpoint, line.body)
                continue
            answer = {"status_code": 200, "request_id": call.request_id, "body": msgspec.Raw(prepared.render(body))}
            self._output.append(self._line(line, answer, None))
            return

    def _note_error(self, line: Line, error: PasserelleError, request_id: str) -> None:
        body = self._jobs.render_error(error, request_id)
        self._errors.append(
            self._line(line, {"status_code": error.status, "request_id": request_id, "body": body}, None)
        )

    def _line(self, line: Line, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
        self._done.add(line.custom_id)
        told = {"id": line_id(self._batch.id, line.custom_id), "custom_id": line.custom_id}
        return msgspec.json.encode({**told, "response": response, "error": error}) + b"\n"

    # Writing, and looking whether to go on

    async def _write_on(self) -> None:
        """Writes what there is until everything is written; never cut between a commit and the note of it."""
        looked_s = 0.0
        while not self._asked.is_set() or self._output or self._errors:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), FLUSH_S)
            if self._output or self._errors or time.monotonic() - looked_s >= LOOK_S:
                looked_s = time.monotonic()
                try:
                    await self._flush()
                except Unavailable:
                    await asyncio.sleep(LOOK_S)  # what is not written waits; the lease is watched elsewhere

    async def _flush(self) -> None:
        output, errors = self._output[:], self._errors[:]
        self._batch = await self._log.append(self._batch, output, errors)
        del self._output[: len(output)]
        del self._errors[: len(errors)]
        self._context.progress(self._batch.completed + self._batch.failed, self._batch.total, "in_progress")
        self._heed()

    def _heed(self) -> None:
        """Stops when the batch says so: it was cancelled, or its window has closed."""
        if self._batch.cancelling_at_ms is not None:
            self._halt("cancelled")
        elif self._batch.expires_at_ms <= now_ms():
            self._halt("expired")

    async def _watch(self) -> None:
        """Ends the asking when the window closes, or the key has lost its rights."""
        while True:
            left_s = (self._batch.expires_at_ms - now_ms()) / 1000
            if left_s <= 0:
                self._halt("expired")
                return
            await asyncio.sleep(min(left_s, RIGHTS_S))
            try:
                found = await self._jobs.principal(self._context.job)
            except (StorageError, Unavailable):
                continue
            if found is None:
                self._halt("failed")
                return
            self._principal = found

    def _halt(self, status: str) -> None:
        self._stop = self._stop or status
        self._stopped.set()

    async def _write_expired(self) -> None:
        """Says of each line that was not answered that the window has closed."""
        error = {"code": "batch_expired", "message": "This request was not answered within the completion window."}
        async for line in requests(self._files.pieces(self._batch.input_file_id), self._batch.endpoint):
            if line.custom_id not in self._done:
                self._errors.append(self._line(line, None, error))
            if len(self._errors) >= _MOST_WAITING:
                await self._flush()
        await self._flush()


class _Written(msgspec.Struct):
    custom_id: str


def _delay_s(error: PasserelleError, tries: int) -> float | None:
    """Returns how long to wait before asking again, None when that cannot help."""
    if isinstance(error, QuotaExhausted):
        return None
    passing = isinstance(error, Unavailable | RateLimited | RequestTimeout)
    if not passing and (error.status not in (502, 504) or tries > MAX_RETRIES):
        return None
    back_off_s = min(MAX_DELAY_S, 0.25 * 2.0 ** min(tries, 16)) * random.uniform(0.75, 1.0)  # noqa: S311 - spread
    return max(error.retry_after_s or 0.0, back_off_s)


def _key_ended() -> InputError:
    return InputError("key_ended", "The key of this batch was revoked, or has expired.")


def _input_gone() -> InputError:
    return InputError("file_not_found", "The input file was deleted.", "input_file_id")
