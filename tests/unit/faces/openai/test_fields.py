"""The tables of fields, and the header that reports what was left out."""

from __future__ import annotations

from passerelle.domain.request import MEDIA, Operation, dropped_header
from passerelle.faces.openai.fields import CONSUME, DROP, FORWARD, REFUSE, refusal


def test_every_operation_has_a_table_and_no_field_has_two_fates() -> None:
    """A field is forwarded, consumed, dropped or refused."""
    of_other_faces = {Operation.RERANK, Operation.SCORE, *MEDIA}
    assert FORWARD.keys() == set(Operation) - of_other_faces
    for forward in FORWARD.values():
        fates = [forward, CONSUME, DROP, REFUSE.keys()]
        assert sum(map(len, fates)) == len(frozenset[str]().union(*fates))
        assert not [name for name in forward | CONSUME | DROP if refusal(name)]


def test_dangerous_families_are_refused_by_prefix() -> None:
    """New members of a family need no new line."""
    assert refusal("guided_new_thing") and refusal("lora_new_thing")
    assert refusal("guidance") is None


def test_dropped_names_make_a_header_that_is_safe_and_short() -> None:
    """Names come from the client: nothing of them splits a header or makes it long."""
    assert dropped_header(("foo", "messages[].uuid")) == b"foo, messages[].uuid"
    assert dropped_header(("a\r\nset-cookie: x", "é", "", "x" * 65, "ok")) == b"?, ok"
    long = dropped_header(tuple(f"field{i:04}" for i in range(1000)))
    assert len(long) <= 1024
    assert long.endswith(b", ...") and long.startswith(b"field0000, field0001")
    assert dropped_header(()) == b""
