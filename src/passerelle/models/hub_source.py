"""Fetches models from a Hugging Face hub, through the ``huggingface_hub`` library.

The library brings the hub's rules with it: HF_TOKEN or a saved login, HF_ENDPOINT for a mirror, HF_HUB_OFFLINE, the
proxies, and its own cache, where a file that another program has fetched is taken from. What it does not do is go on
with a file that an earlier process left half-fetched; so a model file is fetched by its `http_get` into a part file of
ours, named by the file's SHA-256.

It is imported when first used: the import takes longer than most commands.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passerelle.models.fetched import (
    Fetched,
    Progress,
    PullFailed,
    UnknownModel,
    check_sha256,
    check_space,
    place,
    reported_space,
    sync,
)

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf\Z")
_SNAPSHOT_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*", "README.md")


@dataclass(frozen=True, slots=True)
class HubFile:
    """``file`` of a repository; None when it is ours to choose."""

    repo: str
    file: str | None


def parse_hub(text: str) -> HubFile:
    """Reads ``OWNER/REPO[/FILE]``. Raises UnknownModel when it is something else."""
    owner, _, rest = text.partition("/")
    name, _, file = rest.partition("/")
    if not _REPO.match(f"{owner}/{name}") or ".." in Path(file).parts:
        raise UnknownModel(f"hf:{text} is not of the form hf:OWNER/REPO[/FILE]")
    return HubFile(f"{owner}/{name}", file or None)


def fetch_from_hub(wanted: HubFile, folder: Path, parts: Path, progress: Progress) -> Fetched:
    """Fetches the wanted file, and its other shards if any, into ``folder``; half-fetched ones wait in ``parts``.

    Without a file name: the repository's only GGUF model, or everything a transformers model is made of when it has
    none. Raises PullFailed, one line, whatever the hub says; UnknownModel when there are several to choose from.
    """
    from huggingface_hub import HfApi, constants

    with _hub_errors(wanted):
        if constants.is_offline_mode():
            return _from_hub_cache(wanted, folder)
        info = HfApi().model_info(wanted.repo, files_metadata=True)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        chosen = choose_files(list(siblings), wanted)
        if not chosen:
            return _fetch_snapshot(wanted, info, folder)
        check_space(folder, sum(siblings[name].size or 0 for name in chosen))
        for name in chosen:
            _fetch_file(wanted.repo, info.sha or "main", siblings[name], folder, parts, progress)
    return Fetched(folder, chosen, info.sha)


def choose_files(names: list[str], wanted: HubFile) -> tuple[str, ...]:
    """Returns the files to fetch of a repository's ``names``, the one to load first; none for a snapshot.

    Raises PullFailed when the wanted file is not there, UnknownModel when there are several models and none is named.
    """
    models = _models(names)
    if wanted.file is not None:
        for files in models:
            if wanted.file in files:
                return files
        if wanted.file not in names:
            there = ", ".join(files[0] for files in models) or "none with a GGUF model"
            raise PullFailed(f"hf:{wanted.repo} has no file {wanted.file}; it has: {there}")
        return (wanted.file,)
    if len(models) > 1:
        listed = ", ".join(files[0] for files in models)
        raise UnknownModel(f"hf:{wanted.repo} has several models; name one of them, hf:{wanted.repo}/FILE: {listed}")
    return models[0] if models else ()


def _models(names: list[str]) -> list[tuple[str, ...]]:
    """Groups GGUF files: the shards of one model belong together. Projectors of vision models are not models."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.lower().endswith(".gguf") and not Path(name).name.lower().startswith("mmproj"):
            shard = _SHARD.match(name)
            groups.setdefault(f"{shard['stem']}-{shard['parts']}" if shard else name, []).append(name)
    return [tuple(files) for files in groups.values()]


def _fetch_file(repo: str, revision: str, sibling: RepoSibling, folder: Path, parts: Path, progress: Progress) -> None:
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    name, sha256 = sibling.rfilename, sibling.lfs.sha256 if sibling.lfs else None
    target = folder / name
    cached = try_to_load_from_cache(repo, name, revision=revision)
    if isinstance(cached, str):
        place(Path(cached), target)
    else:
        part = parts / f"{sha256 or revision + '-' + re.sub(r'[^A-Za-z0-9.]', '_', name)}.part"
        url = hf_hub_url(repo, name, revision=revision)
        with reported_space(parts), part.open("ab") as file:
            http_get(
                url,
                file,
                resume_size=file.tell(),
                headers=build_hf_headers(),
                expected_size=sibling.size,
                displayed_filename=name,
                tqdm_class=_bar_class(progress),
            )
        if sha256 is not None:
            check_sha256(part, sha256, f"hf:{repo}/{name}")
        sync(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)


def _fetch_snapshot(wanted: HubFile, info: ModelInfo, folder: Path) -> Fetched:
    from huggingface_hub import snapshot_download

    names = [sibling.rfilename for sibling in info.siblings or ()]
    if not any(name.endswith(".safetensors") for name in names):
        raise PullFailed(f"hf:{wanted.repo} holds neither a GGUF model nor safetensors")
    with reported_space(folder):
        snapshot_download(
            wanted.repo, revision=info.sha, local_dir=folder, allow_patterns=list(_SNAPSHOT_PATTERNS), tqdm_class=None
        )
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    kept = (name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in _SNAPSHOT_PATTERNS))
    first = "config.json"
    return Fetched(folder, (first, *sorted(name for name in kept if name != first)), info.sha)


def _from_hub_cache(wanted: HubFile, folder: Path) -> Fetched:
    from huggingface_hub import snapshot_download

    cached = Path(snapshot_download(wanted.repo, local_files_only=True))
    names = [str(path.relative_to(cached)) for path in cached.rglob("*") if path.is_file()]
    chosen = choose_files(names, wanted) or tuple(sorted(names, key=lambda name: (name != "config.json", name)))
    for name in chosen:
        place(cached / name, folder / name)
    return Fetched(folder, chosen, cached.name)


@contextmanager
def _hub_errors(wanted: HubFile) -> Iterator[None]:
    """Turns what the library raises into one line that says what to do."""
    import httpx2
    from huggingface_hub import constants, errors

    where = f"hf:{wanted.repo}"
    try:
        yield
    except errors.GatedRepoError:
        raise PullFailed(f"{where}: accept its terms on the hub's page, and set HF_TOKEN to a token of yours") from None
    except errors.RepositoryNotFoundError:
        raise PullFailed(f"{where}: no such repository, or a private one: check the name and HF_TOKEN") from None
    except (errors.EntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if isinstance(error, errors.RemoteEntryNotFoundError):
            raise PullFailed(f"{where}: the hub does not have {wanted.file}") from None
        if constants.is_offline_mode():
            raise PullFailed(
                f"{where} is not in the hub's cache here, and HF_HUB_OFFLINE forbids to fetch it"
            ) from None
        raise PullFailed(f"{where}: the hub at {constants.ENDPOINT} cannot be reached, or is none") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        advice = "; check HF_TOKEN" if status in (401, 403) else ""
        raise PullFailed(f"{where}: the hub answered {status}{advice}") from None
    except (httpx2.HTTPError, ConnectionError, TimeoutError):
        raise PullFailed(f"{where}: the hub at {constants.ENDPOINT} cannot be reached") from None
    except (errors.HFValidationError, errors.FileMetadataError) as error:
        raise PullFailed(f"{where}: {error}") from None


def _bar_class(progress: Progress) -> Any:
    """A class that looks like tqdm's to the hub's library, and reports to ``progress``."""

    class Bar:
        def __init__(
            self, *_: object, total: int | None = None, initial: int = 0, desc: str = "", **__: object
        ) -> None:
            progress.begin(desc, total, initial)
            self.update: Callable[[int], None] = progress.advance

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            progress.end()

        def close(self) -> None:
            """tqdm's; the context manager's exit has done it."""

    return Bar
