"""F19: a vector database that answers 500, hangs, is down, or takes a write and loses its answer, while files come in.

Each time a store of its own gets some thousand chunks. What can be found in the end is exactly what the database says;
meanwhile a search is answered, or refused, and never shows a part of a document.
"""

import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import httpx2
import openai
from sqlalchemy import func, select

from jobs.retrieval.tables import VectorStoreFile
from jobs.settings import Settings
from tests.chaos.doses.deployment import Answer, Site, site
from tests.chaos.doses.dose import Given, Outcome, p95
from tests.chaos.inside import inside
from tests.support import oracle, stub_engine
from tests.support.proxy import Proxy
from tests.support.store_oracle import new_stem
from tests.support.system import EMBED_MODEL, pause, signal_all, wait_for
from tests.support.weaviate import Weaviate
from workers.retrieval.ingestion.index import CHUNKS_AT_ONCE

_CHUNKS = 5_000
_PAPER_CHUNKS = 250
_CHUNK_TOKENS = 100
_CHUNK_WORDS = 20  # of ours, about
_AWAY_SECONDS = 60.0
_BROKEN_SECONDS = 20.0
_DEAF_SECONDS = 2.0
_DEAF_TIMES = 10
_LOST = 0.3
_SHOWN = 50  # chunks of one search, at most
_SEARCH_EVERY = 0.5
_SEARCH_SECONDS = 60.0  # as long as a search may wait
_IN_SECONDS = 180.0
_SAID = b'{"error":[{"message":"it broke"}]}'
_BROKEN = (
    b"HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_SAID), _SAID)
)


@dataclass(slots=True)
class Library:
    """The deployment, its vector database, and the ways to both of that one's ports."""

    made: Site
    weaviate: Weaviate
    http: Proxy
    grpc: Proxy
    url: str  # as the deployment has it: it takes another for another database
    client: openai.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        url, key = f"{self.made.system.url}/v1", self.made.system.api_key
        self.client = openai.OpenAI(base_url=url, api_key=key, max_retries=5, timeout=60)

    def mend(self) -> None:
        self.http.mend()
        self.grpc.mend()

    # -- what is done to it

    def down(self) -> None:
        self.weaviate.kill()
        pause(_AWAY_SECONDS)
        self.weaviate.start()

    def frozen(self) -> None:
        processes = self.weaviate.processes()
        signal_all(processes, signal.SIGSTOP)
        pause(_AWAY_SECONDS)
        signal_all(processes, signal.SIGCONT)

    def unanswered(self) -> None:
        for _ in range(_DEAF_TIMES):
            self.http.deafen()
            self.grpc.deafen()
            pause(_DEAF_SECONDS)
            self.mend()
            pause(_DEAF_SECONDS / 2)

    def broken(self) -> None:
        """500 is all that HTTP says; gRPC, which has none, is UNAVAILABLE where its connections end."""
        self.http.say(_BROKEN)
        pause(_BROKEN_SECONDS)
        self.mend()
        self.grpc.worsen(0.0, _LOST)
        pause(_BROKEN_SECONDS)
        self.mend()


@contextmanager
def _library(given: Given) -> Iterator[Library]:
    with ExitStack() as stack:
        weaviate = Weaviate(given.folder / "weaviate")
        stack.callback(weaviate.close)
        weaviate.start()
        http = stack.enter_context(Proxy(weaviate.port, rng=given.rng))
        grpc = stack.enter_context(Proxy(weaviate.grpc_port, rng=given.rng))
        url = f"weaviate://127.0.0.1:{http.port}?grpc=127.0.0.1:{grpc.port}"
        yield Library(stack.enter_context(site(given, NIGHTMILL_VECTORS_URL=url)), weaviate, http, grpc, url)


def weaviate_fails(given: Given) -> Outcome:
    chunks = given.part(_CHUNKS)
    told = f"down or frozen for {_AWAY_SECONDS:g} s, answers lost {_DEAF_TIMES} times, 500 and UNAVAILABLE"
    outcome = Outcome(f"Weaviate {told}, during {chunks:,} chunks each")
    with _library(given) as library, Searching(library).going_on() as searching:
        strikes = {
            "down": library.down,
            "frozen": library.frozen,
            "unanswered": library.unanswered,
            "broken": library.broken,
        }
        for name, strike in strikes.items():
            _round(outcome, library, searching, name, strike, papers(chunks, given.rng))
        searching.stop()
        searched(outcome, searching.answers)
        _judge_inside(outcome, library, chunks * len(strikes))
        _judge_verified(outcome, library)
        log = stub_engine.prompts(given.folder / f"{EMBED_MODEL}.log")
        again = oracle.embedded_again(log, searching.marks)
        away = _times_away(library.made)
        outcome.at_most(f"{away} writes failed, texts embedded again", again, away * CHUNKS_AT_ONCE)
    return outcome


def papers(chunks: int, rng: random.Random) -> dict[str, bytes]:
    """Texts of some 250 chunks each, no two of which are alike."""
    found = dict[str, bytes]()
    for _ in range(max(2, round(chunks / _PAPER_CHUNKS))):
        stem = new_stem(rng)
        words = [f"{stem[:4]}{n:04d}" for n in range(_PAPER_CHUNKS * _CHUNK_WORDS)]
        found[stem] = "\n".join(" ".join(words[at : at + 10]) for at in range(0, len(words), 10)).encode()
    return found


def _round(
    outcome: Outcome,
    library: Library,
    searching: "Searching",
    name: str,
    strike: Callable[[], None],
    texts: Mapping[str, bytes],
) -> None:
    """Cause one fault, once the first document is in."""
    client = library.client
    store = client.vector_stores.create(name=name).id
    static = {"max_chunk_size_tokens": _CHUNK_TOKENS, "chunk_overlap_tokens": 0}
    files = [
        {
            "file_id": client.files.create(file=(f"{stem}.txt", text), purpose="assistants").id,
            "attributes": {"paper": stem},
            "chunking_strategy": {"type": "static", "static": static},
        }
        for stem, text in texts.items()
    ]
    searching.look_in(store, list(texts))
    client.vector_stores.file_batches.create(store, files=files)  # type: ignore[arg-type]
    counts = partial(_counts, client, store)
    wait_for(lambda: counts()["completed"] or counts()["failed"], _IN_SECONDS, "a document is in")
    before = counts()
    strike()
    began = time.monotonic()
    try:
        wait_for(lambda: not counts()["in_progress"], 2 * _IN_SECONDS, f"{name}: all are in", every=0.5)
    except TimeoutError:
        outcome.violations.append(f"{name}: {dict(counts())}")
    told = f"{name}: {before['in_progress']} of {len(texts)} documents were on their way, all in after"
    outcome.at_most(told, time.monotonic() - began, _IN_SECONDS, " s")
    ends = counts()
    outcome.judge("all completed", *([] if ends["completed"] == len(texts) else [f"{name}: {dict(ends)}"]))


def _counts(client: openai.OpenAI, store: str) -> Counter[str]:
    return Counter(one.status for one in client.vector_stores.files.list(store, limit=100))


# -- who searches


@dataclass(frozen=True, slots=True)
class Shown:
    """The result of one search for one document: its status, the documents, and the places of their chunks."""

    asked: Answer
    paper: str
    places: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True)
class Searching:
    """Search again and again, each time for chunks of one document of the newest store."""

    library: Library
    answers: list[Shown] = field(default_factory=list)
    marks: set[str] = field(default_factory=set)
    _store: str = ""
    _papers: Sequence[str] = ()
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @contextmanager
    def going_on(self) -> Iterator["Searching"]:
        self._thread = threading.Thread(target=self._search, daemon=True)
        self._thread.start()
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        assert self._thread is not None
        self._stop.set()
        self._thread.join(2 * _SEARCH_SECONDS)

    def look_in(self, store: str, names: Sequence[str]) -> None:
        self._store, self._papers = store, names

    def _search(self) -> None:
        while not self._stop.wait(_SEARCH_EVERY):
            if self._store:
                paper = self._papers[len(self.answers) % len(self._papers)]
                self.answers.append(self._one(paper, f"look for {paper} the {len(self.answers)}th time"))

    def _one(self, paper: str, query: str) -> Shown:
        made, began = self.library.made, time.monotonic()
        self.marks.add(stub_engine.text_mark(query))
        filters = {"type": "eq", "key": "paper", "value": paper}
        body = {"query": query, "max_num_results": _SHOWN, "filters": filters, "include": ["chunk"]}
        path = made.url(f"vector_stores/{self._store}/search")
        try:
            said = made.http.post(path, json=body, timeout=2 * _SEARCH_SECONDS)
        except httpx2.HTTPError as error:
            return Shown(Answer(query, 0, time.monotonic() - began, told=str(error)), paper)
        asked = Answer(query, said.status_code, time.monotonic() - began, told=said.text[:300])
        found = said.json()["data"] if said.status_code == 200 else []
        return Shown(asked, paper, tuple((one["attributes"]["paper"], one["chunk"]["start"]) for one in found))


# -- judgement


def searched(outcome: Outcome, answers: Sequence[Shown]) -> None:
    """Judge searches: each was answered or refused, and showed as much of its document as it may, or nothing."""
    statuses = Counter(one.asked.status for one in answers)
    others = [one.asked for one in answers if one.asked.status not in {200, 503}]
    parts = [
        f"{one.asked.key}: {len(set(one.places))} chunks of {sorted({paper for paper, _ in one.places})}"
        for one in answers
        if one.places and (len(set(one.places)) != _SHOWN or {paper for paper, _ in one.places} != {one.paper})
    ]
    outcome.judge(
        f"{len(answers)} searches: {dict(statuses)}",
        *(f"{one.key}: {one.status} after {one.seconds:.1f} s {one.told}" for one in others[:5]),
        "" if any(one.places for one in answers) else "no search showed anything",
    )
    outcome.judge(f"each shows {_SHOWN} chunks of its document or nothing", *parts[:5])
    times = [one.asked.seconds for one in answers]
    outcome.at_most("searches, worst", max(times, default=0), _SEARCH_SECONDS, " s")
    outcome.judge(f"{p95(times):.2f} s (p95)")


def _judge_inside(outcome: Outcome, library: Library, chunks: int) -> None:
    config = Settings(data_dir=library.made.system.data, vectors_url=library.url)
    with inside(config, None) as found:
        wait_for(lambda: not found.pending(), _IN_SECONDS, "everything is removed", every=0.5)
        faults = found.violations()
        with found.db.read() as session:
            entries = session.scalar(select(func.sum(VectorStoreFile.entries))) or 0
    few = [f"only {entries} chunks came in, of {chunks}"] if entries < chunks / 2 else []
    outcome.judge(f"{entries:,} chunks, each once in the vector database, and no others", *faults[:10], *few)


def _judge_verified(outcome: Outcome, library: Library) -> None:
    verdict = library.made.system.cli("vectors", "verify")
    outcome.judge("vectors verify", *([verdict.stdout + verdict.stderr] if verdict.returncode else []))


def _times_away(made: Site) -> int:
    logs = (made.system.data / "logs").glob("embed*.log")
    return sum(len(re.findall('"event": "vectors_unavailable"', path.read_text(errors="replace"))) for path in logs)
