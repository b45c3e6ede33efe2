"""Question and documents become one prompt."""

from __future__ import annotations

from passerelle.faces.opea.prompt import join


def test_without_documents_the_question_is_the_prompt() -> None:
    """No template, no documents: the bytes of the query."""
    assert join("What?", [], None) == "What?"


def test_documents_come_before_the_question() -> None:
    """The default template holds the documents and then the question; Chinese documents get the Chinese one."""
    prompt = join("What?", ["one", "two"], None)
    assert prompt.index(" one two") < prompt.index("What?")
    assert "问题" in join("What?", ["深度学习是机器学习的一个分支"], None)


def test_a_template_of_the_caller() -> None:
    """A template with the two known slots is filled, one with others is passed over."""
    assert join("Q", ["a", "b"], "C: {context} Q: {question}") == "C: a\nb Q: Q"
    assert join("Q", ["a"], "Ask: {question}") == "Ask: Q"
    assert join("Q", [], "{other} {question}") == "Q"
    assert join("Q", [], "{context} only") == "Q"


def test_nothing_is_filled_in_twice() -> None:
    """Braces in a document or a question stay what they are."""
    assert join("{context}", ["{question}"], "{context}|{question}") == "{question}|{context}"
