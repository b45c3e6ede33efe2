"""Tests of the scripted upstream in the two ways the contract suite does not use it: a thread and a process."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.harness.upstreamd import UpstreamThread, raw, status


def fetch(url: str, document: Any = None) -> Any:
    data = None if document is None else json.dumps(document).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=5) as answer:
        return json.loads(answer.read())


def test_thread() -> None:
    """In a thread it answers, takes a new scenario at any time, and records."""
    with UpstreamThread(model="x") as upstream:
        assert fetch(upstream.url + "/models")["data"][0]["id"] == "x"
        upstream.scenario = [status(503)]
        with pytest.raises(urllib.error.HTTPError) as caught:
            fetch(upstream.url + "/models")
        caught.value.close()
        upstream.scenario = [raw(b"nonsense\r\n\r\n")]
        with pytest.raises(http.client.BadStatusLine):
            fetch(upstream.url + "/models")
        assert [seen.path for seen in upstream.requests] == ["/v1/models"] * 3
    assert upstream.open_connections == 0


def test_defect_of_a_scenario_fails_the_test() -> None:
    """An exception in a scenario comes out where the server is closed."""
    thread = UpstreamThread(scenario=lambda seen: [status(1 // 0)])
    gone = pytest.raises((http.client.RemoteDisconnected, ConnectionResetError))
    with pytest.raises(ZeroDivisionError), thread as upstream, gone:
        fetch(upstream.url + "/models")


def test_process() -> None:
    """As a process it prints its address and is steered by its control routes."""
    command = [sys.executable, "-m", "tests.harness.upstreamd", "--scenario", '[["status", 503]]']
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            control = url.removesuffix("/v1") + "/_upstreamd"
            with pytest.raises(urllib.error.HTTPError) as caught:
                fetch(url + "/models")
            caught.value.close()
            fetch(control + "/scenario", [["status", 200, [["content-type", "application/json"]], '{"a": 1}']])
            assert fetch(url + "/models") == {"a": 1}
            fetch(control + "/scenario", [["headers", {"chunked": False}], ["body", "eyJiIjoyfQ=="], ["close"]])
            assert fetch(url + "/models") == {"b": 2}
            stats = fetch(control + "/stats")
            assert [seen["path"] for seen in stats["requests"]] == ["/v1/models"] * 3
        finally:
            process.terminate()
    assert process.returncode == 0
