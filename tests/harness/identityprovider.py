"""A real OpenID Connect provider in a process of its own. Its signing key is new at each start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import requests
from tests.harness.ports import unused_port


class IdentityProvider:
    """Starts and stops the provider on one port. ``people`` are their claims, each with a ``sub``."""

    def __init__(self, people: list[dict[str, Any]]) -> None:
        self._people = people
        self._process: subprocess.Popen[bytes] | None = None
        self.port = unused_port()
        self.issuer = f"http://127.0.0.1:{self.port}"

    def start(self) -> IdentityProvider:
        """Returns when it answers."""
        command = [sys.executable, "-W", "ignore", "-m", "oidc_provider_mock", "--port", str(self.port)]
        for person in self._people:
            command += ["--user-claims", json.dumps(person)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert self._process.poll() is None, "the provider ended"
            try:
                if requests.get(f"{self.issuer}/.well-known/openid-configuration", timeout=5).ok:
                    return self
            except requests.ConnectionError:
                time.sleep(0.05)
        raise RuntimeError("the provider did not answer")

    def stop(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def change(self, subject: str, claims: dict[str, Any]) -> None:
        """Gives a person other claims."""
        requests.put(f"{self.issuer}/users/{subject}", json=claims, timeout=10).raise_for_status()

    def consent(self, url: str, subject: str, *, deny: bool = False) -> str:
        """Does what a person does on the provider's page; returns the address the browser is sent back to."""
        assert urlsplit(url).port == self.port, url
        form = {"action": "deny"} if deny else {"sub": subject}
        answer = requests.post(url, data=form, timeout=10, allow_redirects=False)
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    def tokens(self, subject: str, client_id: str) -> dict[str, Any]:
        """Returns what a program of that client gets for a person: ``id_token`` and ``access_token``."""
        back = "http://127.0.0.1:1/back"
        query = f"response_type=code&client_id={client_id}&redirect_uri={back}&scope=openid+profile+email"
        location = self.consent(f"{self.issuer}/oauth2/authorize?{query}", subject)
        code = location.split("code=")[1].split("&")[0]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": back}
        answer = requests.post(f"{self.issuer}/oauth2/token", data=form, auth=(client_id, "any"), timeout=10)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def __enter__(self) -> IdentityProvider:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
