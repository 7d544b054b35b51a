"""Searches whose results a model re-ranks. The fake one's score of a text is its share of the query's words."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs.db.engine import Database
from jobs.inference.interactive import AnswerEntry, QueuedRequest
from jobs.retrieval import searches
from jobs.retrieval.searches import Search
from jobs.security import keys
from tests.support.ingestion import MODEL, ReadOnce, Works, works
from tests.unit.workers.retrieval.test_search import TEXTS, SearchableStore
from workers.engines.port import Answer, EngineBusy, Request, refusal
from workers.vectors.open_vectors import open_vectors

MODELS = f"""
models:
  {MODEL}: {{source: {{packaged: {MODEL}}}, engine: embed}}
  ranker: {{source: {{path: x}}, engine: rerank, aliases: [best]}}
  other: {{source: {{path: x}}, engine: rerank, queue: gpu.other}}
  far: {{source: {{urls: ["https://192.0.43.8/v1"]}}, engine: http, queue: gpu.embed, endpoints: [/v1/rerank]}}
"""
QUERY = "the sea follows the moon"


@pytest.fixture
def inline(sqlite: Database, tmp_path: Path, parser: ReadOnce) -> Iterator[Works]:
    (tmp_path / "models.yaml").write_text(MODELS)
    vectors = open_vectors("memory:", tmp_path / "vectors")
    file = str(tmp_path / "models.yaml")
    with works(tmp_path, sqlite.url, vectors, parser, models_file=file) as inline:
        yield inline


@pytest.fixture
def searchable(inline: Works) -> SearchableStore:
    return SearchableStore(inline)


def error_of(answer: Answer) -> dict[str, Any]:
    error: dict[str, Any] = msgspec.json.decode(answer.body)["error"]
    return error | {"status": answer.status}


def asked(searchable: SearchableStore, **fields: Any) -> Answer:
    return searchable.inline.ask(Search(model=MODEL, store_id=searchable.id, queries=(QUERY,), **fields))


@pytest.fixture
def engine(inline: Works, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Return the requests for scores that reach the engine."""
    reached: list[Request] = []
    answer = inline.host.engine.answer

    async def note(request: Request) -> Answer:
        if request.url == "/v1/rerank":
            reached.append(request)
        return await answer(request)

    monkeypatch.setattr(inline.host.engine, "answer", note)
    return reached


def test_the_models_scores_decide(searchable: SearchableStore, engine: list[Request]) -> None:
    by_words = {"vector_weight": 0.0}
    plain = searchable.names("kiwi sea", **by_words)

    ranked = searchable.search(QUERY, ranker="best", text_weight=0.0)

    words = set(QUERY.split())
    share = {name: len(words & set(text.lower().split())) / len(words) for name, text in TEXTS.items()}
    assert ranked[0].file_id == "tide"
    assert {one.file_id: one.score for one in ranked} == pytest.approx(share)
    assert [one.score for one in ranked] == sorted(share.values(), reverse=True)
    [request] = engine
    assert (request.body["model"], request.body["query"], len(request.body["documents"])) == ("best", QUERY, 4)
    assert request.tenant == searchable.project
    assert plain, "without a ranker nobody is asked"


def test_the_threshold_is_of_the_new_score_and_only_the_best_are_looked_at(
    searchable: SearchableStore, engine: list[Request]
) -> None:
    high = searchable.search(QUERY, ranker="ranker", threshold=0.6, text_weight=0.0)
    deep = searchable.search(QUERY, ranker="ranker", depth=2, limit=1, text_weight=0.0)

    assert [one.file_id for one in high] == ["tide"]
    assert [one.file_id for one in deep] == ["tide"]
    assert [len(request.body["documents"]) for request in engine] == [4, 2]


def test_best_score_of_several_queries_counts_for_each_text(searchable: SearchableStore) -> None:
    found = searchable.search("kiwi", "volcano", ranker="ranker", text_weight=0.0)

    assert {one.file_id: one.score for one in found} == {"kiwi": 1.0, "lava": 1.0, "emu": 0.0, "tide": 0.0}


def test_copies_are_left_out_after_re_ranking(searchable: SearchableStore) -> None:
    searchable.publish("copy", [TEXTS["tide"] + " Always."])

    results = searches.decode_results(asked(searchable, ranker="ranker", deduplicate=0.7, text_weight=0.0).body)

    assert {one.file_id for one in results.chunks} in (TEXTS.keys(), {"copy", *TEXTS} - {"tide"})
    assert len(results.chunks) == len(TEXTS)
    assert results.duplicates == 1


@pytest.mark.parametrize(
    ("ranker", "code"),
    [("nobody", "model_not_found"), (MODEL, "model_not_supported"), ("far", "external_model_not_allowed")],
)
def test_a_ranker_that_cannot_be_is_refused(
    searchable: SearchableStore, ranker: str, code: str, engine: list[Request]
) -> None:
    by_worker = error_of(asked(searchable, ranker=ranker))
    by_api = searchable.inline.api.post(
        f"/v1/vector_stores/{searchable.id}/search", json={"query": "a", "ranking_options": {"ranker": ranker}}
    )

    for error in (by_worker, by_api.json()["error"] | {"status": by_api.status_code}):
        assert (error["status"], error["param"], error["code"]) == (400, "ranking_options.ranker", code)
        assert error["type"] == "invalid_request_error"
    assert engine == []


def test_search_of_a_revoked_key_is_not_re_ranked(searchable: SearchableStore, engine: list[Request]) -> None:
    with searchable.inline.db.write() as session:
        key_id = keys.id_of(keys.add_key(session, searchable.project))
        keys.revoke_key(session, key_id)

    search = Search(model=MODEL, store_id=searchable.id, queries=(QUERY,), ranker="best")
    refused = error_of(searchable.inline.ask(search, key_id=key_id))

    assert (refused["code"], engine) == ("key_revoked", [])


def test_model_refusal_is_reported_as_ranker_error(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answers(searchable, monkeypatch, refusal(404, "gone", code="model_not_found"))

    error = error_of(asked(searchable, ranker="ranker"))

    assert (error["status"], error["param"], error["code"]) == (400, "ranking_options.ranker", "model_not_found")


@pytest.mark.parametrize("body", [b'{"results": [{"index": 0, "relevance_score": 0.5}]}', b"{}"])
def test_scores_that_are_missing_are_the_engines_fault(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    _answers(searchable, monkeypatch, Answer(200, body))

    assert asked(searchable, ranker="ranker").status == 502


def _scored(*scores: float) -> Answer:
    results = [{"index": n, "relevance_score": score} for n, score in enumerate(scores)]
    return Answer(200, msgspec.json.encode({"results": results}))


def test_logits_retain_order_and_are_shown_as_probabilities(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = searchable.names(QUERY, text_weight=0.0)
    _answers(searchable, monkeypatch, _scored(-2, -1, 0, 1))
    ranked = searchable.search(QUERY, ranker="ranker", text_weight=0.0)
    _answers(searchable, monkeypatch, _scored(0.5, 0.5, 0.5, 0.5))
    later = searchable.search(QUERY, ranker="ranker", text_weight=0.0)

    assert [round(one.score, 3) for one in ranked] == [0.731, 0.5, 0.269, 0.119]
    assert [one.file_id for one in ranked] == first[::-1]
    assert {round(one.score, 3) for one in later} == {0.622}, "such a model's scores are logits"


def test_a_share_that_is_a_little_too_large_is_no_logit(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answers(searchable, monkeypatch, _scored(1.0000001, 0.5, 0.25, -0.01))

    ranked = searchable.search(QUERY, ranker="ranker", text_weight=0.0)

    assert [one.score for one in ranked] == [1.0, 0.5, 0.25, 0.0]


def test_a_model_of_another_queue_without_worker_is_busy(searchable: SearchableStore) -> None:
    with pytest.raises(EngineBusy):
        asked(searchable, ranker="other")


def test_a_worker_of_another_queue_answers_for_its_own_model(
    searchable: SearchableStore, engine: list[Request]
) -> None:
    body = {"model": "other", "query": "kiwi", "documents": ["a kiwi", "an emu"]}
    queued = QueuedRequest("req_7", searches.RERANK_URL, msgspec.json.encode(body), searchable.project, deadline=4e9)
    reranking = searchable.inline.searching._reranking

    answer = searchable.inline.host.call(reranking.answer(queued, -7)).result(30)

    assert [one["relevance_score"] for one in msgspec.json.decode(answer.body)["results"]] == [1.0, 0.0]
    assert [(one.url, one.request_id, one.priority) for one in engine] == [("/v1/rerank", "req_7", -7)]


class Elsewhere:
    """The workers of another queue: each question ends as it is told."""

    def __init__(self, *ends: AnswerEntry) -> None:
        self.ends = list(ends)
        self.asked: list[tuple[str, QueuedRequest]] = []

    async def submit(self, line: str, queued: QueuedRequest, _served: Any) -> AsyncIterator[AnswerEntry]:
        self.asked.append((line, queued))
        yield AnswerEntry("taken")
        yield self.ends.pop(0)


def test_worker_of_other_queue_scores_each_query(
    searchable: SearchableStore, engine: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ([{"index": n, "relevance_score": abs(n - best) / 4} for n in range(4)] for best in (0, 3))
    elsewhere = Elsewhere(*(AnswerEntry("end", msgspec.json.encode({"results": one}), 200) for one in (first, second)))
    monkeypatch.setattr(searchable.inline.searching._reranking, "_client", elsewhere)

    found = searchable.search(QUERY, "kiwi", ranker="other", text_weight=0.0)

    assert [one.score for one in found] == [0.75, 0.75, 0.5, 0.5]
    assert engine == []
    assert [line for line, _ in elsewhere.asked] == ["gpu.other:rerank"] * 2
    bodies = [msgspec.json.decode(queued.body) for _, queued in elsewhere.asked]
    assert [(body["model"], body["query"], len(body["documents"])) for body in bodies] == [
        ("other", QUERY, 4),
        ("other", "kiwi", 4),
    ]
    assert len({queued.id for _, queued in elsewhere.asked}) == 2
    assert {(queued.url, queued.tenant) for _, queued in elsewhere.asked} == {(searches.RERANK_URL, searchable.project)}


@pytest.mark.parametrize(("status", "told", "wanted"), [(503, 7.0, 7.0), (429, None, 2.0), (408, None, 2.0)])
def test_unavailable_worker_of_other_queue_raises_busy_with_retry_after(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch, status: int, told: float | None, wanted: float
) -> None:
    monkeypatch.setattr(
        searchable.inline.searching._reranking, "_client", Elsewhere(AnswerEntry("end", b"{}", status, told))
    )

    with pytest.raises(EngineBusy) as busy:
        asked(searchable, ranker="other", text_weight=0.0)
    assert busy.value.retry_after == wanted


def test_refusal_by_worker_of_other_queue_is_reported_as_ranker_error(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = AnswerEntry("end", refusal(404, "gone", code="model_not_found").body, 404)
    monkeypatch.setattr(searchable.inline.searching._reranking, "_client", Elsewhere(gone))

    error = error_of(asked(searchable, ranker="other", text_weight=0.0))

    assert (error["status"], error["param"], error["code"]) == (400, "ranking_options.ranker", "model_not_found")


def test_failures_in_another_queues_worker_are_passed_on(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    broke = AnswerEntry("end", refusal(502, "no score", code="engine_error").body, 502)
    monkeypatch.setattr(searchable.inline.searching._reranking, "_client", Elsewhere(broke))

    error = error_of(asked(searchable, ranker="other", text_weight=0.0))

    assert (error["status"], error["code"], error["message"]) == (502, "engine_error", "no score")


def test_empty_result_sends_no_rerank_request(searchable: SearchableStore, engine: list[Request]) -> None:
    assert searchable.search("zeppelin", ranker="ranker", vector_weight=0.0) == []
    assert engine == []


def test_an_engine_that_breaks_over_the_texts_is_not_taken_for_a_wrong_name(
    searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answers(searchable, monkeypatch, refusal(500, "It broke.", code="engine_error"))

    error = error_of(asked(searchable, ranker="ranker"))

    assert (error["status"], error["code"], error["message"]) == (500, "engine_error", "It broke.")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"rerank_depth": 0}, "ranking_options.rerank_depth"),
        ({"rerank_depth": 201}, "ranking_options.rerank_depth"),
        ({"deduplicate": 0}, "ranking_options.deduplicate"),
        ({"deduplicate": 1.5}, "ranking_options.deduplicate"),
        ({"ranker": ""}, "ranking_options.ranker"),
    ],
)
def test_options_out_of_range_are_refused(searchable: SearchableStore, options: dict[str, Any], param: str) -> None:
    answer = searchable.inline.api.post(
        f"/v1/vector_stores/{searchable.id}/search", json={"query": "a", "ranking_options": options}
    )

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def _answers(searchable: SearchableStore, monkeypatch: pytest.MonkeyPatch, told: Answer) -> None:
    """Whatever is to be re-ranked."""
    answer = searchable.inline.host.engine.answer

    async def instead(request: Request) -> Answer:
        return told if request.url == "/v1/rerank" else await answer(request)

    monkeypatch.setattr(searchable.inline.host.engine, "answer", instead)
