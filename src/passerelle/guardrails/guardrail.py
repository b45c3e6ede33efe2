"""A guardrail, compiled from its rule; and all of them together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from passerelle.domain.guardrail import Action, Check, Guardrail, GuardrailRule, OnFind, RuleError, TextGuard
from passerelle.domain.principal import Principal
from passerelle.guardrails.expression import ExpressionError
from passerelle.guardrails.finder import Finder
from passerelle.guardrails.pattern import find_pattern
from passerelle.guardrails.pii import ENTITIES, find_pii
from passerelle.guardrails.scanner import Scanner
from passerelle.guardrails.whitelist import RULES, Whitelist
from passerelle.guardrails.words import find_words

MASK = "[MASKED]"


@dataclass(frozen=True, slots=True)
class CompiledGuardrail:
    """A rule with what finds its matches, one finder after the other."""

    rule: GuardrailRule
    finders: tuple[Finder, ...]

    def watch(self, on_find: OnFind) -> TextGuard:
        """As `Guardrail.watch`."""
        chain = Chain([finder.scanner(on_find, self.rule.action) for finder in self.finders])
        return Onlooker(chain) if self.rule.action is Action.FLAG else chain

    def review(self, text: str, on_find: OnFind) -> str:
        """As `Guardrail.review`."""
        for finder in self.finders:
            if finder.may_be_in(text):
                scanner = finder.scanner(on_find, self.rule.action)
                text = scanner.feed(text) + scanner.flush()
        return text


class Chain:
    """Passes a text through one scanner after the other."""

    def __init__(self, scanners: list[Scanner]) -> None:
        self._scanners = scanners

    def feed(self, text: str) -> str:
        """Takes the next piece and returns what every scanner lets go."""
        for scanner in self._scanners:
            if not text:
                break
            text = scanner.feed(text)
        return text

    def flush(self) -> str:
        """Takes the end of the text and returns the rest."""
        text = ""
        for scanner in self._scanners:
            text = (scanner.feed(text) if text else "") + scanner.flush()
        return text


class Onlooker:
    """Looks at a text and holds nothing of it back."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def feed(self, text: str) -> str:
        """Returns the piece as it came."""
        self._chain.feed(text)
        return text

    def flush(self) -> str:
        """Takes the end of the text; there is no rest."""
        self._chain.flush()
        return ""


class CompiledGuardrails:
    """All guardrails of one configuration, in the order they were written."""

    def __init__(self, guardrails: Iterable[Guardrail]) -> None:
        self._guardrails = tuple(guardrails)

    def of(self, principal: Principal, model: str, service: str | None) -> tuple[Guardrail, ...]:
        """As `Guardrails.of`."""
        return tuple(one for one in self._guardrails if one.rule.selection.fits(principal, model, service))


def compile_guardrail(rule: GuardrailRule) -> CompiledGuardrail:
    """Returns the guardrail of a rule. Raises RuleError."""
    return CompiledGuardrail(rule, _COMPILERS[rule.check](rule))


def _mask(rule: GuardrailRule) -> str:
    return MASK if rule.replacement is None else rule.replacement


def _compile_pattern(rule: GuardrailRule) -> tuple[Finder, ...]:
    if rule.pattern is None:
        raise RuleError("pattern", "the check 'pattern' needs an expression")
    try:
        return find_pattern(rule.pattern, _mask(rule), ignore_case=rule.ignore_case)
    except ExpressionError as error:
        raise RuleError("pattern", f"the expression cannot be used: {error}") from None


def _compile_words(rule: GuardrailRule) -> tuple[Finder, ...]:
    words, key = list(rule.words), "words"
    if (data := rule.files.get("words_file")) is not None:
        key = "words_file"
        try:
            lines = (line.strip() for line in data.decode("utf-8-sig").splitlines())
        except UnicodeDecodeError:
            raise RuleError(key, "the file is not UTF-8 text") from None
        words += [line for line in lines if line and not line.startswith("#")]
    if not words:
        raise RuleError(key, "the check 'words' needs at least one word")
    try:
        return find_words(words, _mask(rule))
    except ExpressionError as error:
        raise RuleError(key, f"the words cannot be used: {error}") from None


def _compile_pii(rule: GuardrailRule) -> tuple[Finder, ...]:
    return find_pii(rule.entities or ENTITIES, rule.replacement)


def _compile_whitelist(rule: GuardrailRule) -> tuple[Finder, ...]:
    data = rule.files.get("whitelist")
    if data is None:
        raise RuleError("whitelist", "the check 'whitelist' needs the path of a whitelist.json")
    try:
        return Whitelist.read(data).finders(rule.rules or RULES)
    except ValueError as error:
        raise RuleError("whitelist", f"the file is not a whitelist.json: {error}") from None


_COMPILERS = {
    Check.PATTERN: _compile_pattern,
    Check.WORDS: _compile_words,
    Check.PII: _compile_pii,
    Check.WHITELIST: _compile_whitelist,
}
