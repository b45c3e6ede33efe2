"""``passerelle triton add`` writes a model, says what comes next, and what went wrong in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from passerelle.catalog.compile import prepare
from passerelle.catalog.document import read_document
from passerelle.cli.triton import app


def add(repository: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["add", *arguments, "--repository", str(repository)])


def test_vllm(tmp_path: Path) -> None:
    """Options become vLLM's arguments, and what it prints can be put into the configuration."""
    arguments = ["--model", "microsoft/Phi-3", "--tensor-parallel", "4", "--pipeline-parallel", "2", "--gpu-memory"]
    arguments += ["0.8", "--max-model-len", "4096", "--set", "enforce_eager=true", "--set", "dtype=half"]
    done = add(tmp_path / "r", "phi3", *arguments)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "r" / "phi3" / "1" / "model.json").read_text()) == {
        "model": "microsoft/Phi-3",
        "tensor_parallel_size": 4,
        "pipeline_parallel_size": 2,
        "gpu_memory_utilization": 0.8,
        "max_model_len": 4096,
        "enforce_eager": True,
        "dtype": "half",
    }
    assert f"tritonserver --model-repository={tmp_path / 'r'}" in done.stdout
    printed = done.stdout[done.stdout.index("  models:") :]
    assert yaml.safe_load(printed)["models"][0]["name"] == "phi3"
    (tmp_path / "passerelle.yaml").write_text(printed)
    snapshot = prepare(read_document(tmp_path / "passerelle.yaml", {}))
    (target,) = snapshot.models["phi3"].targets
    assert (target.engine, target.url, target.model) == ("triton", "grpc://127.0.0.1:8001", "phi3")
    plain = add(tmp_path / "r", "plain", "--model", "m")
    assert plain.exit_code == 0
    assert json.loads((tmp_path / "r" / "plain" / "1" / "model.json").read_text()) == {"model": "m"}


def test_force(tmp_path: Path) -> None:
    """A model that is there stays, unless it is to be replaced."""
    assert add(tmp_path, "a", "--model", "old").exit_code == 0
    refused = add(tmp_path, "a", "--model", "new")
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert "old" in (tmp_path / "a" / "1" / "model.json").read_text()
    assert add(tmp_path, "a", "--model", "new", "--force").exit_code == 0
    assert "new" in (tmp_path / "a" / "1" / "model.json").read_text()


def test_several_gpus_of_tensorrt_llm(tmp_path: Path) -> None:
    """An engine that was built for several GPUs is started by the backend's launcher."""
    for step in ("ensemble", "preprocessing", "tensorrt_llm", "postprocessing"):
        (tmp_path / "all" / step).mkdir(parents=True)
        (tmp_path / "all" / step / "config.pbtxt").write_text(f'name: "{step}"\nmax_batch_size: ${{max}}\n')
    arguments = ["--backend", "tensorrtllm", "--model", str(tmp_path), "--tokenizer", str(tmp_path)]
    arguments += ["--templates", str(tmp_path / "all"), "--tensor-parallel", "2", "--set", "max=4"]
    done = add(tmp_path / "r", "big", *arguments)
    assert done.exit_code == 0, done.output
    assert f"launch_triton_server.py --world_size=2 --model_repo={tmp_path / 'r'}" in done.stdout
    assert (tmp_path / "r" / "big" / "config.pbtxt").read_text() == 'name: "big"\nmax_batch_size: 4\n'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("../x", "--model", "m"), "cannot name a model"),
        (("a", "--model", "m", "--set", "novalue"), "NAME=VALUE"),
        (("a", "--model", "m", "--backend", "tensorrtllm"), "--tokenizer and --templates"),
        (("a", "--model", "nowhere.py", "--backend", "python"), "cannot be read"),
        (("a", "--model", "x.py", "--backend", "python", "--set", "a=1"), "--set"),
        (("a", "--model", "m", "--backend", "onnx"), "onnx"),
        (("a", "--model", "m", "--tensor-parallel", "0"), "tensor-parallel"),
        (("a",), "--model"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """Each is exit status 2 with a line that says what to do, and nothing is written."""
    done = add(tmp_path / "r", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "r").exists()
