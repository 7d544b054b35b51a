"""Get the vectors of texts: copy those that a store of the project has, and ask the engine for the others.

    texts ─┬─ known to some store already ┐
           └─ engine, many at a time ─────┴─▶ vectors

An engine may refuse a request:

401 402, 404 of the model   not about a text: the shard waits, as for a busy engine
400 403 413 422             may be about one of the texts: each is sent alone
any other 4xx               not about a single text: its message is the error of all files
"""

import base64
import hashlib
import logging
from collections import deque
from concurrent.futures import CancelledError
from typing import Any, Final

import msgspec
import numpy as np
from sqlalchemy import func, select

from jobs.errors import ClaimLost
from jobs.ledger.shards import ShardClaim, Tally
from jobs.requests.endpoints import EMBEDDINGS
from jobs.retrieval.tables import VectorStore, VectorStoreFile
from workers.engines.port import Answer, Request
from workers.retrieval.ingestion.embedding_model import EmbeddingPrompt
from workers.runtime.answering import MAX_TRIES, Answering
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost, GaveUp
from workers.runtime.heartbeat import ClaimHandle
from workers.runtime.output_lines import Item
from workers.vectors.base import Vector, VectorsUnavailable
from workers.vectors.open_vectors import store_of

log = logging.getLogger(__name__)
TEXTS_AT_ONCE: Final = 32  # of one request
AWAY_SECONDS: Final = 5.0
STORES_LOOKED_AT: Final = 8  # other stores of the project that are searched for known texts
REFUSED: Final = "The embedding model gave no vectors of this file"
DIFFERENT: Final = ("server_error", "The embedding model now gives vectors of another length than this store's.")
_CLOSED: Final = frozenset({401, 402})
_OF_A_TEXT: Final = frozenset({400, 403, 413, 422})
_MAX_ERROR: Final = 500  # characters of an engine's error


class ClaimEmbedder:
    """Embed texts for one claim on a shard. `prompt` stands before each text."""

    def __init__(self, context: Context, host: EngineHost, claim: ShardClaim, handle: ClaimHandle) -> None:
        self.prompt = EmbeddingPrompt()
        self._context = context
        self._host = host
        self._claim = claim
        self._handle = handle
        self._tally = Tally()  # the engine's usage since the last commit
        self._answers: deque[tuple[Item, Answer]] = deque()
        self._round = 0

    def digest(self, text: str) -> str:
        """Return the key of a text's vector: the digest of the text with its prompt."""
        return digest_of(self.prompt.text + text)

    def take_tally(self) -> Tally:
        """Return the engine's usage since the last call."""
        tally, self._tally = self._tally, Tally()
        return tally

    def find_vectors(self, row: VectorStore, recipes: set[str], texts: dict[str, str]) -> dict[str, Vector]:
        """Return vectors that this store or another one of the project has."""
        vectors: dict[str, Vector] = {}
        for store in self._similar_stores(row, recipes):
            missing = texts.keys() - vectors.keys()
            if not missing:
                break
            try:
                vectors |= self._context.vectors.find_vectors(store_of(store), missing)
            except VectorsUnavailable:
                if store.id == row.id:
                    raise
                log.warning("store_not_looked_at", extra={"store": store.id})
        return vectors

    def _similar_stores(self, row: VectorStore, recipes: set[str]) -> list[VectorStore]:
        """Return stores of the project whose vectors would be the same.

        First this store, then one store for each recipe that was made there, then those used last.
        """
        same = [
            VectorStore.id != row.id,
            VectorStore.project_id == row.project_id,
            VectorStore.model == row.model,
            VectorStore.shortened == row.shortened,
            VectorStore.dimensions == row.dimensions if row.dimensions else VectorStore.dimensions > 0,
        ]
        here = VectorStoreFile.recipe.in_(recipes), VectorStoreFile.document.is_not(None)
        makers = select(func.max(VectorStoreFile.store_id)).join(
            VectorStore, VectorStore.id == VectorStoreFile.store_id
        )
        one_each = makers.where(*here, *same).group_by(VectorStoreFile.recipe)
        last = select(VectorStore).where(*same).order_by(VectorStore.active_at.desc()).limit(STORES_LOOKED_AT)
        with self._context.db.read() as session:
            others = [*session.scalars(select(VectorStore).where(VectorStore.id.in_(one_each))), *session.scalars(last)]
        return list({store.id: store for store in ([row] if row.dimensions else []) + others}.values())

    def embed(
        self, texts: dict[str, str], vectors: dict[str, Vector], store: VectorStore
    ) -> dict[str, tuple[str, str]]:
        """Ask the engine for the vectors of `texts`, by digest, that `vectors` lacks, and add them.

        A text that the engine refuses or breaks on stays missing, alone; return the reasons that the engine gives.
        """
        why: dict[str, tuple[str, str]] = {}
        texts = {digest: text for digest, text in texts.items() if digest not in vectors}
        batches = [list(texts)[at : at + TEXTS_AT_ONCE] for at in range(0, len(texts), TEXTS_AT_ONCE)]
        broken = self._embed_all(batches, texts, vectors, store, why)
        singly = [[digest] for batch in broken if len(batch) > 1 for digest in batch]
        self._embed_all(singly, texts, vectors, store, why)
        return why

    def _embed_all(
        self,
        batches: list[list[str]],
        texts: dict[str, str],
        vectors: dict[str, Vector],
        store: VectorStore,
        why: dict[str, tuple[str, str]],
    ) -> list[list[str]]:
        """Return the batches without vectors whose texts may be sent singly.

        Raises: GaveUp, if the engine refuses everything.
        """
        self._round += 1
        items = [self._item(n, [texts[digest] for digest in batch], store) for n, batch in enumerate(batches)]
        if items:
            self._ask(items)
        refusals: dict[int, Unusable] = {}
        while self._answers:
            item, answer = self._answers.popleft()
            self._tally.requests += 1
            self._tally.input_tokens += answer.usage.input_tokens
            self._tally.cached_tokens += answer.usage.cached_tokens
            if answer.is_cached:
                self._tally.from_cache.update(requests=1, **msgspec.structs.asdict(answer.usage))
            self._tally.took += [item.seconds] if item.seconds is not None else []
            try:
                vectors.update(dict(zip(batches[item.line], read_vectors(answer), strict=True)))  # all or none
            except (Unusable, ValueError) as error:
                refusals[item.line] = refused = error if isinstance(error, Unusable) else Unusable(answer)
                log.warning("embedding_unusable", extra={"job_id": self._claim.job.id, "status": answer.status})
                if refused.reason:
                    why |= dict.fromkeys(batches[item.line], ("server_error", f"{REFUSED}: {refused.reason}"))
        if any(refused.is_closed for refused in refusals.values()):
            raise GaveUp(AWAY_SECONDS, grows=True)
        not_about_a_text = {n for n, refused in refusals.items() if not refused.is_of_text}
        retryable = [batch for n, batch in enumerate(batches) if n not in not_about_a_text]
        return [batch for batch in retryable if not vectors.keys() >= set(batch)]

    def _item(self, n: int, texts: list[str], store: VectorStore) -> Item:
        body: dict[str, Any] = {"model": store.model, **self.prompt.fields(texts), "encoding_format": "base64"}
        if store.shortened:
            body["dimensions"] = store.dimensions
        claim, job = self._claim, self._claim.job
        item_id = f"{job.id}-{claim.n}-{claim.epoch}-{self._round}-{n}"
        # not cached: stores copy vectors from each other
        request = Request(EMBEDDINGS, body, item_id, -job.priority, job.project_id, cacheable=False)
        return Item(n, "", item_id, request)

    def _ask(self, items: list[Item]) -> None:
        """Answer `items` on the engine's loop, while this thread watches the claim.

        Raises: GaveUp, ClaimLost, CancelledError.
        """
        self._handle.changed.clear()
        self.stop_if_ended()
        answering = Answering(self._host, MAX_TRIES, lambda *pair: self._answers.append(pair))
        future = self._host.call(answering.run(items))
        future.add_done_callback(lambda _: self._handle.changed.set())
        try:
            while not future.done():
                self._handle.changed.wait(1.0)
                self.stop_if_ended()
            future.result()
        except GaveUp:
            self._answers.clear()
            raise
        finally:
            future.cancel()

    def stop_if_ended(self) -> None:
        """Raise ClaimLost if the claim is lost, and CancelledError if the shard is to be released."""
        self.stop_if_lost()
        if self._handle.ended:
            raise CancelledError

    def stop_if_lost(self) -> None:
        """Raise ClaimLost if the claim is lost."""
        if self._handle.lost.is_set():
            raise ClaimLost


class Unusable(Exception):
    """The engine's answer has no vectors. `said` is the engine's reason, if it gives one."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.status = answer.status
        error = _error_of(answer.body) if answer.status >= 400 else {}
        self.reason = str(error.get("message") or "").replace("\0", " ")[:_MAX_ERROR].strip()  # no NUL in PostgreSQL
        self._code = str(error.get("code"))

    @property
    def is_closed(self) -> bool:
        """Return whether the engine refuses all requests until an operator acts."""
        of_the_model = "model" in f"{self._code} {self.reason}".casefold()
        return self.status in _CLOSED or (self.status == 404 and of_the_model)

    @property
    def is_of_text(self) -> bool:
        """Return whether the other texts of the request may get vectors without one of them."""
        return not 400 <= self.status < 500 or self.status in _OF_A_TEXT


def read_vectors(answer: Answer) -> list[Vector]:
    """Return the vectors of an answer, in the order of the texts.

    Raises: Unusable.
    """
    if answer.status >= 400:
        raise Unusable(answer)
    try:
        data = sorted(msgspec.json.decode(answer.body)["data"], key=lambda entry: entry["index"])
        return [_vector(entry["embedding"]) for entry in data]
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise Unusable(answer) from error


def _vector(value: Any) -> Vector:
    """Return a vector of length 1, from base64 or a list; some endpoints do not normalise.

    Raises: ValueError.
    """
    vector = np.frombuffer(base64.b64decode(value), "<f4") if isinstance(value, str) else np.asarray(value, "f4")
    length = float(np.linalg.norm(vector))
    if not len(vector) or not np.isfinite(length):
        raise ValueError(f"a vector of {len(vector)} numbers and length {length}")
    return (vector / max(length, 1e-12)).astype(np.float32)


def _error_of(body: bytes) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return {}
    error = content.get("error") if isinstance(content, dict) else None
    return error if isinstance(error, dict) else {}


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
