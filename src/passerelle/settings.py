"""The settings of a process: read once from a file, the environment and options; frozen.

The only place that reads the environment, apart from children's own entry points and the Hugging Face client's
``HF_*``. Each key's rule, unit and description stand at the key; ``docs/configuration.md`` is written from them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from passerelle.catalog.compile import CATALOG_KEYS, examine
from passerelle.catalog.document import Document
from passerelle.catalog.guardrails import GuardrailSection, read_guardrails
from passerelle.catalog.holder import Reloaded
from passerelle.catalog.linto import add_linto, find_linto
from passerelle.catalog.node import Entry, Scalar
from passerelle.catalog.problem import ConfigurationError, Mark, Problem
from passerelle.catalog.schema import SECONDS, ModelSection, Word
from passerelle.catalog.shape import Section, Shaper
from passerelle.catalog.snapshot import Snapshot
from passerelle.catalog.sources import gather
from passerelle.domain.model import Model
from passerelle.guardrails.guardrail import CompiledGuardrails, compile_guardrail

BYTES = {"unit": "bytes"}
_BYTE, _GROUP = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)", "[0-9A-Fa-f]{1,4}"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}(/(3[0-2]|[12]?\d))?"
_IPV6 = "|".join(
    [f"({_GROUP}:){{7}}{_GROUP}", f"({_GROUP}:){{1,7}}:", f":(:{_GROUP}){{1,7}}", "::"]
    + [rf"::[fF]{{4}}:{_BYTE}(\.{_BYTE}){{3}}"]
    + [f"({_GROUP}:){{1,{7 - n}}}(:{_GROUP}){{1,{n}}}" for n in range(1, 7)]
)
NETWORK = rf"^({_IPV4}|({_IPV6})(/(12[0-8]|1[01]\d|[1-9]?\d))?)\Z"
"""An address or a network, IPv4 or IPv6, as a regular expression: `ipaddress.ip_network` takes all that it does."""
REDIS_FORMS = "redis://host:port/number, rediss://…, valkey://…, unix:///path"
DATABASE_FORMS = "sqlite, sqlite:///path, postgresql://user:password@host:port/name"


class ServerSection(Section, frozen=True, kw_only=True):
    """Where and how Passerelle listens."""

    host: Annotated[str, Meta(pattern=r"^[^\s/@]{1,255}\Z", description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="Port to listen on; 0 takes any free one.")] = 8000
    workers: Annotated[int, Meta(ge=1, le=256, description="Processes that serve requests.")] = 1
    max_body_bytes: Annotated[
        int, Meta(ge=1024, le=4_294_967_296, description="Larger requests get 413.", extra=BYTES)
    ] = 20 * 1024 * 1024
    head_timeout_s: Annotated[
        float, Meta(gt=0, le=3600, description="For the whole head of a request to arrive.", extra=SECONDS)
    ] = 10.0
    body_min_rate_bytes_s: Annotated[
        int,
        Meta(
            ge=1,
            le=1_073_741_824,
            description="A body that arrives more slowly is given up.",
            extra={"unit": "bytes a second"},
        ),
    ] = 16 * 1024
    keep_alive_s: Annotated[
        float, Meta(gt=0, le=86_400, description="An idle connection is kept open this long.", extra=SECONDS)
    ] = 75.0
    max_connections: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Connections of one worker; more are refused.")
    ] = 10_000
    grace_s: Annotated[
        float, Meta(ge=0, le=86_400, description="Running answers may take this long to finish at stop.", extra=SECONDS)
    ] = 30.0
    request_timeout_s: Annotated[
        float, Meta(gt=0, le=86_400, description="For one request, queue and retries included.", extra=SECONDS)
    ] = 600.0
    trusted_hosts: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^(\*\.)?[A-Za-z0-9._:\[\]\-]{1,255}\Z")], ...],
        Meta(description="Values of `Host` that are answered, `*.example.org` included; empty for any valid one."),
    ] = ()
    trusted_proxies: Annotated[
        tuple[
            Annotated[str, Meta(pattern=NETWORK, extra={"accepted": "an address or a network: 10.0.0.7, 10.0.0.0/8"})],
            ...,
        ],
        Meta(description="Proxies whose `X-Forwarded-For` tells where a caller is; addresses or networks."),
    ] = ()
    trusted_origins: Annotated[
        tuple[
            Annotated[
                str,
                Meta(
                    pattern=r"^(\*|https?://[^\s/@?#]{1,255})\Z",
                    extra={"accepted": "https://app.example.org, or * for any"},
                ),
            ],
            ...,
        ],
        Meta(
            description="Other origins whose pages may read answers (CORS) and open websockets; "
            "`*` for any: for a private network only."
        ),
    ] = ()
    name: Annotated[
        str, Meta(min_length=1, max_length=200, description="What the API calls itself in its description.")
    ] = "Passerelle"
    docs_path: Annotated[
        str,
        Meta(pattern=r"^/[A-Za-z0-9/_.\-]{0,200}\Z", description="A further address of the API's description."),
    ] = "/docs"


class MailSection(Section, frozen=True, kw_only=True):
    """The mail server that takes letters with links for new passwords."""

    host: Annotated[str, Meta(pattern=r"^[^\s/@]{1,255}\Z", description="Name or address of the SMTP server.")]
    sender: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~\-]{1,64}@[A-Za-z0-9.\-]{1,253}\Z",
            description="Address that letters come from.",
            extra={"accepted": "an e-mail address: passerelle@example.org"},
        ),
    ]
    port: Annotated[int, Meta(ge=1, le=65_535, description="Its port.")] = 587
    security: Annotated[
        Literal["tls", "starttls", "none"], Meta(description="Encryption from the start, by upgrade, or without.")
    ] = "starttls"
    username: Annotated[str, Meta(min_length=1, max_length=320, description="User at the server.")] | None = None
    password: (
        Annotated[str, Meta(min_length=1, max_length=1000, description="Their password.", extra={"secret": True})]
        | None
    ) = None


RoleWord = Literal["owner", "admin", "member", "viewer", "auditor"]
_URL = r"^https?://[^\s/@?#]{1,253}(/[^\s?#]*)?\Z"
_CLAIM = r"^[!-~]{1,255}\Z"


class OidcSection(Section, frozen=True, kw_only=True):
    """The identity provider where people sign on (OpenID Connect)."""

    issuer: Annotated[
        str,
        Meta(
            pattern=_URL, description="Its address, as its discovery document writes it.", extra={"accepted": "a URL"}
        ),
    ]
    client_id: Annotated[str, Meta(pattern=_CLAIM, description="What Passerelle is called there.")]
    client_secret: (
        Annotated[str, Meta(min_length=1, max_length=1000, description="Its secret there.", extra={"secret": True})]
        | None
    ) = None
    audience: (
        Annotated[
            str,
            Meta(
                pattern=_CLAIM, description="Bearer tokens for this audience are taken by the API; none when left out."
            ),
        ]
        | None
    ) = None
    scopes: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[!#-\[\]-~]{1,100}\Z")], ...],
        Meta(description="What is asked of the provider; `openid` has to be there."),
    ] = ("openid", "profile", "email")
    role_claim: (
        Annotated[str, Meta(pattern=_CLAIM, description="Claim that tells roles: `groups`, `realm_access.roles`.")]
        | None
    ) = None
    roles: Annotated[dict[str, RoleWord], Meta(description="Value of that claim -> role; the most powerful wins.")] = (
        msgspec.field(default_factory=dict)
    )
    default_role: (
        Annotated[RoleWord, Meta(description="Role of people whom no value gives one; refused when left out.")] | None
    ) = None
    organisation_claim: (
        Annotated[str, Meta(pattern=_CLAIM, description="Claim that tells the organisation.")] | None
    ) = None
    organisations: Annotated[dict[str, str], Meta(description="Value of that claim -> id of an organisation.")] = (
        msgspec.field(default_factory=dict)
    )
    organisation: Annotated[
        str, Meta(min_length=1, max_length=100, description="Organisation of people whom no value gives one.")
    ] = "default"
    project_claim: (
        Annotated[str, Meta(pattern=_CLAIM, description="Claim that confines people to a project.")] | None
    ) = None
    projects: Annotated[dict[str, str], Meta(description="Value of that claim -> id of a project.")] = msgspec.field(
        default_factory=dict
    )
    name_claim: Annotated[str, Meta(pattern=_CLAIM, description="Claim with people's names.")] | None = None
    create_users: Annotated[bool, Meta(description="Make an account at a person's first sign-on.")] = True
    ca_file: (
        Annotated[Word, Meta(description="Certificate authorities of the provider, PEM; else the system's.")] | None
    ) = None


class AuthSection(Section, frozen=True, kw_only=True):
    """Who may call."""

    required: Annotated[
        bool,
        Meta(
            description="Whether a request needs a key. `false` lets requests without one call models and services: "
            "for a private network only."
        ),
    ] = True
    api_key: (
        Annotated[
            str,
            Meta(
                min_length=16,
                max_length=1000,
                pattern=r"^[!-~]+\Z",
                description="One static key beside those in the database (`PASSERELLE_API_KEY`).",
                extra={"secret": True, "accepted": "16 to 1,000 printable ASCII characters without spaces"},
            ),
        ]
        | None
    ) = None
    public_url: (
        Annotated[
            str,
            Meta(
                pattern=_URL,
                description="Address that people's browsers use; `auth.mail` and `auth.oidc` need it. With https, "
                "cookies are sent by https only.",
                extra={"accepted": "a URL: https://llm.example.org"},
            ),
        ]
        | None
    ) = None
    passwords: Annotated[bool, Meta(description="People may sign in with a password.")] = True
    registration: Annotated[bool, Meta(description="People may ask for an account; an admin must confirm it.")] = True
    registration_organisation: Annotated[
        str, Meta(min_length=1, max_length=100, description="Organisation of people who registered.")
    ] = "default"
    session_lifetime_s: Annotated[
        float, Meta(ge=60, le=2_592_000, description="A session ends, however busy.", extra=SECONDS)
    ] = 86_400.0
    session_idle_s: Annotated[
        float, Meta(ge=120, le=2_592_000, description="A session that is not used ends.", extra=SECONDS)
    ] = 7_200.0
    after_sign_in: Annotated[
        str, Meta(pattern=r"^/(?![/\\])[!-~]*\Z", description="Page that people see after the provider sent them back.")
    ] = "/"
    mail: Annotated[MailSection, Meta(description="The mail server for links; none when left out.")] | None = None
    oidc: Annotated[OidcSection, Meta(description="The identity provider; none when left out.")] | None = None


class AccountingSection(Section, frozen=True, kw_only=True):
    """How usage rows are written."""

    flush_interval_s: Annotated[
        float, Meta(gt=0, le=60, description="Rows are gathered this long before they are written.", extra=SECONDS)
    ] = 0.2
    currency: Annotated[
        str, Meta(pattern=r"^[A-Za-z]{1,16}\Z", description="What prices and budgets are in: `EUR`, `credits`.")
    ] = "EUR"
    durability: Annotated[
        Literal["batch", "strict"],
        Meta(
            description="`batch` loses at most the last `flush_interval_s` when the process is killed; with `strict` "
            "an answer ends only when its usage row is on disk."
        ),
    ] = "batch"
    keep_days: (
        Annotated[
            float,
            Meta(
                ge=1,
                le=36_500,
                description="Usage rows older than this are deleted, their sums by hour and day are kept; all are kept "
                "when left out.",
                extra={"unit": "days"},
            ),
        ]
        | None
    ) = None


class QueueSection(Section, frozen=True, kw_only=True):
    """Requests that wait for a place at a model."""

    max_waiting: Annotated[int, Meta(ge=0, le=1_000_000, description="Requests waiting per model; more get 503.")] = (
        1000
    )
    max_wait_s: Annotated[
        float, Meta(gt=0, le=86_400, description="A request that waited longer gets 503.", extra=SECONDS)
    ] = 60.0


class RetrySection(Section, frozen=True, kw_only=True):
    """Further attempts after a target failed before its first byte."""

    max_extra_attempts: Annotated[int, Meta(ge=0, le=10, description="Attempts beside the first.")] = 2
    budget_ratio: Annotated[
        float, Meta(ge=0, le=1, description="Extra load all attempts of a model may add, as a fraction.")
    ] = 0.2


class HealthSection(Section, frozen=True, kw_only=True):
    """When a target is left alone."""

    failures: Annotated[int, Meta(ge=1, le=1000, description="Failures in a row that put a target out.")] = 5
    eject_s: Annotated[
        float, Meta(gt=0, le=3600, description="First time out; the n-th lasts n times as long.", extra=SECONDS)
    ] = 10.0
    max_eject_s: Annotated[float, Meta(gt=0, le=86_400, description="Longest time out.", extra=SECONDS)] = 300.0
    probe_interval_s: Annotated[
        float, Meta(gt=0, le=3600, description="Between two probes of a target.", extra=SECONDS)
    ] = 5.0
    probe_timeout_s: Annotated[float, Meta(gt=0, le=600, description="For one probe.", extra=SECONDS)] = 2.0


class ServicesSection(Section, frozen=True, kw_only=True):
    """Where declarative services are, and how they call models."""

    folder: (
        Annotated[
            Word,
            Meta(
                description="The folder that holds `services/` and `prompts/`, or `.hydra-conf/`; relative to the "
                "configuration file. Beside that file when left out."
            ),
        ]
        | None
    ) = None
    prompts: Annotated[Word, Meta(description="The folder of prompts, where it is elsewhere.")] | None = None
    max_retries: Annotated[
        int, Meta(ge=0, le=100, description="How often one call of a model is made again when its server is away.")
    ] = 6
    max_retry_delay_s: Annotated[
        float, Meta(gt=0, le=3600, description="The longest wait between two of these.", extra=SECONDS)
    ] = 10.0
    font: (
        Annotated[
            Word,
            Meta(
                description="A TrueType font for PDF in other scripts than Western ones; one of the system's "
                "when left out."
            ),
        ]
        | None
    ) = None
    call_timeout_s: (
        Annotated[
            float,
            Meta(
                gt=0,
                le=86_400,
                description="For one call of a model by a service; `server.request_timeout_s` when left out.",
                extra=SECONDS,
            ),
        ]
        | None
    ) = None
    max_parallel_calls: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=100_000,
                description="Calls of models by all services of one process at once; what the models bear when left "
                "out.",
            ),
        ]
        | None
    ) = None
    api_base: (
        Annotated[
            str,
            Meta(
                pattern=_URL,
                description="An OpenAI server for every model that a service names and `models` does not.",
                extra={"accepted": "a URL: http://vllm:8000/v1"},
            ),
        ]
        | None
    ) = None
    api_key: (
        Annotated[str, Meta(min_length=1, max_length=1000, description="Its key.", extra={"secret": True})] | None
    ) = None
    ws_polling_interval_s: Annotated[
        float, Meta(ge=0.01, le=3600, description="How often `/ws/results` sends a job's state again.", extra=SECONDS)
    ] = 3.0


class OpeaSection(Section, frozen=True, kw_only=True):
    """The OPEA dialect."""

    name: Annotated[Word, Meta(description="The service's name in `/v1/health_check` and `/v1/statistics`.")] = (
        "opea_service@llm"
    )
    stream_format: Annotated[
        Literal["opea", "openai"], Meta(description="Frames of its streams: `data: b'…'`, or OpenAI's chunks.")
    ] = "opea"


class FilesSection(Section, frozen=True, kw_only=True):
    """Files that clients upload, and what batches make of them."""

    max_file_bytes: Annotated[
        int, Meta(ge=1024, le=4_294_967_296, description="Larger uploads get 413.", extra=BYTES)
    ] = 200 * 1024 * 1024
    quota_bytes: Annotated[
        int,
        Meta(ge=1024, le=2**50, description="All files of one organisation; more get 429.", extra=BYTES),
    ] = 10 * 1024**3
    retain_s: Annotated[
        float,
        Meta(
            ge=3600,
            le=315_360_000,
            description="Files of batches are kept this long, unless their upload says else.",
            extra=SECONDS,
        ),
    ] = 30 * 86_400.0


class ResponsesSection(Section, frozen=True, kw_only=True):
    """Answers of `/v1/responses` that are kept."""

    retain_s: Annotated[float, Meta(ge=60, le=315_360_000, description="How long.", extra=SECONDS)] = 30 * 86_400.0


class JobsSection(Section, frozen=True, kw_only=True):
    """Work that outlives the request that asked for it."""

    engine: Annotated[
        Literal["local", "celery"],
        Meta(description="Who runs jobs: the serving processes themselves, or Celery workers (`passerelle worker`)."),
    ] = "local"
    concurrency: Annotated[int, Meta(ge=1, le=1000, description="Jobs that one process runs at once.")] = 16
    broker: Annotated[
        str,
        Meta(
            pattern=r"^(rediss?|amqps?)://.",
            description="Where Celery's messages go.",
            extra={"secret": True, "accepted": "redis://host:port/number, amqp://user:password@host:port/vhost"},
        ),
    ] = "redis://127.0.0.1:6379/0"
    retain_s: Annotated[
        float, Meta(gt=0, le=315_360_000, description="Jobs that ended are kept this long.", extra=SECONDS)
    ] = 30 * 86_400.0
    lease_s: Annotated[
        float,
        Meta(ge=0.3, le=3600, description="A worker not heard of for so long has lost its jobs.", extra=SECONDS),
    ] = 30.0
    webhook_networks: Annotated[
        tuple[
            Annotated[str, Meta(pattern=NETWORK, extra={"accepted": "an address or a network: 10.0.0.7, 10.0.0.0/8"})],
            ...,
        ],
        Meta(description="Private networks that webhooks may reach; public addresses they always may."),
    ] = ()
    failpoint: (
        Annotated[
            str,
            Meta(
                pattern=r"^[a-z_]+(:[1-9][0-9]*)?\Z",
                description="For tests: a place in the code where the process ends as in a power cut "
                "(`PASSERELLE_FAILPOINT`).",
                extra={"accepted": "after_claim, or after_step:3 for the third time"},
            ),
        ]
        | None
    ) = None


class FetchSection(Section, frozen=True, kw_only=True):
    """Pictures that chats name by address."""

    max_pictures: Annotated[
        int, Meta(ge=0, le=1000, description="Fetched for one request; with 0 none is, and pictures are sent inline.")
    ] = 16
    max_bytes: Annotated[int, Meta(ge=1024, le=15_000_000, description="One picture.", extra=BYTES)] = 15_000_000
    max_total_bytes: Annotated[
        int, Meta(ge=1024, le=1_000_000_000, description="All pictures of one request.", extra=BYTES)
    ] = 30_000_000
    timeout_s: Annotated[
        float, Meta(gt=0, le=600, description="For one picture, redirects included.", extra=SECONDS)
    ] = 10.0
    allow_networks: Annotated[
        tuple[
            Annotated[str, Meta(pattern=NETWORK, extra={"accepted": "an address or a network: 10.0.0.7, 10.0.0.0/8"})],
            ...,
        ],
        Meta(description="Private networks that hold pictures; public addresses may always be asked."),
    ] = ()
    allow_ports: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=65_535)], ...],
        Meta(description="Ports that may be asked beside 80 for http and 443 for https."),
    ] = ()


class LoggingSection(Section, frozen=True, kw_only=True):
    """What is logged, and where to."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least severity.")] = "info"
    format: Annotated[Literal["text", "json"], Meta(description="For people, or for machines.")] = "text"
    file: (
        Annotated[Word, Meta(description="A file that is written to in place of standard error; its folder is made.")]
        | None
    ) = None
    slow_request_s: Annotated[
        float, Meta(gt=0, le=86_400, description="Requests slower than this are logged with timings.", extra=SECONDS)
    ] = 10.0


class Keys(Section, frozen=True, kw_only=True):
    """Every setting but the models."""

    server: Annotated[ServerSection, Meta(description="Where and how Passerelle listens.")] = ServerSection()
    database: Annotated[
        str,
        Meta(
            pattern=r"^(sqlite\Z|sqlite(\+aiosqlite)?:///.|postgres(ql)?(\+asyncpg)?://.)",
            description="`sqlite` for a file in the home folder, or a URL (`DATABASE_URL` when left out).",
            extra={"secret": True, "accepted": DATABASE_FORMS},
        ),
    ] = "sqlite"
    redis: Annotated[
        str,
        Meta(
            pattern=r"^(\Z|(rediss?|valkeys?|unix)://.)",
            description="A Redis or Valkey that several machines share limits by (`REDIS_URL` when left out).",
            extra={"secret": True, "accepted": REDIS_FORMS},
        ),
    ] = ""
    auth: Annotated[AuthSection, Meta(description="Who may call.")] = AuthSection()
    accounting: Annotated[AccountingSection, Meta(description="How usage rows are written.")] = AccountingSection()
    queue: Annotated[QueueSection, Meta(description="Requests that wait for a place at a model.")] = QueueSection()
    retry: Annotated[
        RetrySection, Meta(description="Further attempts after a target failed before its first byte.")
    ] = RetrySection()
    health: Annotated[HealthSection, Meta(description="When a target is left alone.")] = HealthSection()
    services: Annotated[
        ServicesSection, Meta(description="Where declarative services are, and how they call models.")
    ] = ServicesSection()
    opea: Annotated[OpeaSection, Meta(description="The OPEA dialect.")] = OpeaSection()
    files: Annotated[FilesSection, Meta(description="Files that clients upload, and what batches make of them.")] = (
        FilesSection()
    )
    responses: Annotated[ResponsesSection, Meta(description="Answers of `/v1/responses` that are kept.")] = (
        ResponsesSection()
    )
    jobs: Annotated[JobsSection, Meta(description="Work that outlives the request that asked for it.")] = JobsSection()
    fetch: Annotated[
        FetchSection, Meta(description="Pictures that chats name: [dialects.md](dialects.md#pictures).")
    ] = FetchSection()
    logging: Annotated[LoggingSection, Meta(description="What is logged, and where to.")] = LoggingSection()


class ConfigurationFile(Keys, frozen=True, kw_only=True):
    """What may stand in a configuration file."""

    models: Annotated[
        tuple[ModelSection, ...],
        Meta(description="The models that are served; the embedded ones when this key is left out."),
    ] = ()
    guardrails: Annotated[
        tuple[GuardrailSection, ...],
        Meta(description="Checks that calls pass before and after the model: [guardrails.md](guardrails.md)."),
    ] = ()
    models_file: (
        Annotated[
            Word,
            Meta(description="An `llm_routing_table.json` of Albert that names further models."),
        ]
        | None
    ) = None


class Settings(Keys, frozen=True, kw_only=True):
    """All settings of a process, frozen. ``home`` is the folder of database, keys and model files."""

    home: Path


@dataclass(frozen=True, slots=True)
class Configuration:
    """All that was configured.

    ``files`` are what it was read from, to be watched; ``config`` is the main one; ``flags`` are the options.
    """

    settings: Settings
    snapshot: Snapshot
    config: Path | None
    files: tuple[Path, ...]
    flags: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


def load_configuration(
    config: Path | None, environ: Mapping[str, str], flags: Mapping[str, object] | None = None
) -> Configuration:
    """Reads and checks everything.

    ``config`` is the file an option named, None to look for one: ``$PASSERELLE_CONFIG``, ``passerelle.yaml`` in the
    working folder, then in the home folder; with no file, defaults. ``flags`` maps key paths (``server.port``, also
    ``home``) to values of options, None for those not given. Raises ConfigurationError with every problem.
    """
    given = dict(flags or {})
    home = find_home(environ, given.pop("home", None))
    config = find_config(config, environ, home)
    document = gather(config, environ, given)
    _add_conventional(document, environ)
    linto = find_linto(document, config, home)
    if linto is not None:
        add_linto(document, linto, environ)
    shaper = Shaper()
    keys = shaper.section(ConfigurationFile, document.root, "", apart=CATALOG_KEYS)
    models, problems = examine(document)
    problems = [*shaper.problems, *problems]
    if keys is None or problems:
        raise ConfigurationError(problems, document.files)
    problems = _check_sign_on(document, keys)
    if problems:
        raise ConfigurationError(problems, document.files)
    settings = Settings(home=home, **{name: getattr(keys, name) for name in Keys.__struct_fields__})
    snapshot = Snapshot.of(models)
    if keys.guardrails:
        snapshot = replace(snapshot, guardrails=_compile_guardrails(document, keys.guardrails, models))
    return Configuration(settings, snapshot, config, document.files, MappingProxyType(dict(flags or {})))


def _check_sign_on(document: Document, keys: ConfigurationFile) -> list[Problem]:
    """Links and the provider's way back need the address that browsers use, its tokens a library of the extra."""
    entry = document.root.entries.get("auth")
    auth = keys.auth
    if entry is None or (auth.mail is None and auth.oidc is None):
        return []
    problems = []
    if auth.public_url is None:
        message = "this key is required with auth.mail and auth.oidc"
        problems.append(Problem(entry.mark, "auth.public_url", message, "a URL: https://llm.example.org"))
    if auth.oidc is not None and find_spec("cryptography") is None:
        problems.append(Problem(entry.mark, "auth.oidc", "signatures need a library: install passerelle[oidc]", None))
    return problems


def _compile_guardrails(
    document: Document, sections: tuple[GuardrailSection, ...], models: list[Model]
) -> CompiledGuardrails:
    """Returns the guardrails, and adds the files they were read from. Raises ConfigurationError."""
    guardrails, problems = read_guardrails(document, sections, models, compile_guardrail)
    if problems:
        raise ConfigurationError(problems, document.files)
    return CompiledGuardrails(guardrails)


def load_settings(
    config: Path | None, environ: Mapping[str, str], flags: Mapping[str, object] | None = None
) -> Settings:
    """Returns the settings of `load_configuration`, which see."""
    return load_configuration(config, environ, flags).settings


def from_process(config: Path | None = None, flags: Mapping[str, object] | None = None) -> Configuration:
    """Returns the configuration of this process, from its own environment. Raises ConfigurationError."""
    return load_configuration(config, dict(os.environ), flags)


def process_environ() -> dict[str, str]:
    """Returns the environment of this process, for a command that reads files with variables in them."""
    return dict(os.environ)


def find_home(environ: Mapping[str, str], given: object = None) -> Path:
    """Returns the absolute home folder, which need not exist: an option, ``PASSERELLE_HOME`` or ``~/.passerelle``."""
    source = "--home" if given else "PASSERELLE_HOME"
    text = str(given or environ.get("PASSERELLE_HOME") or "")
    try:
        if not text and environ.get("HOME"):
            return Path(environ["HOME"], ".passerelle").absolute()
        return Path(text or "~/.passerelle").expanduser().absolute()
    except RuntimeError:
        message = "the home folder of this user is not known"
        raise ConfigurationError([Problem(Mark(source), "home", message, "the path of a folder")]) from None


def find_config(given: Path | None, environ: Mapping[str, str], home: Path) -> Path | None:
    """Returns the configuration file to read, None when there is none."""
    if given is not None:
        return given
    named = environ.get("PASSERELLE_CONFIG")
    if named:
        return Path(named)
    found = (path for path in (Path("passerelle.yaml"), home / "passerelle.yaml") if os.path.lexists(path))
    return next(found, None)


def reloader(
    running: Configuration,
    environ: Mapping[str, str],
    *,
    live: frozenset[str] = frozenset(),
    on_settings: Callable[[Settings], None] | None = None,
) -> Callable[[], Reloaded]:
    """Returns what reads the files of ``running`` anew, with the same options, for `passerelle.catalog.watch.Watcher`.

    ``live`` names sections that ``on_settings`` applies while running (it is called in the thread that reads); changes
    in all others are reported as waiting for a restart.
    """

    def load() -> Reloaded:
        fresh = load_configuration(running.config, environ, running.flags)
        waiting = tuple(
            key for key in changed_keys(running.settings, fresh.settings) if key.partition(".")[0] not in live
        )
        if on_settings is not None:
            on_settings(fresh.settings)
        return Reloaded(fresh.snapshot, fresh.files, waiting)

    return load


def changed_keys(before: Settings, after: Settings) -> tuple[str, ...]:
    """Returns the paths of the keys whose values differ (``server.port``)."""
    changed: list[str] = []
    for name in Keys.__struct_fields__:
        old, new = getattr(before, name), getattr(after, name)
        if isinstance(old, Section) and isinstance(new, Section):
            parts = old.__struct_fields__
            changed.extend(f"{name}.{part}" for part in parts if getattr(old, part) != getattr(new, part))
        elif old != new:
            changed.append(name)
    return tuple(changed)


def _add_conventional(document: Document, environ: Mapping[str, str]) -> None:
    """``DATABASE_URL`` is the default of ``database``, ``REDIS_URL`` of ``redis``."""
    for variable, key in (("DATABASE_URL", "database"), ("REDIS_URL", "redis")):
        text = environ.get(variable)
        if text and document.root.get(key) is None:
            mark = Mark(variable)
            document.root.entries[key] = Entry(mark, Scalar(mark, text, loose=True))
