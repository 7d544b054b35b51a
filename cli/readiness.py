"""Tells when the server answers and which workers have joined, while the supervisor goes on by itself."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

_INTERVAL = 0.3  # seconds between looks
_PATIENCE = 2.0


def look(url: str) -> dict[str, Any] | None:
    """What GET /readyz says, or None while it does not answer 200."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=_PATIENCE) as answer:  # noqa: S310 (our own http URL)
            found = json.load(answer)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else {}


def answers(url: str) -> bool:
    """Whether the server takes requests."""
    return look(url) is not None


def when_ready(url: str, then: Callable[[], None], stop: threading.Event) -> threading.Thread:
    """Call `then` once, from another thread, when the server takes requests."""

    def watch() -> None:
        while not answers(url):
            if stop.wait(_INTERVAL):
                return
        then()

    thread = threading.Thread(target=watch, name="readiness", daemon=True)
    thread.start()
    return thread
