"""Ports for servers whose address has to be known before they start, or that come back at the same address."""

from __future__ import annotations

import random
import socket
from contextlib import suppress


def unused_port() -> int:
    """Returns a port that nobody listens on, on any address.

    It is outside the range that the kernel hands out by itself: no connection that is opened between now and the
    server's start, or while the server is away, gets it as its own end.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port
