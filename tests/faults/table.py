"""The rows: each a promise about one fault or bad input. A test names its row with ``@row("A1")``.

``test_table`` fails when a row has no test, or a test names a row that is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import pytest

Test = TypeVar("Test")


@dataclass(frozen=True, slots=True)
class Row:
    """One promise: what goes wrong, how it is made, and what is to come of it."""

    id: str
    fault: str
    how: str
    outcome: str


def row(row_id: str, *others: str) -> pytest.MarkDecorator:
    """Returns the mark that ties a test to its rows."""
    return pytest.mark.row(row_id, *others)


ROWS = (
    # A. A model server misbehaves
    Row("A1", "target refuses connections", "close its port", "next target, 200; out after 5; no time lost"),
    Row("A2", "all targets refuse", "close all ports", "503 service_unavailable with Retry-After in < 1 s"),
    Row("A3", "accepts, never answers", "never", "header deadline, next target; else 504"),
    Row("A4", "500, 502, 503, 504 before the body", "status(code)", "fail-over; 503 only when all failed"),
    Row("A5", "429 with Retry-After", "status(429)", "other target; else 429 with the larger Retry-After"),
    Row("A6", "400 from the target", "status(400)", "no retry; its message only in a known shape, short, scrubbed"),
    Row("A7", "dies after its headers", "headers, reset", "fail-over the caller does not see"),
    Row("A8", "dies after 5 tokens", "tokens(5), reset", "5 tokens, one error event, no [DONE]; usage 5; no retry"),
    Row("A9", "stalls mid-stream", "tokens(5), stall", "idle deadline, then as A8"),
    Row("A11", "odd but legal event streams", "raw bytes", "parsed by the standard; usage present"),
    Row("A13", "endless tokens past max_tokens", "tokens(1000)", "cut at the limit, upstream closed"),
    Row("A14", "nonsense in answers", "corpus", "error event or 502; never an exception's text"),
    Row("A15", "broken framing", "raw bytes", "502, connection not used again"),
    Row("A17", "redirect", "302 to a sink", "not followed; 502"),
    Row("A19", "flapping target", "fail_rate 0.5", "success >= 99.9 % with 2 targets; extra load <= 20 %"),
    Row("A20", "one slow target among fast ones", "latency proxy", "load shifts; the tail stays near the fast one"),
    Row("A22", "wrong clock and duplicate ids upstream", "fixed ids", "ours are used"),
    Row("A23", "embedded model server dies", "SEGV, KILL", "its calls fail, it comes back, the gateway stays"),
    # B. A caller misbehaves on the wire
    Row("B1", "leaves while queued", "FIN, RST, half-close", "out of the queue, never sent upstream"),
    Row("B2", "leaves before the headers", "FIN, RST, half-close", "upstream closed within 1 s"),
    Row("B4", "leaves mid-stream, or before the first token", "FIN, RST, half-close", "same; usage of what was made"),
    Row("B6", "500 leave at once, large bodies", "RST", "health answers all through"),
    Row("B8", "never reads", "small window", "upstream paused; bounded memory; cut off"),
    Row("B9", "idle connections", "open only", "good caller unaffected; cap with 503 beyond"),
    Row("B10", "slow heads", "trickle", "closed within the head's deadline"),
    Row("B11", "slow bodies", "trickle", "408 below the least rate"),
    Row("B12", "large heads and addresses", "raw", "431, 431, 414"),
    Row("B13", "malformed framing", "raw, directly and behind nginx", "400 and closed; equal request counts"),
    Row("B16", "method tunnelling, TRACE, CONNECT", "raw", "405, or the method as sent"),
    Row("B17", "HTTP/1.0, 100 pipelined, Expect", "raw", "correct, or a clean refusal"),
    Row("B18", "compressed request body", "gzip bomb", "415"),
    # C. What requests hold
    Row("C1", "not JSON in many ways", "corpus", "400"),
    Row("C3", "body past the limit", "length, endless chunks", "413 early"),
    Row("C4", "numbers out of range", "corpus", "400 that names the field"),
    Row("C5", "unknown fields", "corpus", "dangerous ones 400, others dropped and named; never forwarded"),
    Row("C6", "hostile schemas", "recursion, 1 MB, patterns", "400 at once"),
    Row("C7", "wrong types everywhere", "generated", "400 in the envelope, no 5xx"),
    Row("C8", "unknown model, another's model", "", "404, or a refusal that tells nothing"),
    Row("C9", "model removed during the request", "reload", "the request finishes on its snapshot"),
    Row("C10", "broken order of messages, 10,000 messages", "corpus", "400 or passed on"),
    Row("C11", "image addresses that lead inside", "corpus", "400 before any packet leaves"),
    Row("C13", "redirecting image addresses", "corpus", "each hop looked at; at most 5"),
    Row("C14", "hostile images", "corpus", "400 before anything is decoded"),
    Row("C15", "data: URL of 50 MB; 10 GB behind an address", "", "413; 400 at the limit"),
    Row("C16", "markdown image in plain text", "", "nothing fetched"),
    # D. Keys
    Row("D1", "bad keys of every kind", "corpus", "401, the same body"),
    Row("D3", "revoked, expired or disabled in use", "keys, sessions, tokens", "refused by every worker within 5 s"),
    Row("D5", "key in the query or a cookie", "", "401, and not in the logs"),
    Row("D6", "a caller widens what they have", "keys, roles, projects", "403; nothing changed"),
    Row("D7", "every route for every kind of caller", "from the route table", "as declared; no route without a row"),
    Row("D8", "burst at a limit", "200 at once", "exactly the limit passes; 429, Retry-After and headers"),
    Row("D10", "the store of limits goes away", "SIGKILL", "by what was known; 200 or 429, never 401; back by itself"),
    Row("D11", "callers leave while tokens are set aside", "FIN, RST, reset", "what was not used is given back"),
    Row("D13", "ids of another tenant", "every route with an id", "404, the same as for one that is not there"),
    Row("D14", "a statement that forgets its tenant", "SET ROLE; SELECT", "no row: row-level security is forced"),
    # E. Jobs and the database
    Row("E1", "worker killed in the middle of a job", "SIGKILL, failpoints", "run again soon after its lease; one end"),
    Row("E2", "gateway killed between commit and answer", "failpoint", "the same request finds the same job"),
    Row("E3", "gateway killed before the commit", "failpoint", "no job; the same request makes one"),
    Row("E7", "a job crashes its worker each time", "SIGSEGV", "dead after max_attempts; the queue moves on"),
    Row("E8", "many workers, many jobs", "processes", "each claimed once per attempt; no deadlock; fair to keys"),
    Row("E9", "cancelled: queued, running, finished, twice", "each state", "cancelled; <= 2 s; 409; the same again"),
    Row("E10", "SIGTERM with a hundred running", "SIGTERM", "no claim after; grace; leases given back; exit 0"),
    Row("E4", "database server killed under load", "SIGKILL, restart", "503 for unknown keys, no 401; ledger equal"),
    Row("E11", "no space for the ledger", "RLIMIT_FSIZE", "calls go on, or 503 if strict; no half row; recovers"),
    Row("E12", "home that cannot be used", "file, missing, read-only", "one clear line, exit code 2"),
    Row("E13", "SQLite locked by another process", "BEGIN IMMEDIATE", "waits, then 503; calls go on; no corruption"),
    Row("E14", "all database connections busy", "table lock", "503 after a while; health answers"),
    Row(
        "E16",
        "unknown kind, older or newer payload",
        "rows in the database",
        "older ones run; others dead with the reason",
    ),
    Row("E17", "migration cut, twice, or old code beside it", "SIGKILL", "all or nothing; once; old code goes on"),
    Row("E18", "readers of a log while it is written", "10,000 writes", "dense, in order, no gap after a resumption"),
    # F. Websockets
    Row("F1", "no ticket, a stale, used or foreign one, another origin", "handshakes", "403 before the handshake"),
    Row(
        "F2",
        "slow or silent reader of a chatty job",
        "small window",
        "bounded backlog; progress coalesced; end kept; 1013",
    ),
    Row("F4", "hostile frames", "sizes, fragments, pings, no UTF-8", "1009, 1008, 1007, 1002"),
    Row(
        "F5",
        "thousands of sockets on one job",
        "real connections",
        "each event once, in order; one reader of the database",
    ),
    Row("F6", "server restarts", "SIGTERM", "1012; the client goes on after the last number it saw"),
    # G. Hot reload of services
    Row("G1", "broken manifest or prompt", "corpus", "the last good one serves; file and line are told; metric"),
    Row("G3", "YAML made to do harm", "aliases, tags, tabs", "refused; nothing executed or expanded"),
    Row("G4", "reloads under load, a thousand manifests", "writes", "no failed job; < 1 s"),
    Row("G5", "a service goes away while its jobs run", "unlink", "they finish; then 404"),
    Row("G7", "a variable that is not set", "${oc.env:NAME}", "refused; only the name is told"),
    # H. Uploads
    Row("H1", "archives made to do harm", "bombs, climbing names, entries", "refused; nothing outside"),
    Row("H2", "PDFs made to do harm", "bombs, encrypted, broken", "refused with a code; the gateway goes on"),
    Row("H3", "entities and addresses in documents", "DOCX, HTML", "nothing expanded, nothing fetched"),
    Row("H4", "names and types that lie", "corpus", "the bytes decide; a name is only a name"),
    # I. Pages
    Row("I5", "requests of another site's page with the cookie", "origins, forms, tokens", "refused, nothing changed"),
    Row(
        "I7",
        "guessed passwords, planted and stolen sessions",
        "40 at once, copies",
        "slowed; new id; refused within 5 s",
    ),
    # J. Load and operation
    Row("J2", "one tenant floods", "ten-fold", "the other tenant's success and p99 hold"),
    Row("J3", "few descriptors, little memory", "limits", "sheds, recovers, never dies"),
    Row("J5", "rolling restart under streams", "SIGTERM, nginx", "no refused connection; streams end or are told"),
    Row("J7", "DNS failure, IPv6 only, proxies in the environment", "", "clear error; proxies ignored"),
)
