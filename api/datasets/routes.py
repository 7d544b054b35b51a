"""Datasets: created, listed, described and deleted. A path names one by its id or its name."""

from fastapi.responses import Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.datasets.schemas import CreateDataset, DatasetDeleted, DatasetObject, UpdateDataset, show_dataset
from api.deps import Call
from api.http.bodies import resource
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, cursor_details, deletion_details, find, page
from jobs.clock import now
from jobs.datasets import dataset_versions
from jobs.datasets.dataset_versions import MAX_DATASETS, PREFIX
from jobs.datasets.tables import DatasetVersion, NamedDataset
from jobs.errors import Conflict, InvalidRequest
from jobs.ids import new_id
from jobs.security.tables import Project

router = resource("Datasets", area="datasets")


@router.post("/datasets", response_model=DatasetObject)
def create_dataset(call: Call, once: Idempotent, body: CreateDataset) -> Response:
    """Create a dataset without a version."""

    def make(session: Session) -> DatasetObject:
        session.get_one(Project, call.project_id, with_for_update={"key_share": True})  # counts, and makes names, alone
        own = NamedDataset.project_id == call.project_id
        if session.scalar(select(NamedDataset.id).where(own, NamedDataset.name == body.name)) is not None:
            raise Conflict(f"There is a dataset named '{body.name}'.", param="name", code="dataset_exists")
        if (session.scalar(select(func.count()).select_from(NamedDataset).where(own)) or 0) >= MAX_DATASETS:
            message = f"A project has at most {MAX_DATASETS} datasets. Delete some first."
            raise InvalidRequest(message, param="name", code="too_many_datasets")
        dataset = NamedDataset(
            id=new_id(PREFIX),
            project_id=call.project_id,
            name=body.name,
            description=body.description,
            metadata_=body.metadata or {},
            split=body.split.model_dump(mode="json", exclude_none=True),
            seed=body.seed,
            latest_version=0,
            created_by=call.actor,
            created_at=now(),
        )
        session.add(dataset)
        call.record(session, "dataset.create", dataset.id, {"name": dataset.name})
        return show_dataset(dataset, None)

    return once.run(body.fields(), make)


@router.get("/datasets")
def list_datasets(call: Call, after: After = None, limit: Limit20 = 20, order: Order = "desc") -> Page[DatasetObject]:
    """List the project's datasets."""
    own = select(NamedDataset).where(NamedDataset.project_id == call.project_id)
    with call.db.read() as session:
        deletions = deletion_details(call, "dataset.delete")
        rows, more = find(session, own, NamedDataset, after=after, limit=limit, order=order, deletions=deletions)
        newest = dataset_versions.newest_complete(session, [row.id for row in rows])
    return page(rows, more, lambda row: show_dataset(row, newest.get(row.id)))


@router.get("/datasets/{dataset}")
def retrieve_dataset(call: Call, dataset: str) -> DatasetObject:
    """Return a dataset, by its id or its name."""
    with call.db.read() as session:
        return _show(session, dataset_versions.find(session, call.project_id, dataset))


@router.post("/datasets/{dataset}")
def update_dataset(call: Call, dataset: str, body: UpdateDataset) -> DatasetObject:
    """Change the description or the metadata of a dataset. Null removes them."""
    with call.db.write() as session:
        row = dataset_versions.find(session, call.project_id, dataset, lock=True)
        if "description" in body.model_fields_set:
            row.description = body.description
        if "metadata" in body.model_fields_set:
            row.metadata_ = body.metadata or {}
        call.record(session, "dataset.update", row.id, {"name": row.name})
        return _show(session, row)


@router.delete("/datasets/{dataset}")
def delete_dataset(call: Call, dataset: str) -> DatasetDeleted:
    """Delete a dataset with all its versions and their files. Nothing is deleted while a job reads one of the files."""
    with call.db.write() as session:
        row = dataset_versions.find(session, call.project_id, dataset, lock=True)
        for version in session.scalars(select(DatasetVersion).where(DatasetVersion.dataset_id == row.id)).all():
            dataset_versions.remove(session, row, version, actor=call.actor)
        session.delete(row)
        call.record(session, "dataset.delete", row.id, {"name": row.name, **cursor_details(row)})
        return DatasetDeleted(id=row.id)


def _show(session: Session, dataset: NamedDataset) -> DatasetObject:
    return show_dataset(dataset, dataset_versions.newest_complete(session, [dataset.id]).get(dataset.id))
