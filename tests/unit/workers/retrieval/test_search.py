"""A search finds what SQL says can be found, best first, and nothing else."""

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.inference.interactive import QueuedRequest
from jobs.retrieval import attachments, searches
from jobs.retrieval.attachments import Made
from jobs.retrieval.searches import FoundChunk, Scores, Search
from jobs.retrieval.tables import SourceItem, VectorStore, VectorStoreFile
from tests.support.ingestion import DIMENSIONS, MODEL, ReadOnce, Works, refuses, vector_of, works
from workers.engines.port import Answer, EngineBusy, EngineFault, refusal
from workers.engines.refusals import CODE
from workers.retrieval import search as searching
from workers.retrieval.search import fuse, score_of
from workers.vectors.base import Hit, Store, VectorEntry, VectorsUnavailable
from workers.vectors.open_vectors import open_vectors

TEXTS = {
    "kiwi": "The kiwi is a flightless bird of the forest.",
    "emu": "The emu is a tall bird of the plains.",
    "lava": "Lava flows from a volcano into the sea.",
    "tide": "The tide of the sea follows the moon.",
}


@pytest.fixture(params=["memory:", ""], ids=["memory", "lance"])
def inline(request: pytest.FixtureRequest, sqlite: Database, tmp_path: Path, parser: ReadOnce) -> Iterator[Works]:
    vectors = open_vectors(request.param, tmp_path / "vectors")
    with works(tmp_path, sqlite.url, vectors, parser) as inline:
        yield inline
    vectors.close()


class SearchableStore:
    """A store of one-chunk documents, written as a worker leaves them."""

    def __init__(self, inline: Works, **attributes: dict[str, Any]) -> None:
        self.inline, self.id = inline, inline.store()
        with inline.db.write() as session:
            session.get_one(VectorStore, self.id).dimensions = DIMENSIONS
            self.project = session.get_one(VectorStore, self.id).project_id
        for name, text in TEXTS.items():
            self.publish(name, [text], attributes.get(name))

    @property
    def place(self) -> Store:
        return Store(self.id, self.project, MODEL, DIMENSIONS)

    def write(self, **texts: list[str]) -> None:
        """Chunks by the key of their document."""
        entries = [
            VectorEntry(
                f"vsd_{key}", n, text, sha256(f"{key}/{n}".encode()).hexdigest(), vector_of(text), facts_of(text)
            )
            for key, chunks in texts.items()
            for n, text in enumerate(chunks)
        ]
        self.inline.vectors.write(self.place, entries)

    def publish(self, name: str, texts: list[str], attributes: dict[str, Any] | None = None) -> None:
        self.write(**{f"{name}.1": texts})
        row = VectorStoreFile(
            store_id=self.id, id=name, project_id=self.project, filename=f"{name}.txt", status="completed",
            created_at=1.0, attributes=attributes, chunking={}, job_id="ing_1", line=0, version=f"vsd_{name}",
            document=f"vsd_{name}.1", entries=len(texts),
        )  # fmt: skip
        with self.inline.db.write() as session:
            session.add(row)

    def search(self, *queries: str, **fields: Any) -> list[FoundChunk]:
        return self.inline.search(self.id, *queries, **fields)

    def names(self, *queries: str, **fields: Any) -> list[str]:
        return [found.file_id for found in self.search(*queries, **fields)]


def facts_of(text: str) -> dict[str, Any]:
    return {"start": 0, "end": len(text), "tokens": 1}


@pytest.fixture
def searchable(inline: Works) -> SearchableStore:
    return SearchableStore(inline)


def test_best_match_comes_first(searchable: SearchableStore) -> None:
    (best, *others) = searchable.search("a flightless bird of the forest")

    assert (best.file_id, best.filename, best.text, best.scores.fused) == ("kiwi", "kiwi.txt", TEXTS["kiwi"], 1.0)
    assert [found.score for found in others] == sorted((found.score for found in others), reverse=True)
    assert all(0 <= found.score < best.score < 1 for found in others)


@pytest.mark.parametrize(
    "fields",
    [{}, {"fusion": "rrf", "text_weight": 1.0}, {"text_weight": 0.0}, {"vector_weight": 0.0}],
    ids=["default", "ranks", "meaning", "words"],
)
def test_best_result_has_a_low_score_where_nothing_answers(searchable: SearchableStore, fields: dict[str, Any]) -> None:
    [answer, *_] = searchable.search("the kiwi is a flightless bird of the forest", **fields)
    [other, *_] = searchable.search("quarterly invoices overdue sea quantum", **fields)

    assert other.score < 2 / 3 * answer.score
    assert other.scores.fused is not None
    assert fields == {"text_weight": 0.0} or other.scores.fused > 0.75


@pytest.mark.parametrize("fusion", ["rrf", "relative"])
def test_score_is_independent_of_other_results(searchable: SearchableStore, fusion: Any) -> None:
    with searchable.inline.db.write() as session:
        session.execute(update(VectorStoreFile).where(VectorStoreFile.id == "tide").values(attributes={"far": 1}))
    query = "kiwi forest moon"
    among_all = {one.file_id: one.score for one in searchable.search(query, fusion=fusion)}

    [alone] = searchable.search(query, fusion=fusion, filters={"type": "eq", "key": "far", "value": 1})

    assert 0 < alone.score == among_all["tide"]


@pytest.mark.parametrize("fusion", ["rrf", "relative"])
def test_words_decide_the_order_where_every_cosine_is_negative(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch, fusion: Any
) -> None:
    look = searchable.inline.vectors.inner.nearest
    opposite = lambda *given: [replace(hit, score=-0.5) for hit in look(*given)]  # noqa: E731
    monkeypatch.setattr(searchable.inline.vectors.inner, "nearest", opposite)

    for name, word in {"emu": "tall", "kiwi": "forest", "lava": "volcano", "tide": "moon"}.items():
        [first, *others] = searchable.search(word, fusion=fusion, text_weight=9.0)
        assert first.file_id == name
        assert [one.score for one in others] == [0, 0, 0]


@pytest.mark.parametrize("fusion", ["rrf", "relative"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.2, 0.8)])
def test_by_meaning_by_words_or_by_both(searchable: SearchableStore, weights: tuple[float, float], fusion: Any) -> None:
    found = searchable.search("volcano lava", vector_weight=weights[0], text_weight=weights[1], fusion=fusion)

    assert found[0].file_id == "lava"
    assert len(found) == (1 if weights[0] == 0 else len(TEXTS))  # by words alone only who has one of them
    assert all(0 <= one.score <= 1 for one in found)


def test_scores_include_score_of_each_ranking(searchable: SearchableStore) -> None:
    both = {chunk.file_id: chunk.scores for chunk in searchable.search("volcano lava")}
    [by_words] = searchable.search("volcano lava", vector_weight=0.0)

    assert all(scores.vectors is not None for scores in both.values())
    assert [name for name, scores in both.items() if scores.words is not None] == ["lava"]
    assert both["lava"].fused == 1.0
    assert by_words.scores == Scores(None, both["lava"].words, 1.0)


def test_words_alone_ask_no_engine(searchable: SearchableStore) -> None:
    searchable.names("volcano", vector_weight=0.0)

    assert searchable.inline.engine.asked == []


@pytest.mark.parametrize("count", [1, 3])  # two birds are alike
def test_below_the_threshold_nothing_comes(searchable: SearchableStore, count: int) -> None:
    every = searchable.search("bird of the sea")
    threshold = (every[count - 1].score + every[count].score) / 2

    assert searchable.search("bird of the sea", threshold=threshold) == every[:count]


def test_threshold_leaves_room_for_results_after_those_below_it(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cosines = {"lava": 0.9, "tide": 0.2, "emu": 0.1, "kiwi": 0.0}
    look = searchable.inline.vectors.inner.nearest

    def ranked(*given: Any) -> list[Hit]:
        hits = {hit.document: hit for hit in look(*given)}
        return [replace(hits[f"vsd_{name}.1"], score=cosine) for name, cosine in cosines.items()]

    monkeypatch.setattr(searchable.inline.vectors.inner, "nearest", ranked)
    query, ranks = "forest quantum invoices overdue", {"fusion": "rrf", "text_weight": 1.0}

    assert searchable.names(query, limit=1, **ranks) == ["kiwi"]
    assert searchable.names(query, limit=1, threshold=0.5, **ranks) == ["lava"]


def test_words_without_a_meaning_find_nothing_where_others_remain(searchable: SearchableStore) -> None:
    assert searchable.names("what is the volcano of the", vector_weight=0.0) == ["lava"]
    assert len(searchable.names("of the", vector_weight=0.0)) == len(TEXTS)


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_result_count_respects_limit(searchable: SearchableStore, limit: int) -> None:
    assert len(searchable.names("the bird", limit=limit)) == min(limit, len(TEXTS))


def test_several_queries_merge_results_without_duplicate_chunks(searchable: SearchableStore) -> None:
    found = searchable.search("flightless kiwi forest", "lava volcano", limit=2)

    assert {one.file_id for one in found} == {"kiwi", "lava"}
    every = searchable.names("kiwi", "bird", "kiwi bird", limit=50)
    assert len(every) == len(set(every)) == len(TEXTS)
    assert searchable.inline.engine.asked[0] == ["flightless kiwi forest", "lava volcano"]  # one request


def test_all_matching_chunks_of_file_are_found(searchable: SearchableStore) -> None:
    searchable.publish("zoo", ["The zebra lives here.", "The zebra sleeps there.", "The zebra eats grass."])

    found = searchable.search("zebra", limit=3)

    assert {one.text for one in found} == {
        "The zebra lives here.", "The zebra sleeps there.", "The zebra eats grass."
    }  # fmt: skip
    assert {one.file_id for one in found} == {"zoo"}


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_numerous_best_scoring_hidden_versions_are_never_found(
    searchable: SearchableStore, weights: tuple[float, float]
) -> None:
    """Old versions, half-written ones, deleted files: the vector database still has them all."""
    query = "kiwi flightless bird"
    searchable.write(**{f"hidden{n}.1": [f"{query} {query} {n} {part}" for part in range(10)] for n in range(90)})

    found = searchable.search(query, vector_weight=weights[0], text_weight=weights[1])

    assert found[0].file_id == "kiwi"
    assert {one.file_id for one in found} <= TEXTS.keys()
    assert len(found) == (2 if weights[0] == 0 else len(TEXTS))


def test_beyond_so_many_hidden_ones_it_looks_no_further(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "_MAX_HITS", 100)
    searchable.write(**{"hidden.1": [f"kiwi flightless bird {n}" for n in range(300)]})

    assert searchable.names("kiwi flightless bird", text_weight=0.0) == []


def test_search_finds_current_version_of_file(searchable: SearchableStore) -> None:
    searchable.write(**{"kiwi.7": ["The kiwi has a long beak."]})
    before = searchable.search("kiwi beak", limit=1)[0].text

    with searchable.inline.db.write() as session:
        session.execute(update(VectorStoreFile).where(VectorStoreFile.id == "kiwi").values(document="vsd_kiwi.7"))
    after = searchable.search("kiwi", limit=1)[0].text

    assert (before, after) == (TEXTS["kiwi"], "The kiwi has a long beak.")


@pytest.mark.parametrize("times", [1, 10], ids=["once", "each time"])
def test_file_replaced_between_rankings_is_found_in_single_version(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    versions = [f"The kiwi of version {n} is a bird." for n in range(times + 1)]
    searchable.write(**{f"kiwi.{n + 7}": [text] for n, text in enumerate(versions)})
    look, replaced = searchable.inline.vectors.inner.matching, list[int]()

    def late(*given: Any) -> Any:
        if len(replaced) < times:
            replaced.append(len(replaced) + 7)
            with searchable.inline.db.write() as session:
                newest = f"vsd_kiwi.{replaced[-1]}"
                session.execute(update(VectorStoreFile).where(VectorStoreFile.id == "kiwi").values(document=newest))
        return look(*given)

    monkeypatch.setattr(searchable.inline.vectors.inner, "matching", late)

    found = [one.text for one in searchable.search("kiwi bird") if one.file_id == "kiwi"]

    assert found == [versions[len(replaced) - 1]]


@pytest.mark.parametrize("chosen", [None, {"type": "ne", "key": "kind", "value": "rock"}], ids=["all", "filtered"])
@pytest.mark.parametrize("late", [False, True], ids=["before the ranking", "after it"])
def test_a_file_that_is_replaced_while_it_is_searched_is_found_in_its_new_version(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch, chosen: Any, late: bool
) -> None:
    look, replaced = searchable.inline.vectors.inner.nearest, list[str]()

    def replacing(*given: Any) -> Any:
        found = look(*given) if late else None
        if not replaced:
            replaced.append("kiwi")
            searchable.write(**{"kiwi.7": ["The kiwi has a long beak."]})
            with searchable.inline.db.write() as session:
                row = session.scalars(select(VectorStoreFile).where(VectorStoreFile.id == "kiwi")).one()
                row.status = attachments.IN_PROGRESS
                session.flush()
                made = Made(0, "kiwi", row.version, document="vsd_kiwi.7", entries=1)
                attachments.publish(session, session.get_one(VectorStore, searchable.id), [made])
        return look(*given) if found is None else found

    monkeypatch.setattr(searchable.inline.vectors.inner, "nearest", replacing)

    found = [one.text for one in searchable.search("kiwi", text_weight=0.0, filters=chosen) if one.file_id == "kiwi"]

    assert found == ["The kiwi has a long beak."]


def test_next_version_hides_previous_version_in_index_out_of_use(
    searchable: SearchableStore,
) -> None:
    """Keep the old version there until the next one is in the index in use, too."""
    searchable.publish("newer", ["The kiwi has a long beak."])
    item = SourceItem(source_id="src", digest="d", key="k", file_id="newer", previous_id="kiwi", job_id="", change="")
    with searchable.inline.db.write() as session:
        session.add(item)

    both = searchable.names("kiwi"), searchable.names("kiwi", filters={"type": "ne", "key": "kind", "value": "rock"})
    with searchable.inline.db.write() as session:
        session.execute(update(VectorStoreFile).where(VectorStoreFile.id == "newer").values(document=None))

    assert [("newer" in names, "kiwi" in names) for names in both] == [(True, False)] * 2
    assert "kiwi" in searchable.names("kiwi")  # until it is there


FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({"type": "eq", "key": "kind", "value": "bird"}, {"kiwi", "emu"}),
    ({"type": "ne", "key": "kind", "value": "bird"}, {"lava", "tide"}),
    ({"type": "gt", "key": "size", "value": 1}, {"emu"}),
    ({"type": "lte", "key": "size", "value": 1}, {"kiwi"}),
    ({"type": "in", "key": "kind", "value": ["rock", "water"]}, {"lava"}),
    ({"type": "nin", "key": "kind", "value": ["rock"]}, {"kiwi", "emu", "tide"}),
    ({"type": "eq", "key": "kind", "value": "nothing"}, set()),
    (
        {
            "type": "or",
            "filters": [
                {"type": "eq", "key": "hot", "value": True},
                {
                    "type": "and",
                    "filters": [
                        {"type": "eq", "key": "kind", "value": "bird"},
                        {"type": "lt", "key": "size", "value": 2},
                    ],
                },
            ],
        },
        {"lava", "kiwi"},
    ),
]


@pytest.mark.parametrize(("condition", "wanted"), FILTERS)
def test_filters_select_matching_files(inline: Works, condition: dict[str, Any], wanted: set[str]) -> None:
    searchable = SearchableStore(
        inline, kiwi={"kind": "bird", "size": 0.5}, emu={"kind": "bird", "size": 2}, lava={"kind": "rock", "hot": True}
    )

    assert set(searchable.names("the bird of the sea", filters=condition, limit=50)) == wanted


def test_filter_finds_low_ranked_match(searchable: SearchableStore) -> None:
    for n in range(60):
        searchable.publish(f"near{n}", [f"kiwi kiwi kiwi {n}"], {"near": True})
    with searchable.inline.db.write() as session:
        session.execute(update(VectorStoreFile).where(VectorStoreFile.id == "tide").values(attributes={"far": 1}))

    assert searchable.names("kiwi", filters={"type": "eq", "key": "far", "value": 1}) == ["tide"]


def test_changed_attributes_count_at_once(searchable: SearchableStore) -> None:
    condition = {"type": "eq", "key": "read", "value": True}
    before = searchable.names("kiwi", filters=condition)

    searchable.inline.ok(f"/vector_stores/{searchable.id}/files/kiwi", json={"attributes": {"read": True}})

    (after,) = searchable.search("kiwi", filters=condition)
    assert (before, after.file_id, after.attributes) == ([], "kiwi", {"read": True})


def test_search_of_empty_store_finds_nothing_and_sends_no_request(inline: Works) -> None:
    assert inline.search(inline.store(), "anything") == []
    assert inline.engine.asked == []


def status_of(answer: Answer) -> tuple[int, str | None]:
    return answer.status, msgspec.json.decode(answer.body)["error"]["param"]


def test_another_projects_store_is_not_there(searchable: SearchableStore) -> None:
    search = Search(model=MODEL, store_id=searchable.id, queries=("kiwi",))

    assert status_of(searchable.inline.ask(search, tenant="another")) == (404, "vector_store_id")
    unknown = Search(model=MODEL, store_id="vs_unknown", queries=("kiwi",))
    assert status_of(searchable.inline.ask(unknown)) == (404, "vector_store_id")


def test_an_index_that_was_emptied_meanwhile_is_not_there(searchable: SearchableStore) -> None:
    with searchable.inline.db.write() as session:
        session.execute(update(VectorStore).where(VectorStore.id == searchable.id).values(index_id="vs_other"))

    assert status_of(searchable.inline.ask(Search(model=MODEL, store_id=searchable.id, queries=("kiwi",))))[0] == 404


def test_expired_store_is_not_found(searchable: SearchableStore) -> None:
    with searchable.inline.db.write() as session:
        session.execute(update(VectorStore).values(expires_at=now() - 1))

    assert status_of(searchable.inline.ask(Search(model=MODEL, store_id=searchable.id, queries=("kiwi",))))[0] == 404


def test_a_store_that_is_deleted_while_it_is_searched_shows_nothing(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = searchable.inline.vectors.inner.nearest
    search = Search(model=MODEL, store_id=searchable.id, queries=("kiwi",))

    def late(*given: Any) -> Any:
        found = look(*given)
        searchable.inline.delete(f"/vector_stores/{searchable.id}")
        searchable.inline.purge()
        return found

    monkeypatch.setattr(searchable.inline.vectors.inner, "nearest", late)

    answer = searchable.inline.ask(search, tenant=searchable.project)

    assert (answer.status, searches.decode_results(answer.body).chunks) == (200, ())
    assert searchable.inline.ask(search, tenant=searchable.project).status == 404


def test_the_engines_refusal_is_the_answer(searchable: SearchableStore) -> None:
    searchable.inline.engine.fault = refuses("kiwi")

    assert searchable.inline.ask(Search(model=MODEL, store_id=searchable.id, queries=("kiwi",))).status == 400


def test_of_a_query_longer_than_its_model_takes_the_beginning_is_searched_for(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = list[bool](), searchable.inline.host.engine.answer

    async def short(request: Any) -> Answer:
        asked.append(request.body.get("truncate", False))
        return await answer(request) if asked[-1] else refusal(400, "It is too long.", code=CODE, param="input")

    monkeypatch.setattr(searchable.inline.host.engine, "answer", short)

    assert searchable.names("flightless bird of the forest", limit=1) == ["kiwi"]
    assert asked == [False, True]


def test_an_answer_without_vectors_is_the_engines_fault(searchable: SearchableStore) -> None:
    searchable.inline.engine.fault = lambda _: Answer(200, b'{"data": [{"index": 0, "embedding": []}]}')

    assert searchable.inline.ask(Search(model=MODEL, store_id=searchable.id, queries=("kiwi",))).status == 502


def test_query_vector_with_other_dimensions_is_refused(searchable: SearchableStore) -> None:
    searchable.inline.engine.dimensions = DIMENSIONS // 2

    answer = searchable.inline.ask(Search(model=MODEL, store_id=searchable.id, queries=("kiwi", "emu")))

    assert answer.status == 400
    assert msgspec.json.decode(answer.body)["error"] == {
        "message": "The embedding model now gives vectors of another length than this store's.",
        "type": "invalid_request_error",
        "param": "vector_store_id",
        "code": "dimension_mismatch",
    }
    assert searchable.names("volcano", vector_weight=0.0) == ["lava"]


@pytest.mark.parametrize("fault", [EngineBusy("busy"), EngineFault("broke")])
def test_engine_errors_are_passed_on(searchable: SearchableStore, fault: Exception) -> None:
    searchable.inline.engine.fault = lambda _: fault

    with pytest.raises(type(fault)):
        searchable.inline.ask(Search(model=MODEL, store_id=searchable.id, queries=("kiwi",)))


def test_unavailable_vector_database_raises_busy(searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise VectorsUnavailable

    monkeypatch.setattr(searchable.inline.vectors.inner, "nearest", away)

    with pytest.raises(EngineBusy):
        searchable.search("kiwi")


def test_the_queries_priority_and_project_go_to_the_engine(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    answer = searchable.inline.host.engine.answer

    async def note(request: Any) -> Answer:
        asked.append((request.request_id, request.priority, request.tenant))
        return await answer(request)

    monkeypatch.setattr(searchable.inline.host.engine, "answer", note)
    body = msgspec.json.encode(Search(model=MODEL, store_id=searchable.id, queries=("kiwi",)))
    queued = QueuedRequest("req_9", "u", body, searchable.project, deadline=4e9)
    searchable.inline.host.call(searchable.inline.searching.answer(queued, -7)).result(30)

    assert asked == [("req_9", -7, searchable.project)]


@pytest.mark.parametrize("cacheable", [True, False])
def test_query_embedding_request_has_cacheable_flag_of_search(
    inline: Works, monkeypatch: pytest.MonkeyPatch, cacheable: bool
) -> None:
    searchable, told = SearchableStore(inline), list[bool]()
    answer = inline.host.engine.answer
    monkeypatch.setattr(
        inline.host.engine, "answer", lambda request: (told.append(request.cacheable), answer(request))[1]
    )

    assert searchable.search("kiwi", cacheable=cacheable)

    assert told == [cacheable]


def hits(**scores: float) -> list[Hit]:
    return [Hit(name, 0, name, {}, score) for name, score in scores.items()]


@pytest.mark.parametrize(
    ("query", "cosine", "weights", "score"),
    [
        ("kiwi bird", 0.7, (1, 0), 0.7),
        ("kiwi bird", -0.3, (1, 0), 0.0),
        ("kiwi bird", 1.0001, (1, 0.3), 1.0),
        ("Where is the FOREST?", None, (0, 1), 1.0),
        ("the kiwi, the emu, the bird, the moa", None, (0, 1e-9), 0.5),
        ("moa", 0.6, (1, 0.3), 0.6),
        ("kiwi", 0.6, (2, 2), 0.8),
        ("kiwi", None, (2, 2), 0.5),
        ("kiwi emu", 0.6, (2, 2), 0.7),
        ("kiwi emu", 0.2, (1, 3), 0.5),
        ("?!", None, (1, 1), 0.0),
    ],
)
def test_score_is_the_cosine_that_common_words_raise(
    query: str, cosine: float | None, weights: tuple[float, float], score: float
) -> None:
    assert score_of(query, TEXTS["kiwi"], cosine, weights) == pytest.approx(score)


def ranked(*arguments: Any) -> list[tuple[str, float]]:
    return [(hit.document, round(score, 4)) for hit, score in fuse(*arguments)]


def test_hit_that_is_best_in_both_rankings_has_all_shares() -> None:
    found = ranked(hits(a=0.9, b=0.5), hits(a=12, c=3), (1, 1), "rrf", 1)

    assert found == [("a", 1.0), ("b", 0.3333), ("c", 0.3333)]


def test_hit_in_both_lists_ranks_above_leader_of_single_list() -> None:
    found = ranked(hits(a=0.9, b=0.8), hits(c=9, b=8), (1, 1), "rrf", 60)

    assert [name for name, _ in found] == ["b", "a", "c"]


@pytest.mark.parametrize(("weights", "best"), [((3, 1), "a"), ((1, 3), "b"), ((0.3, 0.1), "a")])
@pytest.mark.parametrize("how", ["rrf", "relative"])
def test_weights_decide(weights: tuple[float, float], best: str, how: str) -> None:
    assert ranked(hits(a=0.9, x=0.1), hits(b=7, y=1), weights, how, 1)[0] == (best, 0.75)


def test_a_small_k_favours_the_first() -> None:
    second = {k: dict(ranked(hits(a=0.9, b=0.8), [], (1, 1), "rrf", k))["b"] for k in (0, 1, 60)}

    assert second == {0: 0.25, 1: 0.3333, 60: 0.4919}


def test_relative_scores_count_by_their_distance_to_the_best() -> None:
    found = ranked(hits(a=0.8, b=0.4, c=-0.2), hits(b=10, a=5), (1, 1), "relative", 1)

    assert found == [("a", 0.75), ("b", 0.75), ("c", 0.0)]


def test_cosine_is_the_share_in_a_search_by_vectors_alone() -> None:
    assert ranked(hits(a=0.7, b=-0.3, c=1.0001), hits(z=9), (1, 0), "rrf", 1) == [("a", 0.7), ("b", 0.0), ("c", 1.0)]


def test_best_hit_of_text_only_search_has_full_score() -> None:
    assert ranked(hits(z=0.9), hits(a=8, b=2), (0, 1), "rrf", 1) == [("a", 1.0), ("b", 0.25)]


@pytest.mark.parametrize("weights", [(1, 1), (1, 0), (0, 1)])
@pytest.mark.parametrize("how", ["rrf", "relative"])
def test_fusion_of_empty_rankings_is_empty(weights: tuple[float, float], how: str) -> None:
    assert ranked([], [], weights, how, 1) == []


def test_chunks_of_a_document_are_hits_of_their_own() -> None:
    near = [Hit("a", n, f"text {n}", {}, 0.5) for n in range(3)]

    found = fuse(near, near[::-1], (1, 1), "rrf", 1)

    assert sorted(hit.n for hit, _ in found) == [0, 1, 2]


def test_equal_scores_are_ordered_by_name() -> None:
    assert [name for name, _ in ranked(hits(b=0.9), hits(a=9), (1, 1), "rrf", 1)] == ["a", "b"]
