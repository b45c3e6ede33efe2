"""A client that leaves frees the engine: vLLM's own scheduler and counters say so."""

from __future__ import annotations

import socket
import threading
import time

import httpx
import msgspec
import pytest
from tests.vllm.conftest import Door
from tests.vllm.prompts import CHAT, COMPLETION, LONG_PROMPT, SEA, chat, completion
from tests.vllm.servers import Gateway, Vllm, wait_until
from tests.vllm.wire import JsonObject

FREED_WITHIN_S = 2.0
"""The gateway has one second to close; vLLM notices between two steps and publishes its counters after a third."""
ENDLESS: JsonObject = {"max_tokens": 1500, "ignore_eos": True}
"""More than a minute of decoding here."""


def idle(server: Vllm) -> None:
    """Waits until vLLM has nothing to do."""
    wait_until("vLLM is idle", lambda: server.running == 0, timeout_s=20)


def stays_idle(server: Vllm) -> bool:
    """Whether vLLM decodes nothing between two looks that are some steps apart."""
    before = server.metric("vllm:generation_tokens_total")
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        if server.running:
            return False
    return server.metric("vllm:generation_tokens_total") == before


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_leaving_a_stream_frees_the_engine(through: Door, vllm_server: Vllm, passerelle: Gateway, path: str) -> None:
    """The client closes mid-stream: vLLM stops decoding within two seconds, and the row keeps what was relayed."""
    body = chat(LONG_PROMPT, **ENDLESS) if path == CHAT else completion(LONG_PROMPT, **ENDLESS)
    request_id = "left-chat" if path == CHAT else "left-completion"
    idle(vllm_server)
    seen = 0
    with through.client.stream(
        "POST", path, json=body | {"stream": True}, headers={"x-request-id": request_id}
    ) as left:
        for line in left.iter_lines():
            seen += line.startswith("data: {")
            if seen == 10:
                assert vllm_server.running == 1
                break
    took_s = wait_until("vLLM is free", lambda: vllm_server.running == 0, timeout_s=FREED_WITHIN_S, every_s=0.05)
    row = passerelle.usage_row(request_id)

    assert took_s <= FREED_WITHIN_S and stays_idle(vllm_server)
    assert (row["outcome"], row["token_source"], row["stream"]) == ("cancelled", "relayed", True)
    assert 9 <= row["completion_tokens"] < 200


def test_leaving_before_the_answer_frees_the_engine(through: Door, vllm_server: Vllm, passerelle: Gateway) -> None:
    """The client of an answer that is not streamed hangs up: vLLM stops as soon, and the row says cancelled."""
    idle(vllm_server)
    thread_done = threading.Event()

    def ask_and_leave() -> None:
        with pytest.raises(httpx.ReadTimeout):
            through.client.post(
                COMPLETION,
                json=completion(LONG_PROMPT, **ENDLESS),
                headers={"x-request-id": "left-waiting"},
                timeout=httpx.Timeout(30, read=2),
            )
        thread_done.set()

    asking = threading.Thread(target=ask_and_leave)
    asking.start()
    wait_until("vLLM decodes", lambda: vllm_server.running == 1, timeout_s=10, every_s=0.05)
    assert thread_done.wait(10)
    asking.join()
    wait_until("vLLM is free", lambda: vllm_server.running == 0, timeout_s=FREED_WITHIN_S, every_s=0.05)

    assert stays_idle(vllm_server)
    assert passerelle.usage_row("left-waiting")["outcome"] == "cancelled"


def test_a_reset_frees_the_engine(vllm_server: Vllm, passerelle: Gateway) -> None:
    """A client that vanishes with a TCP reset before the first token counts as gone as well."""
    idle(vllm_server)
    long = completion(SEA * 150, max_tokens=800, ignore_eos=True, stream=True)  # its prefill takes a while
    body = msgspec.json.encode(long)
    head = (
        f"POST {COMPLETION} HTTP/1.1\r\nhost: 127.0.0.1:{passerelle.port}\r\nauthorization: Bearer {passerelle.key}\r\n"
        f"x-request-id: vanished\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", passerelle.port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        wait_until("vLLM has it", lambda: vllm_server.running == 1, timeout_s=10, every_s=0.02)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    wait_until("vLLM is free", lambda: vllm_server.running == 0, timeout_s=FREED_WITHIN_S, every_s=0.05)

    assert stays_idle(vllm_server)
    assert passerelle.usage_row("vanished")["outcome"] == "cancelled"


def test_one_that_leaves_does_not_disturb_the_other(through: Door, vllm_server: Vllm, passerelle: Gateway) -> None:
    """Of two streams one is left; the other goes on to its end with every token."""
    idle(vllm_server)
    headers = {"authorization": f"Bearer {passerelle.key}"}
    body = completion("One, two, three,", max_tokens=60, ignore_eos=True)
    results = []

    def stay() -> None:
        with httpx.Client(base_url=passerelle.url, timeout=120, headers=headers) as client:
            results.append(Door(client).stream(COMPLETION, body | {"stream_options": {"include_usage": True}}))

    staying = threading.Thread(target=stay)
    leaving = completion(LONG_PROMPT, **ENDLESS) | {"stream": True}
    with through.client.stream("POST", COMPLETION, json=leaving) as left:
        assert left.status_code == 200
        staying.start()
        wait_until("both are decoded", lambda: vllm_server.running == 2, timeout_s=10, every_s=0.05)
    wait_until("one is left", lambda: vllm_server.running <= 1, timeout_s=FREED_WITHIN_S, every_s=0.05)
    staying.join(60)

    (stream,) = results
    assert stream.done and stream.usages[0]["completion_tokens"] == 60
