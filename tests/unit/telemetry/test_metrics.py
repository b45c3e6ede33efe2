"""Metrics of one process, and of several that keep theirs in files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client import Gauge

from passerelle.telemetry.metrics import FOLDER_VARIABLE, Metrics, forget_gauges

WORKER = """
import sys
from pathlib import Path
from passerelle.telemetry.metrics import Metrics, keep_in_files
keep_in_files(int(sys.argv[1]))
metrics = Metrics(Path(sys.argv[2]))
metrics.reloads.labels("ok").inc(int(sys.argv[3]))
metrics.queue.labels("m").observe(0.5)
metrics.in_flight.inc(2)
metrics.generation.set(int(sys.argv[3]))
sys.stdout.buffer.write(metrics.expose())
"""


def work(folder: Path, worker: int, count: int) -> dict[str, float]:
    """Runs a worker in a process of its own and returns what it shows at the end."""
    command = [sys.executable, "-c", WORKER, str(worker), str(folder), str(count)]
    environ = {**os.environ, FOLDER_VARIABLE: str(folder)}
    shown = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60).stdout
    lines = [line.rpartition(" ") for line in shown.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_any_worker_shows_the_sum_and_a_successor_goes_on(tmp_path: Path) -> None:
    """Counts and histograms add up over workers and over lives; gauges are of the living."""
    first = work(tmp_path, 0, 3)
    assert first['passerelle_reloads_total{result="ok"}'] == 3
    second = work(tmp_path, 1, 4)
    assert second['passerelle_reloads_total{result="ok"}'] == 7
    assert second['passerelle_queue_seconds_count{model="m"}'] == 2
    assert second["passerelle_in_flight"] == 4
    assert second["passerelle_catalog_generation"] == 4
    forget_gauges(tmp_path, 0)
    forget_gauges(tmp_path, 1)
    third = work(tmp_path, 0, 1)
    assert third['passerelle_reloads_total{result="ok"}'] == 8
    assert third["passerelle_in_flight"] == 2
    assert third["passerelle_catalog_generation"] == 1
    assert len(list(tmp_path.iterdir())) <= 2 * 4, "files belong to places, not to processes"


def test_every_gauge_says_how_workers_add_up() -> None:
    """A gauge without a mode of the living would show one series for each process, for ever."""
    gauges = [value for value in vars(Metrics()).values() if isinstance(value, Gauge)]
    assert gauges
    assert all(gauge._multiprocess_mode in ("livesum", "livemax") for gauge in gauges)


def test_one_process_writes_no_files(tmp_path: Path) -> None:
    """Without a folder everything stays in memory."""
    metrics = Metrics()
    metrics.reloads.labels("ok").inc()
    assert b'passerelle_reloads_total{result="ok"} 1.0' in metrics.expose()
    assert list(tmp_path.iterdir()) == []
