"""``passerelle model serve``: a model server on this machine, kept and lent to the running gateway."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from passerelle.catalog.schema import ENGINES
from passerelle.cli.progress import progress_on
from passerelle.keeper import Keeper, PortTaken
from passerelle.models.drivers import Drivers
from passerelle.models.fetched import ModelError, Progress
from passerelle.models.gguf import NotGguf
from passerelle.models.served import AlreadyServed
from passerelle.models.store import open_store
from passerelle.telemetry.logs import TextFormatter

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+\-]{0,199}\Z")
_TEMPLATES = "chatml, gemma, llama2, llama3, mistral, phi3, plain, zephyr"


class Driver(StrEnum):
    """What runs the model."""

    LLAMACPP = "llamacpp"
    GPT4ALL = "gpt4all"
    VLLM = "vllm"


def serve(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model of the catalogue or this machine, or a .gguf file; for vllm a Hugging Face name or a folder.",
        ),
    ],
    driver: Annotated[Driver, typer.Option("--driver", "-d", help="What runs it.")] = Driver.LLAMACPP,
    name: Annotated[
        str | None, typer.Option("--as", help="What clients put in `model`; the model's own name when left out.")
    ] = None,
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="Port on 127.0.0.1; 0 takes any free one.")
    ] = 0,
    gpu_memory: Annotated[
        float | None, typer.Option("--gpu-memory", "-g", min=0.01, max=1, help="vllm: part of each GPU's memory.")
    ] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option("--tensor-parallel", "-t", min=1, max=1024, help="vllm: GPUs that share each layer.")
    ] = None,
    pipeline_parallel: Annotated[
        int | None, typer.Option(min=1, max=1024, help="vllm: groups of layers, each on GPUs of its own.")
    ] = None,
    window: Annotated[
        int | None, typer.Option("--context", "--max-model-len", min=128, help="Context window, in tokens.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="vllm: type of the weights (bfloat16 …).")] = None,
    quantization: Annotated[str | None, typer.Option(help="vllm: how the weights are quantized (awq …).")] = None,
    command: Annotated[
        str | None, typer.Option(help="vllm: its executable, in the environment where vLLM is installed.")
    ] = None,
    start_timeout_s: Annotated[
        float | None, typer.Option("--start-timeout", min=1, help="vllm: seconds until it must be ready.")
    ] = None,
    slots: Annotated[int | None, typer.Option(min=1, max=256, help="llamacpp: requests decoded together.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="llamacpp, gpt4all: processor threads to compute with.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(help=f"gpt4all: how a chat becomes a prompt ({_TEMPLATES}).")
    ] = None,
    grace_s: Annotated[
        float, typer.Option("--grace", min=0, help="Seconds that running answers have when it stops.")
    ] = 30.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show what the server says.")] = False,
    home: Annotated[
        Path, typer.Option("--home", envvar="PASSERELLE_HOME", help="The folder that holds everything.")
    ] = Path("~/.passerelle"),
    cache_home: Annotated[Path, typer.Option(envvar="XDG_CACHE_HOME", hidden=True)] = Path("~/.cache"),
) -> None:
    """Serve a model here until Ctrl-C, restart it when it dies, and list it in the running gateway meanwhile.

    What stands behind `--` is passed to vLLM.
    """
    given: dict[str, object] = {
        "gpu_memory": gpu_memory,
        "tensor_parallel": tensor_parallel,
        "pipeline_parallel": pipeline_parallel,
        "context": window,
        "dtype": dtype,
        "quantization": quantization,
        "command": command,
        "start_timeout_s": start_timeout_s,
        "slots": slots,
        "threads": threads,
        "chat_template": chat_template,
        "arguments": tuple(context.args) or None,
    }
    options = {key: value for key, value in given.items() if value is not None}
    public = _public_name(name, model)
    _check(driver, options)
    home = home.expanduser().absolute()
    os.umask(0o077)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        spec = Drivers(open_store(home, cache_home), home, _progress).spec(driver.value, model, options)
        if not quiet:
            _show_what_it_says()
        told = {key: value for key, value in options.items() if key == "chat_template"}
        keeper = Keeper(home, public, driver.value, replace(spec, port=port), told, grace_s, _say)
        kept = asyncio.run(keeper.run())
    except (ModelError, NotGguf, PortTaken, AlreadyServed, ValueError) as error:
        _say(f"error: {error}")
        raise typer.Exit(2) from None
    except OSError as error:
        _say(f"error: {error.filename or 'the disk'}: {error.strerror}")
        raise typer.Exit(2) from None
    raise typer.Exit(0 if kept else 1)


def _public_name(given: str | None, model: str) -> str:
    """Returns the name for clients: the one that was given, or the model's own without its folder."""
    is_path = model.startswith((".", "/", "~", "file:")) or model.endswith(".gguf")
    name = given or (Path(model).name.removesuffix(".gguf") if is_path else model)
    if not _NAME.match(name):
        _say(f"error: '{name[:100]}' cannot name a model: use letters, digits and . _ : / @ + - (--as NAME)")
        raise typer.Exit(2)
    return name


def _check(driver: Driver, options: Mapping[str, object]) -> None:
    """An option of another driver is a mistake, not something to drop in silence."""
    for key in options:
        if key not in ENGINES[driver.value].options:
            said = "arguments behind --" if key == "arguments" else "--" + key.removesuffix("_s").replace("_", "-")
            _say(f"error: the driver {driver.value} has no {said}")
            raise typer.Exit(2)
    template = options.get("chat_template")
    if template is not None and template not in _TEMPLATES.split(", "):
        _say(f"error: there is no chat template '{template}' (accepted: {_TEMPLATES})")
        raise typer.Exit(2)


def _show_what_it_says() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter())
    log = logging.getLogger("passerelle.models")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)


def _progress() -> Progress:
    return progress_on(sys.stderr.isatty())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
