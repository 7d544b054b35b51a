"""Answer the search of an interactive client: embed its query by this worker's engine, then fuse both rankings.

    query ─▶ engine ─▶ vector ──nearest──┐
       └─────────────────────matching────┴─▶ hits ─▶ SQL: which of them are visible ─▶ fused, best first
                                                              ─▶ optionally re-ranked, near duplicates removed

Each search queries SQL for visible documents: old and half-written versions and deleted files are dropped here,
whatever the vector database still has. With filters SQL is queried first, and only matching documents are searched. SQL
is queried for each ranking: if a file is replaced between them, one has its old version and the other the new one. If
it is replaced after the filters chose its old version, neither has it. So all hits are checked once more at one moment,
and the search is repeated if one of them was removed meanwhile.

Stop words are not matched. There are two ways to fuse the rankings by meaning and by words:

    rrf        each list gives weight / (k + rank); with a small k the first few of each list decide
               (Cormack, Clarke, Büttcher: Reciprocal Rank Fusion, SIGIR 2009)
    relative   each list gives weight x score / its best score

Their sum orders the hits. It is a share of the best in this search, which may be irrelevant. So the score that clients
see is another one, from 0 to 1, which depends on no other hit and does not order them:

    cosine + (1 - cosine) x words x weight of words / both weights    words: the share of the query's words in the chunk
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import select

from jobs.clock import now
from jobs.errors import DatabaseBusy
from jobs.fleet.models_file import ModelsFileError
from jobs.inference.interactive import QueuedRequest
from jobs.requests.endpoints import EMBEDDINGS, SEARCH
from jobs.retrieval import attachments, filters, indexes, searches, source_items
from jobs.retrieval.searches import FoundChunk, Scores, Search, SearchResults
from jobs.retrieval.tables import VectorRemoval, VectorStore, VectorStoreFile
from jobs.retrieval.words import contained_words, share, stated_words
from jobs.usage.minutes import UsageKey
from workers.engines.port import Answer, EngineBusy, Request, refusal
from workers.engines.refusals import is_too_long
from workers.retrieval.ingestion import embedding_model
from workers.retrieval.ingestion.embedding import DIFFERENT, Unusable, read_vectors
from workers.retrieval.ingestion.embedding_model import EmbeddingPrompt, NoTokenizer, TokenizerUnavailable
from workers.retrieval.lexical import distinct, keywords
from workers.retrieval.reranking import Reranking
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost
from workers.vectors.base import Hit, Vector, VectorsUnavailable
from workers.vectors.open_vectors import store_of

# ── fusion ──

Fusion = Literal["rrf", "relative"]
Ranked = tuple[Hit, float]


def fuse(near: Sequence[Hit], worded: Sequence[Hit], weights: tuple[float, float], how: Fusion, k: int) -> list[Ranked]:
    """Return the hits of both lists, best first, each once, with its share of the best that is possible."""
    if not weights[1]:
        return [(hit, min(1.0, max(0.0, hit.score))) for hit in near]
    if not weights[0]:
        gives = _relative(worded)
        return [(hit, gives(hit, 0)) for hit in worded]
    total = sum(weights)
    scores: dict[tuple[str, int], float] = {}
    hits: dict[tuple[str, int], Hit] = {}
    for ranking, weight in zip((near, worded), weights, strict=True):
        gives = _relative(ranking) if how == "relative" else _reciprocal(k)
        for rank, hit in enumerate(ranking):
            key = (hit.document, hit.n)
            hits.setdefault(key, hit)
            scores[key] = scores.get(key, 0.0) + weight / total * gives(hit, rank)
    best = sorted(scores, key=lambda key: (-scores[key], key))
    return [(hits[key], min(1.0, scores[key])) for key in best]


def _reciprocal(k: int) -> Callable[[Hit, int], float]:
    return lambda _, rank: (k + 1) / (k + 1 + rank)


def _relative(hits: Sequence[Hit]) -> Callable[[Hit, int], float]:
    best = max((hit.score for hit in hits), default=0.0)
    return lambda hit, _: max(0.0, hit.score) / best if best > 0 else 0.0


def score_of(query: str, text: str, cosine: float | None, weights: tuple[float, float]) -> float:
    """Return the score of a chunk that clients see, from 0 to 1; without a cosine and with a negative one, of words."""
    near = min(1.0, max(0.0, cosine or 0.0))
    words = share(stated_words(keywords(query)), contained_words(text)) if weights[1] else 0.0
    return near + (1.0 - near) * words * weights[1] / sum(weights)


# ── search ──

_THREADS: Final = 4
#: Each ranking considers this many times the requested hits, because fusion may raise lower ones.
_DEPTH: Final = 4
_MIN_HITS: Final = 50
_MAX_HITS: Final = 10_000
_TRIES: Final = 3

#: Hits with their query and the parts of their score, by document and number of the chunk.
Scored = dict[tuple[str, int], tuple[Hit, str, Scores]]


@dataclass(slots=True)
class Seen:
    """The rows of visible documents, by key.

    `looks` counts the queries. `hidden` documents were ranked or chosen by the filters, and are not visible.
    """

    rows: dict[str, VectorStoreFile] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    looks: int = 0


class Searching:
    """Answer searches on the engine host's loop; a few threads do what blocks."""

    def __init__(self, context: Context, host: EngineHost, reranking: Reranking) -> None:
        self._context = context
        self._host = host
        self._reranking = reranking
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="search")

    def close(self) -> None:
        """Wait for uses that are still being recorded: they would open the database again after it is closed."""
        self._threads.shutdown()

    async def answer(self, queued: QueuedRequest, priority: int) -> Answer:
        """Answer one search. Raises what engines raise."""
        search = searches.decode_search(queued.body)
        loop = asyncio.get_running_loop()
        try:
            store = await loop.run_in_executor(self._threads, self._store, search, queued.tenant)
        except DatabaseBusy as error:
            raise EngineBusy(error.message, retry_after=1.0) from error
        if store is None:
            return refusal(404, f"No vector store found with id '{search.store_id}'.", param="vector_store_id")
        vectors = await self._vectors(search, store, queued, priority)
        if isinstance(vectors, Answer):
            return vectors
        try:
            hits = await loop.run_in_executor(self._threads, self._search, search, store, vectors)
        except (DatabaseBusy, VectorsUnavailable) as error:
            raise EngineBusy("The search cannot be made now.", retry_after=2.0) from error
        ranked = await self._reranking.rank(search, hits, queued, priority) if search.ranker else hits
        if isinstance(ranked, Answer):
            return ranked
        self._threads.submit(self._note, store)  # not awaited
        store_id = store.parent_id or store.id
        self._context.usage.add(UsageKey(queued.tenant, queued.key_id, "", SEARCH, subject=store_id))
        return Answer(200, searches.encode(await loop.run_in_executor(self._threads, choose, search, ranked)))

    def _store(self, search: Search, project_id: str) -> VectorStore | None:
        with self._context.db.read() as session:
            conditions = VectorStore.id == search.store_id, VectorStore.project_id == project_id
            store = session.scalar(select(VectorStore).where(*conditions))
        return None if store is None or attachments.is_over(store) or indexes.is_emptied(store) else store

    def _note(self, store: VectorStore) -> None:
        with suppress(DatabaseBusy):  # the next search records it
            attachments.note_use(self._context.db, store)

    async def _vectors(
        self, search: Search, store: VectorStore, queued: QueuedRequest, priority: int
    ) -> list[Vector | None] | Answer:
        """Return a vector for each query, None if only words are searched, or the engine's refusal.

        A query that is too long for the model is truncated, because clients need not know that model.
        """
        if not search.vector_weight or not store.dimensions:
            return [None] * len(search.queries)
        fields = (await self._prompt(store.model)).fields(list(search.queries))
        body: dict[str, Any] = {"model": store.model, **fields, "encoding_format": "base64"}
        if store.shortened:
            body["dimensions"] = store.dimensions
        request = Request(EMBEDDINGS, body, queued.id, priority, queued.tenant, cacheable=search.cacheable)
        answer = await self._host.engine.answer(request)
        if is_too_long(answer):  # only then, because such requests are not cached
            answer = await self._host.engine.answer(replace(request, body={**body, "truncate": True}))
        self._context.usage.add_answer(UsageKey(queued.tenant, queued.key_id, store.model, EMBEDDINGS), answer)
        if answer.status >= 400:
            return answer
        try:
            vectors = read_vectors(answer)
        except Unusable:
            return refusal(502, "The embedding model gave no vector for this query.", code="engine_error")
        if any(len(vector) != store.dimensions for vector in vectors):
            return refusal(400, DIFFERENT[1], param="vector_store_id", code="dimension_mismatch")
        return list(vectors)

    async def _prompt(self, model: str) -> EmbeddingPrompt:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, embedding_model.query_prompt, self._context.config, model)
        except (ModelsFileError, NoTokenizer, TokenizerUnavailable) as error:
            raise EngineBusy("The model's prompts cannot be read now.", retry_after=2.0) from error

    def _search(self, search: Search, store: VectorStore, vectors: Sequence[Vector | None]) -> list[FoundChunk]:
        if not store.dimensions:
            return []
        for _ in range(_TRIES):
            began = now()
            ranked, seen = self._rank_queries(search, store, vectors)
            removed = self._removed_documents(search.store_id, seen)
            if not removed and not self._has_removals(search.store_id, seen.hidden, began):
                break
        left = [scored for scored in ranked.values() if scored[0].document not in removed]
        best = sorted(left, key=lambda scored: (-_fused_score(scored[2]), scored[0].document, scored[0].n))
        chunks = (_to_chunk(search, seen.rows[scored[0].document], *scored) for scored in best)
        lowest = 0.0 if search.ranker else search.threshold  # the scores of a ranker come later
        return list(islice((chunk for chunk in chunks if chunk.score >= lowest), search.candidates))

    def _rank_queries(
        self, search: Search, store: VectorStore, vectors: Sequence[Vector | None]
    ) -> tuple[Scored, Seen]:
        """Return the hits of all queries, each with the query for which fusion gives it most."""
        only = self._filter_documents(search)
        ranked: Scored = {}
        seen = Seen(hidden=set(only or ()))
        for query, vector in zip(search.queries, vectors, strict=True):
            for hit, scores in self._rank(search, store, query, vector, only, seen):
                key = (hit.document, hit.n)
                if key not in ranked or _fused_score(ranked[key][2]) < _fused_score(scores):
                    ranked[key] = hit, query, scores
        seen.hidden -= seen.rows.keys()
        return ranked, seen

    def _removed_documents(self, store_id: str, seen: Seen) -> Collection[str]:
        """Return the documents that were visible in one of several queries and are no longer."""
        if seen.looks < 2:
            return ()
        now = Seen()
        self._look_up(store_id, seen.rows.keys(), now)
        return seen.rows.keys() - now.rows.keys()

    def _has_removals(self, store_id: str, documents: set[str], since: float) -> bool:
        """Return whether one of these documents was visible after `since`; purged removals are unknown."""
        if not documents:
            return False
        late = VectorRemoval.store_id == store_id, VectorRemoval.created_at >= since
        with self._context.db.read() as session:
            removed = session.scalars(select(VectorRemoval.document).where(*late, VectorRemoval.document.is_not(None)))
            return not documents.isdisjoint(removed)

    def _rank(
        self,
        search: Search,
        store: VectorStore,
        query: str,
        vector: Vector | None,
        only: Collection[str] | None,
        seen: Seen,
    ) -> list[tuple[Hit, Scores]]:
        where = store_of(store)
        vectors = self._context.vectors

        def near(count: int) -> list[Hit]:
            return [] if vector is None else vectors.nearest(where, vector, count, only)

        def worded(count: int) -> list[Hit]:
            return vectors.matching(where, keywords(query), count, only) if search.text_weight else []

        weights = (search.vector_weight, search.text_weight)
        lists = [self._visible_hits(find, search, seen) for find in (near, worded)]
        cosines, words = ({(hit.document, hit.n): hit.score for hit in ranking} for ranking in lists)
        return [
            (hit, Scores(_round(cosines.get(key)), _round(words.get(key)), score))
            for hit, score in fuse(lists[0], lists[1], weights, search.fusion, search.k)
            for key in [(hit.document, hit.n)]
        ]

    def _visible_hits(self, find: Callable[[int], list[Hit]], search: Search, seen: Seen) -> list[Hit]:
        """Return the best visible hits; consider more hits if many are hidden."""
        needed = max(_MIN_HITS, search.limit * _DEPTH, search.candidates)
        count = needed
        while True:
            hits = find(count)
            documents = {hit.document for hit in hits}
            self._look_up(search.store_id, documents - seen.rows.keys(), seen)
            seen.hidden |= documents
            visible = [hit for hit in hits if hit.document in seen.rows]
            if len(visible) >= needed or len(hits) < count or count >= _MAX_HITS:
                return visible[:needed]
            count *= 4

    def _look_up(self, store_id: str, documents: Collection[str], seen: Seen) -> None:
        if not documents:
            return
        with self._context.db.read() as session:
            files = select(VectorStoreFile).where(
                VectorStoreFile.store_id == store_id,
                VectorStoreFile.document.in_(documents),
                ~source_items.is_outlived(),
            )
            seen.rows.update({str(row.document): row for row in session.scalars(files)})
        seen.looks += 1

    def _filter_documents(self, search: Search) -> list[str] | None:
        """Return the documents of files that the filters accept; None without filters."""
        if search.filters is None:
            return None
        with self._context.db.read() as session:
            files = select(VectorStoreFile.document, VectorStoreFile.attributes).where(
                VectorStoreFile.store_id == search.store_id,
                VectorStoreFile.document.is_not(None),
                ~source_items.is_outlived(),
            )
            rows = session.execute(files).all()
        return [document for document, attributes in rows if filters.holds(search.filters, attributes)]


def _fused_score(scores: Scores) -> float:
    return scores.fused or 0.0


def _round(score: float | None) -> float | None:
    return None if score is None else round(score, 6)


def _to_chunk(search: Search, row: VectorStoreFile, hit: Hit, query: str, scores: Scores) -> FoundChunk:
    score = round(score_of(query, hit.text, scores.vectors, (search.vector_weight, search.text_weight)), 6)
    shown = msgspec.structs.replace(scores, fused=round(_fused_score(scores), 6))
    return FoundChunk(row.id, row.filename, score, hit.text, row.attributes, hit.meta, hit.n, shown)


def choose(search: Search, ranked: Sequence[FoundChunk]) -> SearchResults:
    """Return the candidates above the threshold, best first, without near duplicates of better ones."""
    good = [hit for hit in ranked if hit.score >= search.threshold]
    if not search.deduplicate:
        return SearchResults(tuple(good[: search.limit]))
    cacheable, dropped = distinct(good, search.deduplicate, search.limit)
    return SearchResults(tuple(cacheable), dropped)
