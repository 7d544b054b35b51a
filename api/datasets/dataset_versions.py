"""Versions of datasets: each is made by a job, listed, shown and deleted."""

from collections.abc import Sequence
from typing import Any

from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.datasets.schemas import (
    CompletionRows,
    CreateDatasetVersion,
    DatasetVersionDeleted,
    DatasetVersionObject,
    ResponseRows,
    show_version,
)
from api.deps import Call, CallContext
from api.evals.item_sources import lines_of_answers
from api.files.queries import remove_on_error
from api.http.bodies import resource
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, cursor_details, deletion_details, find, page
from api.http.space import check_not_full, check_space, count_if_due
from jobs.datasets import dataset_versions, version_requests
from jobs.datasets.dataset_versions import VERSION_PREFIX
from jobs.datasets.tables import DatasetVersion, NamedDataset
from jobs.datasets.version_requests import VersionRequest
from jobs.ids import new_id
from jobs.ledger.tables import Job

router = resource("Datasets", area="datasets")


@router.post("/datasets/{dataset}/versions", response_model=DatasetVersionObject)
def create_dataset_version(call: Call, once: Idempotent, dataset: str, body: CreateDatasetVersion) -> Response:
    """Queue the next version of a dataset. Its rows are checked after the answer."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    with call.db.read() as session:
        dataset_versions.find(session, call.project_id, dataset)
    version_id = new_id(VERSION_PREFIX)

    def make(session: Session) -> DatasetVersionObject:
        check_not_full(session, call)
        columns = {"idempotency_key": once.key, "request_id": call.request_id}
        row, version, job = version_requests.submit(
            session, call.project_id, build_request(dataset, body), version_id=version_id, actor=call.actor, **columns
        )
        call.record(session, "dataset.version.create", version_id, {"name": row.name, "version": version.number})
        return show_version(row, version, job, ())

    count_if_due(call)
    with remove_on_error(call, f"jobs/{version_id}"):
        _store_listings(call, version_id, body)
        return once.run(fields, make)


@router.get("/datasets/{dataset}/versions")
def list_dataset_versions(
    call: Call, dataset: str, after: After = None, limit: Limit20 = 20, order: Order = "desc"
) -> Page[DatasetVersionObject]:
    """List the versions of a dataset."""
    deletions = deletion_details(call, "dataset.version.delete")
    cursor: dict[str, Any] = {"after": after, "limit": limit, "order": order, "deletions": deletions}
    with call.db.read() as session:
        row = dataset_versions.find(session, call.project_id, dataset)
        own = select(DatasetVersion).where(DatasetVersion.dataset_id == row.id)
        versions, more = find(session, own, DatasetVersion, **cursor)
        shown = {version.id: version for version in _show_all(session, row, versions)}
    return page(versions, more, lambda version: shown[version.id])


@router.get("/datasets/{dataset}/versions/{version}")
def retrieve_dataset_version(call: Call, dataset: str, version: str) -> DatasetVersionObject:
    """Return a version of a dataset."""
    with call.db.read() as session:
        row = dataset_versions.find(session, call.project_id, dataset)
        return _show_all(session, row, [dataset_versions.find_version(session, row, version)])[0]


@router.delete("/datasets/{dataset}/versions/{version}")
def delete_dataset_version(call: Call, dataset: str, version: str) -> DatasetVersionDeleted:
    """Delete a version with its files, unless a job reads one of them. A version that is not complete is cancelled."""
    with call.db.write() as session:
        row = dataset_versions.find(session, call.project_id, dataset, lock=True)
        numbered = dataset_versions.find_version(session, row, version)
        dataset_versions.remove(session, row, numbered, actor=call.actor)
        details = {"name": row.name, "version": numbered.number, **cursor_details(numbered)}
        call.record(session, "dataset.version.delete", numbered.id, details)
        return DatasetVersionDeleted(id=numbered.id)


def build_request(dataset: str, body: CreateDatasetVersion) -> VersionRequest:
    """Return the request of a body, for a dataset with this id or name."""
    sources = [{"type": source.type, **source.fields()} for source in body.sources]
    given = body.model_dump(mode="json", exclude_unset=True, include=set(VersionRequest.model_fields))
    return VersionRequest(**(given | {"dataset": dataset, "sources": sources}))


def _show_all(
    session: Session, dataset: NamedDataset, versions: Sequence[DatasetVersion]
) -> list[DatasetVersionObject]:
    ids = [version.id for version in versions]
    jobs = {job.id: job for job in session.scalars(select(Job).where(Job.id.in_(ids)))}
    splits = dataset_versions.splits_of(session, ids)
    return [show_version(dataset, version, jobs[version.id], splits[version.id]) for version in versions]


def _store_listings(call: CallContext, version_id: str, body: CreateDatasetVersion) -> None:
    """Store the ids of the answers that each source of stored answers has at this moment. Raises InvalidRequest."""
    for index, source in enumerate(body.sources):
        if isinstance(source, CompletionRows | ResponseRows):
            listing = lines_of_answers(call, source, source.metadata or {}, f"sources[{index}]")
            check_space(call, len(listing))
            call.storage.put(dataset_versions.listing_path(version_id, index), listing)
