"""Text out of the JSON that speech recognition gives: who said what, in order.

Whisper and its servers, WhisperX, pyannote, OpenAI's diarized JSON, Deepgram, AssemblyAI, Amazon Transcribe, Google and
Azure speech, LinTO. JSON of another shape is kept as text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from passerelle.services.extract.speech import Speech

_Said = Iterable[tuple[object, str]]


def read_transcript(text: str) -> str | None:
    """Returns turns, one a line; None when the JSON is not a transcript of a known shape, or not JSON."""
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    for shape in _SHAPES:
        said = shape(document)
        if said is None:
            continue
        speech = Speech()
        for speaker, words in said:
            speech.say(speaker, words)
        found = speech.text()
        if found:
            return found
    return None


def _tables(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(value: object) -> dict[str, Any]:
    return next(iter(_tables(value)), {})


def _text(item: Mapping[str, Any], *names: str) -> str:
    return next((item[name] for name in names if isinstance(item.get(name), str)), "")


def _segments(document: object) -> _Said | None:
    """Whisper, WhisperX, OpenAI, pyannote with text, LinTO's transcriptions, AssemblyAI's utterances."""
    root = _table(document)
    for name in ("utterances", "segments", "chunks", "text", "turns", "monologues"):
        items = _tables(root.get(name))
        if items and any(_text(item, *_WORDS) for item in items):
            return _spoken(items, _names(root))
    items = _tables(document)
    return _spoken(items, {}) if items and all(_text(item, *_WORDS) for item in items) else None


_WORDS = ("segment", "text", "transcript", "raw_segment")
_WHO = ("speaker", "spk_id", "speaker_id", "speaker_label", "speaker_name", "spk")


def _names(root: Mapping[str, Any]) -> dict[object, object]:
    """Returns speakers' names by id, as LinTO's conversations give them."""
    speakers = _tables(root.get("speakers"))
    return {
        each["speaker_id"]: each["speaker_name"]
        for each in speakers
        if isinstance(each.get("speaker_id"), str) and isinstance(each.get("speaker_name"), str)
    }


def _spoken(items: Iterable[dict[str, Any]], names: Mapping[object, object]) -> _Said:
    for item in items:
        who = next((item[name] for name in _WHO if isinstance(item.get(name), str | int)), None)
        if isinstance(item.get("speaker"), dict):
            who = next((v for v in item["speaker"].values() if isinstance(v, str)), None)
        if who is None:
            who = _most(word.get("speaker") for word in _tables(item.get("words")))
        yield names.get(who, who), _text(item, *_WORDS)


def _most(speakers: Iterable[object]) -> object:
    found = Counter(each for each in speakers if isinstance(each, str | int))
    return found.most_common(1)[0][0] if found else None


def _deepgram(document: object) -> _Said | None:
    results = _table(_table(document).get("results"))
    channels = _tables(results.get("channels"))
    if not channels:
        return None
    utterances = _tables(results.get("utterances"))
    if utterances:
        return [(each.get("speaker"), _text(each, "transcript")) for each in utterances]
    said: list[tuple[object, str]] = []
    for number, channel in enumerate(channels):
        best = _first(channel.get("alternatives"))
        whole = number if len(channels) > 1 else None
        paragraphs = _tables(_table(best.get("paragraphs")).get("paragraphs"))
        words = _tables(best.get("words"))
        if paragraphs:
            for each in paragraphs:
                sentences = " ".join(_text(sentence, "text") for sentence in _tables(each.get("sentences")))
                said.append((each.get("speaker", whole), sentences))
        elif any("speaker" in word for word in words):
            said += [(word.get("speaker", whole), _text(word, "punctuated_word", "word")) for word in words]
        else:
            said.append((whole, _text(best, "transcript")))
    return said


def _amazon(document: object) -> _Said | None:
    results = _table(_table(document).get("results"))
    segments = _tables(results.get("audio_segments"))
    if segments:
        return [(each.get("speaker_label"), _text(each, "transcript")) for each in segments]
    items = _tables(results.get("items"))
    if not items:
        whole = " ".join(_text(each, "transcript") for each in _tables(results.get("transcripts")))
        return [(None, whole)] if whole else None
    labelled = _tables(_table(results.get("speaker_labels")).get("segments"))
    by_time = {
        str(item.get("start_time")): item.get("speaker_label")
        for each in labelled
        for item in _tables(each.get("items"))
    }
    said: list[tuple[object, str]] = []
    for item in items:
        word = _text(_first(item.get("alternatives")), "content")
        if item.get("type") == "punctuation" and said:
            said[-1] = (said[-1][0], said[-1][1] + word)
        else:
            said.append((item.get("speaker_label") or by_time.get(str(item.get("start_time"))), word))
    return said


def _google(document: object) -> _Said | None:
    results = _tables(_table(document).get("results"))
    if not results:
        return None
    return [(None, _text(_first(each.get("alternatives")), "transcript")) for each in results]


def _azure(document: object) -> _Said | None:
    phrases = _tables(_table(document).get("recognizedPhrases"))
    if phrases:
        return [(each.get("speaker"), _text(_first(each.get("nBest")), "display")) for each in phrases]
    phrases = _tables(_table(document).get("phrases"))
    return [(each.get("speaker"), _text(each, "text")) for each in phrases] if phrases else None


def _whole(document: object) -> _Said | None:
    root = _table(document)
    found = _text(root, "transcription_result", "text", "raw_transcription", "transcript", "DisplayText")
    return [(None, line) for line in found.split("\n")] if found else None


_SHAPES: tuple[Callable[[object], _Said | None], ...] = (_segments, _deepgram, _amazon, _google, _azure, _whole)
