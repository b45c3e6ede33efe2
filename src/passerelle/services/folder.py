"""A folder of services and prompts, followed while it changes.

    ROOT/services/*.yaml               manifests (`passerelle.services.written`)
    ROOT/prompts/NAME.txt|.md|.j2      prompts (`passerelle.services.prompts`)

    ROOT/.hydra-conf/config.yaml       as LinTO's LLM Gateway has it: its prompt_path and backend_defaults count,
    ROOT/.hydra-conf/services/*.yaml   and what its defaults list names must be there; other files are read all the same
    ROOT/prompts/NAME.txt

`ServiceLoader.prepare` reads everything that changed and never raises: a service that is wrong is told as a problem
with file, line and key, and the last good one of its name in that file serves on. A file that is gone takes its
services with it; one that is empty does not, for that is how many programs begin to write it. Of two services that
want one id or route, the one that has it keeps it; at the start, the one whose file comes first by name.
`ServiceHolder.swap` cannot fail.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from passerelle.catalog.document import Document, read_document
from passerelle.catalog.node import Scalar, Series, Table
from passerelle.catalog.problem import ConfigurationError, Mark, Problem, in_order, one_line
from passerelle.catalog.shape import Shaper
from passerelle.services.compile import FindPrompt, FoundPrompt, compile_service
from passerelle.services.manifest import ServiceManifest
from passerelle.services.prompts import SUFFIXES, PromptError, PromptTemplate, parse_prompt, syntax_of
from passerelle.services.schema import FlavorSection
from passerelle.services.written import WrittenService, read_services

MAX_FILES = 20_000
MAX_PROMPT_BYTES = 4_000_000
_YAML = (".yaml", ".yml")
State = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class ServiceFolders:
    """Where services are: the folder of manifests, that of prompts, and LinTO's ``config.yaml`` if there is one."""

    services: Path
    prompts: Path
    config: Path | None = None


@dataclass(frozen=True, slots=True)
class ServiceCatalog:
    """All services at one moment; immutable. ``services`` are by id, in the order of files.

    ``problems`` is what is wrong with the files now; ``kept`` are the ids of services that serve on as they last were
    because what their file says now cannot be used. ``generation`` counts the swaps.
    """

    services: Mapping[str, ServiceManifest] = field(default_factory=lambda: MappingProxyType({}))
    problems: tuple[Problem, ...] = ()
    kept: frozenset[str] = frozenset()
    generation: int = 0
    _routes: Mapping[str, ServiceManifest] = field(default_factory=lambda: MappingProxyType({}))
    _words: Mapping[str, ServiceManifest] = field(default_factory=lambda: MappingProxyType({}))
    """Services by each word they can be asked for with."""

    @classmethod
    def of(
        cls,
        services: Iterable[ServiceManifest],
        problems: Iterable[Problem] = (),
        kept: frozenset[str] = frozenset(),
        before: ServiceCatalog | None = None,
    ) -> ServiceCatalog:
        """Returns a catalog of these services.

        A word that is an id of one, the name or route of others means the one it meant ``before``, as long as that
        one has it; else ids come before names, names before routes, and the first service before the next.
        """
        found = {service.id: service for service in services}
        words: dict[str, ServiceManifest] = {}
        for word, old in before._words.items() if before is not None else ():
            same = found.get(old.id)
            if same is not None and word in (same.id, same.name, same.route):
                words[word] = same
        for kind in ("id", "name", "route"):
            for service in found.values():
                words.setdefault(getattr(service, kind), service)
        routes = {service.route: service for service in found.values()}
        return cls(
            MappingProxyType(found),
            tuple(problems),
            kept,
            _routes=MappingProxyType(routes),
            _words=MappingProxyType(words),
        )

    def by_route(self, route: str) -> ServiceManifest | None:
        """Returns the service of ``/services/{route}/generate``."""
        return self._routes.get(route.strip("/"))

    def find(self, name: str) -> ServiceManifest | None:
        """Returns the service of that id, name or route."""
        return self._words.get(name) or self.by_route(name)


@dataclass(frozen=True, slots=True)
class _File:
    """A manifest file as it was read. ``ids`` is None when it could not be read at all."""

    state: State
    services: tuple[WrittenService, ...] = ()
    ids: frozenset[str] | None = None
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt file as it was read: a template or a problem."""

    state: State
    template: PromptTemplate | None = None
    problem: Problem | None = None


def find_folders(root: Path) -> ServiceFolders:
    """Returns where the services of ``root`` are: it has ``services/``, or ``.hydra-conf/``, or is that itself."""
    conf = root / ".hydra-conf"
    if (root / "services").is_dir() and not (root / "config.yaml").is_file():
        return ServiceFolders(root / "services", root / "prompts")
    if conf.is_dir():
        return ServiceFolders(conf / "services", root / "prompts", conf / "config.yaml")
    if (root / "config.yaml").is_file() and (root / "services").is_dir():
        prompts = root / "prompts" if (root / "prompts").is_dir() else root.parent / "prompts"
        return ServiceFolders(root / "services", prompts, root / "config.yaml")
    return ServiceFolders(root / "services", root / "prompts")


def folders_for(folder: str | None, prompts: str | None, config: Path | None, home: Path) -> ServiceFolders:
    """Returns the folders that settings name, relative to the configuration file ``config``.

    Without ``folder``: where that file is; without a file the working folder if it has services, else ``home``.
    """
    beside = config.parent if config is not None else Path()
    root = beside / folder if folder is not None else beside
    if folder is None and config is None and not any((root / name).is_dir() for name in ("services", ".hydra-conf")):
        root = home
    found = find_folders(root)
    return found if prompts is None else replace(found, prompts=beside / prompts)


class ServiceLoader:
    """Reads the folders; what did not change since the last time is not read again. One thread at a time."""

    def __init__(self, folders: ServiceFolders, environ: Mapping[str, str]) -> None:
        self.folders = folders
        self._environ = environ
        self._files: dict[Path, _File] = {}
        self._prompts: dict[Path, _Prompt] = {}
        self._shaper = Shaper()
        self._defaults: tuple[State, Table | None] = ((), None)

    def state(self) -> State:
        """Returns what changes when any file of the folders does."""
        folders = self.folders
        files = [*_listed(folders.services, _YAML), *_listed(folders.prompts, SUFFIXES)]
        files += [folders.config] if folders.config is not None else []
        return tuple((str(path), _state_of(path)) for path in files)

    def watched(self) -> tuple[Path, ...]:
        """Returns the folders whose events matter, as far as they exist, and those their links lead to."""
        folders = self.folders
        wanted = [folders.services, folders.prompts, folders.services.parent]
        wanted += [folders.config.parent] if folders.config is not None else []
        found = {path for folder in wanted if folder.is_dir() for path in (folder.absolute(), folder.resolve())}
        return tuple(sorted(found))

    def prepare(self, before: ServiceCatalog) -> ServiceCatalog:
        """Returns what the files say now; where they cannot be used, what ``before`` has from the same file."""
        run = _Run(before)
        defaults = self._configuration(run)
        self._read_prompts(run)
        paths = _listed(self.folders.services, _YAML)
        if len(paths) > MAX_FILES:
            run.problems.append(
                Problem(Mark(str(self.folders.services)), "", f"there are more than {MAX_FILES:,} files")
            )
            paths = paths[:MAX_FILES]
        self._files = {path: self._read(path, defaults) for path in paths}
        run.take(self._files, self._find_prompt)
        return ServiceCatalog.of(run.services.values(), in_order(run.problems), frozenset(run.kept), before)

    def _read(self, path: Path, defaults: Table | None) -> _File:
        state = (_state_of(path), self._defaults[0])
        known = self._files.get(path)
        if known is not None and known.state == state:
            return known
        try:
            document = read_document(path, self._environ)
        except ConfigurationError as error:
            return _File(state, problems=error.problems)
        if not document.root.entries and _is_being_written(path, state[0]):
            message = "the file is empty: delete it if its services are to end"
            return _File(state, problems=(Problem(Mark(str(path), 1, 1), "", message),))
        self._shaper.problems = list(document.problems)
        services, ids = read_services(document, self._shaper, defaults)
        keys = [problem.key for problem in document.problems]
        touched = {service.id for service in services if any(_is_within(key, service.id) for key in keys)}
        sound = tuple(service for service in services if service.id not in touched and (touched or not keys))
        return _File(state, sound, ids, tuple(self._shaper.problems))

    def _read_prompts(self, run: _Run) -> None:
        paths = _listed(self.folders.prompts, SUFFIXES)[:MAX_FILES]
        fresh: dict[Path, _Prompt] = {}
        for path in paths:
            state = _state_of(path)
            known = self._prompts.get(path)
            fresh[path] = known if known is not None and known.state == state else _read_prompt(path, state)
        self._prompts = fresh
        run.problems.extend(prompt.problem for prompt in fresh.values() if prompt.problem is not None)

    def _find_prompt(self, name: str) -> FoundPrompt:
        paths = [self.folders.prompts / (name + suffix) for suffix in SUFFIXES]
        paths += [self.folders.prompts / name] if name.endswith(SUFFIXES) else []
        path = next((path for path in paths if path in self._prompts), paths[0])
        prompt = self._prompts.get(path)
        return FoundPrompt(path, prompt is not None, prompt.template if prompt is not None else None)

    def _configuration(self, run: _Run) -> Table | None:
        """Returns the flavor defaults of LinTO's ``config.yaml``, and follows its ``prompt_path``."""
        path = self.folders.config
        if path is None or not path.exists():
            return None
        try:
            document = read_document(path, self._environ)
        except ConfigurationError as error:
            run.problems.extend(error.problems)
            return self._defaults[1]
        used = ("defaults", "prompt_path", "backend_defaults")
        run.problems.extend(each for each in document.problems if each.key.startswith(used))
        self._follow_prompt_path(document, path)
        run.problems.extend(_missing(document, self.folders.services))
        defaults = document.root.get("backend_defaults")
        table = defaults if isinstance(defaults, Table) else None
        known = FlavorSection.__struct_encode_fields__
        if table is not None:
            table = Table(table.mark, {name: entry for name, entry in table.entries.items() if name in known})
        self._defaults = (_state_of(path), table)
        return table

    def _follow_prompt_path(self, document: Document, config: Path) -> None:
        written = document.root.get("prompt_path")
        if not isinstance(written, Scalar) or not written.text.strip():
            return
        given = Path(written.text.strip())
        tried = [given] if given.is_absolute() else [config.parent.parent / given, config.parent / given]
        found = next((folder for folder in tried if folder.is_dir()), None)
        if found is not None:
            self.folders = replace(self.folders, prompts=found)


class _Run:
    """One reading of everything.

    A route and an id belong to the service that has them now. So those that stay as they are come first, those that
    go on as they last were next, then those that moved, and newcomers last; what comes first among equals is in the
    file that comes first.
    """

    def __init__(self, before: ServiceCatalog) -> None:
        self.services: dict[str, ServiceManifest] = {}
        self.problems: list[Problem] = []
        self.kept: set[str] = set()
        self._before = before
        self._routes: dict[str, Mark] = {}

    def take(self, files: Mapping[Path, _File], find: FindPrompt) -> None:
        """Adds the services of all files, or what a file last had where it is wrong now."""
        compiled: list[ServiceManifest] = []
        for file in files.values():
            self.problems.extend(file.problems)
            services = (compile_service(written, find, self.problems) for written in file.services)
            compiled.extend(service for service in services if service is not None)
        ranked: tuple[list[ServiceManifest], ...] = ([], [], [])
        for service in compiled:
            ranked[self._rank(service)].append(service)
        stays, moved, newcomers = ranked
        for service in stays:
            self._claim(service)
        sound = {(service.mark.source, service.id) for service in compiled}
        for old in self._before.services.values():
            if (old.mark.source, old.id) not in sound and self._is_still_written(old, files):
                self._keep(old)
        for service in moved:
            if not self._claim(service):
                self._keep(self._before.services[service.id])
        for service in newcomers:
            self._claim(service)
        order = {str(path): place for place, path in enumerate(files)}
        found = sorted(self.services.values(), key=lambda each: (order[each.mark.source], each.mark.line or 0))
        self.services = {service.id: service for service in found}

    def _rank(self, service: ServiceManifest) -> int:
        """Returns 0 for a service that is where it was, 1 for one whose route is another now, 2 for a new one."""
        old = self._before.services.get(service.id)
        if old is None or old.mark.source != service.mark.source:
            return 2
        return 0 if old.route == service.route else 1

    @staticmethod
    def _is_still_written(old: ServiceManifest, files: Mapping[Path, _File]) -> bool:
        """Whether the file of a service still has it, or cannot be read."""
        file = files.get(Path(old.mark.source))
        return file is not None and (file.ids is None or old.id in file.ids)

    def _keep(self, old: ServiceManifest) -> None:
        if old.id not in self.services and old.route not in self._routes:
            self._routes[old.route] = old.mark
            self.services[old.id] = old
            self.kept.add(old.id)

    def _claim(self, service: ServiceManifest) -> bool:
        """Gives a service its id and route; False, and a problem, when they are another's."""
        other = self.services.get(service.id)
        if other is not None:
            self.problems.append(Problem(service.mark, service.id, f"this service is given already, at {other.mark}"))
            return False
        taken = self._routes.get(service.route)
        if taken is not None:
            message = f"the route '{service.route}' is taken by the service at {taken}"
            self.problems.append(Problem(service.mark, f"{service.id}.route", message))
            return False
        self._routes[service.route] = service.mark
        self.services[service.id] = service
        return True


Listener = Callable[[ServiceCatalog, ServiceCatalog], None]


class ServiceHolder:
    """Holds the current catalog; used from the event loop's thread only."""

    def __init__(self, catalog: ServiceCatalog | None = None) -> None:
        self._current = catalog or ServiceCatalog()
        self._listeners: list[Listener] = []

    @property
    def current(self) -> ServiceCatalog:
        """The catalog a new request uses; keep the reference for the whole request or job."""
        return self._current

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Calls ``listener`` with before and after at each swap. Returns what ends the subscription."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def swap(self, catalog: ServiceCatalog) -> ServiceCatalog:
        """Installs a catalog made by `ServiceLoader.prepare` and returns it with its generation. Cannot fail."""
        before = self._current
        self._current = replace(catalog, generation=before.generation + 1)
        for listener in tuple(self._listeners):
            listener(before, self._current)
        return self._current


def _listed(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Returns the files of a folder by name, hidden ones and editors' copies left out; none when it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return []
    wanted = [name for name in names if name.lower().endswith(suffixes) and not name.startswith((".", "#", "~"))]
    return [folder / name for name in sorted(wanted)]


def _state_of(path: Path) -> State:
    try:
        info = path.stat()
        return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
    except OSError:
        return ()


def _is_being_written(path: Path, before: object) -> bool:
    """Whether a file in which nothing was found is one that was emptied to be written anew."""
    now = _state_of(path)
    return now != before or now[2:3] == (0,)


def _read_prompt(path: Path, state: State) -> _Prompt:
    mark = Mark(str(path), 1, 1)
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            return _Prompt(state, problem=Problem(mark, "", "this is not a file"))
        if info.st_size > MAX_PROMPT_BYTES:
            message = f"the prompt is larger than {MAX_PROMPT_BYTES:,} bytes"
            return _Prompt(state, problem=Problem(mark, "", message))
        data = path.read_bytes()
    except OSError as error:
        return _Prompt(state, problem=Problem(mark, "", f"the file cannot be read: {error.strerror}"))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return _Prompt(state, problem=Problem(Mark(str(path), line, 1), "", "the file is not UTF-8 text here"))
    try:
        return _Prompt(state, parse_prompt(text.replace("\r\n", "\n"), path.stem, syntax_of(path)))
    except PromptError as error:
        return _Prompt(state, problem=Problem(Mark(str(path), error.line or 1, 1), "", error.message))


def _is_within(key: str, service: str) -> bool:
    """Whether the path of a key leads into a service; those of a group are written one in another."""
    return any(key == path or key.startswith((f"{path}.", f"{path}[")) for path in (service, service.replace("/", ".")))


def _missing(document: Document, services: Path) -> Iterable[Problem]:
    """Yields the services that the defaults list names and that have no file."""
    defaults = document.root.get("defaults")
    for item in defaults.items if isinstance(defaults, Series) else ():
        named = item.get("services") if isinstance(item, Table) else None
        for each in named.items if isinstance(named, Series) else [named]:
            if isinstance(each, Scalar) and not any((services / (each.text + suffix)).exists() for suffix in _YAML):
                message = f"there is no file {services / (each.text + '.yaml')}"
                yield Problem(each.mark, "defaults.services", one_line(message))
