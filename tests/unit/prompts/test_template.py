"""Templates: every value once, braces that stand for themselves, errors that name the variable, sampling as numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.harness.cpu import within_cpu

from passerelle.domain.errors import BadRequest
from passerelle.prompts.template import Content, fill, prepare, sampling


def test_values_stand_where_their_names_are() -> None:
    """Texts go in as they are, numbers and truth as JSON has them, each as often as it is asked for."""
    values = {"system": "S", "user": "U", "n": 3, "x": 0.5, "yes": True, "a b": "spaced"}
    assert fill("{system}{user} {n} {x} {yes} {a b} {user}", values) == "SU 3 0.5 true spaced U"


def test_a_value_is_never_expanded() -> None:
    """Placeholders in a value are text of the value, whatever the order of the values."""
    values = {"user": "{system} {secret}", "system": "{user}", "secret": "S3"}
    assert fill("{user}|{system}", values) == "{system} {secret}|{user}"


@pytest.mark.parametrize(
    "text", ['{"a": 1}', "{}", "{ }", "{1}", "a } b {", "{{}}", "{a b}", "{\n}", '{"x": {"y": 2}}']
)
def test_other_braces_stand_for_themselves(text: str) -> None:
    """What is no name in braces is left as it is written."""
    assert fill(text, {"user": "U"}) == text


def test_braces_around_a_placeholder_stay() -> None:
    """Only the placeholder itself is taken out."""
    assert fill('{{user}} {"q": "{user}"}', {"user": "U"}) == '{U} {"q": "U"}'


@pytest.mark.parametrize("template", ["{missing}", "{user} {missing}", '{"a": "{missing}"}'])
def test_a_placeholder_without_a_value_is_named(template: str) -> None:
    """The error names it (faults row I4)."""
    with pytest.raises(BadRequest, match="'missing'") as caught:
        fill(template, {"user": "U"})
    assert (caught.value.param, caught.value.error_code) == ("missing", "invalid_variable")


@given(st.dictionaries(st.sampled_from("abc"), st.text(alphabet="abc{}\\\n é", max_size=12), min_size=3))
def test_filling_is_one_pass(values: dict[str, str]) -> None:
    """Whatever the values are, the text is the template's own pieces with the values between them."""
    assert fill("<{a}|{b}|{c}>", values) == f"<{values['a']}|{values['b']}|{values['c']}>"


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}])
def test_a_value_is_a_text_a_number_or_a_truth(value: Any) -> None:
    """Anything else is refused by name, never shown as Python has it."""
    with pytest.raises(BadRequest, match="'user'") as caught:
        fill("{user}", {"user": value})
    assert caught.value.param == "user"


def test_defaults_fill_what_a_caller_leaves_out() -> None:
    """A caller's value goes before; one that the template does not know is refused by name."""
    filler = prepare(Content(template="{greeting} {name}", defaults={"greeting": "Hello"}))
    assert filler.variables == {"greeting", "name"}
    assert filler.render({"name": "Ann"}) == "Hello Ann"
    assert filler.render({"name": "Ann", "greeting": "Hi"}) == "Hi Ann"
    with pytest.raises(BadRequest, match="has no variable 'other'; it has: greeting, name"):
        filler.render({"name": "Ann", "other": 1})
    with pytest.raises(BadRequest, match="'name'"):
        filler.render({})


def test_jinja_is_the_safe_part_of_it() -> None:
    """Loops over lists and mappings of a request work; an undefined variable is named (faults row I4)."""
    text = "{% for each in items %}{{ each['name'] }};{% endfor %}{{ tone | default('calm') }}"
    filler = prepare(Content(template=text, syntax="jinja"))
    assert filler.variables == {"items", "tone"}
    assert filler.render({"items": [{"name": "a"}, {"name": "b"}]}) == "a;b;calm"
    with pytest.raises(BadRequest, match="needs a value for 'items'") as caught:
        filler.render({})
    assert (caught.value.param, caught.value.error_code) == ("items", "invalid_variable")
    with pytest.raises(BadRequest, match="'other'"):
        filler.render({"items": [], "other": 1})


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ x | attr('y') }}",
        "{{ lipsum.__globals__ }}",
        "{{ 'a' * 10**9 }}",
        "{% for a in range(10**9) %}{% endfor %}",
        "{% include 'x' %}",
        "{{ x.format(1) }}",
        "{% macro m() %}{% endmacro %}",
    ],
)
def test_what_would_leave_the_sandbox_is_refused_when_kept(template: str) -> None:
    """Nothing of it is ever rendered (faults row I1; the whole corpus is run on the sandbox itself)."""
    with pytest.raises(BadRequest) as caught:
        prepare(Content(template=template, syntax="jinja"))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("{% for a in x %}{% for b in x %}{% for c in x %}.{% endfor %}{% endfor %}{% endfor %}", {"x": ["a"] * 500}),
        ("{% for a in x %}{{ y }}{% endfor %}", {"x": ["a"] * 5000, "y": "z" * 20_000}),
    ],
)
def test_a_greedy_template_ends_soon(template: str, values: dict[str, Any]) -> None:
    """Loops in loops and texts times texts end within the limits, in processor time (faults row I2)."""
    filler = prepare(Content(template=template, syntax="jinja"))

    def refuse() -> None:
        with pytest.raises(BadRequest):
            filler.render(values)

    within_cpu(0.4, refuse)


def test_a_text_that_grows_too_large_is_refused_before_it_is_made() -> None:
    """A value of a megabyte asked for a thousand times is an error, not a gigabyte."""
    with pytest.raises(BadRequest, match="longer than"):
        fill("{a}" * 1000, {"a": "x" * 1_000_000})


def test_sampling_takes_numbers_and_texts() -> None:
    """The studio's forms send texts, everybody else numbers; null is nothing said."""
    given = {
        "temperature": "0.95",
        "top_p": 0.9,
        "max_tokens": "1024",
        "ignore_eos": "True",
        "stop": ["x"],
        "seed": None,
    }
    made = {"temperature": 0.95, "top_p": 0.9, "max_tokens": 1024, "ignore_eos": True, "stop": ["x"]}
    assert sampling(given) == made


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "warm"),
        ("temperature", "nan"),
        ("temperature", True),
        ("max_tokens", "1.5"),
        ("max_tokens", ""),
        ("top_p", [1]),
        ("ignore_eos", "maybe"),
        ("stream", True),
        ("model", "x"),
        ("guided_regex", "x"),
    ],
)
def test_sampling_that_is_wrong_is_named(name: str, value: Any) -> None:
    """A field that is not of sampling cannot come in by the config, and a number has to be one."""
    with pytest.raises(BadRequest) as caught:
        sampling({name: value})
    assert caught.value.param == f"config.{name}"


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (Content(template=" "), "template"),
        (Content(template="x" * 200_001), "template"),
        (Content(template="{a}", defaults={"b": 1}), "defaults"),
        (Content(template="{a}", defaults={"a": [1]}), "a"),
        (Content(template="{a}", config={"n": 2}), "config.n"),
        (Content(template="{% if %}", syntax="jinja"), "prompt"),
        (Content(template="".join(f"{{a{number}}}" for number in range(201))), "template"),
    ],
)
def test_a_content_that_is_wrong_is_refused_when_kept(content: Content, param: str) -> None:
    """What is kept can be used."""
    with pytest.raises(BadRequest) as caught:
        prepare(content)
    assert caught.value.param == param
