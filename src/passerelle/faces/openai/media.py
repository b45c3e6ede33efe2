"""Images and sound in messages: only what the client sent itself, bounded, and never fetched from anywhere.

A model server that gets a URL fetches it, from inside the network it stands in. So no URL is forwarded: a picture
comes as a ``data:`` URL, or the request is refused before any packet leaves.
"""

from __future__ import annotations

import re

from passerelle.domain.errors import BadRequest, PayloadTooLarge
from passerelle.faces.openai.bodies import AudioPart, ImagePart, RefusalPart, TextPart
from passerelle.faces.openai.picture import Base64Reader, picture_size

MAX_MEDIA_BYTES = 20 * 2**20
"""Upper bound of one picture or sound, as text in the request (base64: three quarters of it are data)."""

MAX_PIXELS = 50_000_000
"""Upper bound of width times height: unpacked, such a picture takes 150 MB."""

_PICTURE = re.compile(r"data:image/(png|jpeg|jpg|gif|webp);base64,(?=[A-Za-z0-9+/]{4})")


def check_part(part: TextPart | RefusalPart | ImagePart | AudioPart, param: str) -> None:
    """Raises BadRequest or PayloadTooLarge when a part of a message may not be forwarded; ``param`` names it."""
    if isinstance(part, ImagePart):
        _check_picture(part.image_url.url, f"{param}.image_url.url")
    elif isinstance(part, AudioPart):
        _check_size(part.input_audio.data, f"{param}.input_audio.data")


def _check_picture(url: str, param: str) -> None:
    found = _PICTURE.match(url)
    if found is None:
        raise BadRequest(
            "Pictures are accepted as `data:image/png;base64,…` URLs (png, jpeg, gif, webp) only: "
            "no address that a client names is fetched from inside this network.",
            param=param,
            code="invalid_image_url",
        )
    _check_size(url, param)
    try:
        width, height = picture_size(found[1], Base64Reader(url, found.end()))
    except ValueError:
        raise BadRequest(
            f"This is not a {found[1]} picture in base64, or it is cut off.", param=param, code="invalid_image"
        ) from None
    if width * height > MAX_PIXELS:
        raise BadRequest(
            f"This picture has {width} x {height} pixels; at most {MAX_PIXELS:,} are accepted.",
            param=param,
            code="invalid_image",
        )


def _check_size(data: str, param: str) -> None:
    if len(data) > MAX_MEDIA_BYTES:
        raise PayloadTooLarge(
            f"This picture or sound is {len(data)} bytes long; at most {MAX_MEDIA_BYTES} are accepted.", param=param
        )
