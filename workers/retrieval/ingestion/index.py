"""The second stage of a shard: vectors for the chunks of each document, written where nobody looks, then published.

    documents ──▶ texts ─┬─ known to some store already ┐
                         └─ engine, many at a time ─────┴─▶ vectors, durable ──▶ one transaction: in view, and counted
    sentences ──▶ engine ──▶ cut by meaning, durable ──▶ a document like the others

Several documents are embedded, written and published together. Vectors lie under a key of this claim; those that a
lost claim has written stay out of sight and are removed.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import msgspec
from sqlalchemy import func, select

from jobs.errors import DatabaseBusy, Fenced, StorageFull
from jobs.files.tables import File
from jobs.fleet.models_file import ModelsFileError
from jobs.ledger import shards
from jobs.ledger.payloads import index_of
from jobs.ledger.shards import ShardClaim, Tally
from jobs.requests.endpoints import EMBEDDINGS
from jobs.retrieval import attachments, documents, indexes, ingestions
from jobs.retrieval.attachments import Made
from jobs.retrieval.documents import Document
from jobs.retrieval.tables import VectorStore, VectorStoreFile
from workers.engines.port import Answer, Request
from workers.retrieval.ingestion import embedding_model, semantic
from workers.retrieval.ingestion.embedding_answers import Unusable, read_vectors
from workers.retrieval.ingestion.embedding_model import Prompt
from workers.retrieval.ingestion.parse import BROKE, CAREFUL_TRIES, CRASHED, recipe_of
from workers.runtime.answering import Answering
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost, GaveUp
from workers.runtime.heartbeat import Hold
from workers.runtime.output_lines import Item
from workers.vectors.base import Entry, Vector, VectorsAway
from workers.vectors.open_vectors import store_of

log = logging.getLogger(__name__)
#: Texts of one request, and chunks that are embedded and written together.
TEXTS_AT_ONCE: Final = 32
CHUNKS_AT_ONCE: Final = 256
AWAY_SECONDS: Final = 5.0
STORES_LOOKED_AT: Final = 8  # of the project's others, for texts that were embedded there
REFUSED: Final = "The embedding model gave no vectors of this file"
DIFFERENT: Final = ("server_error", "The embedding model now gives vectors of another length than this store's.")


@dataclass(slots=True)
class _File:
    """A document on its way, and digests of what is embedded of its chunks: their texts behind the prompt."""

    line: int
    row: VectorStoreFile
    recipe: str
    document: Document
    digests: list[str] = field(default_factory=list)
    failed: tuple[str, str] | None = None


class Indexing:
    """One claim on one shard. `closed`: all of it is done."""

    finishing = None  # its job is claimed when it is finished
    ended = False

    def __init__(self, context: Context, host: EngineHost, claim: ShardClaim, hold: Hold) -> None:
        self.context = context
        self.host = host
        self.claim = claim
        self.hold = hold
        self.left = claim.lines - claim.covered.bit_count()
        self.seq = 0
        self.closed = False
        self.prompt = Prompt()
        self.written = 0  # dimensions of vectors that are not published yet
        self.rewrote = False  # a document, which was cut
        self.tally = Tally()  # what was asked of the engine since the last commit
        self.answers: deque[tuple[Item, Answer]] = deque()

    def all(self) -> None:
        """Raises Fenced, GaveUp, StorageFull, StorageAway."""
        if self.context.low_on_disk():
            raise StorageFull
        try:
            self._all()
        except VectorsAway as error:
            log.warning("vectors_away", extra={"job_id": self.claim.job.id, "error": str(error)})
            self.give_back(AWAY_SECONDS, "vectors")
        except (DatabaseBusy, ModelsFileError, embedding_model.NoTokenizer, embedding_model.TokenizerAway):
            self.give_back(AWAY_SECONDS, None)
        except CancelledError:
            self.give_back(0.0, None)
        except Fenced:
            if self.written or self.rewrote:
                job, dimensions = self.claim.job, self.written
                self.context.db.retrying(lambda session: attachments.left_behind(session, job, dimensions))
            raise

    def give_back(self, delay: float, waiting_for: str | None) -> None:
        self.context.db.retrying(
            lambda session: shards.give_back(session, self.claim, delay=delay, waiting_for=waiting_for)
        )

    def _all(self) -> None:
        claim = self.claim
        with self.context.db.read() as session:
            self.store = indexes.alive(session, index_of(claim.job.payload))
            rows = attachments.of_lines(session, claim.job.id, claim.first_line, claim.lines)
        if self.store is not None:
            self.prompt = embedding_model.passage_prompt(self.context.config, self.store.model)
        lines = [line for line in range(claim.lines) if not claim.covered >> line & 1]
        lost = [Made(line, "", "") for line in lines if line not in rows or self.store is None]
        if lost:
            self._commit(lost, Tally(), 0)
        if self.store is not None:
            for group in self._groups([(line, rows[line]) for line in lines if line in rows], self.store):
                self._index(group, self.store)
        if not self.closed and not self.left:
            self._commit([], Tally(), 0)

    def _groups(self, rows: Sequence[tuple[int, VectorStoreFile]], store: VectorStore) -> Iterator[list[_File]]:
        """Documents that are embedded together; in careful mode one at a time, named before it is tried."""
        careful = self.claim.stalls >= self.context.config.stalls_before_careful or self.claim.trying_line is not None
        group: list[_File] = []
        for line, row in rows:
            if careful and not self._may_try(line, row):
                continue
            group.append(self._read(line, row, store))
            if careful or sum(len(file.digests) for file in group) >= CHUNKS_AT_ONCE:
                yield group
                group = []
        if group:
            yield group

    def _may_try(self, line: int, row: VectorStoreFile) -> bool:
        if line == self.claim.trying_line and self.claim.trying_times >= CAREFUL_TRIES:
            self._commit([Made(line, row.id, row.version, error=CRASHED)], Tally(), 0)
            return False
        self.context.db.retrying(lambda session: shards.trying(session, self.claim, line))
        return True

    def _read(self, line: int, row: VectorStoreFile, store: VectorStore) -> _File:
        with self.context.db.read() as session:
            file = session.get(File, row.id)
        document = documents.load(self.context.storage, store.id, row.version)
        if document is None:  # removed meanwhile: publishing finds that out
            return _File(line, row, "", Document("", ()), failed=BROKE)
        made_from = recipe_of(store, file, row, self.prompt) if file else ""
        made_from = documents.partly(made_from) if document.unread else made_from
        try:
            document = self._cut(document, row, store) if document.sentences else document
        except embedding_model.NoTokenizer as error:
            return _File(line, row, made_from, document, failed=("server_error", str(error)))
        digests = [self._digest(document.piece(n)) for n in range(len(document.chunks))]
        return _File(line, row, made_from, document, digests)

    def _digest(self, text: str) -> str:
        """Of what the engine is given, the prompt included."""
        return _digest(self.prompt.text + text)

    def _cut(self, document: Document, row: VectorStoreFile, store: VectorStore) -> Document:
        """By meaning. It is kept, so that who comes after a death embeds no sentence again. Raises NoTokenizer.

        A zombie may put another cut in its place: nobody cuts by what is stored once the vectors are in view.
        """
        cut = embedding_model.cutting_of(self.context.config, store.model, row.chunking)
        distances = semantic.Distances()
        left = semantic.windows(document, cut.max_tokens) if len(document.sentences) > 1 else iter(())
        while windows := list(islice(left, CHUNKS_AT_ONCE)):
            self._stop_if_ended()
            digests = [self._digest(window) for window in windows]
            vectors: dict[str, Vector] = {}
            self._embed(dict(zip(digests, windows, strict=True)), vectors, store)
            distances.add([vectors.get(digest) for digest in digests])
        tokens = semantic.tokens_of(cut.tokenizer)
        document = semantic.cut(document, distances.found, tokens, cut.max_tokens, row.chunking["semantic"])
        self.rewrote = True
        self.context.storage.put(documents.path(store.id, row.version), documents.encode(document))
        return document

    def _index(self, group: list[_File], row: VectorStore) -> None:
        """Slice by slice, however long a document is; in view with the last one."""
        for part in _slices(group):
            self._stop_if_ended()
            self._write(part, row)
        made = [self._made(file, row.dimensions) for file in group]
        tally, self.tally = self.tally, Tally()
        self._commit(made, tally, row.dimensions)
        self.written, self.rewrote = 0, False

    def _write(self, part: list[tuple[_File, int]], row: VectorStore) -> None:
        """Vectors of some chunks, durable. A document that one can't be had for has failed."""
        texts = {file.digests[n]: file.document.piece(n) for file, n in part}
        vectors = self._known(row, {file.recipe for file, _ in part}, texts)
        why = self._embed({digest: text for digest, text in texts.items() if digest not in vectors}, vectors, row)
        dimensions = self._dimensions(row, vectors)
        for file, n in part:
            vector = vectors.get(file.digests[n])
            if vector is None or len(vector) != dimensions:
                file.failed = file.failed or (why.get(file.digests[n], BROKE) if vector is None else DIFFERENT)
        entries = [self._entry(file, n, vectors) for file, n in part if not file.failed]
        if entries:
            self.written = dimensions
            self.context.vectors.write(store_of(row), entries)
            if self.context.late.wrote(row.id):
                self.context.vectors.tend(store_of(row))

    def _known(self, row: VectorStore, recipes: set[str], texts: dict[str, str]) -> dict[str, Vector]:
        """Vectors that this store, or another of the project, has already."""
        vectors: dict[str, Vector] = {}
        for store in self._alike(row, recipes):
            missing = texts.keys() - vectors.keys()
            if not missing:
                break
            try:
                vectors |= self.context.vectors.known(store_of(store), missing)
            except VectorsAway:
                if store.id == row.id:
                    raise
                log.warning("store_not_looked_at", extra={"store": store.id})
        return vectors

    def _alike(self, row: VectorStore, recipes: set[str]) -> list[VectorStore]:
        """Stores of the project whose vectors would be the same: this one, for each recipe one of all those that have
        made it, then those used last."""
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
        with self.context.db.read() as session:
            others = [*session.scalars(select(VectorStore).where(VectorStore.id.in_(one_each))), *session.scalars(last)]
        return list({store.id: store for store in ([row] if row.dimensions else []) + others}.values())

    def _dimensions(self, row: VectorStore, vectors: dict[str, Vector]) -> int:
        """Known before the first vector is written: whoever looks for it, or removes it, has to know."""
        first = next((len(vector) for vector in vectors.values()), 0)
        if first and not row.dimensions:
            row.dimensions = self.context.db.retrying(lambda session: attachments.measured(session, row.id, first))
        return row.dimensions

    def _made(self, file: _File, dimensions: int) -> Made:
        row = file.row
        if file.failed:
            return Made(file.line, row.id, row.version, error=file.failed)
        size = len(file.document.text.encode()) + 4 * dimensions * len(file.digests)
        return Made(file.line, row.id, row.version, self._key(row), len(file.digests), size, file.recipe)

    def _key(self, row: VectorStoreFile) -> str:
        return f"{row.version}.{self.claim.epoch}"

    def _entry(self, file: _File, n: int, vectors: dict[str, Vector]) -> Entry:
        document, text = file.document, file.document.piece(n)
        facts = {
            "title": document.title,
            "language": document.language,
            "time": document.time,
            "filename": file.row.filename,
            "sha256": _digest(text),
        }
        meta = {name: value for name, value in facts.items() if value is not None}
        meta |= msgspec.to_builtins(document.chunks[n])
        return Entry(self._key(file.row), n, text, file.digests[n], vectors[file.digests[n]], meta)

    def _embed(
        self, texts: dict[str, str], vectors: dict[str, Vector], store: VectorStore
    ) -> dict[str, tuple[str, str]]:
        """Fill `vectors` by digest. What the engine refuses or breaks on stays missing, alone: why, if it says that."""
        why: dict[str, tuple[str, str]] = {}
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
        """Those for which there are no vectors, but may be text by text. Raises GaveUp where the engine is closed."""
        items = [self._item(n, [texts[digest] for digest in batch], store) for n, batch in enumerate(batches)]
        if items:
            self._ask(items)
        refusals: dict[int, Unusable] = {}
        while self.answers:
            item, answer = self.answers.popleft()
            self.tally.input_tokens += answer.usage.input_tokens
            self.tally.cached_tokens += answer.usage.cached_tokens
            self.tally.took += [item.seconds] if item.seconds is not None else []
            try:
                vectors.update(dict(zip(batches[item.line], read_vectors(answer), strict=True)))  # all or none
            except (Unusable, ValueError) as error:
                refusals[item.line] = refused = error if isinstance(error, Unusable) else Unusable(answer)
                log.warning("embedding_unusable", extra={"job_id": self.claim.job.id, "status": answer.status})
                if refused.said:
                    why |= dict.fromkeys(batches[item.line], ("server_error", f"{REFUSED}: {refused.said}"))
        if any(refused.closed for refused in refusals.values()):
            raise GaveUp(AWAY_SECONDS, grows=True)
        hopeless = {n for n, refused in refusals.items() if not refused.of_a_text}
        left = [batch for n, batch in enumerate(batches) if n not in hopeless]
        return [batch for batch in left if not vectors.keys() >= set(batch)]

    def _item(self, n: int, texts: list[str], store: VectorStore) -> Item:
        body: dict[str, Any] = {"model": store.model, **self.prompt.fields(texts), "encoding_format": "base64"}
        if store.shortened:
            body["dimensions"] = store.dimensions
        item_id = f"{self.claim.job.id}-{self.claim.n}-{self.claim.epoch}-{self.seq}-{n}-{len(texts)}"
        job = self.claim.job
        request = Request(
            EMBEDDINGS, body, item_id, -job.priority, job.project_id, kept=False
        )  # stores lend each other theirs
        return Item(n, "", item_id, request)

    def _ask(self, items: list[Item]) -> None:
        """Answers on the engine's loop, while this thread watches the claim. Raises GaveUp, Fenced, CancelledError."""
        self.hold.changed.clear()
        self._stop_if_ended()
        answering = Answering(self.host, self.context.config.item_tries, lambda *pair: self.answers.append(pair))
        future = self.host.call(answering.run(items))
        future.add_done_callback(lambda _: self.hold.changed.set())
        try:
            while not future.done():
                self.hold.changed.wait(1.0)
                self._stop_if_ended()
            future.result()
        except GaveUp:
            self.answers.clear()
            raise
        finally:
            future.cancel()

    def _stop_if_ended(self) -> None:
        """Raises Fenced, CancelledError."""
        self._stop_if_lost()
        if self.hold.ended:
            raise CancelledError

    def _stop_if_lost(self) -> None:
        if self.hold.lost.is_set():
            raise Fenced

    def _commit(self, made: list[Made], tally: Tally, dimensions: int) -> None:
        self._stop_if_lost()
        last = self.left == len(made)
        self.context.db.retrying(
            lambda session: ingestions.commit(session, self.claim, self.seq, made, tally, dimensions, last=last)
        )
        self.left -= len(made)
        self.seq += 1
        self.closed = last


def _slices(group: Sequence[_File]) -> Iterator[list[tuple[_File, int]]]:
    """The chunks of some documents, so many at a time. Of one that has failed meanwhile no more."""
    part: list[tuple[_File, int]] = []
    for file in group:
        for n in range(len(file.digests)):
            if file.failed:
                break
            part.append((file, n))
            if len(part) == CHUNKS_AT_ONCE:
                yield part
                part = []
    if part:
        yield part


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
