"""Pictures that a request names by address: fetched, looked at, and put into the request as ``data:`` URLs.

This runs once the caller is known and their limits let the call pass, and before the call takes a place of a model.
What a model server sees is what was looked at here: it gets no address.
"""

from __future__ import annotations

import asyncio
import base64
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from passerelle.domain.errors import BadRequest, PayloadTooLarge
from passerelle.faces.openai.media import check_pixels
from passerelle.faces.openai.picture import BytesReader, picture_kind
from passerelle.net.address import AddressRefused
from passerelle.net.fetch import Fetcher, NotFetched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from passerelle.domain.request import Request

THREAD_BYTES = 64 * 1024
"""Pictures of more bytes are encoded in a thread."""


@dataclass(frozen=True, slots=True)
class PictureRules:
    """``max_pictures`` and ``max_total_bytes`` are bounds of one request, the others of one process."""

    max_pictures: int = 16
    max_total_bytes: int = 30_000_000
    at_once: int = 16
    """Pictures fetched at one time, by all callers together."""
    at_once_by_key: int = 4


class RemotePictures:
    """Fetches pictures and puts them into requests."""

    def __init__(self, fetcher: Fetcher, rules: PictureRules) -> None:
        self._fetcher = fetcher
        self._rules = rules
        self._all = asyncio.Semaphore(rules.at_once)
        self._keys: dict[str, _Share] = {}

    async def __call__(self, request: Request, key_id: str) -> None:
        """Fetches what ``request`` names, for a key. Raises BadRequest or PayloadTooLarge; the request stays then."""
        remote = {url: param for param, url in reversed(request.remote_pictures)}
        if len(remote) > self._rules.max_pictures:
            raise BadRequest(
                f"This request names {len(remote)} pictures; at most {self._rules.max_pictures} are fetched.",
                param="messages",
                code="invalid_image_url",
            )
        budget = _Budget(self._rules.max_total_bytes)
        async with self._share(key_id) as share:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = {
                        url: group.create_task(self._picture(url, param, share, budget))
                        for url, param in remote.items()
                    }
            except* (BadRequest, PayloadTooLarge) as errors:
                raise _first(errors) from None
        pictures = {url: task.result() for url, task in tasks.items()}
        if budget.used > THREAD_BYTES:
            await asyncio.to_thread(_inline, request, pictures)
        else:
            _inline(request, pictures)

    @asynccontextmanager
    async def _share(self, key_id: str) -> AsyncIterator[asyncio.Semaphore]:
        share = self._keys.get(key_id)
        if share is None:
            share = self._keys[key_id] = _Share(asyncio.Semaphore(self._rules.at_once_by_key))
        share.users += 1
        try:
            yield share.places
        finally:
            share.users -= 1
            if not share.users:
                del self._keys[key_id]

    async def _picture(self, url: str, param: str, share: asyncio.Semaphore, budget: _Budget) -> tuple[str, bytes]:
        """Returns the kind and the bytes of one picture."""
        try:
            async with share, self._all:
                data = await self._fetcher.get(url)
        except AddressRefused as error:
            raise BadRequest(str(error), param=param, code="invalid_image_url") from None
        except NotFetched as error:
            message = f"This picture could not be fetched: {error}."
            raise BadRequest(message, param=param, code="image_not_fetched") from None
        budget.take(len(data), param)
        kind = picture_kind(data)
        if kind is None:
            raise BadRequest(
                "What is at this address is no picture (png, jpeg, gif, webp).", param=param, code="invalid_image"
            )
        check_pixels(kind, BytesReader(data), param)
        return kind, data


@dataclass(slots=True)
class _Share:
    """What one key may fetch at one time, and how many of its requests wait for it or use it."""

    places: asyncio.Semaphore
    users: int = 0


class _Budget:
    """Bytes of one request."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.used = 0

    def take(self, count: int, param: str) -> None:
        """Counts a picture. Raises PayloadTooLarge."""
        self.used += count
        if self.used > self._limit:
            raise PayloadTooLarge(f"The pictures are larger than {self._limit} bytes together.", param=param)


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    """Returns one error of a group: the first that happened."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _inline(request: Request, pictures: dict[str, tuple[str, bytes]]) -> None:
    """Puts the pictures into the request."""
    urls = {url: _data_url(*picture) for url, picture in pictures.items()}
    messages: list[dict[str, Any]] = msgspec.json.decode(request.fields["messages"])
    for message in messages:
        content = message.get("content")
        for part in content if type(content) is list else ():
            if part.get("type") == "image_url":
                picture = part["image_url"]
                picture["url"] = urls.get(picture["url"], picture["url"])
    request.fields = request.fields | {"messages": msgspec.Raw(msgspec.json.encode(messages))}
    request.body = msgspec.json.encode(request.fields)
    request.remote_pictures = ()


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
