"""huggingface_hub's InferenceClient against the embedded model, by TGI's routes and by OpenAI's."""

from __future__ import annotations

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError
from tests.clients.conftest import Server

pytestmark = pytest.mark.slow
PROMPT = "The capital of France is"


def root(server: Server) -> str:
    return server.url.removesuffix("/v1")


@pytest.fixture(params=["", "/tgi/smollm2"], ids=["root", "by name"])
def client(request: pytest.FixtureRequest, server: Server) -> InferenceClient:
    return InferenceClient(root(server) + request.param, token=server.key, timeout=60)


def test_text_generation(client: InferenceClient) -> None:
    """A text is completed; the prompt comes along where it is asked for."""
    text = client.text_generation(PROMPT, max_new_tokens=6)
    assert text
    assert not text.startswith(PROMPT)
    assert client.text_generation(PROMPT, max_new_tokens=6, return_full_text=True) == PROMPT + text


def test_details(client: InferenceClient) -> None:
    """Details tell why it ended and how many tokens it has."""
    answer = client.text_generation(PROMPT, max_new_tokens=5, details=True)
    assert answer.details is not None
    assert answer.details.finish_reason == "length"
    assert answer.details.generated_tokens == 5


def test_stream(client: InferenceClient) -> None:
    """A stream's pieces make the same text, and the last says so."""
    events = list(client.text_generation(PROMPT, max_new_tokens=6, details=True, stream=True))
    assert "".join(event.token.text for event in events) == events[-1].generated_text
    assert events[-1].generated_text == client.text_generation(PROMPT, max_new_tokens=6)
    assert events[-1].details is not None
    assert events[-1].details.generated_tokens == 6


def test_bad_parameters(client: InferenceClient) -> None:
    """A wrong parameter is TGI's own validation error, with the field's name."""
    with pytest.raises(ValidationError, match="temperature"):
        client.text_generation(PROMPT, max_new_tokens=5, temperature=-1.0)


def test_chat_by_openai_wire(server: Server) -> None:
    """The client's chat goes to OpenAI's route."""
    client = InferenceClient(base_url=server.url + "/v1", api_key=server.key)
    answer = client.chat_completion(
        [{"role": "user", "content": "Hello"}], model=server.model, max_tokens=5, temperature=0
    )
    assert answer.choices[0].message.content
