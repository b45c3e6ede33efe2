"""Speaker turns: who speaks, what is said, nothing lost, nothing too long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.harness.cpu import within_cpu
from tests.unit.services.counters import BYTES, COUNTERS, WORDS

from passerelle.services.cutter import split_long, split_turns
from passerelle.services.turn import MIN_TURN_TOKENS, UNKNOWN_SPEAKER, Turn, Turns, render_turns
from passerelle.services.turns import parse_turns

NAMES = st.sampled_from(
    [
        "Alice",
        "[00:01:02] Alice",
        "**Bob",
        "Jean-Pierre Ñandú",
        "SPEAKER_00",
        "田中",
        "नरेन्द्र",
        "محمد",
        "Speaker 1",
        "Мария",
    ]
)
WORD = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
LINE = st.one_of(
    st.builds(
        lambda name, colon, words: name + colon + " ".join(words),
        NAMES,
        st.sampled_from([": ", " : ", ":"]),
        st.lists(WORD),
    ),
    st.lists(WORD, max_size=60).map(" ".join),
    st.just(""),
    st.text("ab. \t", max_size=80),
)
TEXT = st.one_of(st.lists(LINE, max_size=12).map("\n".join), st.text(max_size=400))


def speakers(text: str) -> list[tuple[str | None, str]]:
    return [(turn.speaker, turn.text) for turn in parse_turns(text)]


@given(text=TEXT, counter=st.sampled_from(sorted(COUNTERS)), most=st.integers(MIN_TURN_TOKENS, 60))
@settings(max_examples=300, deadline=None)
def test_turns_hold_the_whole_text_and_none_is_too_long(text: str, counter: str, most: int) -> None:
    """Ranges one after another are the text; every count is exact and within the limit; it ends."""
    count = COUNTERS[counter]
    turns = asyncio.run(split_turns(text, count, max_tokens=most, language="fr"))
    if not text.strip():
        assert len(turns) == 0
        return
    assert "".join(text[turn.start : turn.end] for turn in turns) == text
    assert [turn.index for turn in turns] == list(range(len(turns)))
    assert asyncio.run(_counts(turns, counter)) == [turn.tokens for turn in turns]
    assert all(turn.tokens <= most for turn in turns)
    for turn in turns:
        assert "".join(turn.text.split()) in "".join(text[turn.start : turn.end].split())


async def _counts(turns: list[Turn], counter: str) -> list[int]:
    return list(await COUNTERS[counter]([turn.line for turn in turns]))


@given(text=TEXT, counter=st.sampled_from(sorted(COUNTERS)))
@settings(max_examples=150, deadline=None)
def test_what_is_said_is_said_once(text: str, counter: str) -> None:
    """Without labels, the turns' words are the text's words in order."""
    turns = asyncio.run(split_turns(text, COUNTERS[counter], max_tokens=20))
    whole = parse_turns(text)
    said = ["".join(turn.text for turn in turns if turn.source == each.source) for each in whole]
    for each, parts in zip(whole, said, strict=True):
        bare, joined = "".join(each.text.split()), "".join(parts.split())
        assert joined in (bare, "".join(each.line.split()))


@pytest.mark.parametrize(
    ("line", "speaker", "said"),
    [
        ("Alice : Bonjour", "Alice", "Bonjour"),
        ("Alice: Bonjour", "Alice", "Bonjour"),
        ("Alice:Bonjour", "Alice", "Bonjour"),
        ("Dr. Émile O'Neill-Müller : oui", "Dr. Émile O'Neill-Müller", "oui"),
        ("SPEAKER_00: yes", "SPEAKER_00", "yes"),
        ("1st speaker: yes", "1st speaker", "yes"),
        ("田中\uff1aこんにちは。", "田中", "こんにちは。"),
        ("नरेन्द्र: नमस्ते।", "नरेन्द्र", "नमस्ते।"),
        ("محمد: مرحبا", "محمد", "مرحبا"),
        ("Мария\u00a0: да", "Мария", "да"),
        ("[00:01:02] Alice: hi", "Alice", "hi"),
        ("00:01:02.500 --> 00:01:04.000 Alice: hi", "Alice", "hi"),
        ("(12:30) - Alice: hi", "Alice", "hi"),
        ("**Alice:** hi", "Alice", "hi"),
        ("**Alice**: hi", "Alice", "hi"),
        ("Alice: see https://example.org: it is 10:30", "Alice", "see https://example.org: it is 10:30"),
    ],
)
def test_names_of_any_language_begin_a_turn(line: str, speaker: str, said: str) -> None:
    """A name, a colon, what is said; in any script, with or without time and asterisks."""
    assert speakers(line) == [(speaker, said)]


@pytest.mark.parametrize(
    "line",
    [
        "https://example.org is there",
        "10:30 we begin",
        "At 10:30 we begin",
        "# Alice: a heading",
        "- Alice: an item",
        '"Yes": he said',
        "What? No: never",
        "one two three four five six seven eight nine: ten",
        "x = {a: 1}",
        ": nothing before",
        "12: a number",
    ],
)
def test_other_colons_are_only_colons(line: str) -> None:
    """Addresses, times, headings, lists, quotations and clauses name nobody, even in a transcript."""
    turns = parse_turns(f"Bob: hello\nBob: again\n{line}\n")
    assert turns[-1].text.endswith(line) or turns[-1].line == line
    assert turns[-1].speaker in ("Bob", None)


def test_lines_without_a_name_belong_to_the_last_speaker() -> None:
    """As in LinTO's gateway; before the first name nobody is known."""
    text = "well\nAlice : Hello.\nHow are you?\nBob:Fine.\nAnd you?\n"
    assert [turn.line for turn in parse_turns(text)] == [
        f"{UNKNOWN_SPEAKER} well",
        "Alice : Hello.",
        "Alice : How are you?",
        "Bob:Fine.",
        "Bob: And you?",
    ]


def test_a_text_without_speakers_gets_none() -> None:
    """Prose keeps its colons and is told nobody's."""
    text = "Note: this is prose.\n" + "A sentence follows the other.\n" * 20
    assert {turn.speaker for turn in parse_turns(text)} == {None}
    assert parse_turns(text)[0].line == "Note: this is prose."


def test_code_in_markdown_names_nobody() -> None:
    """Inside a fence a colon is code."""
    text = "Alice: see\nBob: yes\n```\nkey: value\n```\nAlice: done\n"
    assert [turn.speaker for turn in parse_turns(text)] == ["Alice", "Bob", "Bob", "Bob", "Bob", "Alice"]


def test_blank_lines_and_headings_are_kept() -> None:
    """Paragraphs of Markdown come out as they went in."""
    text = "# Title\n\nFirst paragraph.\n\n\nSecond.\n- item\n    code\n"
    assert render_turns(parse_turns(text)) + "\n" == text


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\t\r\n\x0b"])
def test_a_blank_text_has_no_turns(text: str) -> None:
    """Nothing is said in it."""
    assert len(parse_turns(text)) == 0


async def test_a_long_turn_is_cut_at_sentences_with_spaces_kept() -> None:
    """Each part is told who speaks; sentences stay whole and apart."""
    text = "[00:01] Alice : One two three. Four five six. Seven eight nine. Ten eleven twelve."
    turns = await split_turns(text, WORDS, max_tokens=20, language="en")
    assert [turn.line for turn in turns] == [
        "[00:01] Alice : One two three. Four five six. Seven eight nine.",
        "Alice : Ten eleven twelve.",
    ]
    assert [turn.part for turn in turns] == list(range(len(turns)))
    assert {turn.source for turn in turns} == {0}


async def test_a_sentence_without_end_is_cut_at_words() -> None:
    """Words stay whole as long as they fit."""
    text = "Alice: " + "word " * 200
    turns = await split_turns(text, WORDS, max_tokens=30)
    assert {word for turn in turns for word in turn.text.split()} == {"word"}
    assert sum(len(turn.text.split()) for turn in turns) == 200
    assert len(turns) <= 12


def test_a_word_without_end_is_cut_at_characters_and_marks_stay_on_letters() -> None:
    """A million characters without a space are cut in well under a second, not in a loop."""

    def split(text: str, max_tokens: int) -> list[Turn]:
        return asyncio.run(split_turns(text, BYTES, max_tokens=max_tokens))

    turns = within_cpu(5, lambda: split("x" * 1_000_000, 250), whole_process=True)
    assert "".join(turn.text for turn in turns) == "x" * 1_000_000
    accents = split("e\u0301" * 100, 16)
    assert not any(turn.text.startswith("\u0301") for turn in accents)


async def test_a_name_that_leaves_no_room_is_text() -> None:
    """A label of more than half the budget would push out what is said."""
    name = "A very long name of somebody who speaks"
    turns = await split_turns(f"{name}: {'yes ' * 40}\n{name}: no", BYTES, max_tokens=32)
    assert "".join("".join(turn.line.split()) for turn in turns).startswith("Averylongnameofsomebodywhospeaks:yesyes")
    assert all(turn.tokens <= 32 for turn in turns)


async def test_too_small_a_budget_is_refused() -> None:
    """Below sixteen tokens a single character need not fit."""
    with pytest.raises(ValueError, match="16 tokens"):
        await split_long(Turns(""), WORDS, MIN_TURN_TOKENS - 1)


async def test_a_line_as_long_as_a_book_is_cut_piece_by_piece() -> None:
    """No counted text is long, parts end with sentences, carry who speaks, are numbered on, and nothing is lost."""
    said = " ".join(f"This is sentence number {number} of it." for number in range(8_000))
    text = f"[00:01:02] Bob: {said}"
    longest = 0

    async def count(texts: Sequence[str]) -> Sequence[int]:
        nonlocal longest
        longest = max(longest, *map(len, texts))
        return await WORDS(texts)

    turns = await split_turns(text, count, max_tokens=120, language="en")
    assert longest < 2_000 < len(text)
    assert "".join(text[turn.start : turn.end] for turn in turns) == text
    assert [turn.part for turn in turns] == list(range(len(turns)))
    assert {turn.label for turn in turns[1:]} == {"Bob: "}
    assert all(turn.text.endswith(".") and turn.tokens <= 120 for turn in turns)
