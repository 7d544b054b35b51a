"""The bodies of requests about datasets, and the objects that clients see."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from api.batches.schemas import BatchErrors, show_errors
from api.evals.schemas import StoredCompletions, StoredResponses
from api.http.bodies import Body, Many
from api.http.fields import Metadata, MetadataField
from jobs.datasets.dataset_versions import PREFIX
from jobs.datasets.references import MAX_LENGTH, NAME_PATTERN, reference_of
from jobs.datasets.splits import WHOLE, Split
from jobs.datasets.tables import DatasetFile, DatasetVersion, NamedDataset
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job

MAX_SOURCES = 20


def _check_name(name: str) -> str:
    if name.startswith(PREFIX):
        raise ValueError(f"A name does not begin as an id does, with '{PREFIX}'.")
    return name


# ── requests ──

DatasetName = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$"), AfterValidator(_check_name)]
Description = Annotated[str, Field(max_length=4096)]
Format = Annotated[
    Literal["items", "messages"],
    Field(description='`items`: rows of evals, `{"item", "sample"}`. `messages`: rows of trainings, `{"messages"}`.'),
]


class CreateDataset(Body):
    """A dataset. Its split and seed never change: they hold for all its versions."""

    name: DatasetName
    description: Description | None = None
    metadata: MetadataField
    split: Split = Field(default=WHOLE, description="Else one file, `all`.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1)


class UpdateDataset(Body):
    """The fields that are left out stay as they are."""

    description: Description | None = None
    metadata: MetadataField


class DatasetFileSource(Body):
    """A file of JSON Lines, or a split of a dataset: `dataset:NAME@VERSION/SPLIT`. The rows stay as they are."""

    type: Literal["file_id"]
    id: str = Field(min_length=1, max_length=MAX_LENGTH)


class CompletionRows(StoredCompletions):
    format: Format = "items"


class ResponseRows(StoredResponses):
    format: Format = "items"


class OutputItemRows(Body):
    """The output items of an eval run, once it has completed."""

    type: Literal["eval_run"]
    run_id: str = Field(min_length=1, max_length=64)
    status: Literal["pass", "fail", "error"] | None = None
    format: Format = "items"


class BatchRows(Body):
    """The answers of a batch of chats or responses, once it has ended, each with the messages of its request."""

    type: Literal["batch"]
    batch_id: str = Field(min_length=1, max_length=64)
    format: Format = "items"


RowSource = Annotated[
    DatasetFileSource | CompletionRows | ResponseRows | OutputItemRows | BatchRows, Field(discriminator="type")
]


class CreateDatasetVersion(Body):
    """A version. `git_commit` and `dvc_hash` are kept as they are given."""

    sources: Annotated[Many[RowSource], Field(min_length=1, max_length=MAX_SOURCES)]
    deduplicate: bool = Field(default=False, description="Keep the first of equal rows.")
    git_commit: Annotated[str, Field(pattern="^[0-9a-f]{7,64}$")] | None = None
    dvc_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{32,58}(\.dir)?$")] | None = None


# ── objects ──

VersionStatus = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
_STATUS: dict[str, VersionStatus] = {
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLING: "cancelled",
    JobState.CANCELLED: "cancelled",
}


class DatasetObject(BaseModel):
    """A dataset. `latest_version` is its newest complete version, which references without a version name."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: str
    description: str | None
    metadata: Metadata
    split: dict[str, Any]
    seed: int
    latest_version: int | None
    created_at: int
    created_by: str


class DatasetSplit(BaseModel):
    """A split of a version. `reference` stands for `file_id` in fine-tuning, evals and batches."""

    name: str
    reference: str
    file_id: str
    rows: int
    bytes: int
    sha256: str


class DatasetVersionObject(BaseModel):
    """A version of a dataset, whose job has the same id.

    `sha256` is of all rows in their order; it is null until they are written.
    """

    id: str
    object: Literal["dataset.version"] = "dataset.version"
    dataset_id: str
    dataset: str
    version: int
    status: VersionStatus
    errors: BatchErrors | None
    sources: list[dict[str, Any]]
    deduplicate: bool
    git_commit: str | None
    dvc_hash: str | None
    rows: int | None
    duplicates: int | None
    bytes: int | None
    sha256: str | None
    splits: list[DatasetSplit]
    created_at: int
    created_by: str


class DatasetDeleted(BaseModel):
    id: str
    object: Literal["dataset.deleted"] = "dataset.deleted"
    deleted: bool = True


class DatasetVersionDeleted(BaseModel):
    id: str
    object: Literal["dataset.version.deleted"] = "dataset.version.deleted"
    deleted: bool = True


def show_dataset(dataset: NamedDataset, newest: int | None) -> DatasetObject:
    return DatasetObject(
        id=dataset.id,
        name=dataset.name,
        description=dataset.description,
        metadata=dataset.metadata_,
        split=dataset.split,
        seed=dataset.seed,
        latest_version=newest,
        created_at=int(dataset.created_at),
        created_by=dataset.created_by,
    )


def show_version(
    dataset: NamedDataset, version: DatasetVersion, job: Job, files: Sequence[DatasetFile]
) -> DatasetVersionObject:
    is_complete = job.state == JobState.SUCCEEDED
    return DatasetVersionObject(
        id=version.id,
        dataset_id=dataset.id,
        dataset=dataset.name,
        version=version.number,
        status=_STATUS.get(job.state, "in_progress" if job.epoch else "queued"),
        errors=show_errors(job.errors),
        sources=version.sources,
        deduplicate=version.deduplicate,
        git_commit=version.git_commit,
        dvc_hash=version.dvc_hash,
        rows=version.rows,
        duplicates=version.duplicates,
        bytes=version.bytes,
        sha256=version.sha256,
        splits=[_show_split(dataset, version, file) for file in files if is_complete],
        created_at=int(version.created_at),
        created_by=version.created_by,
    )


def _show_split(dataset: NamedDataset, version: DatasetVersion, file: DatasetFile) -> DatasetSplit:
    return DatasetSplit(
        name=file.name,
        reference=reference_of(dataset.name, version.number, file.name),
        file_id=file.file_id,
        rows=file.rows or 0,
        bytes=file.bytes or 0,
        sha256=file.sha256 or "",
    )
