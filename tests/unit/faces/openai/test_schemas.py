"""The documentation of the OpenAI face says what the code enforces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from passerelle.domain.request import Operation
from passerelle.faces.openai import wire
from passerelle.faces.openai.bodies import MAX_CHOICES
from passerelle.faces.openai.fields import CONSUME, FORWARD
from passerelle.faces.openai.schemas import openapi_components, openapi_paths

PARSERS = {
    "/v1/chat/completions": (wire.parse_chat, Operation.CHAT),
    "/v1/completions": (wire.parse_completion, Operation.COMPLETION),
    "/v1/embeddings": (wire.parse_embedding, Operation.EMBEDDING),
    "/tokenize": (wire.parse_tokenize, Operation.TOKENIZE),
    "/detokenize": (wire.parse_detokenize, Operation.DETOKENIZE),
}


def references(value: Any) -> Iterator[str]:
    """Every ``$ref`` in a document."""
    if isinstance(value, dict):
        for key, child in value.items():
            if key == "$ref":
                yield child
            else:
                yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


def test_the_document_is_json_and_its_references_resolve() -> None:
    """Paths and components together are complete."""
    components = openapi_components()
    document = json.loads(json.dumps({"paths": openapi_paths(), "components": components}))
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in components["schemas"]


@pytest.mark.parametrize("path", PARSERS)
def test_the_example_of_each_path_passes(path: str) -> None:
    """What /docs proposes to send is accepted whole."""
    body = openapi_paths()[path]["post"]["requestBody"]["content"]["application/json"]
    parse, operation = PARSERS[path]
    request = parse(json.dumps(body["example"]).encode())
    assert (request.operation, request.dropped) == (operation, ())


@pytest.mark.parametrize("path", PARSERS)
def test_the_documented_fields_are_the_accepted_ones(path: str) -> None:
    """Neither a field too many nor one too few."""
    body = openapi_paths()[path]["post"]["requestBody"]["content"]["application/json"]
    schema = openapi_components()["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
    forward = FORWARD[PARSERS[path][1]]
    consumed = CONSUME | ({"prompt"} if path == "/v1/chat/completions" else set())  # a kept prompt, filled in before
    assert forward <= schema["properties"].keys() <= forward | consumed


def test_bounds_are_documented() -> None:
    """The figures come from the code."""
    properties = openapi_components()["schemas"]["ChatBody"]["properties"]
    assert {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES} in properties["n"]["anyOf"]


def test_every_answer_is_documented_with_its_errors() -> None:
    """Each route has a body for 200 and the envelope for the rest."""
    paths = openapi_paths()
    assert set(paths) == {*PARSERS, "/v1/models", "/v1/models/{id}"}
    for methods in paths.values():
        for operation in methods.values():
            assert operation["responses"].keys() >= {"200", "401", "429"}
            for status, answer in operation["responses"].items():
                reference = answer["content"]["application/json"]["schema"]["$ref"]
                assert reference.endswith("/ErrorAnswer") == (status != "200")
