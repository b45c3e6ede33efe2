"""Which model a call is for, and what is told when there is none."""

from __future__ import annotations

import pytest

from passerelle.catalog.snapshot import Snapshot
from passerelle.domain.errors import BadRequest, Forbidden, ModelNotFound
from passerelle.domain.model import Model, ModelKind
from passerelle.domain.principal import Principal
from passerelle.domain.request import Operation, Request
from passerelle.gateway.call import Call
from passerelle.gateway.gateway import resolve

MODELS = Snapshot.of([Model("chat", (), aliases=("talk",)), Model("vectors", (), kind=ModelKind.EMBEDDING)])


def call(model: str, operation: Operation = Operation.CHAT, *, models: frozenset[str] | None = None) -> Call:
    """Returns a call of ``operation`` by a key that may call ``models``."""
    request = Request(operation, model, b"{}", {})
    return Call("req_1", Principal("key_1", "test", models=models), request, MODELS, 0.0, 1e9)


def test_a_name_and_an_alias_find_the_model() -> None:
    """An alias is as good as the name."""
    assert resolve(call("chat")).name == resolve(call("talk")).name == "chat"


def test_a_model_that_is_not_there_and_one_that_is_not_allowed() -> None:
    """The codes are those OpenAI's clients look for."""
    with pytest.raises(ModelNotFound):
        resolve(call("missing"))
    with pytest.raises(Forbidden):
        resolve(call("talk", models=frozenset({"vectors"})))


@pytest.mark.parametrize("operation", [Operation.CHAT, Operation.COMPLETION])
def test_an_embedding_model_writes_no_text(operation: Operation) -> None:
    """The caller hears of its mistake before a server is asked, and which path is right."""
    with pytest.raises(BadRequest, match="/v1/embeddings") as caught:
        resolve(call("vectors", operation))
    assert caught.value.error_code == "wrong_endpoint"


@pytest.mark.parametrize("operation", [Operation.EMBEDDING, Operation.TOKENIZE, Operation.DETOKENIZE])
def test_an_embedding_model_is_asked_for_all_else(operation: Operation) -> None:
    """A server of embeddings may have a tokenizer too."""
    assert resolve(call("vectors", operation)).name == "vectors"
