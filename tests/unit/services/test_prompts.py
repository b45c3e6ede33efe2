"""Prompts with slots, and prompts in Jinja."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.services.prompts import PromptError, PromptSyntax, parse_prompt, syntax_of

ORIGINAL = """You summarise speech turns.
Answer like {{"speaker": "text"}}.
### Speech turns summarized so far (do not repeat them)
{}
### Speech turns to process
{}
### Speech turns summarized (in English)
"""


def slots(text: str) -> int:
    return parse_prompt(text, "p", PromptSyntax.SLOTS).slots


def fill(text: str, *values: str) -> str:
    return parse_prompt(text, "p", PromptSyntax.SLOTS).fill(*values)


@given(values=st.tuples(st.text(), st.text()))
def test_a_prompt_of_the_original_is_filled_as_str_format_fills_it(values: tuple[str, str]) -> None:
    """Doubled braces are single ones, slots are taken in order, and values are never read again."""
    assert fill(ORIGINAL, *values) == ORIGINAL.format(*values)


@pytest.mark.parametrize(
    ("text", "count", "filled"),
    [
        ("{}", 1, "A"),
        ("{} and {}", 2, "A and B"),
        ("{0} then {1}", 2, "A then B"),
        ("no slot", 0, "no slot"),
        ("", 0, ""),
        ('Answer {"a": 1} for {}', 1, 'Answer {"a": 1} for A'),
        ('{"a": {"b": [1, 2]}} {} {}', 2, '{"a": {"b": [1, 2]}} A B'),
        ('{"empty": {{}}, "x": 1} {}', 1, '{"empty": {}, "x": 1} A'),
        ("function() { return x; } {}", 1, "function() { return x; } A"),
        ("{name} {}", 1, "{name} A"),
        ("{!r} {}", 1, "{!r} A"),
        ("unbalanced { {}", 1, "unbalanced { A"),
        ("unbalanced } {}", 1, "unbalanced } A"),
        ("{{}}", 0, "{}"),
        ("{{{}}}", 1, "{A}"),
        ("{{ {} }}", 1, "{ A }"),
        ("{1} {0}", 0, "{1} {0}"),
    ],
)
def test_braces_need_no_doubling(text: str, count: int, filled: str) -> None:
    """Only {} is a slot; everything else in braces stands for itself."""
    assert slots(text) == count
    assert fill(text, *["A", "B"][:count]) == filled


@given(text=st.text(st.sampled_from("{}ab \n0:!"), max_size=40))
def test_any_text_is_a_prompt(text: str) -> None:
    """It has as many places as it has slots, and filling it never fails."""
    template = parse_prompt(text, "p", PromptSyntax.SLOTS)
    filled = template.fill(*["X"] * template.slots)
    assert filled.count("X") == template.slots
    assert len(template.pieces) == template.slots + 1


def test_too_few_values_are_refused() -> None:
    """The message names the prompt and its slots."""
    with pytest.raises(PromptError, match=r"'p' has 2 slots \{\}; 1 are filled"):
        fill("{} {}", "only one")


def test_slots_are_filled_by_name_too() -> None:
    """One slot takes the input, two take what is there so far and the input."""
    assert parse_prompt("{}", "p", PromptSyntax.SLOTS).render({"input": "I"}) == "I"
    assert parse_prompt("{}-{}", "p", PromptSyntax.SLOTS).render({"input": "I", "previous": "P"}) == "P-I"
    with pytest.raises(PromptError, match="needs a value for 'previous'"):
        parse_prompt("{}-{}", "p", PromptSyntax.SLOTS).render({"input": "I"})


def test_what_comes_before_the_first_slot_is_known() -> None:
    """Calls that share it share an engine's cache; what stands fixed is what every call costs."""
    template = parse_prompt("Fixed. {} Middle {} end", "p", PromptSyntax.SLOTS)
    assert (template.prefix, template.fixed_text) == ("Fixed. ", "Fixed.  Middle  end")


def test_jinja_is_filled_in_the_same_ways() -> None:
    """By order and by name; `previous` makes it a prompt of two."""
    two = parse_prompt("{{ previous }}|{{ input }}", "p", PromptSyntax.JINJA)
    one = parse_prompt("{{ input }}", "p", PromptSyntax.JINJA)
    none = parse_prompt("text", "p", PromptSyntax.JINJA)
    assert (two.slots, one.slots, none.slots) == (2, 1, 0)
    assert two.fill("P", "I") == "P|I" == two.render({"previous": "P", "input": "I"})
    assert one.fill("{{ 7 }}") == "{{ 7 }}"


def test_jinja_errors_have_their_line() -> None:
    """A mistake is told with where it is; a caller sees 400."""
    with pytest.raises(PromptError) as refused:
        parse_prompt("one\ntwo {{ input.x }}\n", "p", PromptSyntax.JINJA)
    assert refused.value.line == 2
    assert (refused.value.status, refused.value.error_code) == (400, "invalid_prompt")
    with pytest.raises(PromptError, match="'nope' is undefined"):
        parse_prompt("{{ nope }}", "p", PromptSyntax.JINJA).render({})


def test_a_prompt_has_a_longest_length() -> None:
    """A megabyte of prompt is refused."""
    with pytest.raises(PromptError, match="longer than 1,000,000 characters"):
        parse_prompt("x" * 1_000_001, "p", PromptSyntax.SLOTS)


@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("a.txt", PromptSyntax.SLOTS),
        ("a.md", PromptSyntax.SLOTS),
        ("a.j2", "jinja"),
        ("a.JINJA", "jinja"),
        ("a", "slots"),
    ],
)
def test_the_name_of_the_file_says_the_syntax(name: str, syntax: str) -> None:
    """Text has slots; j2 and jinja are Jinja."""
    assert syntax_of(Path(name)) == syntax
