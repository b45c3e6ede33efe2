"""One OpenAI server for every model that a service names and the catalog does not know (``services.api_base``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from passerelle.catalog.snapshot import Snapshot
from passerelle.domain.model import Model, Target

ENGINE = "openai"
_MARK = "services.api_base:"
"""How the ids of such targets begin."""


class ServiceUpstream:
    """``url`` is the base of an OpenAI server, with its ``/v1``; None when there is none."""

    def __init__(self, url: str | None, api_key: str | None = None) -> None:
        self._url = None if url is None else url.rstrip("/")
        self._api_key = api_key

    def extend(self, snapshot: Snapshot, names: Iterable[str]) -> Snapshot:
        """Returns the snapshot with a model for each of the names that it does not know, and for no others.

        The very snapshot when that changes nothing.
        """
        if self._url is None:
            return snapshot
        known = self.without(snapshot.models)
        whole = Snapshot(known)
        missing = [name for name in dict.fromkeys(names) if whole.resolve(name) is None]
        models = known | {name: self._model(name) for name in missing}
        return snapshot if models == dict(snapshot.models) else replace(snapshot, models=models)

    @staticmethod
    def without(models: Mapping[str, Model]) -> dict[str, Model]:
        """Returns the models that are not from here."""
        return {name: model for name, model in models.items() if not _is_ours(model)}

    def _model(self, name: str) -> Model:
        assert self._url is not None
        target = Target(f"{_MARK}{name}", self._url, ENGINE, name, api_key=self._api_key)
        return Model(name, (target,))


def _is_ours(model: Model) -> bool:
    return any(target.id.startswith(_MARK) for target in model.targets)
