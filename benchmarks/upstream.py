"""A static OpenAI-like model server, as light as Python can make it, so that it is never what a benchmark measures.

``POST …/chat/completions`` answers the same ~600 bytes at once. With ``"stream": true`` it sends chunks of ~200 bytes
at a steady rate; how many and how fast stands in the prompt (``chunks=500 rate=50``), because the prompt is the one
part of a request that every gateway passes on untouched. Each chunk carries ``@<monotonic nanoseconds>@`` as its
content, taken just before the write: the receiver, on the same machine, reads the relay delay off it.

Chunks are paced by the clock, not by sleeps that add up: streams of one rate sit in the slots of a wheel that turns
once a period, so a late tick is followed by an early one. A stream whose reader is slow waits; it loses nothing.

Everything a gateway probes (``/health``, ``/v1/models``, ``/metrics``) gets a trivial answer, under any prefix, so that
one server can stand for many; other paths get 404, as from a server that speaks OpenAI's paths and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time

import uvloop

ANSWER_TEXT = (
    "A gateway stands between the people of an organisation and the models they use. It checks who asks, keeps each "
    "within the limits that were agreed, sends the question where there is room, and hands the answer back as it "
    "arrives, without keeping a word of it longer than it has to."
)
ANSWER_BODY = (
    b'{"id":"chatcmpl-00000000000000000000000000000000","object":"chat.completion","created":1760000000,'
    b'"model":"bench","choices":[{"index":0,"message":{"role":"assistant","content":"'
    + ANSWER_TEXT.encode()
    + b'"},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":24,"completion_tokens":57,'
    b'"total_tokens":81},"system_fingerprint":null}'
)
CHUNK_HEAD = (
    b'data: {"id":"chatcmpl-00000000000000000000000000000000","object":"chat.completion.chunk",'
    b'"created":1760000000,"model":"bench","choices":[{"index":0,"delta":'
)
CHUNK_TAIL = b',"logprobs":null,"finish_reason":null}]}\n\n'
LAST_CHUNK = CHUNK_HEAD + b'{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
USAGE_CHUNK = (
    b'data: {"id":"chatcmpl-00000000000000000000000000000000","object":"chat.completion.chunk",'
    b'"created":1760000000,"model":"bench","choices":[],"usage":{"prompt_tokens":24,"completion_tokens":%d,'
    b'"total_tokens":%d}}\n\n'
)

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
STREAMS = re.compile(rb'"stream" ?: ?true')
WANTS_USAGE = re.compile(rb'"include_usage" ?: ?true')
ORDER = re.compile(rb"chunks=(\d+) rate=(\d+)")


def framed(data: bytes) -> bytes:
    """One chunk of HTTP's chunked coding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def answer(body: bytes, content_type: bytes = b"application/json", status: bytes = b"200 OK") -> bytes:
    """A whole HTTP answer of known length."""
    return b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s" % (status, content_type, len(body), body)


CHAT_ANSWER = answer(ANSWER_BODY)
NOT_FOUND = answer(b'{"error":{"message":"not found","type":"invalid_request_error"}}', status=b"404 Not Found")
GET_ANSWERS = {
    b"models": answer(
        b'{"object":"list","data":[{"id":"bench","object":"model","created":1760000000,"owned_by":"bench"}]}'
    ),
    b"health": answer(b"", b"text/plain"),
    b"metrics": answer(b"", b"text/plain; version=0.0.4"),
    b"get_server_info": answer(b"{}"),
    b"server_info": answer(b"{}"),
    b"get_model_info": answer(b"{}"),
    b"model_info": answer(b"{}"),
}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
FIRST_FRAME = framed(CHUNK_HEAD + b'{"role":"assistant","content":""}' + CHUNK_TAIL)
_PLAIN = CHUNK_HEAD + b'{"content":"@%019d@"}' + CHUNK_TAIL
TIMED_FRAME = b"%x\r\n%s\r\n" % (len(_PLAIN % 0), _PLAIN)


class Wheel:
    """Sends one chunk of every stream of one rate per period; its streams are spread over ~1 ms slots."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rate: int) -> None:
        self.loop = loop
        period_s = 1.0 / rate
        count = max(1, int(period_s * 1000))
        self.slots: list[set[ModelServer]] = [set() for _ in range(count)]
        self.step_s = period_s / count
        self.position = 0
        self.due_s = 0.0
        self.live = 0
        self.joined = 0

    def join(self, stream: ModelServer) -> None:
        """Adds a stream, in the next slot in turn."""
        slot = self.slots[self.joined % len(self.slots)]
        self.joined += 1
        slot.add(stream)
        stream.leave = slot.discard
        self.live += 1
        if self.live == 1:
            self.due_s = self.loop.time() + self.step_s
            self.loop.call_at(self.due_s, self.turn)

    def turn(self) -> None:
        """Serves every slot that is due and sleeps until the next."""
        # The loop's timers count whole milliseconds: what is due before the next one is due now. Asked for less than
        # half of one, the loop would spin.
        horizon_s = self.loop.time() + 0.0006
        while self.due_s <= horizon_s:
            slot = self.slots[self.position]
            self.position = (self.position + 1) % len(self.slots)
            self.due_s += self.step_s
            ended = [stream for stream in slot if stream.beat()]
            for stream in ended:
                slot.discard(stream)
        self.live = sum(map(len, self.slots)) if self.position == 0 else self.live
        if self.live:
            self.loop.call_at(self.due_s, self.turn)


class ModelServer(asyncio.Protocol):
    """One connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wheels: dict[int, Wheel]) -> None:
        self.loop = loop
        self.wheels = wheels
        self.held = b""
        self.left = 0
        self.sent = 0
        self.usage = False
        self.slow = False
        self.leave = None

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.write = transport.write

    def connection_lost(self, exc: Exception | None) -> None:
        if self.leave is not None:
            self.leave(self)

    def pause_writing(self) -> None:
        self.slow = True

    def resume_writing(self) -> None:
        self.slow = False

    def data_received(self, data: bytes) -> None:
        data = self.held + data if self.held else data
        while data:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                break
            head = data[:end]
            length = CONTENT_LENGTH.search(head)
            if length is not None:
                stop = end + 4 + int(length[1])
                if len(data) < stop:
                    break
            elif CHUNKED.search(head):
                last = data.find(b"0\r\n\r\n", end)
                if last < 0:
                    break
                stop = last + 5
            else:
                stop = end + 4
            self.request(head, data[end + 4 : stop])
            data = data[stop:]
        self.held = data

    def request(self, head: bytes, body: bytes) -> None:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0]
        if path[:1] != b"/":  # a router that asks whether we speak HTTP/2 or gRPC
            self.transport.close()
            return
        if method == b"POST" and path.endswith(b"/chat/completions"):
            if STREAMS.search(body):
                self.stream(body)
            else:
                self.write(CHAT_ANSWER)
        elif method == b"GET":
            self.write(GET_ANSWERS.get(path.rpartition(b"/")[2], NOT_FOUND))
        else:
            self.write(NOT_FOUND)

    def stream(self, body: bytes) -> None:
        order = ORDER.search(body)
        self.left, rate = (int(order[1]), int(order[2])) if order else (20, 50)
        self.sent = 0
        self.usage = WANTS_USAGE.search(body) is not None
        self.write(STREAM_HEAD + FIRST_FRAME)
        wheel = self.wheels.get(rate)
        if wheel is None:
            wheel = self.wheels[rate] = Wheel(self.loop, rate)
        wheel.join(self)

    def beat(self) -> bool:
        """Sends the next chunk; returns whether the stream ended with it."""
        if self.slow:
            return False
        self.sent += 1
        self.left -= 1
        self.write(TIMED_FRAME % time.monotonic_ns())
        if self.left:
            return False
        end = framed(LAST_CHUNK)
        if self.usage:
            end += framed(USAGE_CHUNK % (self.sent, self.sent + 24))
        self.write(end + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        self.leave = None
        return True


async def serve(port: int) -> None:
    """Listens on loopback until killed; prints ``ready PORT`` first (port 0: a free one)."""
    loop = asyncio.get_running_loop()
    wheels: dict[int, Wheel] = {}
    server = await loop.create_server(lambda: ModelServer(loop, wheels), "127.0.0.1", port, backlog=4096)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    try:
        uvloop.run(serve(arguments.port))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
