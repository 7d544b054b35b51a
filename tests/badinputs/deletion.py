"""Words that exist nowhere else, planted in everything a project may hold; erased through the API; looked for.

    document, store, batch, prompt, answer, response, chat, conversation, webhook, schedule, what is put into logs
        ──▶ DELETE of each ──▶ the product's own clearing up ──▶ SQL dump, files, vectors, broker, logs

One deployment as `nightmill up` starts it, over two stub engines. Before anything is erased each word is looked for in
the same way and has to be found.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Self

import httpx2
import redis

from cli.up.broker import socket_path
from tests.badinputs.case import Case
from tests.badinputs.world import World
from tests.support.receiver import Receiver
from tests.support.system import EMBED_MODEL, MODEL, StubEngine, System, eventually
from tests.support.weaviate import Weaviate

AREA = "Deletion"
#: By what they are planted in.
WORDS: Mapping[str, str] = {
    name: f"zq{n}-erase-{animal}-{n}41"
    for n, (name, animal) in enumerate(
        {
            "document": "okapi",
            "attribute": "numbat",
            "store": "quoll",
            "query": "quokka",
            "prompt": "dingo",
            "custom id": "tapir",
            "metadata": "dugong",
            "response": "gecko",
            "background": "caracal",
            "chat": "dhole",
            "conversation": "lemur",
            "question": "marmot",
            "webhook": "serval",
            "batch webhook": "civet",
            "schedule": "fossa",
            "request": "kudu",
        }.items()
    )
}
_SECONDS = 240.0


class Home:
    """A deployment with something in it."""

    def __init__(self, folder: Path, *, weaviate: bool) -> None:
        self.folder = folder
        self._weaviate = weaviate
        self._stack = ExitStack()
        self.found: dict[str, set[str]] = {}

    def __enter__(self) -> Self:
        self.folder.mkdir()
        with ExitStack() as opening:
            environment = {"NIGHTMILL_LOG_LEVEL": "DEBUG"}
            if self._weaviate:
                server = Weaviate(self.folder / "weaviate")
                server.start()
                opening.callback(server.close)
                environment["NIGHTMILL_VECTORS_URL"] = server.url
            engine = opening.enter_context(StubEngine(self.folder, MODEL, delay_ms=1))
            embedder = opening.enter_context(StubEngine(self.folder, EMBED_MODEL))
            self.receiver = opening.enter_context(Receiver())
            self.system = System(self.folder, engine.url, embedder.url, **environment)
            opening.callback(self.system.destroy)
            self.system.start(_SECONDS)
            headers = {"Authorization": f"Bearer {self.system.api_key}"}
            self.client = httpx2.Client(
                base_url=f"{self.system.url}/v1/", headers=headers, timeout=120, trust_env=False
            )
            opening.enter_context(self.client)
            self._stack = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ── planting and erasing ──

    def plant(self) -> list[str]:
        """Everything; the paths to DELETE, in this order."""
        word, paths = WORDS, list[str]()
        document = self._upload(f"A note on {word['document']}.".encode(), f"{word['document']}.txt", "user_data")
        facts = {"name": word["store"], "metadata": {"of": word["store"]}, "embedding_model": EMBED_MODEL}
        store = f"vector_stores/{self._post('vector_stores', **facts)['id']}"
        body = {"file_ids": [document], "attributes": {"of": word["attribute"]}}
        batch = self._post(f"{store}/file_batches", **body)
        self._await(f"{store}/file_batches/{batch['id']}")
        self._post(f"{store}/search", query=f"{word['document']} {word['query']}")
        paths += [f"files/{document}", store]
        paths += self._plant_batch()
        asked: Any = {"model": MODEL, "input": word["response"], "store": True}
        paths.append(f"responses/{self._post('responses', **asked)['id']}")
        late = self._post("responses", model=MODEL, input=word["background"], background=True)
        self._await(f"responses/{late['id']}")
        paths.append(f"responses/{late['id']}")
        messages = [{"role": "user", "content": word["chat"]}]
        paths.append(
            f"chat/completions/{self._post('chat/completions', model=MODEL, messages=messages, store=True)['id']}"
        )
        messages = [{"role": "user", "content": word["question"]}]
        self._post("chat/completions", model=MODEL, messages=messages)
        items = [{"role": "user", "content": word["conversation"]}]
        paths.append(
            f"conversations/{self._post('conversations', items=items, metadata={'of': word['conversation']})['id']}"
        )
        self._log(word["request"])
        return [*paths, "cache"]

    def _plant_batch(self) -> list[str]:
        word = WORDS
        hook = {"name": word["webhook"], "url": self.receiver.url(f"ok/{word['webhook']}")}
        endpoint = self._post("webhook_endpoints", **hook, event_types=["batch.completed"])["id"]
        body = {"model": MODEL, "messages": [{"role": "user", "content": word["prompt"]}]}
        line = {"custom_id": word["custom id"], "method": "POST", "url": "/v1/chat/completions", "body": body}
        file = self._upload(json.dumps(line).encode() + b"\n", "in.jsonl", "batch")
        asked: Any = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        told = {"url": self.receiver.url(f"ok/{word['batch webhook']}")}
        made = self._post("batches", **asked, metadata={"of": word["metadata"]}, webhook=told)
        done = self._await(f"batches/{made['id']}")
        again = asked | {"metadata": {"of": word["schedule"]}}
        schedule = self._post("schedules", cron="0 0 1 1 *", batch=again)["id"]
        eventually(lambda: len(self.receiver.requests) >= 2, _SECONDS, "both webhooks have come")
        files = [file, done["output_file_id"]]
        return [f"webhook_endpoints/{endpoint}", f"schedules/{schedule}", *(f"files/{one}" for one in files)]

    def _log(self, word: str) -> None:
        """Wherever a request can say it."""
        self.client.get(f"files/{word}", params={"after": word, "q": word})
        self.client.get("files", params={"after": word}, headers={"User-Agent": word})
        self.client.post("batches", json={word: word}, headers={"Idempotency-Key": word})
        self.client.post("batches", content=word.encode(), headers={"Content-Type": word})
        self.client.post("embeddings", json={"model": word, "input": word})

    def erase(self, paths: Sequence[str]) -> None:
        for path in paths:
            answer = self.client.delete(path)
            assert answer.status_code == 200, (path, answer.text)

    # ── looking ──

    def look(self) -> dict[str, dict[str, set[str]]]:
        """By kind of place, by place: what of WORDS is there."""
        return {
            "rows": _named(self._rows()),
            "the database's file": _named(self._in(self.system.data.glob("nightmill.db*"))),
            "files": _named(self._in(self._files())),
            "vectors": _named(self._in(self._vectors())),
            "keys of the broker": _named(self._keys()),
            "the broker's file": _named(self._in(self.system.data.joinpath("broker").rglob("*"))),
            "logs": _named(self._in([*self.system.data.joinpath("logs").rglob("*"), self.folder / "up.out"])),
        }

    def rewrite(self) -> None:
        """Rewrite the broker's file, as the broker does by itself when it has grown."""
        with self._broker() as broker:
            broker.bgrewriteaof()
            eventually(lambda: not broker.info("persistence")["aof_rewrite_in_progress"], 60, "it is rewritten")

    def _rows(self) -> Iterator[tuple[str, str]]:
        with closing(sqlite3.connect(f"file:{self.system.data / 'nightmill.db'}?mode=ro", uri=True)) as database:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for name in names:
                for row in database.execute(f'SELECT * FROM "{name}"'):
                    yield name, repr(row)

    def _files(self) -> Iterator[Path]:
        """Everything of the data folder that is not looked at elsewhere."""
        for path in self.system.data.rglob("*"):
            first = path.relative_to(self.system.data).parts[0]
            if first not in ("vectors", "broker", "logs") and not first.startswith("nightmill.db"):
                yield path

    def _vectors(self) -> Iterator[Path]:
        yield from self.system.data.joinpath("vectors").rglob("*")
        if self._weaviate:
            yield from (self.folder / "weaviate").rglob("*")

    def _in(self, paths: Any) -> Iterator[tuple[str, str]]:
        for path in paths:
            if path.is_file():
                with suppress(FileNotFoundError):
                    place = path.relative_to(self.folder).as_posix().removeprefix("data/")
                    yield place, f"{path.name} {path.read_bytes().decode('latin-1')}"

    def _keys(self) -> Iterator[tuple[str, str]]:
        with self._broker() as broker:
            for key in broker.scan_iter():
                dumped = broker.dump(key) or b""
                yield key.decode("latin-1"), f"{key.decode('latin-1')} {dumped.decode('latin-1')}"

    def _broker(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(socket_path(self.system.data)))

    # ── asking ──

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, (path, answer.text)
        found: dict[str, Any] = answer.json()
        return found

    def _upload(self, content: bytes, name: str, purpose: str) -> str:
        answer = self.client.post("files", files={"file": (name, content)}, data={"purpose": purpose})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def _await(self, path: str) -> dict[str, Any]:
        waits = ("validating", "queued", "in_progress", "finalizing")
        eventually(lambda: self.client.get(path).json()["status"] not in waits, _SECONDS, f"the end of {path}")
        found: dict[str, Any] = self.client.get(path).json()
        assert found["status"] == "completed", found
        return found


def _named(texts: Iterator[tuple[str, str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for place, text in texts:
        there = {name for name, word in WORDS.items() if word in text}
        if there:
            found.setdefault(place, set()).update(there)
    return found


# ── the cases ──

#: Where each kind of place is looked at, and what of it may be left. A job's row stays (docs/operate/deletion.md).
PLACES: Mapping[str, str] = {
    "rows": "job: batch webhook, metadata",
    "files": "nothing",
    "vectors": "nothing",
    "keys of the broker": "nothing",
    "the broker's file": "nothing",
    "logs": "nothing",
}
#: Planted where requests and logs pass, and kept nowhere: before, too.
_NOWHERE = frozenset({"request", "query", "question"})
_CLEARED = 200.0  # retention looks every minute


def erased(world: World, place: str, *, weaviate: bool = False) -> str:
    """Return what is left of all words in a kind of place after the product has cleaned up."""
    left = world.once(f"erased {weaviate}", lambda: _erase(world, weaviate=weaviate))
    return left[place]


def planted(world: World, *, weaviate: bool = False) -> str:
    """Otherwise nothing that was found later proved anything."""
    return world.once(f"erased {weaviate}", lambda: _erase(world, weaviate=weaviate))["planted"]


def _erase(world: World, *, weaviate: bool) -> dict[str, str]:
    with Home(world.folder / f"home-{int(weaviate)}", weaviate=weaviate) as home:
        paths = home.plant()
        before = home.look()
        seen = {name for places in before.values() for names in places.values() for name in names}
        home.erase(paths)
        with suppress(TimeoutError):  # what is left then is what is told
            eventually(lambda: _told(home.look())["files"] == PLACES["files"], _CLEARED, "it is cleared up", every=2)
            eventually(lambda: _told(home.look())["vectors"] == PLACES["vectors"], 60, "vectors are gone", every=2)
        home.rewrite()
        missing = sorted(set(WORDS) - seen - _NOWHERE)
        return {"planted": ", ".join(missing) or "each is found", **_told(home.look())}


def _told(found: dict[str, dict[str, set[str]]]) -> dict[str, str]:
    return {
        kind: "; ".join(f"{place}: {', '.join(sorted(names))}" for place, names in sorted(places.items())) or "nothing"
        for kind, places in found.items()
    }


def cases() -> Iterator[Case]:
    for weaviate in (False, True):
        where = " (Weaviate)" if weaviate else ""
        facts: dict[str, Any] = {"full": True}
        before = lambda world, weaviate=weaviate: planted(world, weaviate=weaviate)  # noqa: E731
        yield Case(AREA, f"before anything is erased{where}", "each is found", before, **facts)
        for place, left in PLACES.items():
            run = lambda world, place=place, weaviate=weaviate: erased(world, place, weaviate=weaviate)  # noqa: E731
            yield Case(AREA, f"{place}{where}", left, run, **facts)
