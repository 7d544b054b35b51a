"""OpenLineage: the beginning and the end of each job as run events, with what it reads and writes.

    job.running ──▶ START      succeeded ──▶ COMPLETE      failed ──▶ FAIL      cancelled, expired ──▶ ABORT

A run has the same id in each of its events, made from the job's, so that an event that comes twice changes nothing.
Events hold ids, names and hashes, and nothing of the contents. Background responses, which read no data, have none.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final, NamedTuple
from uuid import NAMESPACE_URL, uuid5

import httpx2
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.batches import batches
from jobs.datasets import dataset_versions
from jobs.datasets.references import SCHEME
from jobs.datasets.tables import DatasetFile, DatasetVersion
from jobs.db.engine import Database
from jobs.evals import runs
from jobs.finetuning import jobs
from jobs.finetuning.tables import FinetuneData
from jobs.inference import responses
from jobs.ledger.states import TERMINAL, JobState
from jobs.ledger.tables import Job
from jobs.promotions import promotions
from jobs.registry.tables import TunedModel
from jobs.retrieval import ingestions
from jobs.retrieval.tables import VectorStoreFile
from jobs.settings import Settings
from jobs.webhooks.tables import Event
from workers.sinks.sink import EventRefused, SinkUnavailable

_SPEC: Final = "https://openlineage.io/spec"
_SCHEMA: Final = f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
#: The schemas of the facets, by their names.
_FACETS: Final = {
    "jobType": f"{_SPEC}/facets/2-0-3/JobTypeJobFacet.json#/$defs/JobTypeJobFacet",
    "parent": f"{_SPEC}/facets/1-0-1/ParentRunFacet.json#/$defs/ParentRunFacet",
    "errorMessage": f"{_SPEC}/facets/1-0-1/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet",
    "version": f"{_SPEC}/facets/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet",
}
_PRODUCER: Final = f"urn:nightmill:{version('nightmill')}"
_PATH: Final = "/api/v1/lineage"
_SECONDS: Final = 10.0
_ENDS: Final = {
    JobState.SUCCEEDED: "COMPLETE",
    JobState.FAILED: "FAIL",
    JobState.CANCELLED: "ABORT",
    JobState.EXPIRED: "ABORT",
}
#: Statuses that say that an event is never taken.
_REFUSALS: Final = frozenset({400, 409, 413, 422})
#: Files of a job that are named; a job may read a million.
MAX_FILES: Final = 1000


class OpenLineage:
    """A server that takes OpenLineage's events."""

    name = "openlineage"

    def __init__(self, config: Settings) -> None:
        self._url = config.openlineage_url.rstrip("/") + _PATH
        key = config.openlineage_api_key
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def send(self, db: Database, event: Event) -> bool:
        """See `FeedSink`."""
        with db.read() as session:
            run_bodies = run_events(session, event)
        if run_bodies:
            with httpx2.Client(timeout=_SECONDS, headers=self._headers) as client:
                for body in run_bodies:
                    self._post(client, body)
        return bool(run_bodies)

    def _post(self, client: httpx2.Client, body: dict[str, Any]) -> None:
        try:
            status = client.post(self._url, json=body).status_code
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise SinkUnavailable(f"the server cannot be reached ({type(error).__name__}).") from error
        if status in _REFUSALS:
            raise EventRefused(f"the server answered with status {status}.")
        if not httpx2.codes.is_success(status):
            raise SinkUnavailable(f"the server answered with status {status}.")


def run_events(session: Session, event: Event) -> list[dict[str, Any]]:
    """Return the run events that an event of a job stands for: none for most. A run that never began begins and ends.

    The last event of a job that has ended tells of its end, whatever its type.
    """
    job = session.get(Job, event.subject_id)
    if job is None or job.kind == responses.KIND:
        return []
    state, ends = JobState(job.state), event.seq == job.event_seq
    begins = event.type == f"job.{JobState.RUNNING}"
    run_bodies = [_run_event(session, job, "START", event.created_at)] if begins else []
    if state in TERMINAL and ends:
        run_bodies += [_run_event(session, job, "START", job.created_at)] if job.in_progress_at is None else []
        run_bodies.append(_run_event(session, job, _ENDS[state], event.created_at))
    return run_bodies


def _run_event(session: Session, job: Job, kind: str, at: float) -> dict[str, Any]:
    inputs, outputs = _datasets(session, job)
    run_facets: dict[str, Any] = {}
    if job.parent_id is not None and (parent := session.get(Job, job.parent_id)) is not None:
        run_facets |= _facet("parent", run={"runId": run_id(parent.id)}, job=_job(parent))
    if kind == "FAIL" and job.errors:
        run_facets |= _facet("errorMessage", message=str(job.errors[0].get("code")), programmingLanguage="PYTHON")
    job_facets = _facet("jobType", processingType="BATCH", integration="NIGHTMILL", jobType=job.kind.upper())
    return {
        "eventType": kind,
        "eventTime": datetime.fromtimestamp(at, UTC).isoformat(),
        "run": {"runId": run_id(job.id), "facets": run_facets},
        "job": {**_job(job), "facets": job_facets},
        "inputs": [thing.to_dataset(job.project_id) for thing in inputs],
        "outputs": [thing.to_dataset(job.project_id) for thing in outputs] if kind != "START" else [],
        "producer": _PRODUCER,
        "schemaURL": _SCHEMA,
    }


def run_id(job_id: str) -> str:
    """Return the id of the run that a job is."""
    return str(uuid5(NAMESPACE_URL, f"nightmill:{job_id}"))


def _job(job: Job) -> dict[str, str]:
    """Return the job that a run belongs to. Those of a schedule are one job's; any other is a job of its own."""
    return {"namespace": _namespace(job.project_id), "name": f"{job.kind}.{job.schedule_id or job.id}"}


def _namespace(project_id: str) -> str:
    return f"nightmill/{project_id}"


def _facet(name: str, **fields: Any) -> dict[str, Any]:
    return {name: {"_producer": _PRODUCER, "_schemaURL": _FACETS[name], **fields}}


# ── what jobs read and write ──


class _Thing(NamedTuple):
    """A file, dataset, model or vector store: its path in the API, and its version or hash."""

    path: str
    version: str | None = None

    def to_dataset(self, project_id: str) -> dict[str, Any]:
        facets = _facet("version", datasetVersion=self.version) if self.version else {}
        return {"namespace": _namespace(project_id), "name": self.path, "facets": facets}


_Things = tuple[list[_Thing], list[_Thing]]


def _datasets(session: Session, job: Job) -> _Things:
    """Return what a job reads and what it writes, each once."""
    inputs, outputs = _OF_KIND.get(job.kind, _nothing)(session, job)
    inputs = [*_files([job.input_file_id]), *inputs, *([_model(job.model)] if job.model else [])]
    outputs = [*_files([job.output_file_id, job.error_file_id]), *outputs]
    return list(dict.fromkeys(inputs)), list(dict.fromkeys(outputs))


def _nothing(_session: Session, _job: Job) -> _Things:
    return [], []


def _batch(_session: Session, job: Job) -> _Things:
    reference = job.payload.get("dataset")
    return [_dataset(reference)] if reference else [], []


def _ingestion(session: Session, job: Job) -> _Things:
    rows = select(VectorStoreFile.id).where(VectorStoreFile.job_id == job.id).order_by(VectorStoreFile.line)
    return _files(session.scalars(rows.limit(MAX_FILES))), [_Thing(f"vector_stores/{job.payload['store_id']}")]


def _finetuning(session: Session, job: Job) -> _Things:
    rows = select(FinetuneData).where(FinetuneData.job_id == job.id).order_by(FinetuneData.role)
    data = [_Thing(f"files/{row.file_id}", row.sha256) for row in session.scalars(rows)]
    datasets = [_dataset(reference) for reference in job.payload.get("datasets", {}).values()]
    origin = _model(job.payload.get("parent") or job.payload["base"])
    made = select(TunedModel).where(TunedModel.job_id == job.id, TunedModel.checkpoint_step.is_(None))
    return [*data, *datasets, origin], [_Thing(f"models/{model.name}", model.sha256) for model in session.scalars(made)]


def _evaluation(_session: Session, job: Job) -> _Things:
    sampled = job.payload.get("sampled")
    return [_model(sampled["model"])] if sampled else [], []


def _dataset_version(session: Session, job: Job) -> _Things:
    rows = select(DatasetFile).where(DatasetFile.version_id == job.id).order_by(DatasetFile.position).limit(MAX_FILES)
    files = session.scalars(rows).all()
    made = session.get(DatasetVersion, job.id)
    whole = [_Thing(f"datasets/{job.payload['name']}", str(made.number))] if made is not None else []
    splits = [_Thing(f"files/{file.file_id}", file.sha256) for file in files if file.role == dataset_versions.SPLIT]
    return _files(file.file_id for file in files if file.role != dataset_versions.SPLIT), [*whole, *splits]


def _promotion(_session: Session, job: Job) -> _Things:
    target: Mapping[str, Any] = job.payload["target"]
    store = [_Thing(f"vector_stores/{target['id']}")] if target["type"] == "index" else []
    return [_model(target["model"])] if "model" in target else store, []


_OF_KIND: Final[dict[str, Callable[[Session, Job], _Things]]] = {
    **dict.fromkeys((kind.name for kind in batches.KINDS), _batch),
    ingestions.NAME: _ingestion,
    jobs.NAME: _finetuning,
    runs.NAME: _evaluation,
    dataset_versions.NAME: _dataset_version,
    promotions.NAME: _promotion,
}


def _files(ids: Iterable[str | None]) -> list[_Thing]:
    return [_Thing(f"files/{file_id}") for file_id in ids if file_id]


def _model(name: str) -> _Thing:
    return _Thing(f"models/{name}")


def _dataset(reference: str) -> _Thing:
    """Return the dataset of a reference, `dataset:NAME@VERSION/SPLIT`."""
    name, _, number = reference.removeprefix(SCHEME).partition("/")[0].partition("@")
    return _Thing(f"datasets/{name}", number or None)
