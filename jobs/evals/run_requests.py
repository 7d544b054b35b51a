"""Requests for runs of evals: their file of items, the models that they ask, and the run that one becomes.

request ─▶ eval, locked ─▶ file of items ─▶ its graders and models ─▶ checked ─▶ the jobs of a run
"""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from jobs.batches.lines import quote
from jobs.clock import now
from jobs.datasets import references
from jobs.datasets.dataset_versions import PURPOSE
from jobs.errors import InvalidRequest
from jobs.evals import evals, runs
from jobs.evals.runs import Evaluation, Sampled
from jobs.evals.tables import Eval, EvalRun
from jobs.files import lookup
from jobs.files.tables import File
from jobs.fleet import access, routing
from jobs.fleet.access import Work
from jobs.fleet.models_file import Registry
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.tables import Job
from jobs.requests.endpoints import SERVED_WITH
from jobs.settings import Settings
from jobs.usage.project_limits import limit_of

FILE_PURPOSE: Final = "evals"
MAX_PAYLOAD_BYTES: Final = 1 << 20


class RunRequest(BaseModel):
    """A checked request for a run of an eval.

    `data_source` is what the run shows. The items are those of the file `file_id`, or, without one, stored with the
    run; with `stored` they are the ids of stored answers of that type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    data_source: dict[str, Any]
    metadata: dict[str, str] | None = None
    file_id: str | None = None
    stored: Literal["stored_completions", "responses"] | None = None
    sampled: Sampled | None = None


class EvalRunRequest(RunRequest):
    """A checked request for a run of the eval `eval_id`, whose items are those of a file."""

    eval_id: str


def submit_with_eval(
    session: Session,
    config: Settings,
    registry: Registry,
    request: EvalRunRequest,
    *,
    project_id: str,
    key_id: str | None,
    actor: str,
    **columns: Any,
) -> Job:
    """Submit the jobs of a request that names its eval, in the caller's transaction; return the job of the run.

    Raises: InvalidRequest, TooManyLiveJobs.
    """
    ledger.check_room(session, project_id, runs.NAME, limit_of(session, config, project_id, "eval_runs"))
    row = evals.lock(session, request.eval_id, project_id)
    if row is None:
        message = f"No eval found with id '{quote(request.eval_id)}'."
        raise InvalidRequest(message, param="eval_id", code="eval_not_found")
    run_id = new_id(runs.PREFIX)
    return submit(session, config, registry, row, request, run_id=run_id, key_id=key_id, actor=actor, **columns)[1]


def submit(
    session: Session,
    config: Settings,
    registry: Registry,
    row: Eval,
    request: RunRequest,
    *,
    run_id: str,
    key_id: str | None,
    actor: str,
    size: int = 0,
    **columns: Any,
) -> tuple[EvalRun, Job]:
    """Submit the jobs of a request for a run of a locked eval, in the caller's transaction.

    `size` is that of the items that are stored with the run.

    Raises: InvalidRequest.
    """
    run = EvalRun(
        id=run_id,
        eval_id=row.id,
        project_id=row.project_id,
        name=request.name or row.name,
        data_source=request.data_source,
        bytes=size,
        created_at=now(),
    )
    if request.metadata is not None:  # JSON null is not NULL
        run.metadata_ = request.metadata
    file = None
    if request.file_id is not None:
        file = find_file(session, config, row.project_id, request.file_id)
        if file.id != request.file_id:  # the run shows which version of the dataset it reads
            split = references.references_to(session, [file.id])[file.id]
            run.data_source = {**request.data_source, "source": {**request.data_source["source"], "id": split}}
    payload = Evaluation(
        eval_id=row.id,
        items=file.path if file else runs.items_path(run_id),
        item_schema=evals.item_schema(row.data_source_config),
        criteria=row.testing_criteria,
        sampled=request.sampled,
        embedding_model=registry.embedder(config.embedding_model),
        stored=request.stored,
    )
    check_size(payload)
    _check_models(session, config, registry, run, payload, key_id)
    return run, runs.submit(session, run, payload, actor=actor, file=file, key_id=key_id, **columns)


def find_file(
    session: Session,
    config: Settings,
    project_id: str,
    file_id: str,
    param: str = "data_source.source.id",
    *,
    lock: bool = True,
) -> File:
    """Return the file of a run, named by its id or a reference to a dataset.

    With `lock` it stays until the run has ended.

    Raises: InvalidRequest.
    """
    pinned, _ = references.pin(session, project_id, {param: file_id})
    file = lookup.find(session, project_id, pinned.get(param, file_id), lock=lock)
    if file is None:
        raise InvalidRequest(f"Invalid '{param}': no file '{quote(file_id)}'.", param=param, code="file_not_found")
    if file.purpose not in (FILE_PURPOSE, PURPOSE):
        message = f"Invalid '{param}': '{file.id}' has the purpose '{file.purpose}', and not '{FILE_PURPOSE}'."
        raise InvalidRequest(message, param=param, code="invalid_file_purpose")
    if file.bytes > config.batch_max_bytes:
        message = f"Invalid '{param}': the file has more than {config.batch_max_bytes} bytes."
        raise InvalidRequest(message, param=param, code="file_too_large")
    return file


def check_size(payload: Evaluation) -> None:
    """Check the size of what is read with each shard. Raises InvalidRequest."""
    if len(payload.model_dump_json()) > MAX_PAYLOAD_BYTES:
        message = f"The criteria, the schema and the messages together have more than {MAX_PAYLOAD_BYTES} bytes."
        raise InvalidRequest(message, param="data_source", code="run_too_large")


def _check_models(
    session: Session, config: Settings, registry: Registry, run: EvalRun, payload: Evaluation, key_id: str | None
) -> None:
    """Check that no model of a run is known to be served to nobody at the endpoint where it would be asked.

    Raises: InvalidRequest.
    """
    for url, step in runs.steps_to_make(run.id, payload):
        param = "data_source.model" if step.criterion is None else f"testing_criteria[{step.criterion}].model"
        try:
            work = Work(run.project_id, key_id, step.model, SERVED_WITH.get(url, url))
            access.resolve(session, config, registry, work)
        except routing.NotYet:  # an endpoint may still list it
            continue
        except routing.NotServed as refused:
            message = f"The model '{quote(step.model)}' does not exist. {refused.others}" if refused.others else refused
            raise InvalidRequest(f"Invalid '{param}': {message}", param=param, code=refused.code) from None
