"""Joins a written service with its prompts, or says why it cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from passerelle.catalog.problem import Mark, Problem, one_line
from passerelle.services.manifest import SLOTS, Flavor, ServiceLimits, ServiceManifest, Strategy
from passerelle.services.prompts import INPUT, SERVICE_VARIABLES, PromptTemplate, slot_line
from passerelle.services.schema import FlavorSection
from passerelle.services.written import WrittenService


@dataclass(frozen=True, slots=True)
class FoundPrompt:
    """Where a prompt is or should be, whether the file exists, and its template if it is one."""

    path: Path
    exists: bool
    template: PromptTemplate | None


FindPrompt = Callable[[str], FoundPrompt]
"""Looks for the prompt file of a name without its ending."""


def compile_service(written: WrittenService, find: FindPrompt, problems: list[Problem]) -> ServiceManifest | None:
    """Returns the service; None after adding to ``problems`` why it cannot be used."""
    try:
        return _Compiler(written, find, problems).compile()
    except _Broken:
        return None


class _Broken(Exception):  # never leaves this module
    """A service cannot be used; the problem was recorded."""


class _Compiler:
    def __init__(self, written: WrittenService, find: FindPrompt, problems: list[Problem]) -> None:
        self._written = written
        self._find = find
        self._problems = problems

    def compile(self) -> ServiceManifest:
        written, section = self._written, self._written.section
        path, prompt = self._prompt(section.prompt or written.name, "prompt" if section.prompt else "name")
        limits = {name: getattr(section.limits, name) for name in section.limits.__struct_fields__}
        return ServiceManifest(
            id=written.id,
            name=written.name,
            route=written.route,
            type=section.type,
            fields=prompt.slots,
            strategy=self._strategy(path, prompt),
            flavors=tuple(self._flavor(index, flavor) for index, flavor in enumerate(written.flavors)),
            prompt=prompt,
            document=written.document,
            mark=written.node.mark,
            description=written.description,
            language=section.language,
            output=written.output,
            limits=ServiceLimits(**limits),
            metadata=written.metadata,
        )

    def _prompt(self, name: str, *key: str | int) -> tuple[Path, PromptTemplate]:
        found = self._find(name)
        if not found.exists:
            self._fail(f"there is no prompt file {found.path}", *key)
        if found.template is None:
            raise _Broken  # told once, at the file
        return found.path, found.template

    def _strategy(self, path: Path, prompt: PromptTemplate) -> Strategy:
        """Checks the prompt against the strategy: a job must not be what finds out."""
        fields = self._written.section.fields
        by_fields = {None: Strategy.AUTO, 1: Strategy.MAP_REDUCE, 2: Strategy.ROLLING}[fields]
        strategy = self._written.section.strategy or by_fields
        if fields is not None and fields not in SLOTS[strategy]:
            self._fail(f"the strategy '{strategy}' has no prompt of {fields} slots", "fields")
        self._check_variables(path, prompt)
        wanted = SLOTS[strategy] if fields is None else frozenset({fields})
        if prompt.slots not in wanted:
            why = f"fields: {fields}" if fields is not None else f"the strategy '{strategy}'"
            needs = " or ".join(str(number) for number in sorted(wanted))
            if prompt.compiled is None:
                message = f"the prompt has {prompt.slots} slots {{}}; {why} wants {needs}"
            else:
                names = ", ".join(sorted(prompt.variables))
                message = f"the prompt uses {names}; {why} wants {needs} of previous and input"
            self._fail_at(path, message, line=slot_line(prompt, prompt.text.splitlines()))
        return strategy

    def _check_variables(self, path: Path, prompt: PromptTemplate) -> None:
        unknown = sorted(prompt.variables - SERVICE_VARIABLES)
        if unknown:
            accepted = ", ".join(sorted(SERVICE_VARIABLES))
            self._fail_at(path, f"the prompt uses '{unknown[0]}', which is undefined", accepted=accepted)
        if prompt.compiled is not None and INPUT not in prompt.variables:
            self._fail_at(path, "the prompt does not use 'input'")

    def _flavor(self, index: int, section: FlavorSection) -> Flavor:
        service = self._written.section
        model = section.model_name or service.model
        assert model is not None
        reducing: PromptTemplate | None = None
        if section.reduce and section.reduce_prompt is not None:
            at = ("flavor", index, "reduce_prompt")
            path, reducing = self._prompt(section.reduce_prompt, *at)
            self._check_variables(path, reducing)
            if reducing.slots != 1:
                self._fail(f"the reduce prompt has {reducing.slots} slots; it wants 1", *at)
        return Flavor(
            name=section.name,
            model=model,
            fallbacks=section.fallbacks or service.fallbacks,
            context_tokens=section.context,
            max_generation_tokens=section.max_generation,
            create_new_turn_after=section.new_turn_after,
            summary_turns=section.summary_turns,
            max_new_turns=section.max_new_turns,
            temperature=section.temperature,
            top_p=section.top_p or None,
            reduce=section.reduce,
            consolidate=section.consolidate,
            reduce_prompt=reducing,
            type=section.type,
        )

    def _fail(self, message: str, *key: str | int) -> NoReturn:
        """Records what is wrong with a key of the manifest."""
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in key)
        self._problems.append(Problem(self._written.mark(*key), one_line(self._written.id) + path, message))
        raise _Broken

    def _fail_at(self, path: Path, message: str, *, line: int = 1, accepted: str | None = None) -> NoReturn:
        """Records what is wrong with a prompt for this service."""
        self._problems.append(Problem(Mark(str(path), line, 1), one_line(self._written.id), message, accepted))
        raise _Broken
