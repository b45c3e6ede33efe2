"""Sends letters to people by SMTP, in a thread of its own: neither the loop nor a caller waits for a mail server."""

from __future__ import annotations

import asyncio
import logging
import re
import smtplib
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Literal

TIMEOUT_S = 15.0
MAX_WAITING = 100
"""Letters that may wait for the mail server; more are dropped, and the log says so."""
_ADDRESS = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~\-]{1,64}@(?=.{1,253}\Z)([A-Za-z0-9\-]{1,63}\.)*[A-Za-z0-9\-]{1,63}"
)
_log = logging.getLogger("passerelle.mail")


def is_address(text: str) -> bool:
    """Whether this is an e-mail address as people have them: no quotes, comments or line ends."""
    return _ADDRESS.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class MailServer:
    """How letters leave. ``security`` is ``tls`` from the first byte, ``starttls``, or ``none``."""

    host: str
    port: int
    sender: str
    security: Literal["tls", "starttls", "none"] = "starttls"
    username: str | None = None
    password: str | None = field(default=None, repr=False)


class Mailer:
    """Sends letters one after the other. ``on_result`` hears of each whether it was taken by the server."""

    def __init__(self, server: MailServer, *, on_result: Callable[[bool], None] = lambda sent: None) -> None:
        self._server = server
        self._on_result = on_result
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mail")
        self._waiting: set[asyncio.Future[None]] = set()

    def post(self, to: str, subject: str, text: str) -> None:
        """Takes a letter and returns at once. A failure is in the log, without the letter: its text may be a secret."""
        if len(self._waiting) >= MAX_WAITING:
            _log.error("a letter was dropped: %d wait for %s already", MAX_WAITING, self._server.host)
            return
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._send, to, subject, text)
        self._waiting.add(future)
        future.add_done_callback(self._done)

    async def aclose(self) -> None:
        """Sends what waits, for as long as one letter may take, and ends."""
        if self._waiting:
            await asyncio.wait(self._waiting, timeout=TIMEOUT_S)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _done(self, future: asyncio.Future[None]) -> None:
        self._waiting.discard(future)
        error = None if future.cancelled() else future.exception()
        if error is not None:
            _log.error("a letter could not be sent by %s: %s", self._server.host, _why(error))
        self._on_result(error is None and not future.cancelled())

    def _send(self, to: str, subject: str, text: str) -> None:
        server = self._server
        letter = EmailMessage()
        letter["From"], letter["To"], letter["Subject"] = server.sender, to, subject
        letter["Date"] = formatdate(localtime=False)
        letter["Message-ID"] = make_msgid(domain=server.sender.rpartition("@")[2])
        letter["Auto-Submitted"] = "auto-generated"
        letter.set_content(text)
        if server.security == "tls":
            context = ssl.create_default_context()
            connection: smtplib.SMTP = smtplib.SMTP_SSL(server.host, server.port, timeout=TIMEOUT_S, context=context)
        else:
            connection = smtplib.SMTP(server.host, server.port, timeout=TIMEOUT_S)
        with connection:
            if server.security == "starttls":
                connection.starttls(context=ssl.create_default_context())
            if server.username is not None:
                connection.login(server.username, server.password or "")
            connection.send_message(letter)


def _why(error: BaseException) -> str:
    """What went wrong, without what the server said about addresses."""
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{type(error).__name__} {error.smtp_code}"
    return f"{type(error).__name__}: {error}" if isinstance(error, OSError) else type(error).__name__
