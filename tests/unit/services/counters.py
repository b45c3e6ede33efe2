"""Tokenizers for tests: several ways to count, none of them additive."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from passerelle.services.turn import CountTokens


def counting(count: Callable[[str], int]) -> CountTokens:
    """Returns the counter of several texts that counts each by ``count``."""

    async def counted(texts: Sequence[str]) -> list[int]:
        return [count(text) for text in texts]

    return counted


WORDS = counting(lambda text: len(re.findall(r"\w+|[^\w\s]", text)))
BYTES = counting(lambda text: len(text.encode("utf-8", "surrogatepass")))
QUARTERS = counting(lambda text: (len(text.encode("utf-8", "surrogatepass")) + 3) // 4 + 1)
"""As a server counts: with a token for the beginning, and with pieces that end where words do not."""
COUNTERS = {"words": WORDS, "bytes": BYTES, "quarters": QUARTERS}
