"""Ask a server how its deployment does (`GET /statusz`) and check which TCP ports of this machine are in use."""

import http.client
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Final

from cli.wording import model_progress
from jobs.settings import Settings

_INTERVAL = 0.5  # seconds between looks at first
_MAX_PAUSE = 5.0  # and at most, for pools that never come up
_MOVING = 1.0  # and while an engine loads
_PATIENCE = 3.0
_STATUSES: Final = frozenset({"ready", "broker_full", "stuck", "unavailable"})


def look(url: str) -> dict[str, Any] | None:
    """Return the answer of `/statusz`, ready or not; None when nothing answers."""
    try:
        with urllib.request.urlopen(f"{url}/statusz", timeout=_PATIENCE) as answer:  # noqa: S310 (an http URL of ours)
            return _parse(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return _parse(error.read())
    except (OSError, http.client.HTTPException, ValueError):  # another protocol, or an invalid URL
        return None


def running_url(config: Settings) -> str:
    """Return the URL at which the deployment of these settings answers, its own port or its public URL; else empty."""
    for url in (reachable_url(config.host, config.port), config.public_url.rstrip("/")):
        state = (look(url) if url else None) or {}
        if state.get("status") in _STATUSES and "database" in state:
            return url
    return ""


def console_path(url: str) -> str:
    """Return the path of the console on the server at `url`; empty where none was built."""
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 (an http URL of ours)
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:  # noqa: S310 (the same)
            return str(_parse(answer.read()).get("console", ""))
    except (OSError, http.client.HTTPException, ValueError):
        return ""


def takes_requests(url: str) -> bool:
    """Return whether the server answers and reaches its database. Work may still wait for a worker."""
    state = look(url)
    return state is not None and state.get("database") == "ok"


def tell_when_up(
    url: str,
    pools: Mapping[str, str],
    ready: Callable[[], None],
    say: Callable[[str], None],
    update: Callable[[str], None],
    stop: threading.Event,
) -> threading.Thread:
    """Start a thread that calls `ready` when the server takes requests, and then says which pools are up.

    `pools` has the queue of each. While one loads its engine, `say` gets each new phase and `update` the seconds.
    """

    def watch() -> None:
        while not takes_requests(url):
            if stop.wait(_INTERVAL):
                return
        ready()
        waiting = dict(pools)
        pause, phases = _INTERVAL, dict[str, Any]()
        while waiting and not stop.wait(pause):
            answer = look(url) or {}
            live = answer.get("workers", {})
            for name in [name for name, queue in waiting.items() if live.get(queue)]:
                say(f"{name} takes work from {waiting.pop(name)}")
            loading = _loading(answer, waiting)
            text = "; ".join(f"{name} is {model_progress(entry)}" for name, entry in loading.items())
            if loading:
                (update if loading == phases else say)(text)
            pause, phases = (_MOVING if loading else min(pause * 1.05, _MAX_PAUSE)), loading

    thread = threading.Thread(target=watch, name="readiness", daemon=True)
    thread.start()
    return thread


def _loading(answer: Mapping[str, Any], pools: Mapping[str, str]) -> dict[str, Any]:
    """Return the loading engine of each pool, the longest-loading first."""
    loading: dict[str, Any] = {}
    for entry in answer.get("loading", ()):
        for name, queue in pools.items():
            if queue == entry["queue"]:
                loading.setdefault(name, entry)
    return loading


def _parse(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 (what a client connects to instead)


def is_free(host: str, port: int) -> bool:
    """Return whether a server could listen on the port now."""
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def reachable_url(host: str, port: int) -> str:
    """Return the URL at which this machine reaches a server that binds the address."""
    host = _ANYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def take_free(host: str) -> int:
    """Return a port that was free a moment ago."""
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def answers(host: str, port: int, patience: float = 3.0) -> bool:
    """Return whether the port accepts connections."""
    try:
        socket.create_connection((host, port), timeout=patience).close()
    except OSError:
        return False
    return True


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
