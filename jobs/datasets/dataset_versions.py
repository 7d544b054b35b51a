"""Versions of datasets: their kind of job, how one is submitted and removed, and what its files are held by.

    submit ─▶ queued ─▶ planning reads the sources, writes a file for each split ─▶ rows of the files ─▶ succeeded
                           └─ errors of rows: failed, no file is left                 └─ stopped here: files deleted

A version never changes. Its files stay until the version is removed, and cannot be deleted on their own.
"""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, SQLColumnExpression, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.datasets.tables import DatasetFile, DatasetVersion, NamedDataset
from jobs.errors import Conflict, InvalidRequest, NotFound
from jobs.files.tables import File
from jobs.ledger import kinds, ledger
from jobs.ledger.kinds import Kind, Payload
from jobs.ledger.states import LIVE, JobState
from jobs.ledger.tables import Job

NAME: Final = "dataset"
PREFIX: Final = "ds_"
VERSION_PREFIX: Final = "dsversion_"
#: The purpose of the files of versions. No client uploads such a file.
PURPOSE: Final = "dataset"
SPLIT: Final = "split"
SOURCE: Final = "source"
EVENTS: Final[dict[str, str]] = {
    "succeeded": "dataset.version.succeeded",
    "failed": "dataset.version.failed",
    "cancelled": "dataset.version.cancelled",
}

MAX_DATASETS: Final = 1000  # of a project
MAX_VERSIONS: Final = 1000  # of a dataset
MAX_LIVE: Final = 10  # versions of a project that are being made
#: Rows of a version.
MAX_ROWS: Final = 1_000_000


class DatasetBuild(Payload):
    """Make version `number` of a dataset called `name`.

    `sources` are those of `workers.datasets.row_sources`, each with its `type`. `split` is that of the dataset.
    """

    dataset_id: str
    name: str
    number: int
    sources: list[dict[str, Any]]
    split: dict[str, Any]
    seed: int
    deduplicate: bool = False


def listing_path(version_id: str, index: int) -> str:
    """Return where the ids of the stored answers lie that a source of a version has."""
    return f"jobs/{version_id}/source-{index}.jsonl"


def find(session: Session, project_id: str, name: str, *, lock: bool = False) -> NamedDataset:
    """Return the dataset of a project with this id or name. Raises NotFound."""
    statement = select(NamedDataset).where(
        NamedDataset.project_id == project_id, or_(NamedDataset.id == name, NamedDataset.name == name)
    )
    dataset = session.scalar(statement.with_for_update() if lock else statement)
    if dataset is None:
        raise NotFound(f"No dataset found with id or name '{name[:64]}'.", param="dataset", code="dataset_not_found")
    return dataset


def find_version(session: Session, dataset: NamedDataset, number: str) -> DatasetVersion:
    """Return the version of a dataset with this number. Raises NotFound."""
    is_number = number.isascii() and number.isdigit() and len(number) < 10
    statement = select(DatasetVersion).where(DatasetVersion.dataset_id == dataset.id)
    version = session.scalar(statement.where(DatasetVersion.number == int(number))) if is_number else None
    if version is None:
        message = f"Dataset '{dataset.name}' has no version '{number[:64]}'."
        raise NotFound(message, param="version", code="dataset_version_not_found")
    return version


def newest_complete(session: Session, dataset_ids: Sequence[str]) -> dict[str, int]:
    """Return the number of the newest complete version of each of these datasets that has any."""
    statement = (
        select(DatasetVersion.dataset_id, func.max(DatasetVersion.number))
        .join(Job, Job.id == DatasetVersion.id)
        .where(DatasetVersion.dataset_id.in_(dataset_ids), Job.state == JobState.SUCCEEDED)
        .group_by(DatasetVersion.dataset_id)
    )
    return dict(session.execute(statement).all())


def splits_of(session: Session, version_ids: Sequence[str]) -> dict[str, list[DatasetFile]]:
    """Return the splits of these versions, in their order, by the version's id."""
    splits: dict[str, list[DatasetFile]] = {version_id: [] for version_id in version_ids}
    statement = select(DatasetFile).where(DatasetFile.version_id.in_(version_ids), DatasetFile.role == SPLIT)
    for file in session.scalars(statement.order_by(DatasetFile.position)):
        splits[file.version_id].append(file)
    return splits


def submit(
    session: Session,
    dataset: NamedDataset,
    *,
    version_id: str,
    sources: Sequence[dict[str, Any]],
    actor: str,
    after: Sequence[str] = (),
    deduplicate: bool = False,
    git_commit: str | None = None,
    dvc_hash: str | None = None,
    **columns: Any,
) -> tuple[DatasetVersion, Job]:
    """Submit the next version of a locked dataset, in the caller's transaction.

    The job waits for those in `after`. `columns` are of the job.

    Raises: InvalidRequest.
    """
    held = select(func.count()).select_from(DatasetVersion).where(DatasetVersion.dataset_id == dataset.id)
    if (session.scalar(held) or 0) >= MAX_VERSIONS:
        message = f"A dataset has at most {MAX_VERSIONS} versions. Delete some first."
        raise InvalidRequest(message, code="too_many_versions")
    number = dataset.latest_version = dataset.latest_version + 1
    build = DatasetBuild(
        dataset_id=dataset.id,
        name=dataset.name,
        number=number,
        sources=list(sources),
        split=dataset.split,
        seed=dataset.seed,
        deduplicate=deduplicate,
    )
    at = now()
    job = Job(
        id=version_id,
        project_id=dataset.project_id,
        kind=NAME,
        payload=build.model_dump(mode="json", exclude_defaults=True),
        **kinds.of(NAME).times(at),
        **columns,
    )
    version = DatasetVersion(
        id=version_id,
        dataset_id=dataset.id,
        number=number,
        sources=[{name: value for name, value in source.items() if name != "path"} for source in sources],
        deduplicate=deduplicate,
        git_commit=git_commit,
        dvc_hash=dvc_hash,
        created_by=actor,
        created_at=at,
    )
    session.add(version)
    session.add_all(
        DatasetFile(version_id=version_id, role=SOURCE, position=index, name="", file_id=source["id"])
        for index, source in enumerate(sources)
        if source["type"] == "file_id"
    )
    return version, ledger.submit(session, job, actor=actor, after=after)


def remove(session: Session, dataset: NamedDataset, version: DatasetVersion, *, actor: str) -> None:
    """Remove a version of a locked dataset, and hide its files; cancel its job where that goes on.

    Raises: Conflict, where a live job reads a file of the version.
    """
    job = ledger.lock(session, version.id)
    if job is not None and job.state in (JobState.QUEUED, JobState.RUNNING):
        ledger.cancel(session, job.id, actor=actor)
    files = session.scalars(_files_of(version.id).order_by(File.id).with_for_update(of=File)).all()
    names = [file.id for file in files]
    in_use = session.scalar(select(File.id).where(File.id.in_(names), kinds.is_read(File.id)).limit(1))
    if in_use is not None:
        message = f"A job reads '{in_use}', a file of version {version.number} of dataset '{dataset.name}'."
        raise Conflict(message, param="version", code="dataset_version_in_use")
    session.execute(update(File).where(File.id.in_(names)).values(deleted_at=now()))
    session.execute(delete(DatasetFile).where(DatasetFile.version_id == version.id))
    session.delete(version)
    session.flush()


def _files_of(version_id: str) -> Select[File]:
    """Return the statement of the files of a version."""
    of_version = DatasetFile.version_id == version_id, DatasetFile.role == SPLIT
    return select(File).join(DatasetFile, DatasetFile.file_id == File.id).where(*of_version)


def _is_source(file_id: SQLColumnExpression[str]) -> ColumnElement[bool]:
    """Return the condition that a live job makes a version of the file."""
    reads = DatasetFile.file_id == file_id, DatasetFile.role == SOURCE
    return exists().where(*reads, Job.id == DatasetFile.version_id, Job.state.in_(LIVE))


def _discard_files(session: Session, job: Job) -> None:
    """Hide the files of a version whose job was stopped after it had made them."""
    if job.state != JobState.SUCCEEDED:
        made = _files_of(job.id).with_only_columns(File.id)
        session.execute(update(File).where(File.id.in_(made)).values(deleted_at=now()))


DATASET: Final = Kind(
    NAME,
    "Version of a dataset",
    VERSION_PREFIX,
    DatasetBuild,
    EVENTS,
    resources=("datasets", "files"),
    permission="api.datasets.write",
    window=None,
    counted=False,
    has_lines=False,
    holds=_is_source,
    links={"dataset_id": itemgetter("dataset_id")},
    result=DatasetVersion.id,
    ended=_discard_files,
)
