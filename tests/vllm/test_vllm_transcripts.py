"""The transcripts in ``tests/golden/vllm`` are what this vLLM sends: tests that replay them replay the truth."""

from __future__ import annotations

import re

import pytest
from tests.vllm.servers import Vllm
from tests.vllm.transcripts import GOLDEN, TRANSCRIPTS, transcript
from tests.vllm.wire import read_stream, shapes

AGAIN = "vLLM answers in another shape: python -m tests.vllm.transcripts records anew"


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_transcript_has_the_shape_of_todays_stream(vllm_server: Vllm, name: str) -> None:
    """The events of a recorded stream have the members and the order of those vLLM sends now; texts may differ."""
    recorded = read_stream((GOLDEN / f"{name}.sse").read_bytes())
    today = read_stream(transcript(vllm_server.url, name))

    assert shapes(recorded.events) == shapes(today.events), AGAIN
    assert recorded.done and today.done
    assert recorded.choices.keys() == today.choices.keys()


def test_transcripts_say_nothing_of_the_machine_they_were_made_on() -> None:
    """No address and no path is in a transcript, and no file is there that nothing records."""
    files = {path.stem: path.read_text() for path in GOLDEN.glob("*.sse")}

    assert files.keys() == TRANSCRIPTS.keys()
    for text in files.values():
        assert not re.search(r"127\.0\.0\.1|localhost|://|\.cache|/root|/home", text)
