"""Run the second stage of a shard: write the vectors of each document invisibly, then publish them.

    documents ──▶ texts ─┬─ known to some store already ┐
                         └─ engine, many at a time ─────┴─▶ vectors, durable ──▶ one transaction: published and counted
    sentences ──▶ engine ──▶ cut by meaning, durable ──▶ a document like the others

The first stage (`workers.retrieval.ingestion.parse`) has stored the document of each file: its text and its chunks, or
its sentences where the store cuts by meaning (`semantic`). Several documents are embedded, written and published
together. Vectors are stored under the key `<version>.<epoch of this claim>`; those of a lost claim are never found, and
are removed.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import msgspec

from jobs.errors import ClaimLost, DatabaseBusy, StorageFull
from jobs.files.tables import File
from jobs.fleet.models_file import ModelsFileError
from jobs.ledger import shards
from jobs.ledger.shards import ShardClaim, Tally
from jobs.retrieval import attachments, documents, indexes, ingestions
from jobs.retrieval.attachments import Made
from jobs.retrieval.documents import Document
from jobs.retrieval.indexes import index_of
from jobs.retrieval.tables import VectorStore, VectorStoreFile
from workers.retrieval.ingestion import embedding_model, semantic
from workers.retrieval.ingestion.embedding import AWAY_SECONDS, DIFFERENT, ClaimEmbedder, digest_of
from workers.retrieval.ingestion.parse import BROKE, CRASHED, recipe_of
from workers.runtime.attempts import Abandoned, ShardRun
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost
from workers.runtime.heartbeat import ClaimHandle
from workers.vectors.base import Vector, VectorEntry, VectorsUnavailable
from workers.vectors.open_vectors import store_of

log = logging.getLogger(__name__)
CHUNKS_AT_ONCE: Final = 256  # chunks that are embedded and written together


@dataclass(slots=True)
class _File:
    """A document in progress.

    `digests` are the keys by which vectors are known: for each chunk the hash of the model's prompt and the chunk's
    text. `failed` is the code and the message of the file's error.
    """

    line: int
    row: VectorStoreFile
    recipe: str
    document: Document
    digests: list[str] = field(default_factory=list)
    failed: tuple[str, str] | None = None


class Indexing(ShardRun):
    """One claim on one shard in its second stage."""

    def __init__(self, context: Context, host: EngineHost, claim: ShardClaim, handle: ClaimHandle) -> None:
        super().__init__(context, claim, handle)
        self.embedder = ClaimEmbedder(context, host, claim, handle)
        self.left = claim.lines - claim.covered.bit_count()  # lines that no segment covers yet
        self.written = 0  # the length of vectors that are not published yet
        self.rewrote = False  # whether a document was cut and stored again

    def run_lines(self) -> None:
        """Embed, write and publish every document.

        Raises: Abandoned, ClaimLost, GaveUp, StorageFull, StorageUnavailable.
        """
        if self.context.low_on_disk():
            raise StorageFull
        try:
            self._index_files()
        except VectorsUnavailable as error:
            log.warning("vectors_unavailable", extra={"job_id": self.claim.job.id, "error": str(error)})
            raise Abandoned(AWAY_SECONDS, "vectors") from error
        except (
            DatabaseBusy,
            ModelsFileError,
            embedding_model.NoTokenizer,
            embedding_model.TokenizerUnavailable,
        ) as error:
            raise Abandoned(AWAY_SECONDS) from error
        except CancelledError as error:
            raise Abandoned from error
        except ClaimLost:
            if self.written or self.rewrote:
                job, dimensions = self.claim.job, self.written
                self.context.db.retrying(lambda session: attachments.enqueue_cleanup(session, job, dimensions))
            raise

    def _index_files(self) -> None:
        claim = self.claim
        with self.context.db.read() as session:
            self.store = indexes.alive(session, index_of(claim.job.payload))
            rows = attachments.files_of_lines(session, claim.job.id, claim.first_line, claim.lines)
        if self.store is not None:
            self.embedder.prompt = embedding_model.passage_prompt(self.context.config, self.store.model)
        lines = [line for line in range(claim.lines) if not claim.covered >> line & 1]
        # Lines whose file was removed or attached again: they are committed without a result.
        lost = [Made(line, "", "") for line in lines if line not in rows or self.store is None]
        if lost:
            self._commit(lost, Tally(), 0)
        if self.store is not None:
            for group in self._groups([(line, rows[line]) for line in lines if line in rows], self.store):
                self._index(group, self.store)
        if not self.closed and not self.left:
            self._commit([], Tally(), 0)

    def _groups(self, rows: Sequence[tuple[int, VectorStoreFile]], store: VectorStore) -> Iterator[list[_File]]:
        """Yield documents to embed together; in isolation mode one at a time, recorded before it is tried."""
        isolated, group = self.is_isolated, list[_File]()
        for line, row in rows:
            if isolated and not self._may_try(line, row):
                continue
            group.append(self._read(line, row, store))
            if isolated or sum(len(file.digests) for file in group) >= CHUNKS_AT_ONCE:
                yield group
                group = []
        if group:
            yield group

    def _may_try(self, line: int, row: VectorStoreFile) -> bool:
        if self.has_killed_workers(line):
            self._commit([Made(line, row.id, row.version, error=CRASHED)], Tally(), 0)
            return False
        self.context.db.retrying(lambda session: shards.record_isolated_attempt(session, self.claim, line))
        return True

    def _read(self, line: int, row: VectorStoreFile, store: VectorStore) -> _File:
        with self.context.db.read() as session:
            file = session.get(File, row.id)
        document = documents.load(self.context.storage, store.id, row.version)
        if document is None:  # removed meanwhile: publishing detects that
            return _File(line, row, "", Document("", ()), failed=BROKE)
        made_from = recipe_of(store, file, row, self.embedder.prompt) if file else ""
        made_from = documents.partly(made_from) if document.unread else made_from
        try:
            document = self._cut(document, row, store) if document.sentences else document
        except embedding_model.NoTokenizer as error:
            return _File(line, row, made_from, document, failed=("server_error", str(error)))
        digests = [self.embedder.digest(document.piece(n)) for n in range(len(document.chunks))]
        return _File(line, row, made_from, document, digests)

    def _cut(self, document: Document, row: VectorStoreFile, store: VectorStore) -> Document:
        """Cut a document by meaning and store it, so that a later attempt embeds no sentence again.

        A worker that lost its claim may store another cut: nothing reads the stored cut once the vectors are published.

        Raises: NoTokenizer.
        """
        cut = embedding_model.cutting_of(self.context.config, store.model, row.chunking)
        distances = semantic.Distances()
        left = semantic.windows(document, cut.max_tokens) if len(document.sentences) > 1 else iter(())
        while windows := list(islice(left, CHUNKS_AT_ONCE)):
            self.embedder.stop_if_ended()
            digests = [self.embedder.digest(window) for window in windows]
            vectors: dict[str, Vector] = {}
            self.embedder.embed(dict(zip(digests, windows, strict=True)), vectors, store)
            distances.add([vectors.get(digest) for digest in digests])
        tokens = semantic.tokens_of(cut.tokenizer)
        document = semantic.cut(document, distances.values, tokens, cut.max_tokens, row.chunking["semantic"])
        self.rewrote = True
        self.context.storage.put(documents.path(store.id, row.version), documents.encode(document))
        return document

    def _index(self, group: list[_File], row: VectorStore) -> None:
        """Write a group slice by slice, however long its documents are, and publish it with the last slice."""
        for part in _slices(group):
            self.embedder.stop_if_ended()
            self._write(part, row)
        made = [self._result_of(file, row.dimensions) for file in group]
        self._commit(made, self.embedder.take_tally(), row.dimensions)
        self.written, self.rewrote = 0, False

    def _write(self, part: list[tuple[_File, int]], row: VectorStore) -> None:
        """Write the vectors of some chunks. A document fails if one of its chunks gets no vector."""
        texts = {file.digests[n]: file.document.piece(n) for file, n in part}
        vectors = self.embedder.find_vectors(row, {file.recipe for file, _ in part}, texts)
        why = self.embedder.embed(texts, vectors, row)
        dimensions = self._dimensions(row, vectors)
        for file, n in part:
            vector = vectors.get(file.digests[n])
            if vector is None or len(vector) != dimensions:
                file.failed = file.failed or (why.get(file.digests[n], BROKE) if vector is None else DIFFERENT)
        entries = [self._entry(file, n, vectors) for file, n in part if not file.failed]
        if entries:
            self.written = dimensions
            self.context.vectors.write(store_of(row), entries)
            if self.context.lazy_vectors.count_write(row.id):  # after many writes: compact and index the store
                self.context.vectors.tend(store_of(row))

    def _dimensions(self, row: VectorStore, vectors: dict[str, Vector]) -> int:
        """Return the length of the store's vectors. It is recorded before the first vector is written."""
        first = next((len(vector) for vector in vectors.values()), 0)
        if first and not row.dimensions:
            row.dimensions = self.context.db.retrying(
                lambda session: attachments.record_dimensions(session, row.id, first)
            )
        return row.dimensions

    def _result_of(self, file: _File, dimensions: int) -> Made:
        row = file.row
        if file.failed:
            return Made(file.line, row.id, row.version, error=file.failed)
        size = len(file.document.text.encode()) + 4 * dimensions * len(file.digests)
        return Made(file.line, row.id, row.version, self._key(row), len(file.digests), size, file.recipe)

    def _key(self, row: VectorStoreFile) -> str:
        return f"{row.version}.{self.claim.epoch}"

    def _entry(self, file: _File, n: int, vectors: dict[str, Vector]) -> VectorEntry:
        document, text = file.document, file.document.piece(n)
        fields = {
            "title": document.title,
            "language": document.language,
            "time": document.time,
            "filename": file.row.filename,
            "sha256": digest_of(text),
        }
        meta = {name: value for name, value in fields.items() if value is not None}
        meta |= msgspec.to_builtins(document.chunks[n])
        return VectorEntry(self._key(file.row), n, text, file.digests[n], vectors[file.digests[n]], meta)

    def _commit(self, made: list[Made], tally: Tally, dimensions: int) -> None:
        self.embedder.stop_if_lost()
        last = self.left == len(made)
        self.context.db.retrying(
            lambda session: ingestions.commit(session, self.claim, self.seq, made, tally, dimensions, last=last)
        )
        self.left -= len(made)
        self.seq += 1
        self.closed = last


def _slices(group: Sequence[_File]) -> Iterator[list[tuple[_File, int]]]:
    """Yield the chunks of some documents in slices, and skip the rest of a failed document."""
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
