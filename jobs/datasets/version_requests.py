"""Requests for versions of datasets: what their sources name is looked up, and the version is submitted.

source of a client ──resolve──▶ the source as the job reads it: ids of this moment, and paths ──submit──▶ version, job
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from jobs.datasets import dataset_versions, references
from jobs.datasets.dataset_versions import MAX_LIVE, NAME
from jobs.datasets.tables import DatasetVersion, NamedDataset
from jobs.errors import InvalidRequest
from jobs.evals.tables import EvalRun
from jobs.files import lookup
from jobs.ledger import ledger
from jobs.ledger.states import LIVE
from jobs.ledger.tables import Job
from jobs.requests.endpoints import CHAT, RESPONSES

#: Files of these purposes have rows.
_PURPOSES: Final = frozenset({"batch", "batch_output", "dataset", "evals", "fine-tune", "user_data"})
Source = Mapping[str, Any]


class VersionRequest(BaseModel):
    """A checked request for the next version of `dataset`, an id or a name. The sources are as clients write them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    sources: list[dict[str, Any]]
    deduplicate: bool = False
    git_commit: str | None = None
    dvc_hash: str | None = None


def submit(
    session: Session, project_id: str, request: VersionRequest, *, version_id: str, actor: str, **columns: Any
) -> tuple[NamedDataset, DatasetVersion, Job]:
    """Submit the version of a request, in the caller's transaction. Return it with its dataset and its job.

    The listings of its sources of stored answers are stored already. `columns` are of the job.

    Raises: InvalidRequest, NotFound, TooManyLiveJobs.
    """
    ledger.check_room(session, project_id, NAME, MAX_LIVE)
    dataset = dataset_versions.find(session, project_id, request.dataset, lock=True)
    sources = [resolve(session, project_id, version_id, *entry) for entry in enumerate(request.sources)]
    version, job = dataset_versions.submit(
        session,
        dataset,
        version_id=version_id,
        sources=sources,
        actor=actor,
        after=sorted({name for source in sources for name in source.pop("after", ())}),
        deduplicate=request.deduplicate,
        git_commit=request.git_commit,
        dvc_hash=request.dvc_hash,
        **columns,
    )
    return dataset, version, job


def resolve(
    session: Session, project_id: str, version_id: str, index: int, source: Source, *, lock: bool = True
) -> dict[str, Any]:
    """Return a source as the job reads it, with the jobs to wait for in `after`; with `lock` its file stays.

    Raises: InvalidRequest.
    """
    if source["type"] not in _RESOLVERS:  # stored answers
        return {**source, "path": dataset_versions.listing_path(version_id, index)}
    return _RESOLVERS[source["type"]](session, project_id, f"sources[{index}]", source, lock)


def _resolve_file(session: Session, project_id: str, param: str, source: Source, lock: bool) -> dict[str, Any]:
    field = f"{param}.id"
    ids, pins = references.pin(session, project_id, {field: source["id"]})
    file = lookup.find(session, project_id, ids.get(field, str(source["id"])), lock=lock)
    if file is None:
        raise _missing(field, "file", source["id"])
    if file.purpose not in _PURPOSES:
        message = f"Invalid '{field}': a file of the purpose '{file.purpose}' has no rows."
        raise InvalidRequest(message, param=field, code="invalid_file_purpose")
    reference = {"reference": pins[field]} if pins else {}
    return {"type": source["type"], "id": file.id, "path": file.path, **reference}


def _resolve_run(session: Session, project_id: str, param: str, source: Source, _lock: bool) -> dict[str, Any]:
    run = session.get(EvalRun, source["run_id"])
    if run is None or run.project_id != project_id:
        raise _missing(f"{param}.run_id", "run", source["run_id"])
    return {**source, "after": [run.id]}


def _resolve_batch(session: Session, project_id: str, param: str, source: Source, _lock: bool) -> dict[str, Any]:
    """Resolve a batch of chats or responses. One that has ended without completing has the answers that it has."""
    field, batch = f"{param}.batch_id", session.get(Job, source["batch_id"])
    if batch is None or batch.project_id != project_id or batch.kind != "generation":
        raise _missing(field, "batch", source["batch_id"])
    if batch.endpoint not in (CHAT, RESPONSES):
        message = f"Invalid '{field}': rows are made of answers of '{CHAT}' and '{RESPONSES}'."
        raise InvalidRequest(message, param=field, code="unsupported_endpoint")
    return {**source, "after": [batch.id] if batch.state in LIVE else []}


def _missing(param: str, noun: str, name: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': no {noun} '{name[:64]}'.", param=param, code=f"{noun}_not_found")


_RESOLVERS: Final[Mapping[str, Callable[[Session, str, str, Source, bool], dict[str, Any]]]] = {
    "file_id": _resolve_file,
    "eval_run": _resolve_run,
    "batch": _resolve_batch,
}
