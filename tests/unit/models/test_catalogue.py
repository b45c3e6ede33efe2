"""The built-in names are consistent."""

from __future__ import annotations

from passerelle.domain.model import ModelKind
from passerelle.models.catalogue import CATALOGUE, DEFAULT_CHAT_MODEL, DEFAULT_EMBEDDING_MODEL, INSTALLED, find_model
from passerelle.models.sources import parse_source


def test_names_and_aliases_are_found_in_any_case_and_never_twice() -> None:
    """Each name leads to one model."""
    names = [name.casefold() for model in CATALOGUE for name in (model.name, *model.aliases)]
    assert len(names) == len(set(names))
    for model in CATALOGUE:
        for name in (model.name, *model.aliases):
            assert find_model(name.upper()) is model
    assert find_model("gpt-4") is None


def test_every_source_can_be_read() -> None:
    """A source in the catalogue is one that pull accepts."""
    for model in CATALOGUE:
        if not model.source.startswith(INSTALLED):
            parse_source(model.source)


def test_the_defaults_are_there_and_pinned() -> None:
    """The model of the first start is held to its digest."""
    chat, embedding = find_model(DEFAULT_CHAT_MODEL), find_model(DEFAULT_EMBEDDING_MODEL)
    assert chat is not None
    assert chat.sha256 is not None
    assert chat.archive_sha256 is not None
    assert embedding is not None
    assert embedding.kind is ModelKind.EMBEDDING
