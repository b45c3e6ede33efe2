"""Pages that are written from the code are never stale."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from passerelle.catalog.shape import Section, described, fields
from passerelle.cli.docs import _section_of, app, configuration_page
from passerelle.settings import ConfigurationFile

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_of_the_configuration_is_current() -> None:
    """docs/configuration.md is what ``passerelle docs`` writes today."""
    result = CliRunner().invoke(app, ["--check", "--folder", str(DOCS)])
    assert (result.exit_code, result.output) == (0, "")


def test_every_key_has_a_description_and_a_row() -> None:
    """No key of any section is left without words."""
    page = configuration_page()

    def visit(section: type[Section]) -> None:
        assert section.__doc__
        for field in fields(section):
            bare, _, description = described(field.type)
            assert description, f"{section.__name__}.{field.name}"
            assert f"| `{field.encode_name}` |" in page
            inner = _section_of(bare)
            if inner is not None:
                visit(inner)

    visit(ConfigurationFile)


def test_seconds_bytes_and_tokens_say_so() -> None:
    """A key whose name ends in a unit says the unit in what it accepts."""
    for line in configuration_page().splitlines():
        name = line.partition("`")[2].partition("`")[0]
        if line.startswith("| `") and name.endswith("_s"):
            assert "second" in line.split(" | ")[1], line
        if line.startswith("| `") and name.endswith("_bytes"):
            assert "bytes" in line.split(" | ")[1], line


def test_a_stale_page_is_found_and_written_anew(tmp_path: Path) -> None:
    """--check ends with 1 and changes nothing; without it the page is written."""
    page = tmp_path / "configuration.md"
    page.write_text("old")
    stale = CliRunner().invoke(app, ["--check", "--folder", str(tmp_path)])
    assert (stale.exit_code, page.read_text()) == (1, "old")
    assert CliRunner().invoke(app, ["--folder", str(tmp_path)]).exit_code == 0
    assert page.read_text() == configuration_page()
    assert CliRunner().invoke(app, ["configuration"]).output == configuration_page()
    assert CliRunner().invoke(app, ["--folder", str(tmp_path / "nope")]).exit_code == 2
