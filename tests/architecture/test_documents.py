"""What exists is documented, and what is documented exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from prometheus_client import CollectorRegistry

from passerelle.catalog.schema import ENGINES
from passerelle.cli.main import application
from passerelle.domain import errors
from passerelle.edge.asgi import STALL_S
from passerelle.edge.dispatch import Context, Route
from passerelle.edge.protocol import EdgeLimits
from passerelle.edge.socket import WEBSOCKET
from passerelle.faces import docs
from passerelle.faces.routes import routes
from passerelle.gateway.health import HealthRules, HealthState
from passerelle.gateway.policies import POLICIES
from passerelle.gateway.relay import MAX_DOCUMENT_BYTES
from passerelle.gateway.retry import RetryRules
from passerelle.models.catalogue import DEFAULT_CHAT_MODEL, find_model
from passerelle.models.llamacpp_child import DEFAULT_SLOTS, DEFAULT_WINDOW_TOKENS
from passerelle.settings import load_configuration
from passerelle.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "passerelle"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TEXT = "\n".join(page.read_text() for page in PAGES)


class Face:
    """All faces, and each of them: only the route table is looked at."""

    def __getattr__(self, name: str) -> Any:
        return Face()

    async def __call__(self, context: Context) -> None:
        raise AssertionError("no endpoint is called here")


def table() -> list[Route]:
    """Returns every route there is."""
    faces: Any = Face()
    return routes(faces)


def bare(path: str) -> str:
    """Returns the path without ``/v1`` and without the form of its variable parts."""
    return re.sub(r"\{(\w+)(:path)?\}", r"{\1}", path.removeprefix("/v1"))


def test_every_route_is_documented_with_its_scope() -> None:
    """docs/operations.md names method, path and scope of each route, and no route that is not there."""
    rows = [
        line.split("|")[1:3]
        for line in OPERATIONS.splitlines()
        if re.match(r"\| `(GET|POST|DELETE|PUT|PATCH|WEBSOCKET) ", line)
    ]
    documented = {
        (method, bare(path), scope.strip().strip("`"))
        for cell, scope in rows
        for method, path in re.findall(r"`([A-Z]+) (/\S*)`", cell + " " + _spread(cell))
    }
    there = {
        (route.method, bare(route.path), "public" if route.scope is None else route.scope.value) for route in table()
    }
    assert documented == there


def _spread(cell: str) -> str:
    """Paths after the first of a cell have the method of the first."""
    method = re.search(r"`([A-Z]+) ", cell)
    return " ".join(f"`{method[1]} {path}`" for path in re.findall(r"`(/\S*)`", cell)) if method else ""


def test_every_route_is_in_the_openapi_document() -> None:
    """/docs shows every route but its own and websockets, once, and says which of them are public."""
    described: Any = docs.describe()
    shown = {
        (method.upper(), bare(path)): operation
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    }
    apart = ("/docs", "/openapi")
    there = {(r.method, bare(r.path)): r for r in table() if r.method != WEBSOCKET and not r.path.startswith(apart)}
    assert shown.keys() == there.keys()
    for key, route in there.items():
        assert (shown[key]["security"] == []) == (route.scope is None), key
        assert {"summary", "tags", "operationId", "responses"} <= shown[key].keys()
        tag = next(tag for tag in described["tags"] if tag["name"] == shown[key]["tags"][0])
        if route.scope is not None:
            assert f"`{route.scope.value}`" in shown[key].get("description", "") + tag["description"], key


def test_the_openapi_document_is_whole() -> None:
    """Every reference resolves and no two operations have one name."""
    described: Any = docs.describe()
    names = [o["operationId"] for operations in described["paths"].values() for o in operations.values()]
    assert len(set(names)) == len(names)
    references = set(re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(described)))
    assert references
    assert references <= described["components"]["schemas"].keys()


def test_every_metric_is_documented() -> None:
    """docs/operations.md lists the metrics of the product with their labels, and no others."""
    registry: CollectorRegistry = Metrics().registry
    there = set()
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        there.add(name)
    documented = set(re.findall(r"^\| `(passerelle_\w+)` \|", OPERATIONS, re.MULTILINE))
    assert documented == {name for name in there if not name.endswith("_created")}


def test_every_error_code_is_documented() -> None:
    """docs/operations.md lists the codes that code can give, with their status, and no others."""
    documented = {
        code: int(status) for code, status in re.findall(r"^\| `(\w+)` \| (\d{3}) \|", OPERATIONS, re.MULTILINE)
    }
    assert documented == dict(_codes())


def _codes() -> Iterator[tuple[str, int]]:
    classes = {name: value for name, value in vars(errors).items() if _is_error(value)}
    for kind in classes.values():
        yield kind.code, kind.status
    files = [path for path in SOURCE.rglob("*.py") if "models" not in path.relative_to(SOURCE).parts]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = next((k.value for k in node.keywords if k.arg == "code"), None)
            if called in classes and isinstance(given, ast.Constant):
                yield str(given.value), classes[called].status
            elif called == "EngineRejected" and isinstance(given, ast.Constant):
                yield str(given.value), 400
            elif called == "_refuse" and len(node.args) == 3:
                status, code, _ = (ast.literal_eval(argument) for argument in [*node.args[:2], ast.Constant("")])
                yield code, status


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, errors.PasserelleError)


def test_the_error_tree_is_drawn() -> None:
    """The picture in domain/errors.py shows every class below its parent, with its status."""
    picture = errors.__doc__ or ""
    depth = {name: len(indent) for indent, name in re.findall(r"^( +)(\w+)", picture, re.MULTILINE)}
    kinds = [value for value in vars(errors).values() if _is_error(value)]
    for kind in kinds:
        assert kind.__name__ in depth, kind
        if kind is not errors.PasserelleError:
            assert depth[kind.__name__] == depth[kind.__bases__[0].__name__] + 2
            assert re.search(rf"^ +{kind.__name__} +{kind.status}\b", picture, re.MULTILINE), kind
    assert len(kinds) == len(depth)


def commands(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the words of every command of the command line."""
    inside = getattr(node, "commands", {})
    if not inside:
        yield path
    for name, child in inside.items():
        yield from commands(child, (*path, name))


@pytest.mark.parametrize("words", sorted(commands(typer.main.get_command(application()))), ids=" ".join)
def test_every_command_is_documented(words: tuple[str, ...]) -> None:
    """README or a page shows the command as it is typed, or after its group where several stand in one line."""
    assert re.search(rf"(passerelle |`){' '.join(words)}\b", TEXT) or (
        len(words) == 2 and re.search(rf"passerelle {words[0]}\b.*`{words[1]}\b", TEXT)
    )


@pytest.mark.parametrize("name", [*POLICIES, *HealthState, *ENGINES])
def test_every_policy_state_and_engine_is_documented(name: str) -> None:
    """docs/routing.md has a row for each policy and state, docs/models.md speaks of the engines that we run."""
    if name in ENGINES:
        assert name in TEXT
    else:
        assert re.search(rf"^\| `{name}`", (ROOT / "docs" / "routing.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file of this repository finds it, and the heading it names."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, heading = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if heading:
            assert heading in _headings(found), target


def _headings(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_in_french_has_all_that_the_english_one_has() -> None:
    """Both have the same programs and YAML, as many headings, commands and rows, and the same links."""
    english, french = (ROOT / "README.md").read_text(), (ROOT / "README.fr.md").read_text()
    programs = re.compile(r"```(?:python|js|yaml)\n.*?```", re.DOTALL)
    assert programs.findall(english) == programs.findall(french)
    assert [h.split(" ")[0] for h in _lines(english, "#")] == [h.split(" ")[0] for h in _lines(french, "#")]
    assert len(_lines(english, "| ")) == len(_lines(french, "| "))
    assert len(_lines(english, "- ")) == len(_lines(french, "- "))
    assert len(_lines(english, "passerelle ")) == len(_lines(french, "passerelle "))
    links = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
    assert set(links.findall(english)) ^ set(links.findall(french)) == {"README.md", "README.fr.md"}


def _lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_configurations_in_pages_are_sound(page: Path, tmp_path: Path) -> None:
    """Each whole YAML file that a page shows is accepted as it stands."""
    shown = [text for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL) if "models:" in text]
    for number, text in enumerate(shown):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert load_configuration(path, {"HOME": str(tmp_path)}).snapshot.models


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "adr").glob("*.md")), ids=lambda page: page.stem)
def test_a_decision_is_one_page_of_one_form(page: Path) -> None:
    """Context, decision, consequence, and how one would notice that it was wrong; numbered, and on one page."""
    text = page.read_text()
    assert text.startswith(f"# {page.name[:4]}. ")
    assert len(text.splitlines()) <= 60
    for heading in ("Context", "Decision", "Consequence", "How we would notice that we were wrong"):
        assert f"\n## {heading}\n" in text


def test_decisions_are_numbered_without_gaps() -> None:
    """0001, 0002, and so on."""
    numbers = sorted(int(page.name[:4]) for page in (ROOT / "docs" / "adr").glob("*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


LIMITS, HEALTH, RETRY = EdgeLimits(), HealthRules(), RetryRules()
FIGURES = [
    ("operations.md", f"{LIMITS.max_head_bytes // 1024} KiB, {LIMITS.max_headers} headers"),
    ("operations.md", f"{LIMITS.max_url_bytes // 1024} KiB address"),
    ("operations.md", f"{LIMITS.body_grace_s:g} s and one second more for each `server.body_min_rate_bytes_s` bytes"),
    ("operations.md", f"cut off after {STALL_S:g} s"),
    ("operations.md", f"{MAX_DOCUMENT_BYTES >> 20} MiB"),
    ("routing.md", f"({HEALTH.max_busy_s:g} s at most)"),
    ("routing.md", f"out for {HEALTH.ejection_s:g} s"),
    ("routing.md", f"{HEALTH.max_ejection_s:g} s at most; then one request"),
    (
        "routing.md",
        f"{RETRY.max_extra_attempts} extra attempts for a call; {RETRY.ratio:.0%} extra load".replace("%", " %"),
    ),
    ("routing.md", f"above {RETRY.max_retry_after_s:g} s"),
    ("models.md", f"| `slots` | `llamacpp` | {DEFAULT_SLOTS} |"),
    ("models.md", f"| {DEFAULT_WINDOW_TOKENS} tokens,"),
]


@pytest.mark.parametrize(("page", "figure"), FIGURES, ids=[figure for _, figure in FIGURES])
def test_figures_are_those_of_the_code(page: str, figure: str) -> None:
    """A bound or a time in a page is the one that holds."""
    assert figure in " ".join((ROOT / "docs" / page).read_text().split())


def test_readmes_name_the_licences_and_sizes_of_what_is_fetched() -> None:
    """The model that a first start downloads has the size that README says."""
    model = find_model(DEFAULT_CHAT_MODEL)
    assert model is not None
    assert model.archive_bytes is not None
    megabytes = round(model.archive_bytes / 1e6)
    assert f"(SmolLM2-135M-Instruct, {megabytes} MB)" in (ROOT / "README.md").read_text()
    assert f"(SmolLM2-135M-Instruct, {megabytes} Mo)" in " ".join((ROOT / "README.fr.md").read_text().split())
    assert model.licence in (ROOT / "docs" / "models.md").read_text()
