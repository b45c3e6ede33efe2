"""The states of a job in the words of LinTO's LLM Gateway, from the job's row and from its events."""

from __future__ import annotations

from typing import Final

from passerelle.jobs.job import EventType, Job, JobEvent, JobState

State = dict[str, str]
"""``status`` and ``message``; ``progress`` is a whole percentage as a string, ``summarization`` the result."""

UNKNOWN: Final[State] = {"status": "unknown", "message": "Task does not exist"}


def queued() -> State:
    """It waits, for the first time or again."""
    return {"status": "queued", "message": "Task is in queue"}


def started() -> State:
    """A worker has it."""
    return {"status": "started", "message": "Task started"}


def processing(percent: int) -> State:
    """It tells how far it is."""
    return {"status": "processing", "message": "Task is in progress", "progress": str(percent)}


def complete(text: str) -> State:
    """It has a result."""
    return {"status": "complete", "message": "success", "summarization": text.strip()}


def error(details: str) -> State:
    """It ended without one."""
    return {"status": "error", "message": "Task failed", "details": details}


def state_of(job: Job, text: str) -> State:
    """Returns the state of a job; ``text`` is its result, when it has one."""
    match job.state:
        case JobState.QUEUED:
            return queued()
        case JobState.RUNNING:
            return started() if job.progress is None else processing(job.progress.percent)
        case JobState.SUCCEEDED:
            return complete(text)
        case JobState.CANCELLED:
            return error("The job was cancelled.")
        case _:
            return error("The job failed." if job.error is None else job.error.message)


def state_after(before: State, event: JobEvent) -> State | None:
    """Returns the state after an event; None for the end that has a result, which is not in the event."""
    match event.type:
        case EventType.QUEUED | EventType.RETRY | EventType.RELEASED:
            return queued()
        case EventType.STARTED:
            return started()
        case EventType.PROGRESS:
            return processing(int(event.fields().get("percent", 0)))
        case EventType.SUCCEEDED:
            return None
        case EventType.CANCELLED:
            return error("The job was cancelled.")
        case EventType.FAILED | EventType.DEAD:
            why = event.fields().get("error") or {}
            return error(why.get("message") or "The job failed.")
        case _:
            return before
