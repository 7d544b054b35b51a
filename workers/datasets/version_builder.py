"""Jobs of kind `dataset`: read the rows of a version, write a file for each split, and let the version be complete.

    claim ─▶ sources ─▶ each row: an object? a duplicate? which part? ─▶ a file for each split ─▶ their rows, running
                └─ bad rows ─▶ rejected, with lines; no file is left                                    └─▶ closed

Memory holds one row, and 8 bytes for each row of a temporal split, whose sources are read twice: the cuts depend on
all times. The hashes of rows, by which duplicates are found, lie in a temporary file. One process of a host builds at a
time: the others plan and finish other jobs. A builder that dies leaves files without a row, which are removed as
orphans; the next one begins again.
"""

import hashlib
import logging
import sqlite3
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from sqlalchemy.orm import Session

from jobs.batches.lines import Bad
from jobs.clock import now
from jobs.datasets.dataset_versions import MAX_ROWS, PURPOSE, SPLIT, DatasetBuild
from jobs.datasets.splits import TemporalSplit, canonical, parse_split
from jobs.datasets.tables import DatasetFile, DatasetVersion
from jobs.files.tables import File
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import JobState
from jobs.platform.locks import hold_exclusively
from jobs.queues import Queue
from workers.batches.shard_writer import MAX_ERRORS
from workers.datasets.row_sources import DatasetRow, rows_of
from workers.runtime.attempts import Abandoned
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle

log = logging.getLogger(__name__)
_ADD: Final = "INSERT OR IGNORE INTO seen VALUES (?)"


def plan(context: Context, claim: JobClaim, handle: ClaimHandle) -> None:
    """Write the files of the claimed version, or reject its job. Raises Abandoned, ClaimLost."""
    if context.low_on_disk():
        raise Abandoned(5.0, "disk")
    builder = _VersionBuilder(context, claim, handle)
    try:
        with hold_exclusively(context.config.data_dir / "run" / "dataset") as is_alone:
            if not is_alone:
                raise Abandoned(context.timings.examination_retry)
            builder.build()
    except _BadRows as error:
        errors = [bad.as_dict() for bad in error.errors]
        context.db.retrying(lambda session: ledger.reject(session, claim, errors), context.stop)
    else:
        context.db.retrying(builder.record, context.stop)


def finish(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    """End the claimed job. Raises ClaimLost."""
    job = claim.job
    values = {"total": job.total, "completed": job.total if job.state == JobState.FINISHING else 0}
    context.db.retrying(lambda session: ledger.close(session, claim, values, []))
    log.info("dataset_version_closed", extra={"job_id": job.id, "rows": job.total})


class _BadRows(Exception):
    """Rows that cannot be taken, or none at all."""

    def __init__(self, errors: list[Bad]) -> None:
        super().__init__(len(errors))
        self.errors = errors


@dataclass
class _SplitFile:
    """A file that is written, its size and its hash."""

    name: str
    id: str = field(default_factory=lambda: new_id("file-"))
    rows: int = 0
    size: int = 0
    hash: Any = field(default_factory=hashlib.sha256)
    handle: BinaryIO | None = None

    @property
    def path(self) -> str:
        return f"files/{self.id}"

    def add(self, line: bytes) -> None:
        self.rows += 1
        self.size += len(line)
        self.hash.update(line)
        if self.handle is not None:
            self.handle.write(line)


class _VersionBuilder:
    """The files of a version, written in one pass over its rows; in two where the split is temporal."""

    def __init__(self, context: Context, claim: JobClaim, handle: ClaimHandle) -> None:
        self._context, self._claim, self._handle = context, claim, handle
        self._asked = DatasetBuild.model_validate(claim.job.payload)
        self._split = parse_split(self._asked.split)
        self._files = [_SplitFile(name) for name in self._split.names]
        self._whole = _SplitFile("")
        self._duplicates = 0
        self._errors: list[Bad] = []

    def build(self) -> None:
        """Write the files. Raises _BadRows, Abandoned."""
        bounds = self._split.bounds()
        if isinstance(self._split, TemporalSplit):
            bounds = self._split.cuts(self._times(self._split))
        with ExitStack() as stack:
            for file in self._files:
                file.handle = stack.enter_context(self._context.storage.writer(file.path))
            for row, digest in self._rows():
                self._write(row, digest, bounds)
            if not self._whole.rows and not self._errors:
                self._errors.append(Bad("empty_file", "The sources have no rows.", None, "sources"))
            self._check()  # inside: files that are left by an error are not stored

    def record(self, session: Session) -> None:
        """Add the rows of the files, and let the job come to its end. Raises ClaimLost."""
        asked, job, at = self._asked, self._claim.job, now()
        ledger.assert_claim(session, self._claim)
        version = session.get_one(DatasetVersion, job.id)
        version.rows, version.bytes, version.duplicates = self._whole.rows, self._whole.size, self._duplicates
        version.sha256 = self._whole.hash.hexdigest()
        for position, made in enumerate(self._files):
            measures = {"bytes": made.size, "sha256": made.hash.hexdigest()}
            file = File(id=made.id, project_id=job.project_id, purpose=PURPOSE, path=made.path, created_at=at)
            file.filename = f"{asked.name}-{asked.number}-{made.name}.jsonl"
            file.bytes, file.sha256 = made.size, made.hash.hexdigest()
            names = {"position": position, "name": made.name, "file_id": made.id, "rows": made.rows}
            session.add_all([file, DatasetFile(version_id=job.id, role=SPLIT, **names, **measures)])
        ledger.begin_running(session, self._claim, total=self._whole.rows, model=None, queue=Queue.PLAN)

    def _times(self, split: TemporalSplit) -> "array[float]":
        """Return the times of all rows. Raises _BadRows, Abandoned."""
        times = array("d")
        for row, _ in self._rows():
            try:
                times.append(split.time_of(row.value))
            except ValueError as error:
                self._refuse(row, error)
        self._check()
        return times

    def _rows(self) -> Iterator[tuple[DatasetRow, bytes]]:
        """Yield the rows, each with the SHA-256 of its value, but for duplicates; note errors."""
        self._duplicates = total = size = 0
        with closing(sqlite3.connect("")) as seen:  # a temporary file, of which little is held in memory
            seen.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
            for row in rows_of(self._context, self._claim.job, self._asked.sources):
                if self._handle.ended:
                    raise Abandoned
                if isinstance(row, Bad):
                    self._errors.append(row)
                    self._check_count()
                    continue
                digest = hashlib.sha256(canonical(row.value)).digest()
                if self._asked.deduplicate and not seen.execute(_ADD, (digest,)).rowcount:
                    self._duplicates += 1
                    continue
                total, size = total + 1, size + len(row.raw) + 1
                self._check_size(total, size)
                yield row, digest

    def _write(self, row: DatasetRow, digest: bytes, bounds: list[float]) -> None:
        try:
            part = self._split.part_of(row.value, digest, self._asked.seed, bounds)
        except ValueError as error:
            self._refuse(row, error)
            return
        if not self._errors:  # else no file will be stored
            line = row.raw + b"\n"
            self._whole.add(line)
            for index in self._split.files_of(part):
                self._files[index].add(line)

    def _refuse(self, row: DatasetRow, error: ValueError) -> None:
        self._errors.append(Bad("missing_required_parameter", str(error), row.number, "split"))
        self._check_count()

    def _check_size(self, rows: int, size: int) -> None:
        limit = self._context.config.file_max_bytes
        if rows > MAX_ROWS:
            raise _BadRows([Bad("too_many_rows", f"A version has at most {MAX_ROWS} rows.", None, "sources")])
        if size > limit:
            raise _BadRows([Bad("file_too_large", f"The rows have more than {limit} bytes.", None, "sources")])

    def _check_count(self) -> None:
        if len(self._errors) >= MAX_ERRORS:
            self._check()

    def _check(self) -> None:
        if self._errors:
            raise _BadRows(self._errors)
