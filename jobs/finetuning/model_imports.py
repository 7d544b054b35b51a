"""Imports of models: jobs that register the files of an exported adapter as a version of a model of the project.

    submit ─▶ planned: every hash, the adapter against its base ─┬─ fits ─▶ files copied ─▶ one transaction: the version
                                                                 └─ does not: failed, with the reasons

Until that transaction nothing is registered. The files of the client are held until the job has ended.
"""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from sqlalchemy import ColumnElement, SQLColumnExpression, delete, exists, func, select
from sqlalchemy.orm import Session

from jobs.batches.lines import quote
from jobs.clock import now
from jobs.errors import InvalidRequest
from jobs.files import lookup
from jobs.files.tables import File
from jobs.finetuning import names, tuning_requests
from jobs.finetuning.tables import ImportedFile
from jobs.fleet.access import Work
from jobs.fleet.models_file import Registry
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.kinds import Kind, Payload, StorageFolder
from jobs.ledger.states import LIVE, JobState
from jobs.ledger.tables import Job
from jobs.registry import models
from jobs.registry.tables import ModelVersion, TunedModel
from jobs.security.tables import Project

NAME: Final = "model_import"
PREFIX: Final = "modelimport_"
FOLDER: Final = "imports"
EVENTS: Final[dict[str, str]] = {
    "succeeded": "model.import.succeeded",
    "failed": "model.import.failed",
    "cancelled": "model.import.cancelled",
}
MAX_LIVE: Final = 10  # imports of a project that have not ended
MAX_FILES: Final = 64
MAX_BYTES: Final = 8 << 30  # of all files


class ImportRequest(BaseModel):
    """A checked request for an import. `files` has the ids of the files by their names in the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    files: dict[str, str]
    suffix: str | None = None
    parent: str | None = None
    license: str | None = None


class DescribedModel(BaseModel):
    """Describe a checked model: the method of its training, the SHA-256 of its manifest, and what that says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    sha256: str
    manifest: dict[str, Any]


class ModelImport(Payload):
    """Register the files as the model `result`, an adapter of `base`; `parent` is the tuned model that it came of.

    Planning adds what they were `described` as.
    """

    base: str
    result: str
    files: dict[str, str]
    suffix: str | None = None
    parent: str | None = None
    license: str | None = None
    described: DescribedModel | None = None


def location(job_id: str) -> str:
    """Return the folder in storage for the files of the model of an import."""
    return f"{FOLDER}/{job_id}"


def submit(
    session: Session,
    registry: Registry,
    request: ImportRequest,
    work: Work,
    *,
    actor: str,
    **columns: Any,
) -> Job:
    """Submit the job of a request, in the caller's transaction. `work` is training for the project and the key.

    Raises: InvalidRequest, TooManyLiveJobs.
    """
    project_id = work.project_id
    ledger.check_room(session, project_id, NAME, MAX_LIVE)
    base = _find_base(session, registry, work)
    if request.parent is not None:
        _check_parent(session, project_id, request.parent, base)
    files = find_files(session, project_id, request.files)
    job_id, project = new_id(PREFIX), session.get_one(Project, project_id).name
    payload = ModelImport(
        base=base,
        result=names.model_name(base, project, request.suffix, job_id.removeprefix(PREFIX)),
        files=request.files,
        suffix=request.suffix,
        parent=request.parent,
        license=request.license,
    )
    session.add_all(
        ImportedFile(job_id=job_id, name=name, file_id=file.id, bytes=file.bytes) for name, file in files.items()
    )
    job = Job(
        id=job_id,
        project_id=project_id,
        kind=NAME,
        payload=payload.model_dump(mode="json", exclude_defaults=True),
        **MODEL_IMPORT.times(now()),
        **columns,
    )
    return ledger.submit(session, job, actor=actor)


def find_files(session: Session, project_id: str, ids: Mapping[str, str], *, lock: bool = True) -> dict[str, File]:
    """Return the files of a folder by their names; with `lock` their bytes stay. Raises InvalidRequest."""
    files = {}
    for name, file_id in sorted(ids.items()):
        file = lookup.find(session, project_id, file_id, lock=lock)
        if file is None:
            message = f"Invalid files: no file '{quote(file_id)}' exists."
            raise InvalidRequest(message, param="files", code="file_not_found")
        files[name] = file
    if sum(file.bytes for file in files.values()) > MAX_BYTES:
        message = f"Invalid files: the files of a model have at most {MAX_BYTES} bytes."
        raise InvalidRequest(message, param="files", code="model_too_large")
    return files


def register(session: Session, job: Job) -> None:
    """Register the model of a planned import, whose files are complete, and its version."""
    payload = ModelImport.model_validate(job.payload)
    assert payload.described is not None
    origin = {"base": payload.base, "parent": payload.parent, "imported": True}
    models.register(
        session,
        name=payload.result,
        project_id=job.project_id,
        base=payload.base,
        job_id=job.id,
        method=payload.described.method,
        location=location(job.id),
        sha256=payload.described.sha256,
        manifest=payload.described.manifest | origin,
    )
    session.get_one(ModelVersion, payload.result).license = payload.license


def _find_base(session: Session, registry: Registry, work: Work) -> str:
    try:
        base, parent = tuning_requests.resolve_base(session, registry, work, "lora")
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param="base", code=error.code) from None
    if parent is not None:
        message = f"'{quote(work.model)}' is a tuned model: name its base, '{base}', and the model as the 'parent'."
        raise InvalidRequest(message, param="base", code="invalid_value")
    return base


def _check_parent(session: Session, project_id: str, name: str, base: str) -> None:
    parent = models.find(session, name, project_id)
    if parent is None or parent.project_id != project_id:
        message = f"Invalid parent: the project has no tuned model '{quote(name)}'."
        raise InvalidRequest(message, param="parent", code="model_not_found")
    if parent.base != base:
        message = f"Invalid parent: '{quote(name)}' is a model of the base '{parent.base}', and not of '{base}'."
        raise InvalidRequest(message, param="parent", code="invalid_value")


def _is_read(file_id: SQLColumnExpression[str]) -> ColumnElement[bool]:
    """Return the condition that a live job imports the file."""
    return exists().where(ImportedFile.file_id == file_id, Job.id == ImportedFile.job_id, Job.state.in_(LIVE))


def _forget_files(session: Session, job: Job) -> None:
    """Remove the rows of the files of a job that has registered nothing."""
    if job.state != JobState.SUCCEEDED:
        session.execute(delete(ImportedFile).where(ImportedFile.job_id == job.id))


MODEL_IMPORT: Final = Kind(
    NAME,
    "Import of a model",
    PREFIX,
    ModelImport,
    EVENTS,
    resources=("model_imports", "model_versions", "models"),
    permission="api.model_versions.write",
    window=None,
    counted=False,
    has_lines=False,
    holds=_is_read,
    folders=(StorageFolder(FOLDER, Job.id, flat=False),),
    stored_bytes={
        "imported_models": select(TunedModel.project_id, func.sum(ImportedFile.bytes))
        .join(ImportedFile, ImportedFile.job_id == TunedModel.job_id)
        .where(TunedModel.location != models.PURGED)
        .group_by(TunedModel.project_id),
    },
    named_by=(ImportedFile.job_id,),
    ended=_forget_files,
)
