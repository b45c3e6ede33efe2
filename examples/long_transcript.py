"""Writes a long transcript of real prose: four people who read Python's language reference to each other.

    python examples/long_transcript.py [--tokens 100000] [--seed 1] > long.txt

The prose is what ``help()`` shows on topics, in the module ``pydoc_data.topics`` of Python's standard library (in
Debian: libpython3-stdlib). It is Copyright the Python Software Foundation, under the PSF License Agreement, version 2
(https://docs.python.org/3/license.html); a transcript made of it is under that licence too.

A token is taken as three quarters of a word, as common tokenizers of English have it: of code words there are more.
After the last paragraph it begins again, with other speakers.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from itertools import cycle
from pydoc_data import topics

SPEAKERS = ("Amina", "Benoît", "Chiara", "David")
WORDS_PER_TOKEN = 0.75
_LEAST_WORDS = 8


def paragraphs() -> list[str]:
    """Returns the paragraphs of prose, each on one line: no code, no tables, no grammar."""
    found: list[str] = []
    for topic in topics.topics.values():
        for block in topic.split("\n\n"):
            lines = block.splitlines()
            prose = bool(lines) and not any(line.startswith("   ") or set(line) <= set("*=-~+| ") for line in lines)
            if prose and "::=" not in block and len(block.split()) >= _LEAST_WORDS:
                found.append(" ".join(block.replace("*", "").split()))
    return found


def turns(seed: int = 1) -> Iterator[str]:
    """Yields turns without end, ``Name : paragraph``; the same seed yields the same."""
    chosen = random.Random(seed)  # noqa: S311 - who speaks is no secret
    speaker = ""
    for paragraph in cycle(paragraphs()):
        speaker = chosen.choice([name for name in SPEAKERS if name != speaker])
        yield f"{speaker} : {paragraph}"


def transcript(words: int, seed: int = 1) -> str:
    """Returns a transcript of at least ``words`` words, whole turns only."""
    lines: list[str] = []
    for turn in turns(seed):
        lines.append(turn)
        words -= len(turn.split())
        if words <= 0:
            break
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes to standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100_000, help="length of the transcript (default: 100,000)")
    parser.add_argument("--seed", type=int, default=1, help="who speaks when")
    given = parser.parse_args()
    sys.stdout.reconfigure(encoding="utf-8")
    sys.stdout.write(transcript(int(given.tokens * WORDS_PER_TOKEN) + 1, given.seed))


if __name__ == "__main__":
    main()
