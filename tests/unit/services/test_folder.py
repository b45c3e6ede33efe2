"""A folder of services: as it lies there, as it changes, and with the last good one kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.harness.cpu import within_cpu
from tests.unit.services.test_manifest import README

from passerelle.services.folder import (
    ServiceCatalog,
    ServiceFolders,
    ServiceHolder,
    ServiceLoader,
    find_folders,
    folders_for,
)

ONE = "{name}: {{model: m, description: {text}}}"


class Folder:
    """Services and prompts on disk, and the catalog that was read from them last."""

    def __init__(self, root: Path) -> None:
        self.services = root / "services"
        self.prompts = root / "prompts"
        self.services.mkdir()
        self.prompts.mkdir()
        self.loader = ServiceLoader(ServiceFolders(self.services, self.prompts), {})
        self.catalog = ServiceCatalog()

    def write(self, name: str, text: str) -> Path:
        path = self.services / name
        path.write_text(text)
        return path

    def prompt(self, name: str, text: str = "Work on {}") -> Path:
        path = self.prompts / name
        path.write_text(text)
        return path

    def read(self) -> dict[str, str]:
        """Returns the description of each service."""
        self.catalog = self.loader.prepare(self.catalog)
        return {name: service.description.get("en", "") for name, service in self.catalog.services.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty folder."""
    return Folder(tmp_path)


def test_files_appear_change_move_and_go(folder: Folder) -> None:
    """Each state of the folder is what is served, new files included."""
    folder.prompt("a.txt")
    first = folder.write("a.yaml", "a: {model: m, description: one}")
    assert folder.read() == {"a": "one"}
    folder.prompt("b.txt")
    folder.write("b.yml", "b: {model: m}")
    assert folder.read() == {"a": "one", "b": ""}
    first.write_text("a: {model: m, description: two, name: a}")
    assert folder.read() == {"a": "two", "b": ""}
    first.rename(folder.services / "z.yaml")
    assert list(folder.read()) == ["b", "a"]
    (folder.services / "z.yaml").unlink()
    assert list(folder.read()) == ["b"]
    assert folder.catalog.problems == ()


def test_hidden_files_and_editors_copies_are_left_out(folder: Folder) -> None:
    """What begins with a dot, a hash or a tilde, or ends otherwise, is no manifest."""
    folder.prompt("a.txt")
    for name in (".a.yaml", "#a.yaml", "~a.yaml", "a.yaml~", "a.yaml.swp", "README.md"):
        folder.write(name, "a: {model: m}")
    (folder.services / "folder.yaml").mkdir()
    assert folder.read() == {}
    assert [problem.message for problem in folder.catalog.problems] == ["this is not a file"]


def test_a_wrong_file_keeps_its_last_good_services_and_no_other_is_touched(folder: Folder) -> None:
    """Row G1: the old one serves, the problem has file and line, and mending it ends both."""
    for name in ("a", "b", "c"):
        folder.prompt(f"{name}.txt")
    path = folder.write("ab.yaml", "a: {model: m, description: old}\nb: {model: m, description: old}")
    folder.write("c.yaml", "c: {model: m}")
    folder.read()
    path.write_text("a: {model: m, description: new}\nb: {model: m, descripton: new}")
    assert folder.read() == {"a": "new", "b": "old", "c": ""}
    assert folder.catalog.kept == {"b"}
    assert "ab.yaml:2:15: b.descripton: unknown key" in str(folder.catalog.problems[0])
    path.write_text("a: [")
    assert folder.read() == {"a": "new", "b": "old", "c": ""}
    assert folder.catalog.kept == {"a", "b"}
    path.write_text("a: {model: m, description: newer}")
    assert folder.read() == {"a": "newer", "c": ""}
    assert (folder.catalog.kept, folder.catalog.problems) == (frozenset(), ())


def test_a_file_that_is_written_anew_is_empty_for_a_moment(folder: Folder) -> None:
    """Its services serve on, and it is told; a file of comments only has no services, and is sound."""
    folder.prompt("a.txt")
    path = folder.write("a.yaml", "a: {model: m, description: one}")
    folder.read()
    path.write_text("")
    assert folder.read() == {"a": "one"}
    assert [problem.message for problem in folder.catalog.problems] == [
        "the file is empty: delete it if its services are to end"
    ]
    path.write_text("a: {model: m, description: two}")
    assert folder.read() == {"a": "two"}
    path.write_text("# a: {model: m, description: two}\n")
    assert (folder.read(), folder.catalog.problems) == ({}, ())


def test_a_service_that_was_never_right_is_not_served(folder: Folder) -> None:
    """There is no last good one."""
    folder.write("a.yaml", "a: {model: m}")
    assert folder.read() == {}
    assert "there is no prompt file" in str(folder.catalog.problems[0])


def test_prompts_are_followed_too(folder: Folder) -> None:
    """A changed prompt is new text, a wrong or missing one keeps the last good, a new one mends."""
    folder.write("a.yaml", "a: {model: m, fields: 1}")
    path = folder.prompt("a.txt", "first {}")
    folder.read()
    path.write_text("second, longer {}")
    folder.read()
    assert folder.catalog.services["a"].prompt.text == "second, longer {}"
    path.write_text("two {} slots {}")
    folder.read()
    assert folder.catalog.services["a"].prompt.text == "second, longer {}"
    assert "a.txt:1:1: a: the prompt has 2 slots {}; fields: 1 wants 1" in str(folder.catalog.problems[0])
    path.unlink()
    folder.read()
    assert folder.catalog.kept == {"a"}
    folder.prompt("a.j2", "{{ input }}!")
    folder.read()
    assert folder.catalog.services["a"].prompt.fill("x") == "x!"
    assert folder.catalog.problems == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"caf\xe9 {}", "the file is not UTF-8 text here"),
        (b"x" * 4_000_001, "the prompt is larger than 4,000,000 bytes"),
        (b"x" * 1_000_001, "longer than 1,000,000 characters"),
    ],
)
def test_a_prompt_file_that_is_no_text_is_told(folder: Folder, data: bytes, message: str) -> None:
    """At the file, whether a service uses it or not."""
    (folder.prompts / "p.txt").write_bytes(data)
    folder.read()
    (problem,) = folder.catalog.problems
    assert message in problem.message
    assert problem.mark.source.endswith("p.txt")


def test_a_byte_order_mark_and_windows_line_breaks_are_not_part_of_a_prompt(folder: Folder) -> None:
    """Editors write them; models should not read them."""
    folder.write("a.yaml", "a: {model: m}")
    (folder.prompts / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n{}\r\n")
    folder.read()
    assert folder.catalog.services["a"].prompt.text == "one\n{}\n"


def test_a_pipe_is_not_waited_for(folder: Folder) -> None:
    """Reading a pipe without a writer would block for ever."""
    os.mkfifo(folder.prompts / "p.txt")
    os.mkfifo(folder.services / "s.yaml")
    folder.read()
    assert [problem.message for problem in folder.catalog.problems] == ["this is not a file"] * 2


def test_who_has_a_route_keeps_it(folder: Folder) -> None:
    """A new file that comes earlier by name takes no id, route or name from a service that serves; it is told."""
    folder.prompt("a.txt")
    folder.write("m.yaml", "a: {model: m, description: m}")
    assert folder.read() == {"a": "m"}
    folder.write("b.yaml", "a: {model: m, description: b}")
    assert folder.read() == {"a": "m"}
    assert [str(each).partition("b.yaml")[2] for each in folder.catalog.problems] == [
        f":1:4: a: this service is given already, at {folder.services / 'm.yaml'}:1:4"
    ]
    folder.write("b.yaml", "b: {model: m, route: a, prompt: a}")
    assert folder.read() == {"a": "m"}
    assert [problem.key for problem in folder.catalog.problems] == ["b.route"]
    held = folder.catalog.by_route("a")
    assert held is not None and held.id == "a"
    folder.write("b.yaml", "b: {model: m, name: a}")
    assert list(folder.read()) == ["b", "a"]
    assert folder.catalog.find("a") is folder.catalog.services["a"]
    assert folder.catalog.problems == ()


def test_a_route_is_kept_while_its_file_is_wrong_and_free_once_it_is_gone(folder: Folder) -> None:
    """A newcomer waits for as long as the holder's file says that it is there, and then has the route."""
    folder.prompt("a.txt")
    path = folder.write("m.yaml", "a: {model: m, description: m}")
    folder.read()
    folder.write("b.yaml", "b: {model: m, route: a, prompt: a}")
    path.write_text("a: [")
    assert folder.read() == {"a": "m"}
    assert folder.catalog.kept == {"a"}
    path.write_text("a: {model: m, description: mended}")
    assert folder.read() == {"a": "mended"}
    path.unlink()
    assert list(folder.read()) == ["b"]
    held = folder.catalog.by_route("a")
    assert (held is not None and held.id, folder.catalog.problems) == ("b", ())


def test_services_change_places_and_one_that_cannot_move_stays(folder: Folder) -> None:
    """Two may swap their routes; one that wants another's route keeps its own, which no newcomer gets meanwhile."""
    folder.prompt("p.txt")
    text = "a: {{model: m, name: p, route: {0}}}\nb: {{model: m, name: p, route: {1}}}"
    folder.write("m.yaml", text.format("one", "two"))
    folder.read()
    folder.write("m.yaml", text.format("two", "one"))
    folder.read()
    assert {word: folder.catalog.by_route(word).id for word in ("one", "two")} == {"one": "b", "two": "a"}  # type: ignore[union-attr]
    folder.write("m.yaml", text.format("one", "one"))
    folder.write("a.yaml", "c: {model: m, name: p, route: two}")
    assert list(folder.read()) == ["a", "b"]
    assert folder.catalog.kept == {"a"}
    assert [problem.key for problem in folder.catalog.problems] == ["c.route", "a.route"]


def test_at_a_start_the_first_file_has_a_route(folder: Folder) -> None:
    """Whoever reads the folder for the first time finds the same service in it, and the same problem."""
    folder.prompt("p.txt")
    folder.write("n.yaml", "n: {model: m, name: p, route: r}")
    folder.write("b.yaml", "b: {model: m, name: p, route: r}")
    for _ in range(3):
        catalog = ServiceLoader(ServiceFolders(folder.services, folder.prompts), {}).prepare(ServiceCatalog())
        assert list(catalog.services) == ["b"]
        assert [problem.key for problem in catalog.problems] == ["n.route"]


def test_two_services_may_share_a_name_and_its_prompt(folder: Folder) -> None:
    """The original allowed it; the name means the first."""
    folder.prompt("p.txt")
    folder.write("a.yaml", "a: {model: m, name: p}\nb: {model: m, name: p}")
    assert set(folder.read()) == {"a", "b"}
    assert folder.catalog.find("p") is folder.catalog.services["a"]
    assert folder.catalog.find("b") is folder.catalog.services["b"]
    assert folder.catalog.find("nope") is None


def test_folders_that_are_not_there_hold_nothing(tmp_path: Path) -> None:
    """No services, no error: a gateway without services is a gateway."""
    catalog = ServiceLoader(find_folders(tmp_path / "nowhere"), {}).prepare(ServiceCatalog())
    assert (dict(catalog.services), catalog.problems) == ({}, ())


def hydra(root: Path) -> Path:
    (root / ".hydra-conf" / "services").mkdir(parents=True)
    (root / "prompts").mkdir()
    (root / "prompts" / "summarize-en.txt").write_text("Summarise {} {}")
    (root / ".hydra-conf" / "services" / "en.yaml").write_text(README)
    (root / ".hydra-conf" / "config.yaml").write_text(
        "defaults:\n  - _self_\n  - services: [en]\n"
        "prompt_path: ./prompts/\ndebug: false\n"
        "api_params:\n  api_base: ${oc.env:OPENAI_API_BASE,http://localhost:9000/v1}\n  token: ${oc.env:NOT_SET}\n"
        "backend_defaults:\n  name: null\n  top_p: null\n  temperature: 0.9\n  maxNewTurns: 4\n  service_name: x\n"
    )
    return root


def test_a_hydra_folder_is_read_as_it_is(tmp_path: Path) -> None:
    """The seed's layout: defaults list, prompt_path, backend_defaults; files that are not listed are served as well."""
    root = hydra(tmp_path)
    (root / ".hydra-conf" / "services" / "fr.yaml").write_text(
        "fr: {prompt: summarize-en, flavor: [{name: f, modelName: m}]}"
    )
    loader = ServiceLoader(find_folders(root), {})
    catalog = loader.prepare(ServiceCatalog())
    assert [str(problem) for problem in catalog.problems] == []
    assert list(catalog.services) == ["summarize/en", "fr"]
    fr, en = catalog.services["fr"].flavors[0], catalog.services["summarize/en"].flavors[0]
    assert (fr.temperature, fr.max_new_turns, fr.top_p) == (0.9, 4, None)
    assert (en.temperature, en.max_new_turns, en.top_p) == (0.2, 9, 0.7)


def test_the_hydra_folder_itself_can_be_named(tmp_path: Path) -> None:
    """Its prompts are beside it."""
    root = hydra(tmp_path)
    assert find_folders(root / ".hydra-conf") == find_folders(root)
    assert find_folders(root).prompts == root / "prompts"


def test_a_listed_service_without_a_file_is_told(tmp_path: Path) -> None:
    """The original would not have started."""
    root = hydra(tmp_path)
    config = root / ".hydra-conf" / "config.yaml"
    config.write_text(config.read_text().replace("[en]", "[en, fr]"))
    catalog = ServiceLoader(find_folders(root), {}).prepare(ServiceCatalog())
    assert "config.yaml:3:20: defaults.services: there is no file" in str(catalog.problems[0])
    assert list(catalog.services) == ["summarize/en"]


def test_new_defaults_reach_services_that_did_not_change(tmp_path: Path) -> None:
    """And a config.yaml that cannot be read leaves the last ones."""
    root = hydra(tmp_path)
    (root / ".hydra-conf" / "services" / "fr.yaml").write_text("fr: {prompt: summarize-en, model: m}")
    loader, config = ServiceLoader(find_folders(root), {}), root / ".hydra-conf" / "config.yaml"
    first = loader.prepare(ServiceCatalog())
    config.write_text(config.read_text().replace("0.9", "0.55"))
    second = loader.prepare(first)
    assert second.services["fr"].flavors[0].temperature == 0.55
    config.write_text("a: [")
    third = loader.prepare(second)
    assert third.services["fr"].flavors[0].temperature == 0.55
    assert "config.yaml" in str(third.problems[0])


def test_settings_say_where_services_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the configuration file, in the working folder, else in the home; or where the settings say."""
    config, home = tmp_path / "etc" / "passerelle.yaml", tmp_path / "home"
    assert folders_for(None, None, config, home).services == tmp_path / "etc" / "services"
    assert folders_for("../here", None, config, home).services == tmp_path / "etc" / ".." / "here" / "services"
    assert folders_for(None, "/prompts", config, home).prompts == Path("/prompts")
    monkeypatch.chdir(tmp_path)
    assert folders_for(None, None, None, home).services == home / "services"
    (tmp_path / "services").mkdir()
    assert folders_for(None, None, None, home).services == Path("services")


@pytest.mark.slow
def test_a_thousand_services_reload_within_a_second(folder: Folder) -> None:
    """All of them for the first time, and again when one has changed; processor time, for the machine may be busy."""
    for number in range(1000):
        folder.write(f"s{number}.yaml", README.replace("summarize", f"s{number}"))
        folder.prompt(f"s{number}-en.txt", "Summarise this.\n" * 30 + "{}\n{}\n")

    def read() -> dict[str, str]:
        folder.loader, folder.catalog = ServiceLoader(ServiceFolders(folder.services, folder.prompts), {}), empty
        return folder.read()

    empty = folder.catalog
    assert len(within_cpu(2, read)) == 1000  # half a second on a quiet machine
    folder.write("s7.yaml", README.replace("summarize", "s7").replace("0.2", "0.25"))
    within_cpu(1, folder.read)
    assert folder.catalog.services["s7/en"].flavors[0].temperature == 0.25


def test_a_swap_counts_generations_and_tells() -> None:
    """Listeners hear before and after; who held the old catalog still has it."""
    holder = ServiceHolder()
    heard: list[tuple[int, int]] = []
    stop = holder.subscribe(lambda before, after: heard.append((before.generation, after.generation)))
    old = holder.current
    holder.swap(ServiceCatalog())
    holder.swap(ServiceCatalog())
    stop()
    holder.swap(ServiceCatalog())
    assert heard == [(0, 1), (1, 2)]
    assert (old.generation, holder.current.generation) == (0, 3)
