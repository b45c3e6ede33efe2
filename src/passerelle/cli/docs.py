"""``passerelle docs``: pages written from the code, so that they cannot go stale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from msgspec import NODEFAULT, inspect

from passerelle.catalog.shape import Section, accepted, described, fields
from passerelle.settings import ConfigurationFile

app = typer.Typer()

_INTRODUCTION = """\
# Configuration

*This page is written by `passerelle docs` from the settings themselves; a test fails when it is stale.*

Everything is optional. With no file at all Passerelle serves its embedded models on `127.0.0.1:8000`.

## Where it is read

One YAML file, the first of: `--config FILE`, `$PASSERELLE_CONFIG`, `passerelle.yaml` in the working folder,
`passerelle.yaml` in the home folder (`--home`, `$PASSERELLE_HOME`, or `~/.passerelle`). `passerelle check` says what is
wrong with it, with file, line, column and what would have been accepted, and ends with exit code 2.

Each key can be overridden by a variable `PASSERELLE_SECTION__KEY` (two underscores between the parts, capitals), and
that by an option of the command line:

```
PASSERELLE_SERVER__PORT=9000
PASSERELLE_SERVER__TRUSTED_HOSTS='["llm.example.org", "*.example.net"]'     # lists and tables are JSON
```

`PASSERELLE_API_KEY`, `PASSERELLE_DATABASE`, `PASSERELLE_MODELS` and `PASSERELLE_MODELS_FILE` are short for the keys of
those names. `DATABASE_URL` is used when `database` is left out.
`LLM_TABLE`, a list such as `[("albert-light", "http://host:8082")]`, adds OpenAI-compatible servers as models.

## Variables in values

| written | becomes |
| --- | --- |
| `${VAR}`, `${oc.env:VAR}` | the variable; a problem that names it when it is not set |
| `${VAR:-default}` | the default when the variable is not set, or empty |
| `${oc.env:VAR,default}` | the default when the variable is not set |
| `$$` | a dollar sign |

Defaults can hold further variables. Inside braces `{ }` put the value in quotes. A value that is one variable and
nothing else becomes a number or `true`/`false` where one is wanted; an empty one counts as left out.

## The YAML

Text is UTF-8 without a byte order mark. Words follow YAML 1.2: `no`, `on` and `yes` are text, `true` and `false` are
not, `1e3` is a number. Anchors, aliases and merges (`<<: *base`) work. Refused, each with its line: keys given twice,
unknown keys, tags (`!…`), a second document, nesting past 64 levels, files past 10 MB, more than 500,000 values.

## While running

The files are watched. A change is checked as a whole and then replaces models and guardrails at once; requests that run
keep those they began with. A configuration with a problem changes nothing: what served goes on, and the problem is
shown with its line. All keys outside `models`, `models_file` and `guardrails` are read at start; a change there is
reported as waiting for a restart.
"""

_ROUTING = """\
## Albert's `llm_routing_table.json`

`models_file: llm_routing_table.json`, or the file itself as `--config`. Each service becomes a model of its name, with
`hf_repo_id` as alias (of the first service that has it) and `http://model_host:model_port/v1` as target. `hf_repo_id`,
`model_host` and `model_port` are required; `driver` must be `vllm`, whose server speaks OpenAI's format. Other keys are
for Albert's own scripts and are not read.
"""


@app.callback(invoke_without_command=True)
def write(
    context: typer.Context,
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder of the pages.")] = Path("docs"),
    check: Annotated[bool, typer.Option("--check", help="Change nothing; end with 1 when a page is stale.")] = False,
) -> None:
    """Writes the pages of the documentation that come from the code."""
    if context.invoked_subcommand is not None:
        return
    if not folder.is_dir():
        typer.echo(f"there is no folder '{folder}'; name the one of the documentation with --folder", err=True)
        raise typer.Exit(2)
    stale = [name for name, text in pages().items() if not _is_current(folder / name, text)]
    for name in stale:
        if check:
            typer.echo(f"{folder / name} is stale; write it anew with `passerelle docs`", err=True)
        else:
            (folder / name).write_text(pages()[name], encoding="utf-8")
            typer.echo(f"wrote {folder / name}")
    if check and stale:
        raise typer.Exit(1)


@app.command("configuration")
def print_configuration() -> None:
    """Prints the page of the configuration."""
    typer.echo(configuration_page(), nl=False)


def pages() -> dict[str, str]:
    """Returns the text of each page, by its file name."""
    return {"configuration.md": configuration_page()}


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def configuration_page() -> str:
    """Returns docs/configuration.md: every key with what it accepts, its default and what it does."""
    shape = inspect.type_info(ConfigurationFile)
    assert isinstance(shape, inspect.StructType)
    parts = [_INTRODUCTION, "## Keys\n"]
    parts.extend(_sections(ConfigurationFile, ""))
    return "\n".join([*parts, _ROUTING])


def _sections(section: type[Section], path: str) -> Iterator[str]:
    """Yields one table per section, the section's own keys before those inside it."""
    rows = ["| key | accepts | default | |", "| --- | --- | --- | --- |"]
    inside: list[tuple[type[Section], str]] = []
    for field in fields(section):
        bare, extra, description = described(field.type)
        name = field.encode_name
        child = _section_of(bare)
        if child is not None:
            listed = "[]" if isinstance(bare, inspect.VarTupleType) else ""
            inside.append((child, f"{path}.{name}{listed}" if path else f"{name}{listed}"))
        cells = (
            f"`{name}`",
            _cell(accepted(field.type, extra)),
            _default(field, child is not None),
            _cell(description),
        )
        rows.append(f"| {' | '.join(cells)} |")
    title = f"### `{path}`\n\n{(section.__doc__ or '').splitlines()[0]}\n" if path else "### At the top\n"
    yield title
    yield "\n".join(rows) + "\n"
    for child, child_path in inside:
        yield from _sections(child, child_path)


def _section_of(bare: inspect.Type) -> type[Section] | None:
    """Returns the section that a field holds, alone or in a list."""
    if isinstance(bare, inspect.VarTupleType):
        bare = described(bare.item_type)[0]
    if isinstance(bare, inspect.StructType) and issubclass(bare.cls, Section):
        return bare.cls
    return None


def _default(field: inspect.Field, is_section: bool) -> str:
    if field.required:
        return "required"
    default = field.default if field.default is not NODEFAULT else None
    if is_section or default in (None, ()):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
