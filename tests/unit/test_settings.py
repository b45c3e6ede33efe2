"""Settings of a process: where they come from, which wins, and what is said when one is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import passerelle
from passerelle.catalog.problem import ConfigurationError
from passerelle.settings import (
    NETWORK,
    AuthSection,
    Configuration,
    Keys,
    changed_keys,
    find_config,
    load_configuration,
    load_settings,
    reloader,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and an empty working folder without a passerelle.yaml."""
    (tmp_path / "work").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def load(home: Path, text: str, **environ: str) -> Configuration:
    path = home / "passerelle.yaml"
    path.write_text(text)
    return load_configuration(path, {"PASSERELLE_HOME": str(home)} | environ)


def problems(home: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(home, text, **environ)
    return [str(problem).replace(f"{home}/", "") for problem in caught.value.problems]


def test_with_nothing_configured_there_are_defaults(home: Path) -> None:
    """No file, no variable, no option: the documented defaults, and a home under the user's."""
    settings = load_settings(None, {"HOME": str(home)})
    assert settings.home == home / ".passerelle"
    assert (settings.server.host, settings.server.port, settings.server.workers) == ("127.0.0.1", 8000, 1)
    assert (settings.database, settings.auth.api_key) == ("sqlite", None)
    assert (settings.server.max_body_bytes, settings.server.grace_s) == (20 * 1024 * 1024, 30.0)


def test_options_win_over_variables_over_the_file(home: Path) -> None:
    """Each layer replaces only the keys it names."""
    path = home / "c.yaml"
    path.write_text("server: {host: 1.1.1.1, port: 1, workers: 1, grace_s: 1}\n")
    environ = {"PASSERELLE_SERVER__PORT": "2", "PASSERELLE_SERVER__WORKERS": "2"}
    server = load_settings(path, environ, {"server.workers": 3, "server.host": None}).server
    assert (server.host, server.port, server.workers, server.grace_s) == ("1.1.1.1", 2, 3, 1.0)


def test_where_the_file_is_looked_for(home: Path) -> None:
    """An option, then the variable, then the working folder, then home; else none."""
    environ = {"PASSERELLE_CONFIG": "/named.yaml"}
    assert find_config(Path("given.yaml"), environ, home) == Path("given.yaml")
    assert find_config(None, environ, home) == Path("/named.yaml")
    assert find_config(None, {}, home) is None
    (home / "passerelle.yaml").write_text("")
    assert find_config(None, {}, home) == home / "passerelle.yaml"
    Path("passerelle.yaml").write_text("")
    assert find_config(None, {}, home) == Path("passerelle.yaml")


def test_a_named_file_that_is_missing_is_an_error(home: Path) -> None:
    """A file somebody asked for is never silently left out."""
    with pytest.raises(ConfigurationError, match=r"^/nowhere\.yaml: the file cannot be read: No such file"):
        load_configuration(None, {"PASSERELLE_CONFIG": "/nowhere.yaml"})
    Path("passerelle.yaml").symlink_to("gone")
    with pytest.raises(ConfigurationError, match=r"^passerelle\.yaml: the file cannot be read"):
        load_configuration(None, {"PASSERELLE_HOME": str(home)})


def test_variables_of_every_type(home: Path) -> None:
    """Numbers, words, lists and tables; capitals in the name, JSON in the value."""
    settings = load(
        home,
        "",
        PASSERELLE_SERVER__PORT="9000",
        PASSERELLE_SERVER__TRUSTED_HOSTS='["a.example", "*.b.example"]',
        PASSERELLE_LOGGING__FORMAT="json",
        PASSERELLE_QUEUE='{"ignored": "single underscores are for other programs"}',
        PASSERELLE_PORT="tcp://10.0.0.1:8000",
        PASSERELLE_API_KEY="1234567890123456",
        PASSERELLE_RETRY__BUDGET_RATIO="1e-1",
    ).settings
    assert (settings.server.port, settings.server.trusted_hosts) == (9000, ("a.example", "*.b.example"))
    assert (settings.logging.format, settings.auth.api_key, settings.retry.budget_ratio) == (
        "json",
        "1234567890123456",
        0.1,
    )


def test_models_can_come_from_a_variable(home: Path) -> None:
    """A container without a file can still say what it serves."""
    value = '[{"name": "a", "targets": [{"url": "http://h/v1", "weight": 3}]}]'
    snapshot = load(home, "server: {}", PASSERELLE_MODELS=value).snapshot
    assert snapshot.models["a"].targets[0].weight == 3


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("PASSERELLE_SERVER__PORT", "http", "server.port: expected a whole number, found a value that is not"),
        ("PASSERELLE_SERVER__PORT", "70000", "server.port: the value is not accepted (accepted: a whole number, 0 to"),
        ("PASSERELLE_SERVER__PRT", "1", "server.prt: unknown key 'prt'; did you mean 'port'? (accepted: "),
        ("PASSERELLE_SERVR__PORT", "1", "servr: unknown key 'servr'; did you mean 'server'?"),
        ("PASSERELLE_SERVER__", "1", "server.: unknown key ''"),
        ("PASSERELLE_SERVER__TRUSTED_HOSTS", "a,b", "server.trusted_hosts: expected a list, found a value that is not"),
        ("PASSERELLE_SERVER__TRUSTED_HOSTS", "[a", "server.trusted_hosts: the variable's value is not JSON"),
        ("PASSERELLE_SERVER__TRUSTED_HOSTS", "[" * 99999, "server.trusted_hosts: the variable's value is not JSON"),
        ("PASSERELLE_SERVER__HOST", "a\nb", "server.host: the variable's value is not printable text"),
        ("PASSERELLE_SERVER__HOST", "\udce9", "server.host: the variable's value is not printable text"),
        ("PASSERELLE_DATABASE__URL", "x", "database: expected text, found keys and values"),
        ("DATABASE_URL", "mysql://u:hunter2@h/d", "database: the value is not accepted (accepted: sqlite, "),
        ("PASSERELLE_API_KEY", "short", "auth.api_key: the value is not accepted (accepted: 16 to 1,000 printable"),
    ],
)
def test_a_wrong_variable_is_named(home: Path, name: str, value: str, expected: str) -> None:
    """The line begins with the variable and never shows its value."""
    (line,) = problems(home, "", **{name: value})
    assert line.startswith(f"{name}: {expected}")
    assert "hunter2" not in line


def test_a_wrong_option_is_named(home: Path) -> None:
    """An option's problem is told by the option's name."""
    with pytest.raises(ConfigurationError, match=r"^--port: server\.port: the value is not accepted"):
        load_configuration(None, {"PASSERELLE_HOME": str(home)}, {"server.port": 70_000})


def test_problems_of_settings_and_models_come_together(home: Path) -> None:
    """One reading finds everything, in the order of the file."""
    text = "server: {port: no}\nauth:\n  api_kee: x\nmodels:\n  - {name: a, targets: []}\nloging: {}\n"
    assert [line.partition(" (accepted")[0] for line in problems(home, text)] == [
        "passerelle.yaml:1:16: server.port: expected a whole number, found 'no'",
        "passerelle.yaml:3:3: auth.api_kee: unknown key 'api_kee'; did you mean 'api_key'?",
        "passerelle.yaml:5:24: models[0].targets: a model needs at least one target",
        "passerelle.yaml:6:1: loging: unknown key 'loging'; did you mean 'logging'?",
    ]


def test_the_database_comes_from_its_usual_variable(home: Path) -> None:
    """DATABASE_URL is the default; what the file says wins; empty means left out."""
    url = "postgresql://u:p@h/d"
    assert load(home, "", DATABASE_URL=url).settings.database == url
    assert load(home, "database: sqlite:///x.db\n", DATABASE_URL=url).settings.database == "sqlite:///x.db"
    assert load(home, "database: ${DATABASE_URL:-sqlite}\n").settings.database == "sqlite"


def test_secrets_are_in_no_repr_and_no_message(home: Path) -> None:
    """Keys and URLs with passwords stay out of whatever is printed."""
    configuration = load(
        home,
        "auth: {api_key: hunter2hunter2hunter2}\ndatabase: postgresql://u:hunter2@h/d\n"
        "models: [{name: a, targets: [{url: 'http://h', api_key: hunter2}]}]\n",
    )
    assert configuration.settings.auth.api_key == "hunter2hunter2hunter2"
    assert "hunter2" not in repr(configuration)
    text = "auth: {api_key: 'hunter 2'}\ndatabase: mysql://u:hunter2@h\nserver: {port: '${PASSWORD}'}\n"
    lines = problems(home, text, PASSWORD="hunter2")
    assert len(lines) == 3
    assert "hunter" not in "".join(lines)


def test_settings_are_frozen(home: Path) -> None:
    """Nobody changes a setting after it was read."""
    settings = load(home, "").settings
    with pytest.raises(AttributeError):
        settings.server = settings.server  # type: ignore[misc]
    with pytest.raises(AttributeError):
        settings.auth.api_key = "x"  # type: ignore[misc]
    assert settings.auth == AuthSection()


def test_changed_keys_names_each(home: Path) -> None:
    """The difference of two readings, key by key."""
    before = load(home, "").settings
    after = load(home, "server: {port: 9, host: 0.0.0.0}\ndatabase: sqlite:///y\n").settings
    assert changed_keys(before, after) == ("server.host", "server.port", "database")
    assert changed_keys(before, before) == ()
    assert {key.partition(".")[0] for key in changed_keys(before, after)} <= set(Keys.__struct_fields__)


def test_a_reload_reads_with_the_same_options(home: Path) -> None:
    """What an option set is no change; what the file says anew is."""
    path = home / "c.yaml"
    path.write_text("server: {port: 1}\n")
    running = load_configuration(path, {}, {"server.port": 9000, "home": str(home)})
    reload = reloader(running, {})
    assert reload().restart_keys == ()
    path.write_text("server: {port: 2, host: 0.0.0.0}\n")
    assert reload().restart_keys == ("server.host",)


def test_the_example_is_sound() -> None:
    """examples/passerelle.yaml can be used as it stands."""
    example = Path(__file__).parents[2] / "examples" / "passerelle.yaml"
    snapshot = load_configuration(example, {}).snapshot
    assert snapshot.resolve("microsoft/Phi-3-mini-4k-instruct") is not None


def test_defaults_need_no_yaml_and_no_watcher() -> None:
    """Starting without a file imports neither, so that commands are quick."""
    code = (
        "import sys; from passerelle.settings import load_configuration; load_configuration(None, {'HOME': '/'});"
        "print(*{'yaml', 'watchfiles', 'asyncio', 'rich'} & set(sys.modules))"
    )
    environ = {"PYTHONPATH": str(Path(passerelle.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", env=environ, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_links_need_an_address(home: Path) -> None:
    """Mail and a provider without the address that browsers use are refused, with the line of the section."""
    mail = "auth:\n  mail: {host: smtp.example.org, sender: llm@example.org}\n"
    oidc = "auth:\n  oidc: {issuer: 'https://sso.example.org', client_id: x}\n"
    for text in (mail, oidc):
        (said,) = problems(home, text)
        assert said.startswith("passerelle.yaml:1")
        assert "auth.public_url" in said
        load(home, text + "  public_url: https://llm.example.org\n")


def test_a_provider_needs_its_library(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library for signatures a provider is refused with the words that mend it."""
    monkeypatch.setattr("passerelle.settings.find_spec", lambda name: None)
    text = "auth:\n  public_url: https://x\n  oidc: {issuer: 'https://sso.example.org', client_id: x}\n"
    (said,) = problems(home, text)
    assert "install passerelle[oidc]" in said


def test_sign_on_settings(home: Path) -> None:
    """A provider's tables are read, secrets stay out of reprs, and wrong values are named."""
    text = """
auth:
  public_url: https://llm.example.org
  mail: {host: smtp.example.org, sender: llm@example.org, username: u, password: hunter2}
  oidc:
    issuer: https://sso.example.org/realms/x
    client_id: passerelle
    client_secret: hunter3
    role_claim: groups
    roles: {"llm admins": admin, users: member}
"""
    auth = load(home, text).settings.auth
    assert auth.oidc is not None
    assert auth.oidc.roles == {"llm admins": "admin", "users": "member"}
    assert "hunter" not in repr(auth)
    (said,) = problems(home, text.replace("users: member", "users: king"))
    assert "auth.oidc.roles.users" in said
    assert "owner" in said
    for wrong in ("javascript:x", "https://llm.example.org?x", "llm.example.org"):
        (said,) = problems(home, text.replace("https://llm.example.org\n", f"'{wrong}'\n"))
        assert "auth.public_url" in said


@given(
    st.ip_addresses(network="::/0") | st.ip_addresses(network="::ffff:0:0/96") | st.ip_addresses(v=4),
    st.integers(0, 128) | st.none(),
    st.booleans(),
)
def test_a_network_is_understood_as_python_does(address: Any, length: int | None, whole: bool) -> None:
    """Whatever the rule for networks lets pass can be read, and every usual way to write one passes."""
    text = f"{address.exploded if whole else address}{'' if length is None else f'/{length}'}"
    passes = re.match(NETWORK, text) is not None
    assert passes == (length is None or length <= address.max_prefixlen)
    if passes:
        ip_network(text, strict=False)


@given(st.text("0123456789abcdefABCDEF:./%x", max_size=24))
def test_what_passes_as_a_network_is_one(text: str) -> None:
    """No text gets past the rule that would fail later."""
    if re.match(NETWORK, text):
        ip_network(text, strict=False)
