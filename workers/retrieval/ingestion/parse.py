"""Run the first stage of a shard: parse and cut each file in a child process, store its document, requeue the shard.

file ─┬─ same recipe as the published version ─▶ completed, nothing to do
      ├─ its document is in storage ─▶ an earlier attempt made it
      ├─ parsed ─▶ document, durable
      └─ refused ─▶ failed, with a code; the other files go on
"""

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select

from jobs.errors import ClaimLost, DatabaseBusy, NotFound, StorageFull, StorageUnavailable
from jobs.files.tables import File
from jobs.fleet.models_file import ModelsFileError
from jobs.ledger import shards
from jobs.ledger.shards import ShardClaim, Tally
from jobs.platform.storage import CHUNK, DiskStorage, Storage
from jobs.retrieval import attachments, documents, indexes, ingestions
from jobs.retrieval.attachments import Made
from jobs.retrieval.indexes import index_of
from jobs.retrieval.tables import VectorStore, VectorStoreFile
from workers.retrieval.ingestion import embedding_model
from workers.retrieval.ingestion.embedding_model import EmbeddingPrompt
from workers.retrieval.parsing import office
from workers.retrieval.parsing.parser import FileRefused, Interrupted, Parser
from workers.runtime.attempts import Abandoned, ShardRun
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle

log = logging.getLogger(__name__)
AGAIN_SECONDS = 5.0
SHIFT_SECONDS = 30.0  # seconds for one shard before it is released
#: Errors that no file causes.
_PASSING = (DatabaseBusy, ModelsFileError, embedding_model.TokenizerUnavailable)
CRASHED = ("server_error", "The worker died each time it processed this file.")
BROKE = ("server_error", "The file could not be processed because of an internal error.")
CONTENT_DELETED = ("invalid_file", "The file's content is gone.")


class Parsing(ShardRun):
    """One claim on one shard in its first stage."""

    def __init__(self, context: Context, parser: Parser, claim: ShardClaim, handle: ClaimHandle) -> None:
        super().__init__(context, claim, handle)
        self.parser = parser
        self.made: list[Made] = []
        self.parsed = 0
        self.began = self.committed = time.monotonic()
        self.tired = False  # other tasks wait for this process; parsed documents are in storage

    def run_lines(self) -> None:
        if self.context.low_on_disk():
            raise StorageFull
        try:
            with _interrupt_parser(self.handle, self.parser):
                self._parse_files()
        except ClaimLost:
            self.context.db.retrying(lambda session: attachments.enqueue_cleanup(session, self.claim.job))
            raise
        except _PASSING as error:
            log.warning("parsing_waits", extra={"job_id": self.claim.job.id, "error": type(error).__name__})
            raise Abandoned(AGAIN_SECONDS) from error

    def _parse_files(self) -> None:
        claim = self.claim
        with self.context.db.read() as session:
            self.store = indexes.alive(session, index_of(claim.job.payload))
            rows = attachments.files_of_lines(session, claim.job.id, claim.first_line, claim.lines)
            files = select(File).where(File.id.in_([row.id for row in rows.values()]), File.deleted_at.is_(None))
            self.files = {file.id: file for file in session.scalars(files)}
        for line in (line for line in range(claim.lines) if not claim.covered >> line & 1):
            self.tired = time.monotonic() - self.began > SHIFT_SECONDS
            if self.handle.ended or self.tired:
                break
            self._parse_line(line, rows.get(line))
            if self.is_isolated or time.monotonic() - self.committed > self.context.config.segment_seconds:
                self._commit(last=False)
        self._close()

    def _close(self) -> None:
        """Commit the results, and requeue the shard for the next stage if a file was parsed."""
        if self.handle.lost.is_set():
            raise ClaimLost
        if self.handle.stop.is_set() or self.tired:
            self._commit(last=False)
            self.release(0.0, None)
        elif self.parsed:
            self._commit(last=False)
            self.context.db.retrying(lambda session: shards.requeue_to_job_queue(session, self.claim))
        else:
            self._commit(last=True)
            self.closed = True

    def _parse_line(self, line: int, row: VectorStoreFile | None) -> None:
        if row is None or self.store is None:
            self.made.append(Made(line, "", ""))  # removed from the store, or attached again
        elif self.is_isolated and self.has_killed_workers(line):
            self.made.append(Made(line, row.id, row.version, error=CRASHED))
        else:
            if self.is_isolated:
                self.context.db.retrying(lambda session: shards.record_isolated_attempt(session, self.claim, line))
            made = self._parse_file(line, row, self.store)
            self.made += [made] if made else []

    def _parse_file(self, line: int, row: VectorStoreFile, store: VectorStore) -> Made | None:
        """Return the result of a file.

        None if its document is ready for the next stage, or no time is left to make the document.
        """
        try:
            return self._parse(line, row, store)
        except FileRefused as refusal:
            return Made(line, row.id, row.version, error=(refusal.code, refusal.message))
        except embedding_model.NoTokenizer as error:
            return Made(line, row.id, row.version, error=("server_error", str(error)))
        except NotFound:
            return Made(line, row.id, row.version, error=CONTENT_DELETED)
        except Interrupted:
            return None
        except (StorageFull, StorageUnavailable, *_PASSING):
            raise
        except Exception as error:  # noqa: BLE001  other files must go on; the message may have text of the file
            log.error("parsing_failed", extra={"file": row.id, "error": type(error).__name__})  # noqa: TRY400
            return Made(line, row.id, row.version, error=BROKE)

    def _parse(self, line: int, row: VectorStoreFile, store: VectorStore) -> Made | None:
        file = self.files.get(row.id)
        if file is None:
            raise NotFound
        made_from = recipe_of(store, file, row, embedding_model.passage_prompt(self.context.config, store.model))
        same = (made_from,) if office.sees() else (made_from, documents.partly(made_from))
        if row.document and row.recipe in same:
            return Made(line, row.id, row.version, row.document, row.entries, row.usage_bytes, row.recipe)
        path = documents.path(store.id, row.version)
        if not self._is_stored(path):
            cut = embedding_model.cutting_of(self.context.config, store.model, row.chunking)
            with local_path(self.context.storage, file.path) as source:
                document = self.parser.parse(source, row.filename, cut)
            self.context.storage.put(path, documents.encode(document))
        self.parsed += 1
        return None

    def _is_stored(self, path: str) -> bool:
        try:
            return self.context.storage.size(path) > 0
        except NotFound:
            return False

    def _commit(self, *, last: bool) -> None:
        self.committed = time.monotonic()
        if not self.made and not last:
            return
        made, self.made = self.made, []
        self.context.db.retrying(
            lambda session: ingestions.commit(session, self.claim, self.seq, made, Tally(), 0, last=last)
        )
        self.seq += 1


def recipe_of(store: VectorStore, file: File, row: VectorStoreFile, prompt: EmbeddingPrompt) -> str:
    dimensions = store.dimensions if store.shortened else 0
    return embedding_model.recipe(file.sha256 or file.id, store.model, dimensions, row.chunking, prompt.text)


@contextmanager
def _interrupt_parser(handle: ClaimHandle, parser: Parser) -> Iterator[None]:
    """Interrupt the parser when the claim ends."""
    done = threading.Event()

    def watch() -> None:
        handle.changed.wait()
        if not done.is_set():
            parser.interrupt()

    watcher = threading.Thread(target=watch, name="parse-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        handle.changed.set()
        watcher.join()


@contextmanager
def local_path(storage: Storage, path: str) -> Iterator[Path]:
    """Yield a local path of a stored file, for libraries that read nothing else.

    Raises: NotFound, StorageUnavailable.
    """
    if isinstance(storage, DiskStorage):
        here = storage.root / path
        if not here.is_file():
            raise NotFound("What was stored is gone.")
        yield here
        return
    with tempfile.TemporaryDirectory(prefix="nightmill-") as folder:
        copy = Path(folder) / "file"
        with storage.reader(path) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)
        yield copy
