"""A Ray Serve application: Ray Serve LLM, which runs vLLM, for models that need GPUs, and more than one machine's.

``serve run deploy/ray/gpus.yaml`` deploys it; docs/scaling.md says how. The machines need ``ray[llm]`` (vLLM comes with
it) and this folder on ``PYTHONPATH``; Passerelle itself runs in front, not there.

A replica takes ``tensor_parallel`` x ``pipeline_parallel`` GPUs. Ray keeps them together where it can: with
``tensor_parallel`` the GPUs of a machine and ``pipeline_parallel`` the number of machines, a model that fits no single
machine is spread over several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from ray import serve

CPU: Final = "CPU"
"""As ``accelerator``: vLLM's build for processors, to try an application where no GPU is."""

_Count = Annotated[int, Meta(ge=1)]


class GpuModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model. ``source`` is a name at the hub, or a folder that every machine has.

    ``max_model_len`` is the window in tokens, the model's own when left out; ``gpu_memory`` the part of each GPU's
    memory that vLLM takes. ``options`` are further engine arguments of vLLM, and win.
    """

    name: str
    source: str
    accelerator: str
    tensor_parallel: _Count = 1
    pipeline_parallel: _Count = 1
    max_model_len: _Count | None = None
    gpu_memory: Annotated[float, Meta(gt=0, le=1)] = 0.9
    min_replicas: Annotated[int, Meta(ge=0)] = 1
    max_replicas: _Count = 1
    target_ongoing_requests: _Count = 64
    max_ongoing_requests: _Count = 128
    options: dict[str, Any] = {}


class GpuArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``args`` of the application."""

    models: Annotated[list[GpuModel], Meta(min_length=1)]


def llm_config(model: GpuModel) -> dict[str, Any]:
    """Returns what Ray's ``LLMConfig`` is made of."""
    engine: dict[str, Any] = {
        "tensor_parallel_size": model.tensor_parallel,
        "pipeline_parallel_size": model.pipeline_parallel,
    }
    if model.max_model_len is not None:
        engine["max_model_len"] = model.max_model_len
    kind: dict[str, Any]
    if model.accelerator == CPU:
        kind = {"accelerator_config": {"kind": "cpu"}}
    else:
        kind, engine["gpu_memory_utilization"] = {"accelerator_type": model.accelerator}, model.gpu_memory
    return {
        "model_loading_config": {"model_id": model.name, "model_source": model.source},
        "engine_kwargs": engine | model.options,
        **kind,
        "deployment_config": {
            "max_ongoing_requests": model.max_ongoing_requests,
            "autoscaling_config": {
                "min_replicas": model.min_replicas,
                "max_replicas": model.max_replicas,
                "target_ongoing_requests": model.target_ongoing_requests,
            },
        },
        "runtime_env": {"env_vars": {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}},
    }


def application(arguments: Mapping[str, Any]) -> serve.Application:
    """Returns the application for Serve to run. Raises ValueError for wrong ``args``."""
    try:
        checked = msgspec.convert(dict(arguments), GpuArguments)
    except msgspec.ValidationError as error:
        raise ValueError(f"the application's args: {error}") from None
    from ray.serve.llm import LLMConfig, build_openai_app  # it imports vLLM

    return build_openai_app({"llm_configs": [LLMConfig(**llm_config(model)) for model in checked.models]})
