"""Letters: what is sent, and what happens when the mail server is not there."""

from __future__ import annotations

import asyncio
import email
import logging
from collections.abc import Iterator
from email.message import Message
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from hypothesis import given
from hypothesis import strategies as st
from tests.harness.ports import unused_port

from passerelle.identity.mail import MAX_WAITING, Mailer, MailServer, is_address


class Letters:
    """A mail server's memory; it refuses who asks for it."""

    def __init__(self) -> None:
        self.all: list[Message] = []
        self.refuses = False

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - the library's name
        """Takes a letter."""
        if self.refuses:
            return "550 no such mailbox ada@example.org"
        self.all.append(email.message_from_bytes(envelope.content))
        return "250 OK"


@pytest.fixture
def letters() -> Iterator[tuple[Letters, int]]:
    """A mail server and its port."""
    found, port = Letters(), unused_port()
    controller = Controller(found, hostname="127.0.0.1", port=port)
    controller.start()
    yield found, port
    controller.stop()


def server(port: int, **changes: Any) -> MailServer:
    """How to reach it."""
    return MailServer(
        **({"host": "127.0.0.1", "port": port, "sender": "llm@example.org", "security": "none"} | changes)
    )


async def test_a_letter_arrives(letters: tuple[Letters, int]) -> None:
    """Sender, receiver, subject and text are there, and it says that a machine wrote it."""
    found, port = letters
    mailer = Mailer(server(port))
    mailer.post("ada@example.org", "A new password", "Voilà: https://x/#token")
    await mailer.aclose()
    (letter,) = found.all
    assert (letter["from"], letter["to"], letter["subject"]) == ("llm@example.org", "ada@example.org", "A new password")
    assert letter["auto-submitted"] == "auto-generated"
    text = letter.get_payload(decode=True)
    assert isinstance(text, bytes)
    assert text.decode().strip() == "Voilà: https://x/#token"


@pytest.mark.parametrize("what", ["away", "refuses", "no TLS", "no login"])
async def test_a_failure_is_logged_without_the_letter(
    letters: tuple[Letters, int], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says which server and why; neither the text nor the receiver, and nothing is raised."""
    found, port = letters
    found.refuses = what == "refuses"
    changes: dict[str, dict[str, Any]] = {
        "away": {"port": unused_port()},
        "no TLS": {"security": "starttls"},
        "no login": {"username": "u", "password": "hunter2"},
    }
    results: list[bool] = []
    mailer = Mailer(
        server(port, **changes.get(what, {})) if what != "away" else server(unused_port()), on_result=results.append
    )
    with caplog.at_level(logging.ERROR, "passerelle.mail"):
        mailer.post("ada@example.org", "A new password", "https://x/#token")
        await mailer.aclose()
        await asyncio.sleep(0)
    assert results == [False]
    assert "127.0.0.1" in caplog.text
    for secret in ("token", "ada@", "hunter2"):
        assert secret not in caplog.text
    assert found.all == []


async def test_a_line_end_in_an_address_sends_nothing(letters: tuple[Letters, int]) -> None:
    """Nobody adds receivers by what they call themselves."""
    found, port = letters
    mailer = Mailer(server(port))
    mailer.post("ada@example.org\r\nBcc: eve@example.org", "x", "y")
    await mailer.aclose()
    assert found.all == []


async def test_letters_do_not_pile_up(caplog: pytest.LogCaptureFixture) -> None:
    """Past the bound letters are dropped, and the log says so."""
    mailer = Mailer(server(unused_port()))
    with caplog.at_level(logging.ERROR, "passerelle.mail"):
        for _ in range(MAX_WAITING + 5):
            mailer.post("ada@example.org", "x", "y")
        await mailer.aclose()
    assert caplog.text.count("a letter was dropped") == 5


@pytest.mark.parametrize(
    "good", ["a@b.org", "ada.lovelace+llm@mail.example.co.uk", "x@localhost", "o'neil@example.org"]
)
def test_addresses(good: str) -> None:
    """What people have."""
    assert is_address(good)


@pytest.mark.parametrize(
    "bad",
    ["", "a", "@b", "a@", "a@b@c", "a b@c.org", "a@b..org", "a@b.org\n", "é@b.org", "<a@b.org>", "a@" + "b." * 200],
)
def test_no_addresses(bad: str) -> None:
    """What they have not."""
    assert not is_address(bad)


@given(st.text(max_size=60))
def test_no_address_can_break_a_header(text: str) -> None:
    """Whatever passes has no space, line end or angle in it."""
    if is_address(text):
        assert text.isascii()
        assert not set(text) & set(' \r\n\0<>,;:"')


def test_the_password_is_in_no_repr() -> None:
    """The server's password stays out of logs."""
    assert "hunter2" not in repr(server(1, username="u", password="hunter2"))
