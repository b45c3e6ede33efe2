"""Rules become guardrails, that mask, block or only look; and whose calls they look at."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.domain.guardrail import Action, Check, GuardrailRule, RuleError, Selection
from passerelle.domain.principal import Principal
from passerelle.guardrails.guardrail import CompiledGuardrails, compile_guardrail

TEXT = "Voir a@b.fr, 0612345678 et gros mot. "


def rule(action: Action = Action.MASK, check: Check = Check.PII, **fields: object) -> GuardrailRule:
    """Returns a rule."""
    return GuardrailRule(name="g", check=check, action=action, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("action", "after", "finds"),
    [(Action.MASK, "Voir [EMAIL], [PHONE] et gros mot. ", 2), (Action.BLOCK, "Voir ", 1), (Action.FLAG, TEXT, 2)],
)
def test_only_mask_changes_a_text(action: Action, after: str, finds: int) -> None:
    """Whole or in pieces, the same text comes out and the same is counted."""
    guardrail = compile_guardrail(rule(action))
    found: list[None] = []
    assert guardrail.review(TEXT, lambda: found.append(None)) == after
    assert len(found) == finds
    watched = guardrail.watch(lambda: found.append(None))
    assert "".join(map(watched.feed, TEXT)) + watched.flush() == after
    assert len(found) == 2 * finds


def test_flag_holds_nothing_back() -> None:
    """A guardrail that only looks lets each piece go as it comes."""
    watched = compile_guardrail(rule(Action.FLAG)).watch(lambda: None)
    assert [watched.feed(piece) for piece in ("a@", "b.", "fr ")] == ["a@", "b.", "fr "]
    assert watched.flush() == ""


@given(st.lists(st.integers(0, 60), max_size=10))
def test_a_chain_of_finders_does_not_depend_on_cuts(places: list[int]) -> None:
    """All kinds of personal data at once, cut anywhere."""
    guardrail = compile_guardrail(rule())
    watched = guardrail.watch(lambda: None)
    edges = sorted({0, len(TEXT), *(place % len(TEXT) for place in places)})
    pieces = [watched.feed(TEXT[a:b]) for a, b in itertools.pairwise(edges)]
    assert "".join(pieces) + watched.flush() == guardrail.review(TEXT, lambda: None)


def test_each_check_takes_its_keys() -> None:
    """Patterns, words from the rule and from a file, and the whitelist."""
    pattern = compile_guardrail(rule(check=Check.PATTERN, pattern="B+", ignore_case=True, replacement=""))
    assert pattern.review("abbc", lambda: None) == "ac"
    words = compile_guardrail(
        rule(check=Check.WORDS, words=("un",), files={"words_file": "\ufeff# comment\n\n deux \r\n".encode()})
    )
    assert words.review("Un, DEUX, trois", lambda: None) == "[MASKED], [MASKED], trois"
    listed = compile_guardrail(rule(check=Check.WHITELIST, rules=("check_mail",), files={"whitelist": b"{}"}))
    assert listed.review("a@b.fr evil.com", lambda: None) == "[MAIL MASQUÉ] evil.com"


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        (rule(check=Check.PATTERN), "pattern"),
        (rule(check=Check.PATTERN, pattern="(a"), "pattern"),
        (rule(check=Check.WORDS), "words"),
        (rule(check=Check.WORDS, words=(" ",)), "words"),
        (rule(check=Check.WORDS, files={"words_file": b"\xff"}), "words_file"),
        (rule(check=Check.WORDS, files={"words_file": b"# nothing"}), "words_file"),
        (rule(check=Check.WHITELIST), "whitelist"),
        (rule(check=Check.WHITELIST, files={"whitelist": b"[]"}), "whitelist"),
    ],
)
def test_a_rule_that_cannot_be_used_names_its_key(bad: GuardrailRule, key: str) -> None:
    """The operator is told which key to change."""
    with pytest.raises(RuleError) as raised:
        compile_guardrail(bad)
    assert raised.value.key == key


@pytest.mark.parametrize(
    ("selection", "fits"),
    [
        (Selection(), True),
        (Selection(models=frozenset({"m"})), True),
        (Selection(models=frozenset({"other"})), False),
        (Selection(keys=frozenset({"key_1"})), True),
        (Selection(keys=frozenset({"laptop"})), True),
        (Selection(keys=frozenset({"key_2"})), False),
        (Selection(projects=frozenset({"p"}), organisations=frozenset({"o"})), True),
        (Selection(projects=frozenset({"p"}), organisations=frozenset({"x"})), False),
        (Selection(services=frozenset({"summary"})), True),
        (Selection(services=frozenset({"other"})), False),
    ],
)
def test_a_guardrail_looks_at_the_calls_it_was_given(selection: Selection, fits: bool) -> None:
    """Each list that is given has to name the call; a list that is not given names all."""
    guardrail = compile_guardrail(rule(selection=selection))
    principal = Principal(key_id="key_1", key_name="laptop", organisation="o", project="p")
    assert CompiledGuardrails([guardrail]).of(principal, "m", "summary") == ((guardrail,) if fits else ())
