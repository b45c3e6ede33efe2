"""docs/services.md says what the code does: its keys, its figures, its examples."""

from __future__ import annotations

import re
from pathlib import Path

from passerelle.services.extract import lockdown
from passerelle.services.extract.extractor import WALL_S
from passerelle.services.extract.found import MAX_TEXT_BYTES
from passerelle.services.folder import ServiceCatalog, ServiceLoader, find_folders
from passerelle.services.manifest import Strategy
from passerelle.services.prompts import SERVICE_VARIABLES, PromptSyntax, parse_prompt
from passerelle.services.sandbox import FILTERS, TemplateLimits
from passerelle.services.schema import FlavorSection, LimitsSection, ServiceSection

PAGE = (Path(__file__).parents[3] / "docs" / "services.md").read_text()


def row(start: str) -> str:
    """Returns the row of a table that begins with ``start``."""
    return next(line for line in PAGE.splitlines() if line.startswith(f"| {start}"))


def test_every_key_is_on_the_page() -> None:
    """In the first column of the tables, or among the limits."""
    shown = {word for line in PAGE.splitlines() if line.startswith("| `") for word in re.findall(r"`(\w+)`", line)}
    for section in (ServiceSection, FlavorSection, LimitsSection):
        assert set(section.__struct_encode_fields__) <= shown, section
    assert set(Strategy) <= shown


def test_what_a_prompt_may_use_is_on_the_page() -> None:
    """Filters, variables and limits are those of the sandbox."""
    assert re.findall(r"`(\w+)`", row("filters")) == sorted(FILTERS)
    assert {name.partition("[")[0] for name in re.findall(r"`([^`]+)`", row("variables"))} == SERVICE_VARIABLES
    limits = TemplateLimits()
    assert f"{limits.max_characters:,} characters, {limits.max_nodes:,} parts" in row("limits")
    assert f"{limits.max_loop_depth} deep and {limits.max_loop_turns:,} turns" in row("limits")
    assert f"{limits.max_render_s:g} s of processor time" in row("limits")


def test_the_limits_of_readers_are_on_the_page() -> None:
    """Memory, processor time, time in all, text."""
    text = " ".join(PAGE.split())
    assert (
        f"{lockdown.MEMORY_BYTES >> 20} MB of memory, {lockdown.CPU_S} s of processor time, {WALL_S:g} s in all" in text
    )
    assert f"{MAX_TEXT_BYTES // 1_000_000} MB of text" in text


def test_the_examples_work(tmp_path: Path) -> None:
    """The first service with its prompt, and the Jinja prompt."""
    for folder in ("services", "prompts"):
        (tmp_path / folder).mkdir()
    manifest = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    prompts = re.findall(r"```\n(Write minutes.*?)```", PAGE, re.DOTALL)
    assert manifest is not None
    (tmp_path / "services" / "meetings.yaml").write_text(manifest[1])
    (tmp_path / "prompts" / "minutes.txt").write_text(prompts[0])
    catalog = ServiceLoader(find_folders(tmp_path), {}).prepare(ServiceCatalog())
    assert [str(problem) for problem in catalog.problems] == []
    assert catalog.services["minutes"].output.type == "markdown"
    template = parse_prompt(prompts[1], "minutes", PromptSyntax.JINJA)
    filled = template.render({"input": "I", "previous": "", "language": "fr", "part": 1, "parts": 3})
    assert filled == "Write minutes in the language 'fr' of part 1 of 3.\n\nI\n"
