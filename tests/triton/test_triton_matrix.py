"""The rows of the matrix that a real Triton fills: every client dialect, over the tensors of both backends."""

from __future__ import annotations

import pytest
from tests.conformance.asked import Asked, ask_all, check
from tests.conformance.matrix import FACES, LIMIT, Face, Row
from tests.harness.gateway import GatewayProcess

ROWS = (
    Row("phi3", frozenset({"text", "min_p"}), words=tuple(f"tok{n} " for n in range(LIMIT)), ends=False),
    Row("trt", counts=False, tells_length=False, words=tuple(f"trt{n} " for n in range(LIMIT)), ends=False),
)


@pytest.fixture(scope="module")
def asked(gateway: GatewayProcess) -> dict[tuple[str, str], Asked]:
    """The answers, asked for several at a time."""
    return ask_all(gateway, FACES, ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("face", FACES, ids=lambda face: face.name)
def test_cell(asked: dict[tuple[str, str], Asked], face: Face, row: Row) -> None:
    """Text, finish reason, usage and usage row are Triton's; a refusal names its reason."""
    check(face, row, asked[face.name, row.name])
