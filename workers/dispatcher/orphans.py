"""Orphans: objects that no row points to, left by a crash between bytes and row, or unknown to a restored database.

A writer writes the bytes first, and a deletion deletes the row first. So an object without a row may be about to get
one, and is removed only if it had none an hour ago either. A look pauses after every page: there may be a million
names.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TypeVar

from sqlalchemy import ColumnElement, SQLColumnExpression, exists, select
from sqlalchemy.orm import Session, load_only

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import NotFound, StorageFull, StorageUnavailable
from jobs.files.tables import File, UploadPart
from jobs.inference import conversations
from jobs.inference.tables import Conversation, StoredCompletion
from jobs.ledger import kinds
from jobs.ledger.removal import FULL, has_ended_before
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Job, Segment
from jobs.platform.storage import Storage
from jobs.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")
_Column = SQLColumnExpression[str]
_PAGE = 200
_SUSPECTS = 100_000  # remembered of one look; the others are for a later one
_MAX_FAILURES = 3  # failed removals in a row
_UNTOUCHED_SECONDS = 3600.0  # a writer writes more often
#: Folders that belong to no kind of job, and the columns of the known names and paths. Some paths have no index: they
#: are looked up only for objects without a known name.
_FLAT: tuple[tuple[str, _Column | None, _Column | None], ...] = (
    ("files", File.id, File.path),
    ("completions", StoredCompletion.id, None),
    ("uploads", UploadPart.id, UploadPart.path),
)


class Orphans:
    """Find orphans: a look remembers what the next one may remove. Looks are to be an hour apart."""

    def __init__(self, config: Settings, db: Database, storage: Storage) -> None:
        self._config = config
        self._db = db
        self._storage = storage
        self._suspects: frozenset[str] = frozenset()
        self._found: set[str] = set()
        self._removed = self._away = 0

    def look(self) -> Iterator[None]:
        """Look page by page. Raises StorageUnavailable, StorageFull, NotFound; the findings are forgotten then."""
        self._found, self._removed, self._away = set(), 0, 0
        yield from self._sweep()
        of_kinds = [folder for row in kinds.rows().values() for folder in row.folders]
        for folder, name, path in (
            *_FLAT,
            *((folder_of_kind.name, folder_of_kind.owners, None) for folder_of_kind in of_kinds if folder_of_kind.flat),
        ):
            for page in _pages(self._storage.walk(folder)):
                yield from self._judge(self._ownerless_objects(page, name, path))
        nested = [
            (conversations.FOLDER, Conversation.id),
            *((folder_of_kind.name, folder_of_kind.owners) for folder_of_kind in of_kinds if not folder_of_kind.flat),
        ]
        unknown: list[tuple[str, Callable[[list[str]], set[str]]]] = [
            *((folder, partial(self._unknown, column=column)) for folder, column in nested),
            ("jobs", self._orphan_jobs),
        ]
        for folder, lost in unknown:
            for page in _pages(self._storage.folders(folder)):
                yield from self._judge(f"{folder}/{name}" for name in lost(page))
        for folder, left in ((conversations.FOLDER, self._conversation_orphans), ("jobs", self._job_leftovers)):
            for page in _pages(self._storage.walk(folder)):
                yield from self._judge(left(page))
        self._suspects = frozenset(self._found)
        if self._removed:
            log.warning("orphans_removed", extra={"files": self._removed})

    def _sweep(self) -> Iterator[None]:
        """Remove unfinished files whose writers are gone."""
        swept = 0
        of_kinds = (folder.name for row in kinds.rows().values() for folder in row.folders)
        for folder in (*(name for name, *_ in _FLAT), conversations.FOLDER, "jobs", "doctor", *of_kinds):
            for page in _pages(self._storage.sweep(folder, now() - _UNTOUCHED_SECONDS)):
                swept += sum(page)
                yield
        if swept:
            log.warning("unfinished_files_removed", extra={"files": swept})

    def _judge(self, paths: Iterable[str]) -> Iterator[None]:
        """Remove what was an orphan an hour ago, with a pause after each; remember the others for the next look."""
        for path in paths:
            suspect = path in self._suspects
            if suspect and self._remove(path):
                self._removed += 1
            elif len(self._found) < _SUSPECTS:
                self._found.add(path)
            if suspect:
                yield
        yield

    def _remove(self, path: str) -> bool:
        """Remove an object; return whether it was removed.

        Raises StorageUnavailable after several failures in a row: each attempt has its patience.
        """
        try:
            self._storage.delete(path)
        except (StorageUnavailable, StorageFull, NotFound) as error:
            log.warning("purge_failed", extra={"path": path})
            self._away = self._away + 1 if isinstance(error, StorageUnavailable) else 0
            if self._away == _MAX_FAILURES:
                raise
            return False
        self._away = 0
        return True

    def _ownerless_objects(self, paths: list[str], name: _Column | None, path: _Column | None) -> set[str]:
        lost = set(paths)
        if name is not None:
            unknown = self._unknown([item.rpartition("/")[2] for item in paths], name)
            lost = {item for item in paths if item.rpartition("/")[2] in unknown}
        return self._unknown(list(lost), path) if path is not None and lost else lost

    def _conversation_orphans(self, paths: list[str]) -> set[str]:
        """Return objects that no conversation names: neither its row, nor the object that its row names."""
        owners = {path: conversations.owner(path) for path in paths}
        with self._db.read() as session:
            owner_filter = Conversation.id.in_(set(owners.values()))
            heads = {
                row.id: row.path
                for row in session.execute(select(Conversation.id, Conversation.path).where(owner_filter))
            }
        named = set(heads.values())
        for head in {heads[owner] for path, owner in owners.items() if owner in heads and path not in named}:
            try:
                named |= {segment.path for segment in conversations.Head(self._storage, head).before}
            except NotFound:  # replaced a moment ago, or lost: then its segments are all that is left
                owner = conversations.owner(head)
                named |= {path for path in paths if owners[path] == owner}
        return set(paths) - named

    def _unknown(self, names: list[str], column: _Column) -> set[str]:
        with self._db.read() as session:
            return set(names).difference(session.scalars(select(column).where(column.in_(names))))

    def _orphan_jobs(self, job_ids: list[str]) -> set[str]:
        return self._unknown(job_ids, Job.id) | self._jobs_without_objects(job_ids)

    def _job_leftovers(self, paths: list[str]) -> set[str]:
        with self._db.read() as session:
            return _job_leftovers(session, paths)

    def _jobs_without_objects(self, job_ids: list[str]) -> set[str]:
        """Return jobs that ended long ago and whose rows of objects are gone: nothing reads their objects any more."""
        over = Job.id.in_(job_ids), *retention_conditions(self._config), ~FULL
        with self._db.read() as session:
            return set(session.scalars(select(Job.id).where(*over)))


def retention_conditions(config: Settings) -> tuple[ColumnElement[bool], ...]:
    """Return the condition that a job ended before the retention time, and that no client may read its segments."""
    shown = [row.result for row in kinds.rows().values() if row.result is not None and row.shows_segments]
    unread = (~exists().where(column == Job.id) for column in shown)
    return *has_ended_before(now() - config.retention_seconds), *unread


def _job_leftovers(session: Session, paths: list[str]) -> set[str]:
    """Return objects that ended jobs need no more.

    These are segments that were never committed, those whose results or response were deleted, and copies of the input
    that are not read or whose file was deleted. The folder of a job without a row is removed with the job.
    """
    names = {path: path.split("/")[1] for path in paths}
    needed_columns = load_only(Job.kind, Job.input_path, Job.input_file_id, Job.output_file_id, Job.error_file_id)
    over = Job.id.in_(set(names.values())), Job.state.in_(TERMINAL)
    ended = {job.id: job for job in session.scalars(select(Job).where(*over).options(needed_columns))}
    inside = {path: job_id for path, job_id in names.items() if job_id in ended}
    if not inside:
        return set()
    files = _existing_names(session, File.id, {name for job in ended.values() for name in _files_of(job)})
    columns = [row.result for row in kinds.rows().values() if row.result is not None]
    stored = {name for column in columns for name in _existing_names(session, column, set(ended))}
    shown = {job.id for job in ended.values() if _has_results(job, files, stored)}
    read = {job.input_path for job in ended.values() if job.input_file_id in files or _can_retry(job, stored)}
    segments = select(Segment.path).where(Segment.job_id.in_(shown), Segment.n.in_(_shards_in(inside)))
    return set(inside).difference(read, session.scalars(segments))


def _files_of(job: Job) -> list[str]:
    return [name for name in (job.input_file_id, job.output_file_id, job.error_file_id) if name]


def _has_results(job: Job, files: set[str], stored: set[str]) -> bool:
    """Return whether there are results of a job, or there never were any that could be deleted."""
    if kinds.lenient(job.kind).result is not None:
        return job.id in stored
    results = {name for name in (job.output_file_id, job.error_file_id) if name}
    return not results or bool(results & files)


def _can_retry(job: Job, stored: set[str]) -> bool:
    """Return whether a retry of a job may read its lines: it is shown by its own segments, and was not deleted."""
    return kinds.lenient(job.kind).shows_segments and job.id in stored


def _existing_names(session: Session, column: _Column, names: set[str]) -> set[str]:
    return set(session.scalars(select(column).where(column.in_(names)))) if names else set()


def _shards_in(paths: Iterable[str]) -> set[int]:
    """Return the numbers of the shards that wrote these objects, by their names."""
    numbers = (path.rpartition("/")[2].partition("-")[0] for path in paths)
    return {int(number) for number in numbers if number.isdecimal()}


def _pages(things: Iterable[T]) -> Iterator[list[T]]:
    left = iter(things)
    while page := list(islice(left, _PAGE)):
        yield page
