"""A deployment from inside: its vectors are what can be found, and nothing else; its jobs began in order.

audit      no job was planned before those that it waits for had completed
SQL        files of stores, each with the key of its version and how many entries that has; no removal pending
vectors    those stores, those keys, entries 0 … n - 1 each
storage    one document for each version
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import aliased

from jobs.db.engine import Database
from jobs.ledger.states import TERMINAL, JobState
from jobs.ledger.tables import Audit, Job, JobDependency
from jobs.platform.storage import ObjectStorage, Storage, open_storage
from jobs.retrieval import documents, ingestions
from jobs.retrieval.attachments import IN_PROGRESS, version_of
from jobs.retrieval.tables import VectorRemoval, VectorStore, VectorStoreFile
from jobs.settings import Settings
from tests.support.distributed import Servers
from workers.runtime.context import LazyVectors
from workers.vectors.base import Store, Vectors


@dataclass(slots=True)
class Inside:
    """A deployment's own stores, opened by one more process."""

    db: Database
    storage: Storage
    vectors: Vectors

    def pending(self) -> int:
        """Return the pending work: removals, and ingestions that run."""
        with self.db.read() as session:
            removals = session.scalar(select(func.count()).select_from(VectorRemoval)) or 0
            live = select(func.count()).where(Job.kind == ingestions.NAME, Job.state.not_in(TERMINAL))
            return removals + (session.scalar(live) or 0)

    def violations(self) -> list[str]:
        with self.db.read() as session:
            stores = list(session.scalars(select(VectorStore)))
            rows = list(session.scalars(select(VectorStoreFile)))
        faults = [f"{row.id} of {row.store_id} is {row.status}" for row in rows if row.status == IN_PROGRESS]
        known = {store.id for store in stores}
        faults += [f"{row.id} is in {row.store_id}, which is gone" for row in rows if row.store_id not in known]
        faults += [f"vectors of {name}, which SQL does not know" for name in self.vectors.stores() if name not in known]
        for store in stores:
            faults += self._of_store(store, [row for row in rows if row.store_id == store.id])
        return faults + list(self._objects(rows)) + self._too_early()

    def _too_early(self) -> list[str]:
        """By the order of the audit log: clocks may have been moved."""
        began, ended = aliased(Audit), aliased(Audit)
        edges = (
            select(JobDependency.job_id, JobDependency.after_id)
            .join(began, and_(began.target == JobDependency.job_id, began.destination == JobState.RUNNING))
            .outerjoin(ended, and_(ended.target == JobDependency.after_id, ended.destination == JobState.SUCCEEDED))
            .where(or_(ended.id.is_(None), ended.id > began.id))
        )
        with self.db.read() as session:
            return [f"{job} began before {after} had completed" for job, after in session.execute(edges)]

    def _of_store(self, store: VectorStore, rows: list[VectorStoreFile]) -> Iterator[str]:
        due = {row.document: row.entries for row in rows if row.document}
        where = Store(store.id, store.project_id, store.model, store.dimensions)
        there = self.vectors.counts(where) if store.dimensions else {}
        for key in due.keys() | there.keys():
            if due.get(key, 0) != there.get(key, 0):
                yield f"{store.id} has {there.get(key, 0)} entries of {key}, SQL {due.get(key, 0)}"
        for key, entries in due.items():
            if (numbers := self.vectors.numbers(where, key)) != list(range(entries)):
                yield f"{store.id} has entries {numbers} of {key}, not 0 to {entries - 1}"

    def _objects(self, rows: list[VectorStoreFile]) -> Iterator[str]:
        due = {documents.path(row.store_id, version_of(row.document)) for row in rows if row.document}
        there = set(self.storage.list("documents"))
        for path in sorted(due ^ there):
            yield f"{path} is {'not there' if path in due else 'there, and no file points to it'}"


@contextmanager
def inside(config: Settings, servers: Servers | None) -> Iterator[Inside]:
    storage = _bucket(config, servers) if servers else open_storage(config.storage)
    db = Database(config.database)
    vectors = LazyVectors(db).get(config)
    try:
        yield Inside(db, storage, vectors)
    finally:
        vectors.close()
        db.close()


def _bucket(config: Settings, servers: Servers) -> Storage:
    names = servers.s3.variables
    return ObjectStorage(
        config.storage_url,
        key=names["AWS_ACCESS_KEY_ID"],
        secret=names["AWS_SECRET_ACCESS_KEY"],
        client_kwargs={"endpoint_url": names["AWS_ENDPOINT_URL"], "region_name": names["AWS_DEFAULT_REGION"]},
    )
