"""Every vector store passes the same tests: LanceDB in a folder, Weaviate as a server, and memory."""

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from jobs.timings import Timings
from tests.support.services import need
from tests.support.system import eventually, pause
from tests.support.weaviate import Weaviate
from tests.unit.workers.vectors.writer import ENTRIES, a_document, a_store, an_entry, digest_of, go, start, towards
from workers.vectors import weaviate as weaviate_module
from workers.vectors.base import Hit, Store, VectorEntry, Vectors, VectorsUnavailable
from workers.vectors.open_vectors import open_vectors
from workers.vectors.weaviate import collection_name

WEAVIATE = pytest.param("weaviate", marks=pytest.mark.verify)
TEXTS = {
    "punctuation": "it's \"quoted\", isn't it? \\ / % _ ; -- DROP TABLE",
    "lines": "one\n\ttwo\r\nthree",
    "Hebrew": "שלום עולם",
    "Arabic": "مرحبا بالعالم",
    "Chinese": "中华人民共和国",
    "accents": "naïve café",
    "emoji": "👩‍👩‍👧‍👦 family 🎉",
    "long": "lorem ipsum " * 20_000,
    "one long word": "x" * 200_000,
}
QUERIES = [
    '"',
    "'",
    "word'",
    'a AND ("b',
    "title:word^2~",
    "word* OR NOT (",
    "+word -other",
    "[1 TO 2]",
    "\\",
    "\x00word",
]
QUERIES += ["word %s {} $1", "word " * 5000, "\ud800word", "🎉", "' OR 1=1 --", "\n\tword\n"]


@dataclass(frozen=True)
class Place:
    """Where vectors are; opened again, it is the same place."""

    url: str
    folder: Path

    def opened(self) -> Vectors:
        return open_vectors(self.url, self.folder)


@pytest.fixture(scope="session")
def weaviate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if url := os.environ.get("NIGHTMILL_TEST_WEAVIATE_URL"):
        yield url
        return
    server = Weaviate(tmp_path_factory.mktemp("weaviate"))
    try:
        server.start()
    except Exception as error:  # noqa: BLE001 (whatever keeps it from starting: it is not here)
        need("Weaviate", error)
    yield server.url
    server.close()


def place_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> Place:
    urls: dict[str, Callable[[], str]] = {
        "memory": lambda: "memory:",
        "lance": lambda: "",
        "weaviate": lambda: str(request.getfixturevalue("weaviate")),
    }
    return Place(urls[kind](), folder / "vectors")


@pytest.fixture(params=["memory", "lance", WEAVIATE])
def vectors(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Vectors]:
    opened = place_of(request.param, request, tmp_path).opened()
    yield opened
    opened.close()


@pytest.fixture(params=["lance", WEAVIATE])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Return what several processes may open."""
    return place_of(request.param, request, tmp_path)


@pytest.fixture
def store() -> Store:
    return a_store(f"vs_{uuid.uuid4().hex}")


def numbers_of(hits: list[Hit]) -> list[int]:
    return [hit.n for hit in hits]


def test_written_entry_is_found_unchanged(vectors: Vectors, store: Store) -> None:
    vectors.write(store, [an_entry("vsd_a.1", 3, "the text", towards(1, 1), page=7, section=["A", "ß"])])

    (hit,) = vectors.nearest(store, towards(1, 1), 5)

    assert (hit.document, hit.n, hit.text) == ("vsd_a.1", 3, "the text")
    assert hit.meta == {"page": 7, "section": ["A", "ß"]}
    assert hit.score == pytest.approx(1.0, abs=1e-5)


def test_the_nearest_come_first_and_are_scored_by_cosine(vectors: Vectors, store: Store) -> None:
    directions = [towards(0, 1), towards(1), towards(1, 1), towards(-1)]
    vectors.write(store, [an_entry("vsd_a.1", n, f"text {n}", one) for n, one in enumerate(directions)])

    hits = vectors.nearest(store, towards(1), 4)

    assert numbers_of(hits) == [1, 2, 0, 3]
    assert [hit.score for hit in hits] == pytest.approx([1.0, 0.70711, 0.0, -1.0], abs=1e-4)


def test_search_returns_at_most_requested_and_existing_entries(vectors: Vectors, store: Store) -> None:
    vectors.write(store, a_document("vsd_a.1"))

    assert numbers_of(vectors.nearest(store, towards(1), 2)) == [0, 1]
    assert len(vectors.nearest(store, towards(1), 100_000)) == ENTRIES
    assert len(vectors.matching(store, "passage", 100_000)) == ENTRIES
    assert len(vectors.matching(store, "passage", 3)) == 3
    assert vectors.nearest(store, towards(1), 0) == vectors.matching(store, "passage", 0) == []


def test_search_is_limited_to_requested_documents(vectors: Vectors, store: Store) -> None:
    """However many others are nearer: the choice comes before the search."""
    for number in range(20):
        vectors.write(store, a_document(f"vsd_near{number}.1"))
    vectors.write(store, [an_entry("vsd_far.1", 0, "passage far away", towards(-1))])
    only = ["vsd_far.1", "vsd_nobody.1"]

    assert [hit.document for hit in vectors.nearest(store, towards(1), 1, only)] == ["vsd_far.1"]
    assert [hit.document for hit in vectors.matching(store, "passage", 1, only)] == ["vsd_far.1"]
    for nobody in ([], ["vsd_nobody.1"], ["VSD_FAR.1"], ["vsd_far"]):
        assert vectors.nearest(store, towards(1), 5, nobody) == []
        assert vectors.matching(store, "passage", 5, nobody) == []


def test_a_rare_word_is_found_first(vectors: Vectors, store: Store) -> None:
    texts = [f"common words about common things, number {n}" for n in range(50)]
    texts[31] = "common words about zirconium"
    vectors.write(store, [an_entry("vsd_a.1", n, text) for n, text in enumerate(texts)])

    hits = vectors.matching(store, "common ZIRCONIUM things", 10)

    assert hits[0].n == 31
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_word_that_is_nowhere_finds_nothing(vectors: Vectors, store: Store) -> None:
    vectors.write(store, a_document("vsd_a.1"))

    assert vectors.matching(store, "xylophone", 5) == []


@pytest.mark.parametrize("query", ["", " ", "!?", '"""', "()", "---", "\x00", "🎉"])
def test_a_query_without_a_word_finds_nothing(vectors: Vectors, store: Store, query: str) -> None:
    vectors.write(store, a_document("vsd_a.1"))

    assert vectors.matching(store, query, 5) == []


def test_any_text_is_a_query(vectors: Vectors, store: Store) -> None:
    vectors.write(store, [an_entry("vsd_a.1", 0, "a word among others"), an_entry("vsd_a.1", 1, "nothing")])

    for query in QUERIES:
        found = numbers_of(vectors.matching(store, query, 5))
        assert found == ([0] if "word" in query or query.startswith("a ") else []), query


@pytest.mark.parametrize("name", TEXTS)
def test_texts_come_back_to_the_letter(vectors: Vectors, store: Store, name: str) -> None:
    vectors.write(store, [an_entry("vsd_a.1", 0, TEXTS[name], quote="it's ❝")])

    (hit,) = vectors.nearest(store, towards(1), 1)

    assert hit.text == TEXTS[name]
    assert hit.meta == {"quote": "it's ❝"}


@pytest.mark.parametrize("query", ["עולם", "مرحبا", "CAFÉ", "中华人民共和国", "quoted", "family"])
def test_words_of_any_script_are_found(vectors: Vectors, store: Store, query: str) -> None:
    vectors.write(store, [an_entry("vsd_a.1", n, text) for n, text in enumerate(TEXTS.values())])

    (hit,) = vectors.matching(store, query, 5)

    assert query.casefold() in hit.text


def test_known_texts_return_stored_vectors(vectors: Vectors, store: Store) -> None:
    vectors.write(store, [an_entry("vsd_a.1", n, f"text {n}", towards(1, n)) for n in range(3)])
    unknown = [digest_of(f"unknown {n}") for n in range(2500)]

    known = vectors.find_vectors(store, [*unknown, digest_of("text 1"), digest_of("text 2")])

    assert set(known) == {digest_of("text 1"), digest_of("text 2")}
    np.testing.assert_allclose(known[digest_of("text 2")], towards(1, 2), atol=1e-6)
    assert known[digest_of("text 1")].dtype == np.float32
    assert vectors.find_vectors(store, []) == {}


def test_a_text_that_is_there_many_times_hides_no_other(
    vectors: Vectors, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write one text so often that it alone fills the longest answer that a server gives."""
    monkeypatch.setattr(weaviate_module, "MAX_RESULTS", 10)
    vectors.write(store, [an_entry("vsd_a.1", n, "every page says so", towards(1)) for n in range(40)])
    vectors.write(store, [an_entry("vsd_b.1", n, f"text {n}", towards(1, n)) for n in range(20)])
    texts = {digest_of(f"text {n}") for n in range(20)} | {digest_of("every page says so")}

    assert vectors.find_vectors(store, [*texts, digest_of("unknown")]).keys() == texts


def test_documents_are_dropped_for_good_and_others_stay(vectors: Vectors, store: Store) -> None:
    for key in ("vsd_a.1", "vsd_a.2", "vsd_a'; --.1", "vsd_A.1"):
        vectors.write(store, a_document(key))

    assert vectors.drop(store, ["vsd_a.1", "vsd_a'; --.1", "vsd_unknown.1"]) == 2 * ENTRIES
    assert vectors.drop(store, ["vsd_a.1"]) == vectors.drop(store, []) == 0

    assert vectors.counts(store) == {"vsd_a.2": ENTRIES, "vsd_A.1": ENTRIES}
    assert {hit.document for hit in vectors.nearest(store, towards(1), 50)} == {"vsd_a.2", "vsd_A.1"}
    assert {hit.document for hit in vectors.matching(store, "passage", 50)} == {"vsd_a.2", "vsd_A.1"}
    assert vectors.find_vectors(store, [digest_of("passage 0 of vsd_a.1")]) == {}


def test_dropped_store_is_empty_and_can_be_rewritten(vectors: Vectors, store: Store) -> None:
    other = a_store(f"vs_{uuid.uuid4().hex}")
    for one in (store, other):
        vectors.write(one, a_document("vsd_a.1"))

    for _ in range(2):
        vectors.drop_store(store)

    assert vectors.counts(store) == {}
    assert store.id not in vectors.stores()
    assert vectors.counts(other) == {"vsd_a.1": ENTRIES}
    vectors.write(store, a_document("vsd_b.1", 1))
    assert vectors.counts(store) == {"vsd_b.1": 1}


def test_entries_are_counted_and_numbered_by_document(vectors: Vectors, store: Store) -> None:
    for some in (a_document("vsd_b.1", 2)[::-1], a_document("vsd_a.1", 2500), [an_entry("vsd_b.1", 9000, "far")]):
        vectors.write(store, some)

    assert vectors.counts(store) == {"vsd_a.1": 2500, "vsd_b.1": 3}
    assert vectors.numbers(store, "vsd_a.1") == list(range(2500))
    assert vectors.numbers(store, "vsd_b.1") == [0, 1, 9000]
    assert vectors.numbers(store, "vsd_c.1") == []


def test_stores_that_were_written_to_are_listed(vectors: Vectors, store: Store) -> None:
    other = a_store(f"vs_{uuid.uuid4().hex}", dimensions=3)
    assert {store.id, other.id}.isdisjoint(vectors.stores())

    vectors.write(store, a_document("vsd_a.1"))
    vectors.write(other, [an_entry("vsd_a.1", 0, "text", towards(1, dimensions=3))])

    assert {store.id, other.id} <= set(vectors.stores())


def test_unwritten_store_is_empty(vectors: Vectors, store: Store) -> None:
    vectors.write(store, [])
    vectors.tend(store)
    vectors.drop_store(store)

    assert vectors.nearest(store, towards(1), 5) == vectors.matching(store, "word", 5) == []
    assert vectors.find_vectors(store, [digest_of("text")]) == vectors.counts(store) == {}
    assert vectors.numbers(store, "vsd_a.1") == []
    assert vectors.drop(store, ["vsd_a.1"]) == 0
    assert store.id not in vectors.stores()


def test_a_vector_of_another_length_is_refused(vectors: Vectors, store: Store) -> None:
    vectors.write(store, a_document("vsd_a.1"))
    good, bad = an_entry("vsd_b.1", 0, "text"), an_entry("vsd_b.1", 1, "text", towards(1, dimensions=9))

    with pytest.raises(ValueError, match="8 dimensions"):
        vectors.write(store, [good, bad])
    with pytest.raises(ValueError, match="8 dimensions"):
        vectors.nearest(store, towards(1, dimensions=9), 5)

    assert vectors.counts(store) == {"vsd_a.1": ENTRIES}


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_vector_that_is_no_direction_is_refused(vectors: Vectors, store: Store, number: float) -> None:
    bad = towards(1)
    bad[3] = number

    with pytest.raises(ValueError, match="numbers only"):
        vectors.write(store, [an_entry("vsd_a.1", 0, "text", bad)])
    with pytest.raises(ValueError, match="numbers only"):
        vectors.nearest(store, bad, 5)


def test_entries_from_before_and_after_optimizing_are_found(vectors: Vectors, store: Store) -> None:
    vectors.write(store, [an_entry("vsd_a.1", 0, "first zirconium", towards(1))])
    for _ in range(2):
        vectors.tend(store)
    vectors.write(store, [an_entry("vsd_a.1", 1, "second zirconium", towards(1, 1))])

    assert numbers_of(vectors.nearest(store, towards(1), 5)) == [0, 1]
    assert sorted(numbers_of(vectors.matching(store, "zirconium", 5))) == [0, 1]
    assert numbers_of(vectors.matching(store, "second", 5)) == [1]


def test_many_threads_write_read_and_drop_at_once(vectors: Vectors, store: Store) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for at in range(4):
                key = f"vsd_{number}x{at}.1"
                vectors.write(store, a_document(key))
                assert {hit.document for hit in vectors.nearest(store, towards(1), 9, [key])} == {key}
                assert len(vectors.matching(store, f"passage {key}", 9, [key])) == ENTRIES
                assert at % 2 or vectors.drop(store, [key]) == ENTRIES
            vectors.tend(store)
        except BaseException as failure:  # noqa: BLE001 (a thread's failure is the test's)
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert vectors.counts(store) == {f"vsd_{number}x{at}.1": ENTRIES for number in range(6) for at in (1, 3)}


def test_running_store_passes_health_check(vectors: Vectors) -> None:
    """Pass where the check raises nothing."""
    vectors.check()


# ── several processes ──


def test_writes_and_drops_are_immediately_visible_to_second_client(shared: Place, store: Store) -> None:
    writer, reader = shared.opened(), shared.opened()
    assert reader.counts(store) == {}

    writer.write(store, a_document("vsd_a.1"))
    assert reader.counts(store) == {"vsd_a.1": ENTRIES}
    writer.write(store, a_document("vsd_b.1", 1))
    assert reader.numbers(store, "vsd_b.1") == [0]
    writer.drop(store, ["vsd_a.1"])
    assert reader.counts(store) == {"vsd_b.1": 1}
    writer.drop_store(store)
    assert reader.nearest(store, towards(1), 5) == reader.matching(store, "passage", 5) == []
    reader.write(store, a_document("vsd_c.1", 1))
    assert writer.counts(store) == {"vsd_c.1": 1}

    writer.close()
    reader.close()


@pytest.mark.verify
def test_processes_that_write_at_once_lose_nothing_and_double_nothing(shared: Place, store: Store) -> None:
    """Begin without a store, which the processes make at once. Meanwhile it is tended and documents are dropped."""
    writers = [start(shared.url, shared.folder, store, prefix, 25) for prefix in ("one", "two")]
    vectors = shared.opened()
    for writer in writers:
        go(writer)
    dropped = 0
    while any(writer.poll() is None for writer in writers):
        vectors.tend(store)
        dropped += vectors.drop(store, ["one3", "two4"])
    outputs = [writer.communicate()[0] for writer in writers]

    assert [writer.returncode for writer in writers] == [0, 0], outputs
    dropped += vectors.drop(store, ["one3", "two4"])
    assert dropped == 2 * ENTRIES
    keys = {f"{prefix}{n}" for prefix in ("one", "two") for n in range(25)} - {"one3", "two4"}
    assert vectors.counts(store) == dict.fromkeys(keys, ENTRIES)
    assert all(vectors.numbers(store, key) == list(range(ENTRIES)) for key in keys)
    vectors.close()


def test_writes_before_kill_survive_and_store_stays_writable(shared: Place, store: Store) -> None:
    writer = start(shared.url, shared.folder, store, "key", 10_000)
    go(writer)
    assert writer.stdout is not None
    written = [int(writer.stdout.readline()) for _ in range(10)]

    writer.kill()
    writer.communicate()

    vectors = shared.opened()
    counts = vectors.counts(store)
    assert {f"key{number}": ENTRIES for number in written}.items() <= counts.items()
    vectors.tend(store)
    vectors.write(store, a_document("after"))
    assert vectors.counts(store) == counts | {"after": ENTRIES}
    assert vectors.drop(store, ["after"]) == ENTRIES
    vectors.close()


def test_a_store_dropped_while_it_is_written_is_whole_afterwards(shared: Place, store: Store) -> None:
    """Whoever writes may be told to come back, and nothing worse."""
    writing, dropping = shared.opened(), shared.opened()
    failures: list[BaseException] = []
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            try:
                writing.write(store, a_document(f"key{number}"))
            except VectorsUnavailable:
                continue
            except BaseException as failure:  # noqa: BLE001 (a thread's failure is the test's)
                failures.append(failure)

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(15):
        pause(0.1)
        dropping.drop_store(store)
    over.set()
    thread.join()

    assert failures == []
    dropping.drop_store(store)
    assert store.id not in dropping.stores()
    assert writing.counts(store) == dropping.counts(store) == {}
    writing.write(store, a_document("after"))
    assert dropping.counts(store) == {"after": ENTRIES}
    assert len(dropping.matching(store, "passage", 9)) == ENTRIES
    writing.close()
    dropping.close()


# ── what Weaviate alone does ──

QUICK = replace(Timings(), vectors_query=2.0, vectors_insert=2.0)


@pytest.fixture
def server(tmp_path: Path, weaviate: str) -> Iterator[Weaviate]:
    """One that can be killed, and asks for a key."""
    server = Weaviate(tmp_path / "server", "a-secret-key")
    try:
        server.start()
    except FileNotFoundError as error:  # the one of NIGHTMILL_TEST_WEAVIATE_URL runs elsewhere
        need("Weaviate", error)
    yield server
    server.close()


def test_starting_server_is_unavailable_and_not_empty(server: Weaviate, tmp_path: Path, store: Store) -> None:
    """It answers before it has read what it holds. A removal of nothing would be taken for one that was done."""
    vectors = open_vectors(server.url, tmp_path, server.api_key, timings=QUICK)
    vectors.write(store, a_document("vsd_a.1"))
    server.kill()
    starting = threading.Thread(target=server.start)
    starting.start()

    found: list[dict[str, int]] = []
    while starting.is_alive() or not found:
        with suppress(VectorsUnavailable):
            found.append(vectors.counts(store))
        pause(0.01)

    starting.join()
    assert all(counts == {"vsd_a.1": ENTRIES} for counts in found)
    vectors.close()


def test_entry_is_found_by_its_vector_after_the_server_was_killed(server: Weaviate, tmp_path: Path) -> None:
    vectors = open_vectors(server.url, tmp_path, server.api_key, timings=QUICK)
    stores = [a_store(f"vs_killed{n}") for n in range(6)]
    for store in stores:
        vectors.write(store, a_document("vsd_a.1", 60))
    server.kill()
    server.start()

    eventually(lambda: _answers(vectors), 20, "it is back")
    found = [len(vectors.nearest(store, towards(1), 100)) for store in stores]

    assert found == [60] * len(stores)
    vectors.close()


def test_rewritten_entry_is_found_after_the_server_was_killed_at_the_first_write(
    server: Weaviate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server leaves an object alone that is the same as before."""
    vectors, document = open_vectors(server.url, tmp_path, server.api_key, timings=QUICK), a_document("vsd_a.1", 60)
    stores = [a_store(f"vs_again{n}") for n in range(6)]
    with monkeypatch.context() as patched:
        patched.setattr(weaviate_module, "_delete", _is_killed)
        for store in stores:
            with pytest.raises(VectorsUnavailable):
                vectors.write(store, document)
    server.kill()
    server.start()

    eventually(lambda: _answers(vectors), 20, "it is back")
    counts = [vectors.counts(store) for store in stores]
    for store in stores:
        vectors.write(store, document[:40])
        vectors.write(store, document[40:])
    found = [len(vectors.nearest(store, towards(1), 100)) for store in stores]

    assert counts == [{"vsd_a.1": 60}] * len(stores), "the objects are there"
    assert found == [60] * len(stores)
    vectors.close()


def _is_killed(*_: object, **__: object) -> int:
    raise VectorsUnavailable("The server was killed before it had flushed.")


def _answers(vectors: Vectors) -> bool:
    with suppress(VectorsUnavailable):
        vectors.check()
        return True
    return False


def test_rewritten_entries_are_not_duplicated(weaviate: str, tmp_path: Path, store: Store) -> None:
    vectors = open_vectors(weaviate, tmp_path)

    for _ in range(2):
        vectors.write(store, a_document("vsd_a.1", 450))

    assert vectors.counts(store) == {"vsd_a.1": 450}
    assert vectors.drop(store, ["vsd_a.1"]) == 450
    vectors.close()


def test_dead_server_is_unavailable_until_restart(server: Weaviate, tmp_path: Path, store: Store) -> None:
    vectors = open_vectors(server.url, tmp_path, server.api_key, timings=QUICK)
    vectors.write(store, a_document("vsd_a.1"))
    attempts: list[Callable[[], object]] = [
        lambda: vectors.nearest(store, towards(1), 1),
        lambda: vectors.write(store, a_document("vsd_b.1")),
        lambda: vectors.matching(store, "passage", 1),
        lambda: vectors.drop(store, ["vsd_a.1"]),
        lambda: vectors.counts(store),
        lambda: vectors.find_vectors(store, ["0" * 64]),
        lambda: vectors.drop_store(store),
        vectors.stores,
        vectors.check,
    ]

    server.kill()
    for attempt in attempts:
        with pytest.raises(VectorsUnavailable):
            attempt()
    server.start()

    def is_back() -> bool:
        try:
            return vectors.counts(store) == {"vsd_a.1": ENTRIES}
        except VectorsUnavailable:
            return False

    eventually(is_back, 20, "the entries are there again")
    vectors.close()


def test_server_rejecting_key_is_unavailable(server: Weaviate, tmp_path: Path, store: Store) -> None:
    for key in ("", "another-key"):
        vectors = open_vectors(server.url, tmp_path, key)
        with pytest.raises(VectorsUnavailable, match="401") as raised:
            vectors.write(store, a_document("vsd_a.1"))
        assert "another" not in str(raised.value)
        vectors.close()


def test_unreachable_server_is_unavailable_and_key_stays_secret(tmp_path: Path) -> None:
    vectors = open_vectors("weaviate://127.0.0.1:9?grpc=127.0.0.1:10", tmp_path, "a-secret-key")

    with pytest.raises(VectorsUnavailable, match="Could not connect") as raised:
        vectors.check()

    assert "secret" not in str(raised.value)
    vectors.close()


def test_client_looks_up_only_server_host(weaviate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    genuine = socket.getaddrinfo

    def look_up(host: Any, *more: Any, **named: Any) -> Any:
        asked.append(host)
        return genuine(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    vectors = open_vectors(weaviate, tmp_path)

    vectors.check()
    vectors.close()

    assert asked
    assert {urlsplit(weaviate).hostname} == {host.decode() if isinstance(host, bytes) else host for host in asked}


def test_server_without_grpc_is_unavailable(weaviate: str, tmp_path: Path) -> None:
    vectors = open_vectors(
        f"{weaviate.partition('?')[0]}?grpc=127.0.0.1:10", tmp_path, timings=replace(Timings(), vectors_connect=1.0)
    )

    with pytest.raises(VectorsUnavailable, match="gRPC"):
        vectors.check()
    vectors.close()


def test_each_model_and_length_has_a_collection_of_its_own() -> None:
    stores = [
        Store("vs_1", "proj_1", model, dimensions)
        for model in ("a/b", "a_b", "a-b", "é", "", "x" * 300)
        for dimensions in (1, 11)
    ]
    names = [collection_name(store) for store in stores]

    assert len(set(names)) == len(names)
    assert all(name.isascii() and name.replace("_", "").isalnum() and len(name) < 100 for name in names)
    assert collection_name(Store("vs_2", "proj_2", "a/b", 1)) == names[0]


def test_entries_refused_by_server_are_reported(
    weaviate: str, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers such a request with success."""
    vectors = open_vectors(weaviate, tmp_path)
    vectors.write(store, a_document("vsd_a.1"))
    monkeypatch.setattr("workers.vectors.weaviate.check_vector", lambda _, vector: vector)
    mixed: list[VectorEntry] = [
        an_entry("vsd_b.1", 0, "good"),
        an_entry("vsd_b.1", 1, "bad", towards(1, dimensions=9)),
    ]

    with pytest.raises(VectorsUnavailable, match=r"refused 1 of 2 entries: .*length"):
        vectors.write(store, mixed)

    vectors.close()
