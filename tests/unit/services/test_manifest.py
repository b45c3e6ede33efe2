"""Manifests: every form, every mistake with its place (rows G1 and G3 of the fault table)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from passerelle.services.folder import ServiceCatalog, ServiceFolders, ServiceLoader
from passerelle.services.manifest import OutputSpec, ServiceManifest, Strategy

README = """\
summarize/en: # This is the service endpoint that will be generated
  type: summary
  fields: 2
  name: summarize-en
  description:
    fr: English summary
  backend: vLLM  # Deprecated, as the app is now backend-agnostic
  flavor:
    - name: llama
      modelName: meta-llama-31-8b-it  # Ensure the model is available on the inference server
      totalContextLength: 128000  # Maximum context length, including prompt, user input, and generated tokens
      maxGenerationLength: 2048  # Maximum length for model output
      tokenizerClass: LlamaTokenizer
      createNewTurnAfter: 250  # New "virtual turns" created after this number of tokens
      summaryTurns: 3  # Number of turns to summarize
      maxNewTurns: 9  # Maximum number of turns processed; fewer may be used if the token count is too high
      temperature: 0.2  # Controls creativity, with a value close to zero for more accurate summaries
      top_p: 0.7  # Controls the variety of word choices in generation
      reduceSummary: false  # Option to reduce the summary (can be adjusted based on use case)
      consolidateSummary: false  # Option to consolidate the summary (can be adjusted based on use case)
      reduce_prompt: reduce-file # Specify a custom prompt to be used in the reduce step
      type: abstractive #  abstractive, extractive or markdown
"""
"""The example of the original's README, comments shortened."""

Read = Callable[..., ServiceCatalog]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Returns what reads one manifest, with prompts of one slot (`one`) and of two (`two`) and others as given."""

    def read(text: str | bytes, environ: dict[str, str] | None = None, **prompts: str) -> ServiceCatalog:
        for folder in ("services", "prompts"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for name, prompt in {"one": "{}", "two": "{} {}", **prompts}.items():
            (tmp_path / "prompts" / (name if "." in name else f"{name}.txt")).write_text(prompt)
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "services" / "s.yaml").write_bytes(data)
        folders = ServiceFolders(tmp_path / "services", tmp_path / "prompts")
        return ServiceLoader(folders, environ or {}).prepare(ServiceCatalog())

    return read


def only(catalog: ServiceCatalog) -> ServiceManifest:
    assert [str(problem) for problem in catalog.problems] == []
    (service,) = catalog.services.values()
    return service


def problems(catalog: ServiceCatalog) -> list[str]:
    """Returns the problems without the folder they are in."""
    return [re.sub(r"/\S*/(services|prompts)/", "", str(problem)) for problem in catalog.problems]


def test_the_readme_of_the_original_is_read_as_it_is(read: Read) -> None:
    """Every key has its meaning; the reduce prompt that is not used need not be there."""
    service = only(read(README, **{"summarize-en": "So far {} now {}"}))
    assert (service.id, service.name, service.route) == ("summarize/en", "summarize-en", "summarize/en")
    assert (service.strategy, service.fields, service.type) == (Strategy.ROLLING, 2, "summary")
    assert service.prompt.text == "So far {} now {}"
    flavor = service.flavor("llama")
    assert flavor is service.flavor() is not None
    assert service.flavor("other") is None
    assert (flavor.model, flavor.context_tokens, flavor.max_generation_tokens) == ("meta-llama-31-8b-it", 128000, 2048)
    assert (flavor.create_new_turn_after, flavor.summary_turns, flavor.max_new_turns) == (250, 3, 9)
    assert (flavor.temperature, flavor.top_p, flavor.reduce, flavor.consolidate) == (0.2, 0.7, False, False)
    assert flavor.type == "abstractive"


def test_the_document_for_clients_is_the_yaml(read: Read) -> None:
    """Types as in YAML, keys as they were written."""
    document = only(read(README, **{"summarize-en": "{} {}"})).document
    assert document["description"] == {"fr": "English summary"}
    flavor = document["flavor"][0]  # type: ignore[index]
    assert flavor["totalContextLength"] == 128000
    assert flavor["temperature"] == 0.2
    assert flavor["reduceSummary"] is False
    assert flavor["tokenizerClass"] == "LlamaTokenizer"


@pytest.mark.parametrize(
    ("text", "ids", "routes"),
    [
        ("one: {model: m}", ["one"], ["one"]),
        ("a: {model: m, prompt: one}\nb: {model: m, prompt: one}", ["a", "b"], ["a", "b"]),
        ("a/x: {model: m, prompt: one}", ["a/x"], ["a/x"]),
        ("/a/x/: {model: m, prompt: one}", ["a/x"], ["a/x"]),
        ("a: {x: {model: m, prompt: one}, y: {model: m, prompt: one}}", ["a/x", "a/y"], ["a/x", "a/y"]),
        ("a: {b: {c: {model: m, prompt: one}}}", ["a/b/c"], ["a/b/c"]),
        ("name: solo\nmodel: m\nprompt: one", ["solo"], ["solo"]),
        ("name: solo\nroute: /x/y/\nmodel: m\nprompt: one", ["solo"], ["x/y"]),
        ("name: solo\nprompt: one\nflavor: [{name: f, modelName: m}]", ["solo"], ["solo"]),
        ("fr: {model: m, prompt: one, route: summarize/fr}", ["fr"], ["summarize/fr"]),
        ("Résumé long: {model: m, prompt: one, name: r, route: resume}", ["Résumé long"], ["resume"]),
        ("services: {a: {model: m, prompt: one}, b: {c: {model: m, prompt: one}}}", ["a", "b/c"], ["a", "b/c"]),
        ("services: {model: m, prompt: one}", ["services"], ["services"]),
        ("defaults: [x]\na: {model: m, prompt: one}", ["a"], ["a"]),
        ("# nothing", [], []),
    ],
)
def test_files_hold_services_in_several_forms(read: Read, text: str, ids: list[str], routes: list[str]) -> None:
    """By id, in groups, one alone; the id is the route of a service that names none."""
    catalog = read(text)
    assert problems(catalog) == []
    assert list(catalog.services) == ids
    assert [service.route for service in catalog.services.values()] == routes
    for service in catalog.services.values():
        assert catalog.by_route(f"/{service.route}/") is service
        assert catalog.find(service.id) is catalog.find(service.name) is service


@pytest.mark.parametrize(
    ("text", "strategy", "fields"),
    [
        ("s: {model: m, prompt: one}", "auto", 1),
        ("s: {model: m, prompt: two}", "auto", 2),
        ("s: {model: m, prompt: one, fields: 1}", "map_reduce", 1),
        ("s: {model: m, prompt: two, fields: 2}", "rolling", 2),
        ("s: {model: m, prompt: two, fields: 2, strategy: auto}", "auto", 2),
        ("s: {model: m, prompt: two, strategy: rolling}", "rolling", 2),
        ("s: {model: m, prompt: one, strategy: extract, output: {type: json}}", "extract", 1),
        ("s: {model: m, prompt: two, strategy: single}", "single", 2),
    ],
)
def test_the_strategy_follows_from_what_is_written(read: Read, text: str, strategy: str, fields: int) -> None:
    """`strategy` decides, else `fields` as in the original, else it is automatic."""
    service = only(read(text))
    assert (service.strategy, service.fields) == (strategy, fields)


def test_our_own_keys(read: Read) -> None:
    """Models with fallbacks, limits, output with a schema, language, metadata, several flavors."""
    text = """
    actions:
      prompt: one
      model: big
      fallbacks: [small]
      language: fr-FR
      description: Tasks of a meeting
      limits: {max_input_tokens: 100000, max_calls: 50, timeout_s: 600, max_input_bytes: 1000000, max_parallel: 4}
      output:
        type: json
        schema: {type: object, properties: {tasks: {type: array, items: {type: string}}, n: {type: [integer, "null"]}}}
      metadata: {team: x, version: 2, "on": true, list: [1, a]}
      flavor:
        - name: fast
        - {name: good, model: other, fallbacks: [big, small], temperature: 0}
    """
    service = only(read(text))
    fast, good = service.flavors
    assert (fast.model, fast.fallbacks, fast.context_tokens) == ("big", ("small",), None)
    assert (good.model, good.fallbacks, good.temperature) == ("other", ("big", "small"), 0.0)
    assert service.models == ("big", "small", "other")
    assert service.language == "fr-FR"
    assert (service.limits.max_calls, service.limits.timeout_s, service.limits.max_parallel) == (50, 600.0, 4)
    assert service.output.type == "json"
    assert service.output.schema is not None
    assert service.output.schema["type"] == "object"
    assert service.metadata == {"team": "x", "version": 2, "on": True, "list": [1, "a"]}
    assert service.description == {"en": "Tasks of a meeting"}


def test_output_can_be_one_word(read: Read) -> None:
    """`output: markdown` is enough."""
    assert only(read("s: {model: m, prompt: one, output: markdown}")).output == OutputSpec("markdown")


def test_a_top_p_of_zero_is_left_to_the_model(read: Read) -> None:
    """The original applied it only above 0."""
    assert only(read("s: {prompt: one, flavor: [{name: f, modelName: m, top_p: 0}]}")).flavors[0].top_p is None


def test_yes_and_no_are_still_true_and_false(read: Read) -> None:
    """OmegaConf reads YAML 1.1; switches of its manifests keep their meaning."""
    text = "s: {prompt: one, flavor: [{name: f, modelName: m, reduceSummary: yes, consolidateSummary: Off}]}"
    flavor = only(read(text)).flavors[0]
    assert (flavor.reduce, flavor.consolidate) == (True, False)


def test_variables_of_the_environment_are_filled_in(read: Read) -> None:
    """Both forms, with defaults; a number from outside is a number."""
    text = """
    s:
      prompt: one
      flavor:
        - {name: a, modelName: "${oc.env:MODEL,fallback}", totalContextLength: "${oc.env:WINDOW}"}
        - {name: b, modelName: "${UNSET:-other}"}
    """
    service = only(read(text, {"MODEL": "from-env", "WINDOW": "4096"}))
    assert [flavor.model for flavor in service.flavors] == ["from-env", "other"]
    assert service.flavors[0].context_tokens == 4096


def test_jinja_prompts_serve_as_well(read: Read) -> None:
    """Both slots by name; what a service gives is there."""
    text = "s: {model: m, strategy: rolling, metadata: {k: v}}"
    prompt = "{{ previous }}{{ input }}{{ metadata['k'] }}{{ language }}{{ part }}{{ parts }}{{ output_schema }}"
    assert only(read(text, **{"s.j2": prompt})).fields == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: {model: m, prompt: one, tmperature: 1}", "s.yaml:1:28: a.tmperature: unknown key 'tmperature'"),
        ("a:\n  model: m\n  prompt: one\n  fields: 3", "s.yaml:4:11: a.fields: '3' is not accepted (accepted: a whole"),
        ("a: {prompt: one}", "s.yaml:1:4: a: the service names no model (accepted: model: …, or flavor"),
        ("a: {prompt: one, flavor: []}", "s.yaml:1:26: a.flavor: expected a list with one flavor or more"),
        ("a: {prompt: one, flavor: x}", "s.yaml:1:26: a.flavor: expected a list with one flavor or more"),
        ("a: {prompt: one, flavor: [{modelName: m}]}", "s.yaml:1:27: a.flavor[0].name: this key is required"),
        ("a: {prompt: one, flavor: [{name: f}]}", "s.yaml:1:27: a.flavor[0].modelName: this key is required"),
        (
            "a: {model: m, prompt: one, flavor: [{name: f}, {name: f}]}",
            "s.yaml:1:48: a.flavor[1].name: the flavor 'f' is given twice",
        ),
        (
            "a: {model: m, prompt: one, flavor: [{name: f, totalContextLength: 100, maxGenerationLength: 100}]}",
            "s.yaml:1:93: a.flavor[0].maxGenerationLength: the answer takes the whole context",
        ),
        ("a: {model: m, prompt: one, flavor: [{name: f, temperature: hot}]}", "expected a number, found 'hot'"),
        ("a: {model: m, prompt: one, flavor: [{name: f, top_p: 1.5}]}", "'1.5' is not accepted"),
        ("a: {model: m, prompt: one, strategy: magic}", "a.strategy: 'magic' is not accepted (accepted: auto, single"),
        (
            "a: {model: m, prompt: one, output: pdf}",
            "a.output.type: 'pdf' is not accepted (accepted: json, markdown, text",
        ),
        ("a: {model: m, prompt: one, output: {type: text, schema: {}}}", "a schema belongs to output of type json"),
        ("a: {model: m, prompt: one, output: {type: json, schema: 3}}", "a schema is keys and values"),
        ("a: {model: m, prompt: one, output: {type: json, schema: {type: objet}}}", "'type' is one of array, boolean"),
        (
            "a: {model: m, prompt: one, output: {type: json, schema: {properties: []}}}",
            "'properties' is keys and values",
        ),
        ("a: {model: m, prompt: one, output: {type: json, schema: {items: [1]}}}", "a part of a schema is keys and"),
        ("a: {model: m, prompt: one, language: french!}", "a.language: 'french!' is not accepted"),
        ("a: {model: m, prompt: one, limits: {max_calls: 0}}", "a.limits.max_calls: '0' is not accepted"),
        ("a: {model: m, prompt: one, metadata: [1]}", "a.metadata: expected keys and values"),
        ("a: {model: m, prompt: one, description: [x]}", "a.description: expected a text, or texts by language"),
        ("a: {model: m, prompt: ../../etc/passwd}", "a.prompt: '../../etc/passwd' is not accepted"),
        ("a: {model: m, prompt: one, route: a b}", "a.route: 'a b' is not accepted"),
        ("a b: {model: m, prompt: one}", "'a b' is not accepted (accepted: 1 to 8 words"),
        ("a: {model: m, prompt: missing}", "s.yaml:1:23: a.prompt: there is no prompt file"),
        ("a: {model: m}", "a.name: there is no prompt file"),
        ("model: m\nprompt: one", "name: this key is required: a file of one service says what it is called"),
        ("a: 3", "s.yaml:1:4: a: expected a service: keys and values"),
        ("- a", "s.yaml:1:1: the file holds a list"),
        ("a: {model: m, prompt: one}\nb: {model: m, prompt: one, route: a}", "b.route: the route 'a' is taken by the"),
        ("a: {model: m, prompt: one}\na: {model: m, prompt: one}", "s.yaml:2:1: a: the key 'a' is given twice"),
        (
            "a: {model: m, prompt: two, fields: 1}",
            "two.txt:1:1: a: the prompt has 2 slots {}; fields: 1 wants 1",
        ),
        ("a: {model: m, prompt: one, fields: 2}", "one.txt:1:1: a: the prompt has 1 slots {}; fields: 2 wants 2"),
        ("a: {model: m, prompt: none}", "none.txt:1:1: a: the prompt has 0 slots {}; the strategy 'auto' wants 1 or 2"),
        ("a: {model: m, prompt: two, strategy: map_reduce}", "the strategy 'map_reduce' wants 1"),
        ("a: {model: m, prompt: one, strategy: rolling}", "the strategy 'rolling' wants 2"),
        (
            "a: {model: m, prompt: two, fields: 2, strategy: extract}",
            "a.fields: the strategy 'extract' has no prompt of 2",
        ),
        (
            "a: {model: m, prompt: undefined}",
            "undefined.j2:1:1: a: the prompt uses 'nope', which is undefined (accepted:",
        ),
        (
            "a: {model: m, prompt: jinja, fields: 2}",
            "jinja.j2:1:1: a: the prompt uses input; fields: 2 wants 2 of prev",
        ),
        ("a: {model: m, prompt: called}", "called.j2:2:1: the prompt 'called': a prompt may not use calls"),
        (
            "a: {prompt: one, flavor: [{name: f, modelName: m, reduceSummary: true, reduce_prompt: gone}]}",
            "a.flavor[0].reduce_prompt: there is no prompt file",
        ),
        (
            "a: {prompt: one, flavor: [{name: f, modelName: m, reduceSummary: true, reduce_prompt: two}]}",
            "a.flavor[0].reduce_prompt: the reduce prompt has 2 slots; it wants 1",
        ),
        ("a: {model: '${NOPE}', prompt: one}", "s.yaml:1:12: a.model: the environment variable NOPE is not set"),
    ],
)
def test_a_mistake_is_told_with_its_place(read: Read, text: str, problem: str) -> None:
    """File, line, column, key, and what would be right; the service is not served."""
    catalog = read(
        text,
        none="nothing",
        **{"undefined.j2": "{{ nope }}", "jinja.j2": "{{ input }}", "called.j2": "x\n{{ input() }}"},
    )
    found = problems(catalog)
    assert any(problem in each for each in found), found
    assert "b" not in catalog.services


def test_one_wrong_service_of_a_file_leaves_the_others(read: Read) -> None:
    """Each stands by itself, and each mistake is told."""
    catalog = read("a: {model: m, prompt: one}\nb: {model: m, prompt: gone}\nc: {x: 1}\nd: {model: m, prompt: two}")
    assert list(catalog.services) == ["a", "d"]
    assert len(catalog.problems) >= 2


@pytest.mark.parametrize(
    "data",
    [
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"b{n}: &b{n} [{', '.join(['*a' if n == 0 else f'*b{n - 1}'] * 10)}]\n" for n in range(12)),
        "a: !!python/object/apply:os.system ['id']",
        "a: !!python/name:os.system",
        "a: !include /etc/passwd",
        "a:\n\tmodel: m",
        b"\xef\xbb\xbfa: {model: m}",
        "a: {model: m}".encode("utf-16"),
        b"a: \xff\xfe",
        b"\x00\x01\x02",
        "a: [",
        "a: {model: m}\n---\nb: {model: m}",
        "a: " + "[" * 10_000,
        "a: *nowhere",
        "&a a: *a",
        "? {x: 1}\n: y",
        "x" * 10_000_001,
    ],
    ids=lambda data: ascii(data[:20]),
)
def test_yaml_bombs_and_broken_files_are_refused(read: Read, data: str | bytes) -> None:
    """Row G3: aliases, tags, tabs, byte order marks, 10 MB, nesting; one problem with its file, nothing executed."""
    catalog = read(data)
    assert not catalog.services
    assert catalog.problems
    assert all("s.yaml" in str(problem) for problem in catalog.problems)


@pytest.mark.parametrize("value", ["no", "on", "1e3", "0x10", "012", "2026-01-01", "~x"])
def test_words_that_yaml_1_1_changes_stay_words(read: Read, value: str) -> None:
    """Row G3: in metadata `no` is text and 1e3 a number; nothing turns into a date."""
    found = only(read(f"s: {{model: m, prompt: one, metadata: {{k: {value}}}}}")).metadata["k"]
    assert found == (1000.0 if value == "1e3" else 12 if value == "012" else value)
