"""The kinds of steps: one row for each, with the request that is stored, the job that it becomes, and its results.

Schedules submit jobs of these kinds too.

request with references ──results of other steps──▶ request ──submit──▶ job ──completed──▶ results
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from jobs.batches import batches
from jobs.batches.batches import BatchRequest
from jobs.batches.lines import quote
from jobs.datasets import dataset_versions, references, version_requests
from jobs.datasets.tables import DatasetVersion, NamedDataset
from jobs.datasets.version_requests import VersionRequest
from jobs.errors import Conflict, InvalidRequest, NotFound
from jobs.evals import run_requests, runs
from jobs.evals.run_requests import EvalRunRequest
from jobs.files import lookup
from jobs.finetuning import tuning_requests
from jobs.finetuning.tuning_requests import TuningRequest
from jobs.fleet.access import Work
from jobs.fleet.models_file import Registry
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.progress import outcomes
from jobs.ledger.tables import Job
from jobs.monitoring import monitors
from jobs.monitoring.monitors import DriftRequest, TextFile
from jobs.promotions import promotions
from jobs.promotions.promotions import Promotion, PromotionRequest
from jobs.registry import models
from jobs.requests.endpoints import FINE_TUNING
from jobs.retrieval import ingestions
from jobs.retrieval.attachments import Attachment, is_over
from jobs.retrieval.tables import VectorStore
from jobs.settings import Settings


@dataclass(frozen=True, slots=True)
class Submitter:
    """Say for which project and key the job of a stored request is made; `columns` are more of that job."""

    config: Settings
    registry: Registry
    project_id: str
    key_id: str | None
    actor: str
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RequestKind:
    """A kind of stored requests, which become jobs later."""

    name: str
    """The value of the field `kind`."""

    permission: str
    """The permission to make such a job, which the key needs when the request is stored and when it becomes a job."""

    request: type[BaseModel]
    """The model of the stored request."""

    submit: Callable[[Session, Submitter, Any], Job]
    """Submit the job of a request. Raises InvalidRequest, NotFound, TooManyLiveJobs."""

    files: Callable[[Any], Iterable[str | None]]
    """Return the ids of files that a request names; references to datasets may be among them."""


@dataclass(frozen=True, slots=True)
class StepKind(RequestKind):
    """A kind of step."""

    fields: tuple[str, ...]
    """The names of the results, which later steps may refer to."""

    results: Callable[[Session, Job], Mapping[str, object]]
    """Return the results of a job that has completed, by name; None, or no entry, for one that there is not."""


class IngestionRequest(BaseModel):
    """A checked request to add files to a vector store. They share `attributes` and `chunking`, as rows store them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vector_store_id: str
    file_ids: list[str]
    attributes: dict[str, Any] | None = None
    chunking: dict[str, Any] | None = None


def _submit_ingestion(session: Session, submitter: Submitter, request: IngestionRequest) -> Job:
    store = session.get(VectorStore, request.vector_store_id)
    if store is None or store.project_id != submitter.project_id or store.parent_id is not None or is_over(store):
        message = f"No vector store found with id '{quote(request.vector_store_id)}', or it has expired."
        raise InvalidRequest(message, param="vector_store_id", code="vector_store_not_found")
    attachments = list[Attachment]()
    for file_id in sorted(set(request.file_ids)):  # locked in one order
        file = lookup.find(session, submitter.project_id, file_id)
        if file is None:
            message = f"No file found with id '{quote(file_id)}'."
            raise InvalidRequest(message, param="file_ids", code="file_not_found")
        attachments.append(Attachment(file.id, file.filename, request.chunking, request.attributes))
    return ingestions.submit(
        session,
        store,
        attachments,
        actor=submitter.actor,
        prefix=ingestions.FILE_BATCH,
        key_id=submitter.key_id,
        **submitter.columns,
    )


def _submit_batch(session: Session, submitter: Submitter, request: BatchRequest) -> Job:
    request = batches.pin_input(session, submitter.project_id, request)
    file = batches.input_file(session, submitter.project_id, request.input_file_id)
    if file is None:
        message = f"No file found with id '{quote(request.input_file_id)}'."
        raise InvalidRequest(message, param="input_file_id", code="file_not_found")
    job = batches.job_of(
        request, submitter.project_id, input_path=file.path, key_id=submitter.key_id, **submitter.columns
    )
    return ledger.submit(session, job, actor=submitter.actor)


def _submit_fine_tuning(session: Session, submitter: Submitter, request: TuningRequest) -> Job:
    work = Work(submitter.project_id, submitter.key_id, request.payload.model, FINE_TUNING)
    return tuning_requests.submit(
        session,
        submitter.config,
        submitter.registry,
        request,
        work,
        actor=submitter.actor,
        key_id=submitter.key_id,
        **submitter.columns,
    )


def _submit_eval_run(session: Session, submitter: Submitter, request: EvalRunRequest) -> Job:
    return run_requests.submit_with_eval(
        session,
        submitter.config,
        submitter.registry,
        request,
        project_id=submitter.project_id,
        key_id=submitter.key_id,
        actor=submitter.actor,
        **submitter.columns,
    )


def _submit_promotion(session: Session, submitter: Submitter, request: PromotionRequest) -> Job:
    return promotions.submit(
        session,
        submitter.config,
        submitter.registry,
        request,
        project_id=submitter.project_id,
        key_id=submitter.key_id,
        actor=submitter.actor,
        **submitter.columns,
    )


def _submit_drift(submit: Callable[..., Job]) -> Callable[[Session, Submitter, DriftRequest], Job]:
    """Return the function that submits a job of a monitor by `submit`."""

    def submit_job(session: Session, submitter: Submitter, request: DriftRequest) -> Job:
        try:
            monitor = monitors.find(session, submitter.project_id, request.monitor_id, lock=True)
            columns = {"actor": submitter.actor, "key_id": submitter.key_id, **submitter.columns}
            return submit(session, monitor, request.source, **columns)
        except (Conflict, NotFound) as error:
            raise InvalidRequest(error.message, param=error.param, code=error.code) from None

    return submit_job


def _drift_files(request: DriftRequest) -> list[str | None]:
    return [request.source.file_id] if isinstance(request.source, TextFile) else []


def _submit_dataset(session: Session, submitter: Submitter, request: VersionRequest) -> Job:
    try:
        _, _, job = version_requests.submit(
            session,
            submitter.project_id,
            request,
            version_id=new_id(dataset_versions.VERSION_PREFIX),
            actor=submitter.actor,
            key_id=submitter.key_id,
            **submitter.columns,
        )
    except NotFound as error:
        raise InvalidRequest(error.message, param=error.param, code=error.code) from None
    return job


def _batch_results(_session: Session, job: Job) -> dict[str, object]:
    return {"id": job.id, "output_file_id": job.output_file_id, "error_file_id": job.error_file_id}


def _tuning_results(session: Session, job: Job) -> dict[str, object]:
    return {"id": job.id, "fine_tuned_model": models.results(session, [job.id]).get(job.id)}


def _run_results(session: Session, job: Job) -> dict[str, object]:
    counts = outcomes(session, job)
    graded = {"passed": runs.PASSED, "failed": runs.FAILED, "errored": runs.ERRORED}
    return {"id": job.id, "total": job.total, **{name: counts.get(word, 0) for name, word in graded.items()}}


def _ingestion_results(_session: Session, job: Job) -> dict[str, object]:
    return {"id": job.id, "vector_store_id": job.payload["store_id"]}


def _dataset_results(session: Session, job: Job) -> dict[str, object]:
    version = session.get(DatasetVersion, job.id)
    if version is None:
        return {"id": job.id}
    name = session.get_one(NamedDataset, version.dataset_id).name
    reference = references.reference_of(name, version.number)
    return {"id": job.id, "version": version.number, "rows": version.rows, "reference": reference}


def _drift_results(_session: Session, job: Job) -> dict[str, object]:
    return {"id": job.id, "monitor_id": job.payload["monitor_id"]}


def _promotion_results(_session: Session, job: Job) -> dict[str, object]:
    return {"id": job.id, "promoted": Promotion.model_validate(job.payload).target.candidate}


_ROWS: Final = (
    StepKind(
        "ingestion",
        "api.vector_stores.write",
        IngestionRequest,
        _submit_ingestion,
        lambda request: request.file_ids,
        ("id", "vector_store_id"),
        _ingestion_results,
    ),
    StepKind(
        "batch",
        "api.batch.write",
        BatchRequest,
        _submit_batch,
        lambda request: [request.input_file_id],
        ("id", "output_file_id", "error_file_id"),
        _batch_results,
    ),
    StepKind(
        "fine_tuning",
        "api.fine_tuning.write",
        TuningRequest,
        _submit_fine_tuning,
        lambda request: request.files().values(),
        ("id", "fine_tuned_model"),
        _tuning_results,
    ),
    StepKind(
        "eval_run",
        "api.evals.write",
        EvalRunRequest,
        _submit_eval_run,
        lambda request: [request.file_id],
        ("id", "total", "passed", "failed", "errored"),
        _run_results,
    ),
    StepKind(
        "dataset",
        "api.datasets.write",
        VersionRequest,
        _submit_dataset,
        lambda request: [source["id"] for source in request.sources if source["type"] == "file_id"],
        ("id", "version", "rows", "reference"),
        _dataset_results,
    ),
    StepKind(
        "promotion",
        promotions.PERMISSION,
        PromotionRequest,
        _submit_promotion,
        lambda request: [gate.run.file_id for gate in request.gates],
        ("id", "promoted"),
        _promotion_results,
    ),
    StepKind(
        "drift_baseline",
        monitors.PERMISSION,
        DriftRequest,
        _submit_drift(monitors.submit_baseline),
        _drift_files,
        ("id", "monitor_id"),
        _drift_results,
    ),
    StepKind(
        "drift_check",
        monitors.PERMISSION,
        DriftRequest,
        _submit_drift(monitors.submit_check),
        _drift_files,
        ("id", "monitor_id"),
        _drift_results,
    ),
)
#: The rows by name.
KINDS: Final[Mapping[str, StepKind]] = {row.name: row for row in _ROWS}
