"""What of vLLM's command line belongs to whoever keeps the server, and cannot be given by hand."""

from __future__ import annotations

from collections.abc import Sequence

OURS = frozenset(
    {"--host", "--port", "--uds", "--api-key", "--served-model-name", "--model", "--root-path", "--config"}
    | {"--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs"}
)
"""These would take the server away from its keeper, or open it to those without a key."""


def first_of_ours(arguments: Sequence[str]) -> str | None:
    """Returns the first argument that is not the user's to give, None when all are. ``--max_x=1`` is ``--max-x``."""
    names = (argument.partition("=")[0].replace("_", "-") for argument in arguments)
    return next((name for name in names if name in OURS), None)
