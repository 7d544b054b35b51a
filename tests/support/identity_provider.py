"""A real OpenID Connect server in a process of its own, and a person who logs in at it."""

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.system import free_port

_READY_SECONDS = 30


class IdentityProvider:
    """The server. Its key is made when it starts; the claims of a person may replace those of the ID token."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.issuer = f"http://127.0.0.1:{self.port}"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = Path(__file__).with_name("pkce_provider.py")
        command = [sys.executable, "-P", str(program), "--port", str(self.port)]  # -P: no module of this folder shadows
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        pause = threading.Event()
        for _ in range(_READY_SECONDS * 20):
            try:
                urllib.request.urlopen(f"{self.issuer}/jwks").close()
            except OSError:
                pause.wait(0.05)
            else:
                return
        raise AssertionError(self._log.read_text())

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def restart(self) -> None:
        """Begin anew, with another key."""
        self.stop()
        self.start()

    def set_person(self, subject: str, **claims: Any) -> None:
        """Set the claims of a person."""
        body = json.dumps(claims).encode()
        path = f"/users/{urllib.parse.quote(subject, safe='')}"
        request = urllib.request.Request(self.issuer + path, body, {"Content-Type": "application/json"}, method="PUT")
        urllib.request.urlopen(request).close()

    def approve(self, url: str, subject: str) -> str:
        """Log in on the page at `url` as a person; return the URL that the browser is sent to."""
        form = urllib.parse.urlencode({"sub": subject}).encode()
        try:
            _OPENER.open(url, form)
        except urllib.error.HTTPError as answer:
            return str(answer.headers["Location"])
        raise AssertionError("the page was shown again")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


@contextmanager
def identity_provider(folder: Path) -> Iterator[IdentityProvider]:
    """Yield a server that runs."""
    provider = IdentityProvider(folder / "provider.log")
    provider.start()
    try:
        yield provider
    finally:
        provider.stop()
