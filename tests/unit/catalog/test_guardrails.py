"""Guardrails in a configuration: what is wrong is told with file, line and key; what is right is in the snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest

from passerelle.catalog.problem import ConfigurationError
from passerelle.domain.guardrail import Action, Stage
from passerelle.domain.principal import Principal
from passerelle.settings import Configuration, load_configuration

MODELS = 'models: [{name: m, aliases: [mm], targets: [{url: "http://127.0.0.1:9/v1"}]}]\n'
CALLER = Principal("key_1", "k")


def load(folder: Path, text: str) -> Configuration:
    """Returns the configuration of ``MODELS`` and this text."""
    path = folder / "passerelle.yaml"
    path.write_text(MODELS + text)
    return load_configuration(path, {"HOME": str(folder)})


def test_without_guardrails_there_are_none(tmp_path: Path) -> None:
    """What costs calls nothing is None."""
    assert load(tmp_path, "").snapshot.guardrails is None
    assert load(tmp_path, "guardrails: []").snapshot.guardrails is None


def test_guardrails_are_compiled_in_their_order(tmp_path: Path) -> None:
    """All keys, files beside the configuration and aliases of models included."""
    (tmp_path / "words.txt").write_text("interdit\n")
    (tmp_path / "list.json").write_text("{}")
    configuration = load(
        tmp_path,
        """guardrails:
  - {name: one, check: pii, entities: [email], when: before, action: block, applies_to: {models: [mm]}}
  - {name: two, check: words, words_file: words.txt, replacement: "-"}
  - {name: three, check: whitelist, whitelist: list.json, rules: [check_url], when: after}
  - {name: four, check: pattern, pattern: 'x{2}', ignore_case: true, action: flag, applies_to: {keys: [nobody]}}
""",
    )
    guardrails = configuration.snapshot.guardrails
    assert guardrails is not None
    chosen = guardrails.of(CALLER, "m", None)
    assert [one.rule.name for one in chosen] == ["one", "two", "three"]
    assert [one.rule.name for one in guardrails.of(CALLER, "other", None)] == ["two", "three"]
    assert chosen[0].rule.action is Action.BLOCK
    assert chosen[0].rule.stages == {Stage.BEFORE}
    assert chosen[1].review("mot interdit", lambda: None) == "mot -"
    assert {path.name for path in configuration.files} == {"passerelle.yaml", "words.txt", "list.json"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[{check: pii}]", ":2:14: guardrails[0].name: this key is required"),
        ("[{name: a, check: regex}]", ":2:31: guardrails[0].check: 'regex' is not accepted (accepted: pattern, "),
        ("[{name: a, check: pii, entities: [emial]}]", "guardrails[0].entities[0]: 'emial' is not accepted"),
        ("[{name: a, check: pii, when: never}]", "guardrails[0].when: 'never' is not accepted (accepted: after, "),
        ("[{name: 'a b', check: pii}]", "guardrails[0].name: 'a b' is not accepted"),
        ("[{name: a, check: pii}, {name: a, check: pii}]", "guardrails[1].name: the name 'a' is taken, at "),
        ("[{name: a, check: pii, words: [b]}]", "guardrails[0].words: the check 'pii' has no such key (accepted: "),
        ("[{name: a, check: pattern}]", "guardrails[0].pattern: the check 'pattern' needs an expression"),
        ("[{name: a, check: pattern, pattern: '(secret'}]", "cannot be used: it has a ( without its )"),
        ("[{name: a, check: words, words_file: no.txt}]", "guardrails[0].words_file: there is no file '"),
        ("[{name: a, check: whitelist, whitelist: .}]", "guardrails[0].whitelist: there is no file '"),
        ("[{name: a, check: pii, applies_to: {models: [mn]}}]", "models[0]: there is no model 'mn'; did you mean 'm"),
        ("[{name: a, check: pii, applies_to: {people: [x]}}]", "guardrails[0].applies_to.people: unknown key"),
        ("[{name: a, check: pii, replacement: 'a\"b'}]", "guardrails[0].replacement: "),
        ("{a: b}", "guardrails: expected a list"),
    ],
)
def test_each_mistake_is_told_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    """File, line, column and key of the first problem; an expression is never quoted."""
    with pytest.raises(ConfigurationError) as raised:
        load(tmp_path, f"guardrails: {text}\n")
    assert problem in str(raised.value.problems[0])
    assert str(raised.value.problems[0]).startswith(f"{tmp_path / 'passerelle.yaml'}:2:")
    assert "secret" not in str(raised.value)


def test_a_file_that_is_mended_is_watched(tmp_path: Path) -> None:
    """A configuration that failed for a file it names is read again when that file comes."""
    with pytest.raises(ConfigurationError) as raised:
        load(tmp_path, "guardrails: [{name: a, check: words, words_file: no.txt}]")
    assert tmp_path / "no.txt" in raised.value.files
