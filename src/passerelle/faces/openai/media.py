"""Images and sound in messages: only what the client sent itself, bounded, and never fetched from anywhere.

A model server that gets a URL fetches it, from inside the network it stands in. So no URL is forwarded: a picture
comes as a ``data:`` URL, or the request is refused before any packet leaves.
"""

from __future__ import annotations

import re

from passerelle.domain.errors import BadRequest, PayloadTooLarge
from passerelle.faces.openai.bodies import AudioPart, ImagePart, RefusalPart, TextPart

MAX_MEDIA_BYTES = 20 * 2**20
"""Upper bound of one picture or sound, as text in the request (base64: three quarters of it are data)."""

_PICTURE = re.compile(r"data:image/(?:png|jpeg|jpg|gif|webp);base64,[A-Za-z0-9+/]{4}")


def check_part(part: TextPart | RefusalPart | ImagePart | AudioPart, param: str) -> None:
    """Raises BadRequest or PayloadTooLarge when a part of a message may not be forwarded; ``param`` names it."""
    if isinstance(part, ImagePart):
        _check_picture(part.image_url.url, f"{param}.image_url.url")
    elif isinstance(part, AudioPart):
        _check_size(part.input_audio.data, f"{param}.input_audio.data")


def _check_picture(url: str, param: str) -> None:
    if _PICTURE.match(url) is None:
        raise BadRequest(
            "Pictures are accepted as `data:image/png;base64,…` URLs (png, jpeg, gif, webp) only: "
            "no address that a client names is fetched from inside this network.",
            param=param,
            code="invalid_image_url",
        )
    _check_size(url, param)


def _check_size(data: str, param: str) -> None:
    if len(data) > MAX_MEDIA_BYTES:
        raise PayloadTooLarge(
            f"This picture or sound is {len(data)} bytes long; at most {MAX_MEDIA_BYTES} are accepted.", param=param
        )
