"""Check a batch file without creating a batch. A child process with little memory and time reads the file."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.batches.routes import Endpoint
from api.batches.schemas import BatchError, BatchErrors
from api.deps import Call, CallContext
from api.files.queries import get_file
from api.http.bodies import Body, resource
from jobs.batches import batches
from jobs.clock import now
from jobs.datasets import references
from jobs.datasets.references import MAX_LENGTH
from jobs.errors import InvalidRequest
from jobs.fleet import access, enqueued_tokens, routing
from jobs.fleet.checkpoint import context_tokens, tokenizer_file
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.platform import children
from jobs.platform.children import ChildFailed, ChildLimits
from jobs.requests.token_estimates import input_tokens


class TokenEstimate(BaseModel):
    """An estimate without a tokenizer: a quarter of the bytes."""

    input_tokens: int
    method: Literal["bytes/4"] = "bytes/4"


class BatchValidation(BaseModel):
    """The result of a dry run.

    `errors` would fail the batch, or one of its lines, for example for a field that the model's engine does not know.
    `eta_seconds` is null until this model's pace is known.
    """

    object: Literal["batch.validation"] = "batch.validation"
    valid: bool
    endpoint: str
    input_file_id: str
    model: str | None
    bytes: int
    requests: int
    inputs: int
    errors: BatchErrors
    errors_truncated: bool
    estimate: TokenEstimate
    eta_seconds: float | None


router = resource("Batches", area="batch")

_LIMITS = ChildLimits(seconds=60, cpu_seconds=60, memory_bytes=1 << 30)
_DAY = 86_400


class ValidateBatch(Body):
    input_file_id: str = Field(
        min_length=1, max_length=MAX_LENGTH, description="A file, or `dataset:NAME@VERSION/SPLIT`."
    )
    endpoint: Endpoint


@router.post("/batches/validate")
def validate_batch(call: Call, body: ValidateBatch) -> BatchValidation:
    """Check every line of a file as a batch would, and say what the batch would cost."""
    with call.db.read() as session:
        ids, _ = references.pin(session, call.project_id, {"input_file_id": body.input_file_id})
        file, registry = get_file(session, call, ids.get("input_file_id", body.input_file_id)), call.services.registry()
        engines = routing.engines(session, registry)
        targets = {name: name for name in engines} | access.models_by_alias(session, registry, call.project_id)
    batches.check_purpose(file)
    engines = {name: engines[model] for name, model in targets.items() if model in engines}
    report = _run_validation(
        call, _validation_request(call, file.path, body.endpoint, engines) | {"contexts": _contexts(call, targets)}
    )
    report["model"] = targets.get(report["model"], report["model"])
    with call.db.read() as session:
        errors = [*report["errors"], *_model_errors(session, call, body.endpoint, report)]
        errors.sort(key=lambda error: error["line"] or 0)
        errors = errors or _token_errors(session, call, report)
        eta = None if errors else _eta(session, call, report)
    return BatchValidation(
        valid=not errors,
        endpoint=body.endpoint,
        input_file_id=file.id,
        model=report["model"],
        bytes=report["bytes"],
        requests=report["total"],
        inputs=report["inputs"],
        errors=BatchErrors(data=[BatchError(**error) for error in errors]),
        errors_truncated=report["truncated"],
        estimate=TokenEstimate(input_tokens=input_tokens(report["bytes"])),
        eta_seconds=eta,
    )


def _validation_request(call: CallContext, path: str, endpoint: str, engines: dict[str, str]) -> dict[str, Any]:
    return {
        "storage": call.config.storage,
        "path": path,
        "endpoint": endpoint,
        "project_id": call.project_id,
        "engines": engines,
        "max_lines": call.config.batch_max_lines,
        "max_bytes": call.config.batch_max_bytes,
    }


def _contexts(call: CallContext, targets: Mapping[str, str]) -> dict[str, tuple[int, str]]:
    """Return the tokens of the context and the file of the tokenizer by name, where both are known of its model."""
    registry, folder = call.services.registry(), call.config.data_dir.absolute() / "models"
    models = {name: model for name, target in targets.items() if (model := registry.resolve(target)) is not None}
    known = {name: (context_tokens(model), tokenizer_file(model, folder)) for name, model in models.items()}
    return {name: (tokens, str(file)) for name, (tokens, file) in known.items() if tokens and file}


def _run_validation(call: CallContext, request: dict[str, Any]) -> dict[str, Any]:
    """Validate the file in a child process, and return the result of the child.

    Raises: ProjectBusy; InvalidRequest, if the child runs out of memory or time.
    """
    given = json.dumps(request).encode()
    try:
        with call.services.computations.slot(call.project_id):
            answer = children.run("jobs.batches.validate", [given], _LIMITS, settings=True)
    except ChildFailed as failure:
        message = f"The file could not be read: {failure}."
        raise InvalidRequest(message, param="input_file_id", code="validation_gave_up") from failure
    report: dict[str, Any] = json.loads(answer)
    return report


def _model_errors(session: Session, call: CallContext, endpoint: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Find what keeps the model from being served to this project, as the plan of a batch would."""
    name, registry = report["model"], call.services.registry()
    if name is None:
        return []
    try:
        access.resolve(session, call.config, registry, call.work(name, endpoint))
    except routing.NotServed as refused:
        return [_error(report, refused.code, str(refused))]
    except routing.NotYet:
        pass  # an endpoint may still list it
    return []


def _token_errors(session: Session, call: CallContext, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the error of a batch that would exceed the project's quota now, together with its live jobs."""
    registry, model = call.services.registry(), report["model"] or ""
    limit = enqueued_tokens.limit_for(session, call.config, registry, call.project_id, model)
    refusal = limit.refusal(session, report["bytes"]) if limit else None
    return [] if refusal is None else [refusal.as_dict()]


def _error(report: dict[str, Any], code: str, message: str) -> dict[str, Any]:
    return {"code": code, "line": report["first_line"], "message": message, "param": "body.model"}


def _eta(session: Session, call: CallContext, report: dict[str, Any]) -> float | None:
    """Estimate the duration from the pace of the project's last batch of this model within a day."""
    last = session.scalar(
        select(Job)
        .where(
            Job.project_id == call.project_id,
            Job.model == report["model"],
            Job.state == JobState.SUCCEEDED,
            Job.created_at > now() - _DAY,
        )
        .order_by(Job.created_at.desc())
        .limit(1)
    )
    if last is None or not last.total or last.in_progress_at is None or last.finalizing_at is None:
        return None
    seconds = max(last.finalizing_at - last.in_progress_at, 0.001)
    return float(round(report["total"] * seconds / last.total, 1))
