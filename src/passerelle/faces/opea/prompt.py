"""Question and documents joined into one prompt, as OPEA's rerank and LLM services do it.

The default template is our own wording of theirs: be helpful and honest, answer from the search results, say when you
do not know.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ENGLISH = (
    "### You are a helpful, respectful and honest assistant. Answer the question from the search results below; when "
    "they do not hold the answer, say that you do not know. ### Search results: {context} \n\n"
    "### Question: {question} \n\n### Answer:"
)
_CHINESE = (
    "### 你是一个乐于助人、诚实的助手。请根据以下搜索结果回答问题；"  # noqa: RUF001
    "如果其中没有答案，请说不知道。### 搜索结果：{context} \n\n"  # noqa: RUF001
    "### 问题：{question} \n\n### 回答："  # noqa: RUF001
)
_CHINESE_SHARE = 0.3
_SLOT = re.compile(r"\{(\w*)\}")


def join(question: str, documents: Sequence[str], template: str | None) -> str:
    """Returns the prompt.

    A ``template`` with exactly ``{context}`` and ``{question}``, or with ``{question}`` alone, is filled; any other is
    passed over, as the original does. Nothing that stands in a document or the question is ever filled in itself.
    """
    slots = set(_SLOT.findall(template)) if template is not None else set()
    if template is not None and slots in ({"context", "question"}, {"question"}):
        return _filled(template, question, "\n".join(documents))
    if not documents:
        return question
    context = "".join(" " + text for text in documents)
    return _filled(_CHINESE if _is_chinese(context) else _ENGLISH, question, context).strip()


def _filled(template: str, question: str, context: str) -> str:
    values = {"question": question, "context": context}
    return _SLOT.sub(lambda slot: values[slot[1]], template)


def _is_chinese(text: str) -> bool:
    return sum("\u4e00" <= character <= "\u9fff" for character in text) >= _CHINESE_SHARE * len(text)
