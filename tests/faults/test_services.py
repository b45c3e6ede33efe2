"""Rows G1 to G7 and H1 to H4 through the HTTP API of a running gateway, and documents that nobody wished for.

What comes of each is a sentence for the person who sent it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select
from tests.conformance.services_gateway import TEXT, ServiceClient, service_gateway
from tests.faults.table import row
from tests.harness.upstreamd import Seen, Step, never, normal, stall, status
from tests.unit.services.extract import samples

from passerelle.identity.credentials import Credentials
from passerelle.jobs.job import NewJob
from passerelle.jobs.queue import JobQueue
from passerelle.services.job import KIND
from passerelle.storage.engine import open_database
from passerelle.storage.tables import keys

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServiceClient]:
    """One gateway for the module; the client is the operator."""
    folder = tmp_path_factory.mktemp("services")
    async with service_gateway(folder, services={"max_retry_delay_s": 0.5}) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def client(shared: ServiceClient) -> AsyncIterator[ServiceClient]:
    """The same, with a well-behaved model; it is alive afterwards."""
    shared.upstream.scenario = None
    shared.upstream.requests.clear()
    yield shared
    assert shared.gateway.get("/health")[0] == 200
    assert not [line for line in shared.gateway.log if "Traceback" in line]


def folder_of(client: ServiceClient) -> Path:
    """Where manifests are."""
    return client.gateway.home.parent / ".hydra-conf" / "services"


def saying(content: str | None) -> list[Step]:
    """A chat answer."""
    choices = [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}
    document = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
    return [status(200, content=json.dumps(document).encode())]


async def services(client: ServiceClient) -> dict[str, Any]:
    """What is listed."""
    return dict((await client.http.get("/v1/services")).json())


async def until(client: ServiceClient, true: Any, within_s: float = 10.0) -> dict[str, Any]:
    """Returns the list of services once it is as wished."""
    async with asyncio.timeout(within_s):
        while not true(found := await services(client)):
            await asyncio.sleep(0.02)
    return found


# Documents.


async def test_a_turn_longer_than_the_window_is_read_whole(client: ServiceClient) -> None:
    """One line of many windows' length becomes calls that fit, in order, and every word of it is read."""
    words = [f"w{number}" for number in range(1500)]
    job = await client.ended(await client.job(text="A : " + " ".join(words)))
    assert job["status"] == "succeeded", job
    details = (await client.http.get(f"/v1/jobs/{job['id']}/result")).json()["details"]
    assert details["coverage"]["complete"] is True
    prompts = sorted(
        (chat["messages"][0]["content"] for chat in client.chats),
        key=lambda prompt: int(re.findall(r"\bw(\d+)", prompt)[0]),
    )
    assert [word for prompt in prompts for word in re.findall(r"\bw\d+", prompt)] == words
    assert max(len(prompt.split()) for prompt in prompts) <= 160


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (b"", 400, "empty"),
        (b" \r\n\t\n", 400, "empty"),
        (b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 40, 415, "text"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, 415, None),
    ],
    ids=["nothing", "blanks", "a program", "a picture"],
)
async def test_what_holds_no_text_is_refused_in_words(
    client: ServiceClient, data: bytes, code: int, says: str | None
) -> None:
    """No job is made, and one sentence says why."""
    answer = await client.http.post("/v1/services/summarize-en/jobs", files={"file": ("a.txt", data)})
    assert answer.status_code == code, answer.text
    message = answer.json()["error"]["message"]
    assert message.endswith(".")
    assert says is None or says in message.lower()
    assert client.chats == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig"])
async def test_other_encodings_are_read(client: ServiceClient, encoding: str) -> None:
    """Text in UTF-16 or with a byte order mark arrives at the model as it was written."""
    marked = ("\ufeff" if encoding == "utf-16-le" else "") + "Élodie : déjà vu — ça va ?"
    answer = await client.http.post(
        "/v1/services/summarize-en/jobs", files={"file": ("a.txt", marked.encode(encoding))}
    )
    assert (await client.ended(answer.json()["id"]))["status"] == "succeeded"
    assert "Élodie : déjà vu — ça va ?" in client.chats[0]["messages"][0]["content"]


async def test_a_model_that_is_down_for_a_while(client: ServiceClient) -> None:
    """Its server answers 503 for some seconds: the job waits and then succeeds; nothing is asked twice in vain."""
    down = True

    def scenario(seen: Seen) -> list[Step]:
        return [status(503)] if down and "chat" in seen.path else [normal()]

    client.upstream.scenario = scenario
    job_id = await client.job()
    await client.asked(3)
    await asyncio.sleep(1.5)  # as long as a restart, shortened
    assert (await client.http.get(f"/v1/jobs/{job_id}")).json()["status"] in ("queued", "running")
    down = False
    job = await client.ended(job_id, 60)
    assert job["status"] == "succeeded", job


async def test_a_model_that_answers_nothing(client: ServiceClient) -> None:
    """The job fails after the second empty answer and says so, with what to do."""
    for content in ("", None, " \n"):
        client.upstream.requests.clear()
        client.upstream.scenario = lambda seen, said=content: saying(said) if "chat" in seen.path else [normal()]
        job = await client.ended(await client.job(text="A : short"))
        assert (job["status"], job["error"]["code"]) == ("failed", "empty_answer")
        assert job["error"]["message"] == (
            "The model 'm' answered nothing, twice: look at the prompt, or take another model."
        )
        assert len(client.chats) == 2


# G. Hot reload


@row("G1", "G3", "G7")
@pytest.mark.parametrize(
    ("manifest", "prompt", "says"),
    [
        ("bad: {modelName: [", None, "zbad.yaml"),
        ("bad: {name: bad, fields: one, model: m}", "Do {}", "fields"),
        ("bad: {name: bad, model: m, strateggy: rolling}", "Do {}", "strateggy"),
        ("bad: {name: bad, model: m, route: summarize/en}", "Do {}", "summarize/en"),
        ("bad: {name: bad, model: m}", None, "bad"),
        ("bad: {name: bad, fields: 1, model: m}", "A prompt without a slot", "slot"),
        ("bad: {name: bad, fields: 2, model: m}", "Only one {}", "slot"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nbad: {metadata: *b, model: m}", "Do {}", "zbad.yaml"),
        ("bad: !!python/object/apply:os.system ['touch pwned']", "Do {}", "zbad.yaml"),
        ("bad:\n\tmodel: m", "Do {}", "zbad.yaml"),
        ("bad: {name: bad, model: '${oc.env:NOT_SET_ANYWHERE}'}", "Do {}", "NOT_SET_ANYWHERE"),
    ],
    ids=[
        "syntax",
        "type",
        "unknown key",
        "duplicate route",
        "no prompt",
        "no slot",
        "one slot of two",
        "aliases",
        "python object",
        "tab",
        "missing secret",
    ],
)
async def test_a_bad_manifest_takes_nothing_down(
    client: ServiceClient, manifest: str, prompt: str | None, says: str
) -> None:
    """It is told with its file and counted in a metric; the services that were there serve on; mended, all is well."""
    path = folder_of(client) / "zbad.yaml"
    template = client.gateway.home.parent / "prompts" / "bad.txt"
    try:
        if prompt is not None:
            template.write_text(prompt)
        path.write_text(manifest)
        found = await until(client, lambda found: found["problems"])
        assert any("zbad.yaml" in each or "bad.txt" in each for each in found["problems"])
        assert any(says in each for each in found["problems"]), found["problems"]
        assert [each["name"] for each in found["data"]] == ["summarize-en"]
        assert not re.search(
            r"^passerelle_service_problems 0\.0$", client.gateway.get("/metrics", key=client.key)[1].decode(), re.M
        )
        assert (await client.ended(await client.job(text="A : short")))["status"] == "succeeded"
    finally:
        path.unlink(missing_ok=True)
        template.unlink(missing_ok=True)
    await until(client, lambda found: not found["problems"])


@row("G1")
async def test_a_service_that_breaks_serves_on_as_it_was(client: ServiceClient) -> None:
    """A manifest that becomes wrong keeps its last good service until it is mended; then the new one serves."""
    path = folder_of(client) / "en.yaml"
    good = path.read_text()
    path.write_text(good.replace("fields: 1", "fields: 7"))
    found = await until(client, lambda found: found["problems"])
    assert re.search(r"en\.yaml:\d+", found["problems"][0])
    assert (await client.ended(await client.job(text="A : short")))["status"] == "succeeded"
    path.write_text(good)
    await until(client, lambda found: not found["problems"])


@row("G4", "G5")
async def test_reloads_under_load_fail_nothing(client: ServiceClient) -> None:
    """A manifest changes again and again, and goes away and comes back, while jobs run: each ends as its kind does."""
    path = folder_of(client) / "en.yaml"
    good = path.read_text()
    client.upstream.scenario = lambda seen: [stall(0.05), normal()] if "chat" in seen.path else [normal()]
    made: list[str] = []
    for number in range(40):
        path.write_text(good.replace("English summary", f"English summary {number}"))
        made.append(await client.job())
    await until(client, lambda found: found["data"][0]["description"] == {"fr": "English summary 39"})
    ended = [await client.ended(job_id) for job_id in made]
    assert {job["status"] for job in ended} == {"succeeded"}
    running = await client.job()
    await client.asked(len(client.chats) + 1)
    path.unlink()
    await until(client, lambda found: not found["data"])
    assert (await client.submit()).status_code == 404
    assert (await client.ended(running))["status"] == "succeeded"
    path.write_text(good)
    await until(client, lambda found: found["data"])


@row("G4")
async def test_a_thousand_services_reload_within_a_second(client: ServiceClient) -> None:
    """With a thousand manifests in the folder, a change of one serves within a second of being written."""
    many = folder_of(client)
    (client.gateway.home.parent / "prompts" / "many.txt").write_text("Do {}")
    paths = [many / f"s{number:04}.yaml" for number in range(1000)]
    try:
        for number, path in enumerate(paths):
            path.write_text(f"s{number:04}: {{prompt: many, model: m, metadata: {{v: 0}}}}")
        await until(client, lambda found: len(found["data"]) == 1001, 60)
        took: list[float] = []
        for version in range(1, 6):
            body = f"s0500: {{prompt: many, model: m, route: v{version}, metadata: {{v: {version}}}}}"
            paths[500].write_text(body)
            began = time.monotonic()
            async with asyncio.timeout(10):
                route = f"/v1/services/v{version}/validate"
                while (await client.http.post(route, json={"input": "A : b"})).status_code == 404:
                    await asyncio.sleep(0.01)
            took.append(time.monotonic() - began)
        assert min(took) < 1.0, took
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
        await until(client, lambda found: len(found["data"]) == 1, 60)


# H. Uploads


_XXE = '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
_LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(10))
UPLOADS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip bomb": (lambda: samples.deflated_bomb(100_000_000), "a.docx"),
    "zip in zip": (lambda: samples.archive({"inner.docx": samples.deflated_bomb(1_000_000)}), "a.docx"),
    "names that climb": (lambda: samples.archive({"../../pwned": b"x", "/pwned": b"x"}), "a.docx"),
    "many entries": (lambda: samples.many_entries(200_000), "a.docx"),
    "flate bomb": (lambda: samples.flate_bomb(100_000_000, 2), "a.pdf"),
    "encrypted": (samples.encrypted_pdf, "a.pdf"),
    "broken": (lambda: samples.text_pdf("text")[:200] + b"\0" * 100, "a.pdf"),
    "entity": (lambda: samples.docx(samples.word_xml(samples.paragraph("&x;"), _XXE)), "a.docx"),
    "laughs": (
        lambda: samples.docx(samples.word_xml(samples.paragraph("&l9;"), f"<!DOCTYPE d [{_LAUGHS}]>")),
        "a.docx",
    ),
}
"""Documents made to do harm, by what they are."""


@row("H1", "H2", "H3")
@pytest.mark.parametrize("name", sorted(UPLOADS))
async def test_harmful_documents_are_refused_with_a_code(client: ServiceClient, name: str) -> None:
    """No job is made, the refusal has a code and a sentence, nothing is written beside, and others are answered."""
    make, filename = UPLOADS[name]
    data = await asyncio.to_thread(make)
    before = {path for path in client.gateway.home.parent.rglob("*") if "pwned" in path.name}
    began = time.monotonic()
    answer = await client.http.post("/v1/services/summarize-en/jobs", files={"file": (filename, data)}, timeout=90)
    assert answer.status_code in (400, 413, 415, 422), answer.text
    error = answer.json()["error"]
    assert error["code"] and error["message"].endswith(".")
    assert "/etc" not in answer.text and "root:" not in answer.text
    assert time.monotonic() - began < 60
    assert {path for path in client.gateway.home.parent.rglob("*") if "pwned" in path.name} == before
    assert client.chats == []
    assert (await client.ended(await client.job(text="A : short")))["status"] == "succeeded"


@row("H3")
async def test_a_page_fetches_nothing(client: ServiceClient) -> None:
    """Pictures, styles and frames of an HTML document are not asked for; its text is read."""
    asked: list[bytes] = []

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(sink, "127.0.0.1", 0)
    at = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    page = (
        f"<html><link rel=stylesheet href={at}/a.css><body><p>Read me<img src={at}/b.png><iframe src={at}/c></iframe>"
    )
    answer = await client.http.post("/v1/services/summarize-en/jobs", files={"file": ("a.html", page.encode())})
    assert (await client.ended(answer.json()["id"]))["status"] == "succeeded"
    assert "Read me" in client.chats[0]["messages"][0]["content"]
    server.close()
    assert asked == []


@row("H4")
@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "a\r\nx-evil: 1.txt",
        "\u202egpj.txt",
        "n" * 10_000 + ".txt",
        "<script>alert(1)</script>.txt",
    ],
    ids=["path", "line break", "right to left", "long", "script"],
)
async def test_names_of_uploads_are_only_names(client: ServiceClient, name: str) -> None:
    """A hostile name is kept as a name at most, without what it was made for; the declared type is not believed."""
    files = {"file": (name, TEXT.encode(), "application/pdf")}
    answer = await client.http.post("/v1/services/summarize-en/jobs", files=files)
    assert answer.status_code in (202, 400), answer.text
    assert "x-evil" not in answer.headers
    if answer.status_code == 202:
        kept = answer.json()["file"]["name"]
        assert len(kept) <= 300
        assert not set(kept) & set("/\\\r\n\0\u202e")
        assert answer.json()["file"]["kind"] == "text"
        assert (await client.ended(answer.json()["id"]))["status"] == "succeeded"


@row("H4")
async def test_the_bytes_say_what_an_upload_is(client: ServiceClient) -> None:
    """A PDF that is called text is read as a PDF, and text that is called PDF as text."""
    for data, name, kind in ((samples.text_pdf("Hello"), "a.txt", "pdf"), (TEXT.encode(), "a.pdf", "text")):
        answer = await client.http.post("/v1/services/summarize-en/jobs", files={"file": (name, data, "image/png")})
        assert answer.status_code == 202, answer.text
        assert answer.json()["file"]["kind"] == kind
        assert (await client.ended(answer.json()["id"]))["status"] == "succeeded"


UPLOAD_PATHS = ("/services/summarize/en/generate", "/v1/services/summarize-en/jobs")


@row("H4")
@pytest.mark.parametrize("path", UPLOAD_PATHS)
async def test_an_upload_over_the_limit_is_told(client: ServiceClient, path: str) -> None:
    """A client that speaks to the end before it listens reads 413, however much it brought; a smaller one gets in."""
    turns = b"A : said some words\n"
    for size in (21 * 2**20, 64 * 2**20):
        files = {"file": ("a.txt", turns * (size // len(turns)))}
        answer = await client.http.post(path, files=files, data={"flavor": "llama"}, timeout=120)
        assert answer.status_code == 413, answer.text
        assert "larger" in answer.text
    files = {"file": ("a.txt", turns * 40)}
    answer = await client.http.post(path, files=files, data={} if "v1" in path else {"flavor": "llama"})
    assert answer.status_code in (200, 202), answer.text


@row("H4")
async def test_a_transcript_of_many_entries(client: ServiceClient) -> None:
    """A JSON transcript with as many entries as fit into an upload becomes a job, and one that can be cancelled."""
    segments = [{"start": n, "end": n + 1, "speaker": "A", "text": f"said number {n}"} for n in range(230_000)]
    data = json.dumps({"segments": segments}).encode()
    assert 15 * 2**20 < len(data) < 20 * 2**20
    client.upstream.scenario = lambda seen: [never()]  # what the job does with it is not the point
    answer = await client.http.post(UPLOAD_PATHS[1], files={"file": ("a.json", data)}, timeout=120)
    assert answer.status_code == 202, answer.text
    assert answer.json()["file"]["kind"] == "transcript"
    job_id = answer.json()["id"]
    assert (await client.http.post(f"/v1/jobs/{job_id}/cancel")).status_code == 200
    assert (await client.ended(job_id))["status"] == "cancelled"


@row("E16")
async def test_jobs_of_other_releases(client: ServiceClient) -> None:
    """A payload as the first release wrote it runs; a newer one, and an unknown kind, are dead with the reason.

    They come into the database from another process, as from a replica of another version.
    """
    database = open_database("sqlite", client.gateway.home)
    queue = JobQueue(database)
    async with database.read() as connection:
        key_id = (await connection.execute(select(keys.c.id))).scalars().first()
    principal = await Credentials(database).holder(str(key_id))
    assert principal is not None
    store = queue.store(principal)
    first = {"service": "summarize/en", "text": "A : short"}
    new = {
        "old": NewJob(kind=KIND, payload=first, payload_version=1),
        "newer": NewJob(kind=KIND, payload=first, payload_version=99),
        "unknown": NewJob(kind="divination"),
    }
    ids = {name: (await store.submit(job)).id for name, job in new.items()}
    await queue.aclose()
    await database.aclose()
    ended = {name: await client.ended(job_id) for name, job_id in ids.items()}
    assert {name: job["status"] for name, job in ended.items()} == {
        "old": "succeeded",
        "newer": "dead",
        "unknown": "dead",
    }
    assert "has version 99; this worker reads 1 to" in ended["newer"]["error"]["message"]
    assert "'divination'" in ended["unknown"]["error"]["message"]
    again = await client.http.post(f"/v1/jobs/{ids['unknown']}/replay")
    assert (again.status_code, again.json()["replay_of"]) == (202, ids["unknown"])
