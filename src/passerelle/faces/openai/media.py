"""Images and sound in messages: bounded, and no address goes to a model server.

A model server that gets a URL fetches it, from inside the network it stands in. So no URL is forwarded: a picture
comes as a ``data:`` URL, or as an http or https URL that is read strictly here and fetched by us
(`passerelle.faces.openai.remote`), once the caller's limits let the request pass.
"""

from __future__ import annotations

import re

from passerelle.domain.errors import BadRequest, PayloadTooLarge
from passerelle.faces.openai.bodies import AudioPart, ImagePart, RefusalPart, TextPart
from passerelle.faces.openai.picture import Base64Reader, Reader, picture_size
from passerelle.net.address import AddressRefused, read_url

MAX_MEDIA_BYTES = 20 * 2**20
"""Upper bound of one picture or sound, as text in the request (base64: three quarters of it are data)."""

MAX_PIXELS = 50_000_000
"""Upper bound of width times height: unpacked, such a picture takes 150 MB."""

_PICTURE = re.compile(r"data:image/(png|jpeg|jpg|gif|webp);base64,(?=[A-Za-z0-9+/]{4})")


def check_part(part: TextPart | RefusalPart | ImagePart | AudioPart, param: str) -> str | None:
    """Returns the address that a picture is to be fetched from, None when there is nothing to fetch.

    Raises BadRequest or PayloadTooLarge when a part of a message may not be forwarded; ``param`` names it.
    """
    if isinstance(part, ImagePart):
        return _check_picture(part.image_url.url, picture_param(param))
    if isinstance(part, AudioPart):
        _check_size(part.input_audio.data, f"{param}.input_audio.data")
    return None


def picture_param(param: str) -> str:
    """Returns the name of the address in a part of a message."""
    return f"{param}.image_url.url"


def _check_picture(url: str, param: str) -> str | None:
    found = _PICTURE.match(url)
    if found is not None:
        _check_size(url, param)
        check_pixels(found[1], Base64Reader(url, found.end()), param)
        return None
    if url[:5].lower() == "data:":
        raise BadRequest(
            "Pictures in a request are `data:image/png;base64,…` URLs (png, jpeg, gif, webp).",
            param=param,
            code="invalid_image_url",
        )
    try:
        read_url(url)
    except AddressRefused as error:
        raise BadRequest(str(error), param=param, code="invalid_image_url") from None
    return url


def check_pixels(kind: str, reader: Reader, param: str) -> None:
    """Raises BadRequest when a picture is not of its kind, or announces too many pixels."""
    try:
        width, height = picture_size(kind, reader)
    except ValueError:
        raise BadRequest(
            f"This is not a {kind} picture, or it is cut off.", param=param, code="invalid_image"
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
