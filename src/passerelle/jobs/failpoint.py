"""Named places where a test ends this process as a power cut would; outside tests none is set."""

from __future__ import annotations

import os
import signal


class Failpoint:
    """Kills this process at a place: ``after_claim``, or at its n-th passing, ``after_step:3``. None never does."""

    def __init__(self, spec: str | None = None) -> None:
        self._place, _, count = (spec or "").partition(":")
        self._left = int(count or 1)

    def reach(self, place: str) -> None:
        """Says that this place is reached."""
        if self._place == place:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
