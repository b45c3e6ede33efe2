"""A child process that serves one GGUF file with llama.cpp: ``python -m passerelle.models.llamacpp_child``.

The server is llama.cpp's own HTTP server, in this process, from the ``xllamacpp`` wheel. Run it through
`passerelle.models.supervisor`; `llamacpp_spec` writes the assignment.

The defaults were chosen with ``benchmarks/embedded_defaults.py``: the default model on two processors that other
programs kept busy (a load of 4), three rounds, so only large differences count. Each figure is a ratio to the defaults.

* A thread per processor: one thread halves the prompt's speed (0.54) and costs 0.8 with eight clients; twice as many
  threads as processors cost 0.6 and 0.8.
* 8 slots of 2048 tokens, 440 MiB: 4 slots of 4096 and 2 of 8192 need the same memory and bring 0.8 and 0.55 with eight
  clients; 8 slots of 4096 need 800 MiB. For long documents choose fewer and wider slots.
* Flash attention on: without it 0.45 of the prompt's speed.
* A KV cache for each slot, not one for all: no slower, and a request's window is its own whatever the others do, so
  that a request that was admitted cannot run out of it.
* Prompt cache on, bounded: a repeated prefix of 640 tokens costs one token. llama.cpp's own bound is 8 GiB.
* No speculation: n-gram look-up halved the speed of this small model.
* Threads that sleep while they wait: see `passerelle.models.child.wait_asleep`.
"""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import msgspec

from passerelle.models.child import (
    EXIT_PORT_TAKEN,
    HOST,
    Assignment,
    refuse,
    take_assignment,
    usable_processors,
    wait_asleep,
)
from passerelle.models.gguf import NotGguf, read_gguf
from passerelle.models.supervisor import ChildSpec, default_memory_limit_bytes

DEFAULT_SLOTS = 8
DEFAULT_WINDOW_TOKENS = 2048


class LlamaCppSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to serve a model file.

    ``slots`` requests are answered at once, each within ``window`` tokens of prompt and answer. ``threads`` is 0 for
    one per processor this process may use. ``prompt_cache_mib`` bounds the memory that keeps earlier prompts.
    """

    model_path: str
    alias: str
    slots: int = DEFAULT_SLOTS
    window: int = DEFAULT_WINDOW_TOKENS
    threads: int = 0
    flash_attention: bool = True
    kv_unified: bool = False
    prompt_cache_mib: int = 256


def llamacpp_spec(
    name: str,
    model_path: Path,
    *,
    slots: int = DEFAULT_SLOTS,
    window: int | None = None,
    threads: int = 0,
    memory_limit_bytes: int | None = None,
) -> ChildSpec:
    """Returns the spec of a child that serves ``model_path`` under ``name``.

    ``window`` is in tokens per request: by default `DEFAULT_WINDOW_TOKENS`, never more than the model was trained for.
    ``memory_limit_bytes`` is 80 % of the machine's memory by default. Raises NotGguf, whose message is one clear line,
    when the file is missing, truncated or not a model.
    """
    trained = read_gguf(model_path).context_length
    wanted = window or DEFAULT_WINDOW_TOKENS
    window = min(wanted, trained) if trained else wanted
    settings = LlamaCppSettings(str(model_path.absolute()), name, slots=slots, window=window, threads=threads)
    return ChildSpec(
        name=name,
        module="passerelle.models.llamacpp_child",
        settings=msgspec.to_builtins(settings),
        context_window=window,
        memory_limit_bytes=memory_limit_bytes or default_memory_limit_bytes(),
    )


def main() -> None:
    """Serves until the parent ends or a signal comes."""
    assignment = take_assignment()
    try:
        settings = msgspec.json.decode(assignment.settings, type=LlamaCppSettings)
        read_gguf(Path(settings.model_path))
    except (msgspec.MsgspecError, NotGguf) as error:
        refuse(str(error))
    serve(assignment, settings)


def serve(assignment: Assignment, settings: LlamaCppSettings) -> None:
    """Loads the model and serves it on the assigned port; never returns."""
    wait_asleep()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings.model_path
    params.model_alias = {settings.alias}
    params.hostnames = [HOST]
    params.port = assignment.port
    params.api_keys = [assignment.api_key]
    params.n_parallel = settings.slots
    params.n_ctx = settings.window if settings.kv_unified else settings.window * settings.slots
    params.kv_unified = settings.kv_unified
    params.flash_attn_type = 1 if settings.flash_attention else 0
    threads = settings.threads or usable_processors()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = settings.prompt_cache_mib
    params.endpoint_metrics = True
    params.ui = False
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        if _port_is_taken(assignment.port):
            refuse(f"port {assignment.port} of {HOST} is taken by another program", EXIT_PORT_TAKEN)
        refuse(f"llama.cpp could not start: {error}", 1)
    signal.pause()  # SIGTERM ends the process at once: there is no state to save
    del server


def _port_is_taken(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen()
        except OSError:
            return True
    return False


if __name__ == "__main__":
    main()
