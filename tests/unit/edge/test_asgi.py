"""The exchange over any ASGI server: who has an answer to its end has not left."""

from __future__ import annotations

import asyncio

import pytest

from passerelle.edge.asgi import AsgiClient, Message


class Server:
    """As servers do it: ``http.disconnect`` comes when the caller left, and when the answer was sent to its end."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.over = asyncio.Event()

    async def receive(self) -> Message:
        """Waits for the end, of whichever kind."""
        await self.over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Takes what is sent; while a message is written to the caller others run."""
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.over.set()
            for _ in range(3):
                await asyncio.sleep(0)


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_answer_sent_to_its_end_is_no_departure(streamed: bool) -> None:
    """The call is not cancelled while its last bytes go out: its usage would say that the caller had left."""
    server = Server()
    client = AsgiClient(server.receive, server.send)
    left: list[bool] = []
    client.on_gone(lambda: left.append(True))
    if streamed:
        client.begin(200, [])
        client.write(b"data: [DONE]")
        await client.end()
    else:
        await client.respond(200, [], b"{}")
    await asyncio.sleep(0)
    assert not client.gone and left == []
    assert b"".join(message.get("body", b"") for message in server.sent) == (b"data: [DONE]" if streamed else b"{}")
    await client.close()


async def test_a_caller_who_leaves_before_the_end_has_left() -> None:
    """What was written so far does not make it a whole answer."""
    server = Server()
    client = AsgiClient(server.receive, server.send)
    left = asyncio.Event()
    client.on_gone(left.set)
    client.begin(200, [])
    client.write(b"data: one")
    server.over.set()
    await asyncio.wait_for(left.wait(), 30)
    assert client.gone
    await client.close()
