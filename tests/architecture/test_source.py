"""Rules of the source that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "passerelle"
MODULES = sorted(SOURCE.rglob("*.py"))
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))

READS_ENVIRONMENT = {
    "settings.py",
    "worker.py",  # a process's own entry point
    "cli/serve.py",  # a process's own entry point
    "cli/worker.py",  # a process's own entry point
    "models/child.py",  # a child's own entry point
    "models/supervisor.py",  # what children inherit
    "models/vllm_child.py",  # a child's own entry point
    "models/vllm_guard/passerelle_vllm_guard.py",  # loaded by vLLM in its own process
    "models/package_source.py",  # pip gets the user's own environment
}
FORBIDDEN_NAMES = ("utils", "helpers", "common", "misc")


def name_of(path: Path) -> str:
    """Returns the path of a module in the package."""
    return path.relative_to(SOURCE).as_posix()


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Yields every module, parsed."""
    for path in MODULES:
        yield name_of(path), ast.parse(path.read_text())


def tracked() -> list[Path]:
    """Returns every file of the repository that is text."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    paths = [ROOT / name for name in listed.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()]


def test_nothing_comes_between_a_request_and_its_endpoint() -> None:
    """BaseHTTPMiddleware hides that a client left; it is nowhere."""
    hiding = "BaseHTTP" + "Middleware"
    assert [name for name, tree in trees() if hiding in ast.unparse(tree)] == []


def test_the_environment_is_read_in_one_place() -> None:
    """os.environ and os.getenv are in settings.py, and in the entry points and children listed here."""
    reading = set()
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv"):
                if isinstance(node.value, ast.Name) and node.value.id == "os":
                    reading.add(name)
            elif isinstance(node, ast.ImportFrom) and node.module == "os":
                assert not {alias.name for alias in node.names} & {"environ", "getenv"}, name
    assert reading <= READS_ENVIRONMENT


def test_no_sql_is_put_together_from_strings() -> None:
    """What is executed is a constant or an object of SQLAlchemy: no f-string, no %, no +, no format."""
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _called(node) in ("text", "execute", "exec_driver_sql", "executescript"):
                assert not any(_is_put_together(argument) for argument in node.args), (name, node.lineno)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _is_put_together(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in ast.walk(node))
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Call) and _called(node) in ("format", "join"))


def test_sql_put_together_is_found() -> None:
    """The rule above sees each of the ways."""
    for source in ('f"select {x}"', '"select " + x', '"select %s" % x', '"select {}".format(x)', '"".join(x)'):
        assert _is_put_together(ast.parse(source, mode="eval").body), source
    assert not _is_put_together(ast.parse('text("select 1")', mode="eval").body)


def test_no_module_is_a_drawer_for_everything() -> None:
    """Modules are named after nouns of the field."""
    assert [name for name, _ in trees() if set(re.split(r"[/._]", name)) & set(FORBIDDEN_NAMES)] == []


def test_there_are_no_globals_that_change() -> None:
    """No ``global`` statement: state belongs to objects that app.py makes."""
    found = [name for name, tree in trees() if any(isinstance(node, ast.Global) for node in ast.walk(tree))]
    assert found == []


def test_whatever_is_public_says_what_it_does() -> None:
    """Every public module, class and function of the source has a docstring.

    A method may leave it to the seam that documents a method of its name; an error class to its place in the tree.
    """
    seams = {
        method.name
        for _, tree in trees()
        for seam in ast.walk(tree)
        if isinstance(seam, ast.ClassDef)
        for method in seam.body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(method)
    }
    silent = []
    for name, tree in trees():
        if name.startswith("storage/migrations/versions/"):
            continue  # Alembic's form: the module's docstring is what a migration says
        if tree.body and ast.get_docstring(tree) is None:
            silent.append(name)
        for node in tree.body:
            silent += [f"{name}: {what}" for what in _silent(node, seams)]
    assert silent == []


def _silent(node: ast.stmt, seams: set[str]) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
        if ast.get_docstring(node) is None:
            yield node.name
    elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        data = not any(isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) for part in node.body)
        if ast.get_docstring(node) is None and not data:
            yield node.name
        for part in node.body:
            if not isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) or part.name.startswith("_"):
                continue
            if ast.get_docstring(part) is None and part.name not in seams | OVERRIDES:
                yield f"{node.name}.{part.name}"


OVERRIDES = {
    # asyncio.Protocol, uvicorn's protocol and logging.Formatter document these.
    "connection_made",
    "connection_lost",
    "data_received",
    "eof_received",
    "pause_writing",
    "resume_writing",
    "send_400_response",
    "shutdown",
    "on_response_complete",
    "format",
    # The parser's callbacks.
    "on_message_begin",
    "on_url",
    "on_header",
    "on_headers_complete",
    "on_body",
    "on_message_complete",
}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_dependency_is_pinned_with_hashes(lock: Path) -> None:
    """Each line of a lock names one version and its hashes; no index, no address."""
    text = lock.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^ ]+ ", line), line
        assert "--hash=sha256:" in line, line
    assert "://" not in text
    assert "--index" not in text


def test_the_product_does_not_depend_on_its_peers() -> None:
    """Not one line of a lock, and no dependency of the project, is another gateway."""
    files = [*LOCKS, ROOT / "pyproject.toml"]
    assert [path.name for path in files if re.search(r"^\W*(lite" + "llm|portkey)", path.read_text(), re.M)] == []


def test_the_repository_speaks_of_itself_only() -> None:
    """No address of a package index and no path of somebody's machine is in any file."""
    private = ("/wo" + "rk/", "/tmp/pro" + "be", "/ro" + "ot/")
    indexes = ("py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "/sim" + "ple/")
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in tracked()
        for word in (*private, *indexes)
        if word in path.read_text(errors="replace")
    ]
    assert found == []
