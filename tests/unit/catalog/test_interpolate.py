"""Environment variables in values (row G7 of the fault table)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.catalog.interpolate import InterpolationError, interpolate

ENVIRON = {"A": "alpha", "EMPTY": "", "TRICKY": "${A} $$ }"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${A}", "alpha"),
        ("x ${A} y ${A}", "x alpha y alpha"),
        ("${oc.env:A}", "alpha"),
        ("${NOPE:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${EMPTY}", ""),
        ("${oc.env:NOPE,default}", "default"),
        ("${oc.env:NOPE, spaced }", "spaced"),
        ("${oc.env:NOPE,'quoted, text'}", "quoted, text"),
        ("${oc.env:EMPTY,default}", ""),
        ("${NOPE:-}", ""),
        ("${NOPE:-${A}}", "alpha"),
        ("${NOPE:-${NOPE2:-${oc.env:NOPE3,deep}}}", "deep"),
        ("${oc.env:NOPE,${oc.env:NOPE2,http://${A}:1}}", "http://alpha:1"),
        ("${NOPE:-a:-b}", "a:-b"),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("$$${A}", "$alpha"),
        ("costs 5$", "costs 5$"),
        ("$A", "$A"),
        ("${TRICKY}", "${A} $$ }"),
    ],
)
def test_forms(text: str, result: str) -> None:
    """Each documented form, nested and escaped; a variable's own dollars are left alone."""
    assert interpolate(text, ENVIRON).text == result


@pytest.mark.parametrize(
    ("text", "whole"), [("${A}", True), ("${A}x", False), ("${A}${A}", False), ("${X:-${A}}", True), ("$$", False)]
)
def test_whole(text: str, whole: bool) -> None:
    """Only a value that is one interpolation and nothing else counts as whole."""
    assert interpolate(text, ENVIRON).whole is whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${NOPE}", "the environment variable NOPE is not set and has no default"),
        ("${oc.env:NOPE}", "the environment variable NOPE is not set and has no default"),
        ("${NOPE:-${ALSO}}", "the environment variable ALSO is not set"),
        ("${A", "no closing '}'"),
        ("${}", "not an interpolation"),
        ("${server.port}", "not an interpolation"),
        ("${oc.decode:A}", "not an interpolation"),
        ("${A:?error}", "not an interpolation"),
        ("${X:-" * 20 + "}" * 20, "nested more than 8"),
    ],
)
def test_problems_name_the_variable_and_no_value(text: str, message: str) -> None:
    """What cannot be resolved is named; no variable's value appears."""
    with pytest.raises(InterpolationError) as caught:
        interpolate(text, {"A": "s3cret"})
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_variable_that_is_not_text_is_named() -> None:
    """Bytes that are not UTF-8 arrive as surrogates, and stop here."""
    with pytest.raises(InterpolationError, match="the environment variable BAD is not UTF-8"):
        interpolate("${BAD}", {"BAD": "\udce9"})


def test_a_large_variable_cannot_be_multiplied() -> None:
    """A short line cannot become gigabytes."""
    with pytest.raises(InterpolationError, match="add more than"):
        interpolate("${BIG}" * 1000, {"BIG": "x" * 10_000})


@given(st.text(alphabet="${}:-,oc.envAB '\"x"))
def test_any_text_gives_text_or_a_problem(text: str) -> None:
    """Nothing but InterpolationError comes out, and text without a dollar comes out unchanged."""
    try:
        result = interpolate(text, {"A": "a", "B": ""})
    except InterpolationError:
        return
    assert "$" in text or result.text == text
