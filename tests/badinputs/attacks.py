"""Attacks of one ordinary API key on the other projects of a deployment: one function an attack.

An attack runs in a process of its own, so that it takes no time from the probes that measure what the others notice.
It is bounded in count and in time, and goes to the loopback address only.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx2

from tests.badinputs.world import at_once
from tests.support.stub_engine import FLOOD
from tests.support.system import MODEL, pause

EMBEDDINGS = "all-minilm-l6-v2"  # comes inside a package
SLOW_NAME_SECONDS = 5.0
_MIB = 1 << 20
_BODY = 4 * _MIB - 1024  # bytes of a JSON body, a little under the limit of 4 MiB
_TIMEOUT = 60.0  # seconds for one request
_PLACES = 64  # requests of interactive clients that a worker takes at once
_WORDS = [
    "okapi",
    "river",
    "night",
    "inline",
    "stone",
    "water",
    "grain",
    "wheel",
    "miller",
    "flour",
    "bread",
    "morning",
]


@dataclass(frozen=True, slots=True)
class Attacker:
    """The attacker's key, and the dose: 1 for the sizes of the table, 2 for `--full`, less in a test."""

    url: str
    key: str
    dose: float = 1.0

    def times(self, count: int) -> int:
        return max(1, round(count * self.dose))

    def client(self) -> httpx2.Client:
        """Open another client, by default without `verify`: loading certificates takes longer than a small attack."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT, trust_env=False, verify=False)

    def send(self, path: str, content: bytes, seconds: float = _TIMEOUT, **headers: str) -> str:
        """POST a JSON body over a new connection; return the status, or the name of the error."""
        try:
            with self.client() as client:
                headers["Content-Type"] = "application/json"
                return str(client.post(path, content=content, headers=headers, timeout=seconds).status_code)
        except httpx2.HTTPError as error:
            return type(error).__name__


@dataclass(frozen=True, slots=True)
class Attack:
    """Describe a row of the table.

    `run` returns what the attacker was answered. `probes`: what the other project does meanwhile, beside creating
    batches and asking /livez. `written`: the most bytes that the web process may write, at a dose of 1. `settings`:
    of the deployment, as the environment has them.
    """

    name: str
    what: str
    run: Callable[[Attacker], str]
    probes: tuple[str, ...] = ()
    written: int = 500 * _MIB
    settings: tuple[tuple[str, str], ...] = ()


def _streams(attacker: Attacker) -> str:
    """Ask for streams that may be resumed, and hang up after the first event of each."""
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": f"Tell me all. {FLOOD}"}]}

    def ask(_: int) -> str:
        try:
            headers = {"X-Nightmill-Resume": "60"}
            with attacker.client() as client, client.stream("POST", _CHAT, json=body, headers=headers) as answer:
                next(answer.iter_raw())
                return str(answer.status_code)
        except httpx2.HTTPError as error:
            return type(error).__name__

    answered = at_once(attacker.times(16), ask)
    pause(15 * attacker.dose)  # the engine goes on
    return _counted(answered)


def _prompts(attacker: Attacker) -> str:
    """Occupy a worker with requests that its engine never answers, and have prompts of 4 MiB wait behind them."""
    few, large = _chat("!hang"), _chat("!hang " + "a" * (_BODY - 100))
    occupying = attacker.times(_PLACES)

    def ask(n: int) -> str:
        if n < occupying:
            attacker.send(_CHAT, few, 20 * attacker.dose)
            return ""
        pause(2)
        return attacker.send(_CHAT, large, 15 * attacker.dose)

    return _counted(said for said in at_once(occupying + attacker.times(110), ask) if said)


def _items(attacker: Attacker) -> str:
    """Send 1.4 million empty objects within 4 MiB, several times at once."""
    count = int(_BODY / 3 * min(1.0, attacker.dose))
    body = b'{"model":"%b","input":[%b]}' % (MODEL.encode(), b",".join([b"{}"] * count))
    return _counted(at_once(attacker.times(8), lambda _: attacker.send("/v1/responses", body)))


def _conversation(attacker: Attacker) -> str:
    """Add a word to a long conversation, many times at once."""
    path = _long_conversation(attacker, 3)
    word = json.dumps({"items": [_message("word")]}).encode()
    return _counted(at_once(attacker.times(30), lambda _: attacker.send(path, word)))


def _threads(attacker: Attacker) -> str:
    """Read a conversation of 4 MB over many connections at once, for some seconds."""
    path = _long_conversation(attacker, 1)
    over = threading.Event()
    threading.Timer(10 * attacker.dose, over.set).start()

    def read(_: int) -> list[str]:
        said = []
        with attacker.client() as client:
            while not over.is_set():
                try:
                    said.append(str(client.get(path, params={"limit": 100}).status_code))
                except httpx2.HTTPError as error:
                    said.append(type(error).__name__)
        return said

    return _counted([status for said in at_once(attacker.times(60), read) for status in said])


def _embeddings(attacker: Attacker) -> str:
    """Have long lists of texts embedded."""

    def ask(n: int) -> str:
        texts = [f"{n} {i} " + " ".join(_WORDS[(n + i + j) % len(_WORDS)] for j in range(30)) for i in range(size)]
        return attacker.send("/v1/embeddings", json.dumps({"model": EMBEDDINGS, "input": texts}).encode())

    size = attacker.times(1000)
    return _counted(at_once(3, ask))


def _md5(attacker: Attacker) -> str:
    """Complete an upload with a wrong checksum, again and again."""
    part = b"a" * (20 * _MIB)
    parts = attacker.times(2)
    with attacker.client() as client:
        fields = {"bytes": parts * len(part), "filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "batch"}
        upload = f"/v1/uploads/{client.post('/v1/uploads', json=fields).json()['id']}"
        ids = [client.post(f"{upload}/parts", files={"data": part}).json()["id"] for _ in range(parts)]
        wrong = {"part_ids": ids, "md5": "0" * 32}
        return _counted(str(client.post(f"{upload}/complete", json=wrong).status_code) for _ in range(6))


def _names(attacker: Attacker) -> str:
    """Name webhooks whose names are slow to look up."""

    def ask(n: int) -> str:
        body = {"name": "slow", "url": f"https://n{n}.slow.example.com/hook", "event_types": ["batch.completed"]}
        return attacker.send("/v1/webhook_endpoints", json.dumps(body).encode())

    return _counted(status for _ in range(2) for status in at_once(attacker.times(60), ask))


def _files(attacker: Attacker) -> str:
    """Upload files beyond what a project may store."""
    data = b"a" * (5 * _MIB)
    with attacker.client() as client:
        form = {"files": {"file": ("a.txt", data)}, "data": {"purpose": "user_data"}}
        return _counted(str(client.post("/v1/files", **form).status_code) for _ in range(attacker.times(40)))


def _long_conversation(attacker: Attacker, posts: int) -> str:
    """Make a conversation of so many posts of 3.9 MB each; return the path of its items."""
    size = int(3_860_000 / 20 * min(1.0, attacker.dose))
    items = {"items": [_message("a" * size) for _ in range(20)]}
    with attacker.client() as client:
        path = f"/v1/conversations/{client.post('/v1/conversations', json={}).json()['id']}/items"
        for _ in range(posts):
            client.post(path, json=items).raise_for_status()
    return path


def _message(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def _chat(text: str) -> bytes:
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": text}]}).encode()


def _counted(said: Any) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(Counter(said).items()))


_CHAT = "/v1/chat/completions"
_PROJECT_BYTES = 50 * _MIB

ATTACKS = (
    Attack("streams", "16 resumable streams that hang up, of an engine that goes on", _streams, ("stream", "chat")),
    Attack("prompts", "110 waiting prompts of 4 MiB", _prompts, ("stream", "chat")),
    Attack("items", "8 x 1.4 million items within 4 MiB", _items, ("chat",)),
    Attack("conversation", "30 words at once for a conversation of 11.6 MB", _conversation, ("chat",)),
    Attack("threads", "60 connections that read a conversation of 3.9 MB", _threads, ("chat",)),
    Attack("embeddings", "3 x 1,000 texts to embed", _embeddings, ("embedding",)),
    Attack("md5", "6 x a wrong checksum for an upload of 40 MiB", _md5, written=120 * _MIB),
    Attack("names", f"120 webhooks, 60 at once, whose names take {SLOW_NAME_SECONDS:g} s to look up", _names),
    Attack(
        "files",
        "40 files of 5 MiB where a project may store 50 MiB",
        _files,
        written=2 * _PROJECT_BYTES,
        settings=(("NIGHTMILL_PROJECT_MAX_BYTES", str(_PROJECT_BYTES)),),
    ),
)
