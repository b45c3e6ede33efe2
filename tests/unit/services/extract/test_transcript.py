"""JSON of speech recognition, in the shapes its makers document."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passerelle.services.extract.extractor import Extractor
from passerelle.services.extract.found import Kind
from passerelle.services.extract.transcript import read_transcript
from passerelle.services.turns import parse_turns


def words(*pairs: tuple[object, str], key: str = "word") -> list[dict[str, Any]]:
    return [{"speaker": who, key: word, "start": 0.0, "end": 1.0} for who, word in pairs]


SHAPES: dict[str, tuple[Any, str]] = {
    "whisper": (
        {
            "text": " Hello there. Bye.",
            "language": "en",
            "segments": [
                {"id": 0, "start": 0.0, "end": 1.0, "text": " Hello there."},
                {"id": 1, "start": 1.0, "end": 2.0, "text": " Bye."},
            ],
        },
        "Hello there. Bye.",
    ),
    "whisper text only": ({"text": "Hello there."}, "Hello there."),
    "whisperx": (
        {
            "segments": [
                {"start": 0, "end": 1, "text": " Hello", "speaker": "SPEAKER_00", "words": []},
                {"start": 1, "end": 2, "text": " there.", "speaker": "SPEAKER_00"},
                {"start": 2, "end": 3, "text": " Bye.", "speaker": "SPEAKER_01"},
            ],
            "word_segments": [],
        },
        "SPEAKER_00: Hello there.\nSPEAKER_01: Bye.",
    ),
    "whisperx words": (
        {
            "segments": [
                {"text": "Hi you", "words": words(("SPEAKER_01", "Hi"), ("SPEAKER_01", "you"), ("SPEAKER_00", "x"))}
            ]
        },
        "SPEAKER_01: Hi you",
    ),
    "transformers chunks": (
        {"text": "a b", "chunks": [{"timestamp": [0, 1], "text": "a"}, {"timestamp": [1, 2], "text": "b"}]},
        "a b",
    ),
    "openai diarized": (
        {
            "task": "transcribe",
            "text": "x",
            "segments": [
                {"type": "transcript.text.segment", "speaker": "A", "text": "Hi."},
                {"type": "transcript.text.segment", "speaker": "agent", "text": "Yes."},
            ],
        },
        "Speaker A: Hi.\nagent: Yes.",
    ),
    "pyannote list": (
        [{"speaker": "SPEAKER_00", "start": 0, "end": 1, "text": "Hi."}, {"speaker": "SPEAKER_01", "text": "Bye."}],
        "SPEAKER_00: Hi.\nSPEAKER_01: Bye.",
    ),
    "deepgram utterances": (
        {
            "metadata": {},
            "results": {
                "channels": [{"alternatives": [{"transcript": "x"}]}],
                "utterances": [{"speaker": 0, "transcript": "Hi."}, {"speaker": 1, "transcript": "Bye."}],
            },
        },
        "Speaker 0: Hi.\nSpeaker 1: Bye.",
    ),
    "deepgram paragraphs": (
        {
            "results": {
                "channels": [
                    {
                        "alternatives": [
                            {
                                "transcript": "x",
                                "paragraphs": {
                                    "transcript": "x",
                                    "paragraphs": [
                                        {"speaker": 0, "sentences": [{"text": "Hi."}, {"text": "You?"}]},
                                        {"speaker": 1, "sentences": [{"text": "Bye."}]},
                                    ],
                                },
                            }
                        ]
                    }
                ]
            }
        },
        "Speaker 0: Hi. You?\nSpeaker 1: Bye.",
    ),
    "deepgram words": (
        {
            "results": {
                "channels": [
                    {
                        "alternatives": [
                            {
                                "transcript": "hi bye",
                                "words": [
                                    {"word": "hi", "punctuated_word": "Hi.", "speaker": 0},
                                    {"word": "bye", "punctuated_word": "Bye.", "speaker": 1},
                                ],
                            }
                        ]
                    }
                ]
            }
        },
        "Speaker 0: Hi.\nSpeaker 1: Bye.",
    ),
    "deepgram channels": (
        {
            "results": {
                "channels": [{"alternatives": [{"transcript": "Hi."}]}, {"alternatives": [{"transcript": "Bye."}]}]
            }
        },
        "Speaker 0: Hi.\nSpeaker 1: Bye.",
    ),
    "assemblyai": (
        {
            "id": "x",
            "status": "completed",
            "text": "Hi. Bye.",
            "words": [],
            "utterances": [{"speaker": "A", "text": "Hi.", "words": []}, {"speaker": "B", "text": "Bye.", "words": []}],
        },
        "Speaker A: Hi.\nSpeaker B: Bye.",
    ),
    "assemblyai text": ({"id": "x", "text": "Hi. Bye.", "utterances": None}, "Hi. Bye."),
    "amazon labels": (
        {
            "jobName": "j",
            "results": {
                "transcripts": [{"transcript": "Hi, you. Bye."}],
                "speaker_labels": {
                    "speakers": 2,
                    "segments": [
                        {
                            "speaker_label": "spk_0",
                            "items": [
                                {"start_time": "0.0", "speaker_label": "spk_0"},
                                {"start_time": "0.5", "speaker_label": "spk_0"},
                            ],
                        },
                        {"speaker_label": "spk_1", "items": [{"start_time": "1.0", "speaker_label": "spk_1"}]},
                    ],
                },
                "items": [
                    {"type": "pronunciation", "start_time": "0.0", "alternatives": [{"content": "Hi"}]},
                    {"type": "punctuation", "alternatives": [{"content": ","}]},
                    {"type": "pronunciation", "start_time": "0.5", "alternatives": [{"content": "you"}]},
                    {"type": "punctuation", "alternatives": [{"content": "."}]},
                    {"type": "pronunciation", "start_time": "1.0", "alternatives": [{"content": "Bye"}]},
                    {"type": "punctuation", "alternatives": [{"content": "."}]},
                ],
            },
        },
        "spk_0: Hi, you.\nspk_1: Bye.",
    ),
    "amazon segments": (
        {
            "results": {
                "audio_segments": [
                    {"speaker_label": "spk_0", "transcript": "Hi."},
                    {"speaker_label": "spk_1", "transcript": "Bye."},
                ]
            }
        },
        "spk_0: Hi.\nspk_1: Bye.",
    ),
    "amazon text": ({"results": {"transcripts": [{"transcript": "Hi."}], "items": []}}, "Hi."),
    "google": (
        {"results": [{"alternatives": [{"transcript": "Hi."}]}, {"alternatives": [{"transcript": " Bye."}]}]},
        "Hi. Bye.",
    ),
    "azure batch": (
        {
            "combinedRecognizedPhrases": [],
            "recognizedPhrases": [
                {"speaker": 1, "nBest": [{"display": "Hi."}]},
                {"speaker": 2, "nBest": [{"display": "Bye."}]},
            ],
        },
        "Speaker 1: Hi.\nSpeaker 2: Bye.",
    ),
    "azure fast": (
        {"durationMilliseconds": 1, "combinedPhrases": [{"text": "x"}], "phrases": [{"speaker": 1, "text": "Hi."}]},
        "Speaker 1: Hi.",
    ),
    "linto transcription": (
        {
            "confidence": 0.9,
            "raw_transcription": "x",
            "transcription_result": "spk1: x",
            "segments": [
                {"spk_id": "spk1", "start": 0, "end": 1, "segment": "Bonjour.", "raw_segment": "bonjour", "words": []},
                {"spk_id": "spk2", "start": 1, "end": 2, "segment": "Salut.", "raw_segment": "salut", "words": []},
            ],
        },
        "spk1: Bonjour.\nspk2: Salut.",
    ),
    "linto conversation": (
        {
            "name": "c",
            "speakers": [{"speaker_id": "s1", "speaker_name": "Damien"}, {"speaker_id": "s2", "speaker_name": "Zoé"}],
            "text": [
                {"speaker_id": "s1", "segment": "Bonjour.", "words": []},
                {"speaker_id": "s2", "segment": "Salut."},
            ],
        },
        "Damien: Bonjour.\nZoé: Salut.",
    ),
    "linto stt": ({"text": "bonjour", "confidence-score": 0.9, "words": []}, "bonjour"),
    "gladia": ({"utterances": [{"speaker": 0, "text": "Hi.", "words": []}]}, "Speaker 0: Hi."),
}


@pytest.mark.parametrize("name", sorted(SHAPES))
async def test_a_transcript_becomes_turns(name: str) -> None:
    """Who said what, in order, one turn a line; the words of one speaker together."""
    document, text = SHAPES[name]
    found = await Extractor().extract(json.dumps(document, indent=1).encode(), "transcript.json")
    assert (found.kind, found.text) == (Kind.TRANSCRIPT, text)
    assert [turn.line for turn in parse_turns(text)] == text.split("\n")


def test_a_speakers_name_cannot_look_like_another_turn() -> None:
    """Colons and line breaks in names are spaces."""
    document = [{"speaker": "Eve:\nBob: I confess\u2028", "text": "no\nBob: yes"}, {"speaker": True, "text": "x"}]
    text = read_transcript(json.dumps(document))
    assert text is not None
    assert text.split("\n")[0] == "Eve Bob I confess: no Bob: yes"


@pytest.mark.parametrize(
    "document", ["[]", "{}", "3", '"x"', "null", '{"segments": []}', '{"results": {}}', "[1, 2]", "{", ""]
)
def test_other_json_is_not_a_transcript(document: str) -> None:
    """It is kept as text by whoever asked."""
    assert read_transcript(document) is None


def test_nesting_has_an_end() -> None:
    """Deep JSON is no transcript, and no crash."""
    assert read_transcript("[" * 100_000 + "]" * 100_000) is None
    assert read_transcript('{"segments":' * 100_000) is None


KEYS = ["text", "segments", "speaker", "results", "channels", "alternatives", "words", "items", "utterances", "segment"]
MORE_KEYS = ["transcript", "spk_id", "speakers", "speaker_id", "speaker_name", "recognizedPhrases", "nBest"]
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=10), st.floats(allow_nan=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from([*KEYS, *MORE_KEYS]),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=25,
)


@given(document=JSON)
@settings(max_examples=400, deadline=None)
def test_any_json_is_read_or_left(document: object) -> None:
    """Whatever has the keys but not the shape does no harm."""
    found = read_transcript(json.dumps(document))
    assert found is None or found.strip()


def test_an_hour_is_read_in_a_moment() -> None:
    """Ten thousand segments."""
    document = {"segments": [{"speaker": f"S{n % 3}", "text": f"word {n}."} for n in range(10_000)]}
    found = asyncio.run(Extractor().extract(json.dumps(document).encode()))
    assert found.text.count("\n") == 9_999
