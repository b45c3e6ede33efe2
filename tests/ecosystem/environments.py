"""Environments of clients, built once and kept in ``~/.cache/passerelle/clients``, or PASSERELLE_CLIENTS_HOME."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.triton.server import BuildError

CLIENTS: dict[str, tuple[str, ...]] = {
    "haystack": ("haystack-ai==3.4.0",),
    "llama_index": ("llama-index-llms-openai-like==0.8.1", "llama-index-embeddings-openai-like==0.4.0"),
    "text_generation": ("text-generation==0.7.0",),
}
"""By name of the script: what is installed. The last holds huggingface-hub below 1, which ours is not."""
SCRIPTS = Path(__file__).parent / "scripts"


def build(name: str) -> Path:
    """Returns the interpreter of a client's environment. Raises BuildError."""
    wanted = CLIENTS[name]
    home = Path(os.environ.get("PASSERELLE_CLIENTS_HOME") or "~/.cache/passerelle/clients").expanduser()
    digest = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:12]
    folder = home / f"{name}-{digest}"
    if not (folder / "built").exists():
        shutil.rmtree(folder, ignore_errors=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *wanted]
        for step in ([sys.executable, "-m", "venv", str(folder)], install):
            done = subprocess.run(step, capture_output=True, text=True, timeout=900)
            if done.returncode:
                raise BuildError(f"{name}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        (folder / "built").touch()
    return folder / "bin" / "python"


def run(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs a client's script in its environment and returns what it saw."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "OPENAI_"))}
    environ |= {"HAYSTACK_TELEMETRY_ENABLED": "False", "HF_HUB_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "False"}
    command = [str(build(name)), str(SCRIPTS / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environ)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
