"""The route table: what is at an address, and what is nowhere."""

from __future__ import annotations

import pytest

from passerelle.domain.errors import NotFound
from passerelle.edge.dispatch import Context, Route, RouteTable


async def _endpoint(context: Context) -> None:
    raise AssertionError("nothing is called here")


@pytest.mark.parametrize("path", ["/things/a\0", "/things/\0", "/rest/a/\0/b"])
def test_no_id_holds_a_nul(path: str) -> None:
    """PostgreSQL refuses to look for one, so nobody asks it."""
    paths = ("/things/{id}", "/rest/{id:path}")
    table = RouteTable([Route("GET", each, None, _endpoint) for each in paths])
    assert table.match("GET", path.replace("\0", "x"))[1]
    with pytest.raises(NotFound):
        table.match("GET", path)
