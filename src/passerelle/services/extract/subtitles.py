"""Text out of subtitles: SRT and WebVTT. Times go, who speaks stays."""

from __future__ import annotations

import html
import re

from passerelle.services.extract.speech import Speech

_TIMES = re.compile(r"\s*(?:\d{1,3}:)?\d{1,2}:\d{2}[.,]\d{1,3}[ \t]*-->[ \t]*(?:\d{1,3}:)?\d{1,2}:\d{2}[.,]\d{1,3}")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?[ \t]+([^>]{1,200})>")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>|<\d[\d:.]{0,20}>|\{\\an?\d\}")
_ASIDE = ("NOTE", "STYLE", "REGION", "WEBVTT")


def read_subtitles(text: str) -> str:
    """Returns what is said: cues of one speaker joined, ``Name: …`` where the cues name one, paragraphs else."""
    speech = Speech()
    for block in re.split(r"\n[ \t]*\n", text.replace("\x00", "")):
        _read_cue(block.strip("\n").split("\n"), speech)
    return speech.text()


def _read_cue(lines: list[str], speech: Speech) -> None:
    at = next((index for index, line in enumerate(lines[:3]) if _TIMES.match(line)), None)
    if at is None:
        if lines[0].startswith(_ASIDE) or not "".join(lines).strip():
            return
        at = -1  # a cue that a blank line cut in two: what is said must not be lost
    for line in lines[at + 1 :]:
        voice = _VOICE.search(line)
        said = html.unescape(_TAG.sub("", _VOICE.sub("", line))).strip()
        if voice is not None:
            speech.say(html.unescape(voice[1]), said)
        else:
            speech.go_on(said)
