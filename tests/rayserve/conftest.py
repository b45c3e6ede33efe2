"""The tier ``ray``: our Serve application on a real cluster of two nodes, behind the gateway (``make test-ray``)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.harness.gateway import GatewayProcess
from tests.harness.models import Quiet, shared_cache
from tests.rayserve.cluster import DEPLOY, RayCluster, build, default_folder, ray_cluster
from tests.triton.server import BuildError

from passerelle.models.catalogue import DEFAULT_CHAT_MODEL
from passerelle.models.store import ModelStore

HERE = Path(__file__).parent
SLOTS = 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks everything in this folder, so that other tiers leave it out."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.timeout(600, func_only=True))


@pytest.fixture(scope="session")
def ray_bin() -> Path:
    """The commands of an environment with Ray and what Passerelle needs."""
    try:
        return build(default_folder())
    except BuildError as error:
        pytest.fail(f"Ray's environment could not be built: {error}", pytrace=False)


def embedded_application() -> dict[str, Any]:
    """The configuration that is shipped, made small: replicas of one processor, up to three, and quick to grow."""
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "embedded.yaml").read_text())
    (application,) = document["applications"]
    (deployment,) = application["deployments"]
    application["args"] |= {"slots": SLOTS}
    deployment |= {"ray_actor_options": {"num_cpus": 1}, "max_ongoing_requests": SLOTS}
    deployment["autoscaling_config"] |= {"max_replicas": 3, "target_ongoing_requests": 1, "upscale_delay_s": 1}
    return document


@pytest.fixture(scope="session")
def cluster(ray_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """The cluster, with the model there already, as on a machine that has served it before."""
    folder = tmp_path_factory.mktemp("cluster")
    ModelStore(folder / "home", cache=shared_cache()).pull(DEFAULT_CHAT_MODEL, Quiet())
    with ray_cluster(ray_bin, folder, embedded_application()) as running:
        yield running
    shutil.rmtree(folder / "home")


@pytest.fixture(scope="session")
def gateway(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway whose only target is the cluster."""
    target = {"url": f"{cluster.url}/v1", "model": DEFAULT_CHAT_MODEL, "api_key": cluster.key}
    models = [{"name": "fleet", "targets": [target]}]
    with GatewayProcess(tmp_path_factory.mktemp("gateway") / "home", {"models": models}) as process:
        yield process.wait_ready()
