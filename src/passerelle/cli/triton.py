"""``passerelle triton``: model repositories of Triton Inference Server."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from passerelle.models.triton_repository import (
    Entry,
    RepositoryError,
    checked_name,
    python_entry,
    tensorrt_entries,
    vllm_entry,
    write,
)

app = typer.Typer(help="Prepare models for Triton Inference Server.", no_args_is_help=True)


class Backend(StrEnum):
    """The backends of Triton that serve text models."""

    VLLM = "vllm"
    TENSORRT_LLM = "tensorrtllm"
    PYTHON = "python"


@app.callback()
def _group() -> None:
    """Prepare models for Triton Inference Server."""


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What the model is called, at Triton and in the configuration.")],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="vllm: a name at the hub or a folder; tensorrtllm: the built engine's folder; python: a model.py.",
        ),
    ],
    backend: Annotated[Backend, typer.Option(help="What runs the model.")] = Backend.VLLM,
    repository: Annotated[Path, typer.Option(help="The model repository; made if it is not there.")] = Path(
        "model_repository"
    ),
    tensor_parallel: Annotated[
        int, typer.Option(min=1, max=1024, help="GPUs that share each layer.", show_default=True)
    ] = 1,
    pipeline_parallel: Annotated[int, typer.Option(min=1, max=1024, help="Groups of GPUs that share the layers.")] = 1,
    gpu_memory: Annotated[
        float | None, typer.Option(min=0.01, max=1.0, help="vllm: the part of each GPU's memory it may take.")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="vllm: the context window, in tokens.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tensorrtllm: the folder of the tokenizer.")] = None,
    templates: Annotated[
        Path | None, typer.Option(help="tensorrtllm: the backend's folder all_models/inflight_batcher_llm.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="tensorrtllm: as the engine was built.")] = 8,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="vllm: an engine argument; tensorrtllm: a template's value. Repeatable."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model of this name.")] = False,
) -> None:
    """Write a model into a repository, and say how to start Triton and what to configure here."""
    try:
        checked_name(name)
        given = dict(_setting(each) for each in settings or ())
        if backend is Backend.VLLM:
            arguments: dict[str, object] = {"model": model}
            if tensor_parallel > 1:
                arguments["tensor_parallel_size"] = tensor_parallel
            if pipeline_parallel > 1:
                arguments["pipeline_parallel_size"] = pipeline_parallel
            if gpu_memory is not None:
                arguments["gpu_memory_utilization"] = gpu_memory
            if max_model_len is not None:
                arguments["max_model_len"] = max_model_len
            entries = [vllm_entry(name, arguments | {key: _json(value) for key, value in given.items()})]
        elif backend is Backend.TENSORRT_LLM:
            entries = _tensorrt(name, Path(model), tokenizer, templates, max_batch, given)
        else:
            if given:
                raise RepositoryError("--set is for vllm and tensorrtllm: a model.py has no settings of ours")
            entries = [python_entry(name, Path(model))]
        write(repository, entries, force=force)
    except RepositoryError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    world = tensor_parallel * pipeline_parallel if backend is Backend.TENSORRT_LLM else 1
    typer.echo(_what_next(name, repository.absolute(), entries, world))


def _tensorrt(
    name: str, engine: Path, tokenizer: Path | None, templates: Path | None, max_batch: int, given: dict[str, str]
) -> list[Entry]:
    if tokenizer is None or templates is None:
        raise RepositoryError(
            "tensorrtllm needs --tokenizer and --templates: the tokenizer's folder, and all_models/inflight_batcher_llm"
            " of the TensorRT-LLM backend (it is in its container)"
        )
    return tensorrt_entries(name, engine, tokenizer, templates, max_batch=max_batch, values=given)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise RepositoryError(f"--set {text[:64]!r}: write NAME=VALUE")
    return key, value


def _json(value: str) -> object:
    """Returns the value as JSON reads it, or as the text it is."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _what_next(name: str, repository: Path, entries: list[Entry], world: int) -> str:
    lines = [f"wrote {repository / entry.name}" for entry in entries]
    start = f"tritonserver --model-repository={repository}"
    if world > 1:
        start = f"python3 scripts/launch_triton_server.py --world_size={world} --model_repo={repository}"
    lines += [
        "",
        "Start Triton where its backend is, and keep its ports inside:",
        f"  {start}",
        "",
        "Then add the model to the configuration (chat_template: how a chat becomes a prompt, as Triton has none):",
        "  models:",
        f"    - name: {json.dumps(name)}",
        "      targets:",
        f'        - {{url: "grpc://127.0.0.1:8001", engine: triton, model: {json.dumps(name)}, chat_template: chatml}}',
    ]
    return "\n".join(lines)
