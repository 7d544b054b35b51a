"""Check the steps of a new pipeline: all that can be known of their requests before the results of other steps are.

The request of a schedule is checked as one of a step, and refers to no results.

step ─▶ its request, with references ─▶ references name steps and results ─▶ stored request
             └─ files and models without a reference are looked up, so that a wrong id fails at once
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from pydantic import BaseModel

from api.batches.routes import BatchFields
from api.batches.routes import build_request as build_batch_request
from api.datasets.dataset_versions import build_request as build_version_request
from api.deps import CallContext
from api.errors import clip
from api.evals.runs import build_file_run
from api.finetuning.queries import build_request as build_tuning_request
from api.http.bodies import Body
from api.pipelines.schemas import (
    DatasetStepRequest,
    DriftBaselineStepRequest,
    DriftCheckStepRequest,
    EvalRunStepRequest,
    FineTuningStepRequest,
    IngestionStepRequest,
    PromotionStepRequest,
    Step,
)
from api.promotions.routes import build_request as build_promotion_request
from api.retrieval.queries import find_names, get_store
from api.retrieval.schemas import dump_chunking
from api.webhooks.queries import check_webhook
from jobs.batches import batches
from jobs.batches.batches import BatchRequest
from jobs.datasets import dataset_versions, version_requests
from jobs.datasets.version_requests import VersionRequest
from jobs.errors import InvalidRequest, MissingPermission, NotFound
from jobs.evals import run_requests
from jobs.evals.run_requests import EvalRunRequest
from jobs.finetuning import tuning_requests
from jobs.finetuning.tuning_requests import TuningRequest
from jobs.monitoring import monitors
from jobs.monitoring.monitors import DriftRequest, TextFile
from jobs.pipelines import pipelines
from jobs.pipelines.pipelines import StepDefinition
from jobs.pipelines.placeholders import find_references, has_reference
from jobs.pipelines.steps import KINDS, IngestionRequest
from jobs.promotions.promotions import PromotionRequest
from jobs.requests.endpoints import FINE_TUNING


def define_steps(call: CallContext, steps: Sequence[Step]) -> list[StepDefinition]:
    """Return the checked steps of a new pipeline.

    Raises: InvalidRequest, MissingPermission, NotFound.
    """
    kinds = {step.name: step.kind for step in steps}
    definitions = [_define_step(call, index, step, kinds) for index, step in enumerate(steps)]
    pipelines.check_steps(definitions)
    if sum(len(definition.model_dump_json().encode()) for definition in definitions) > pipelines.MAX_BYTES:
        message = f"The requests of all steps together have more than {pipelines.MAX_BYTES} bytes."
        raise InvalidRequest(message, param="steps", code="pipeline_too_large")
    return definitions


def _define_step(call: CallContext, index: int, step: Step, kinds: Mapping[str, str]) -> StepDefinition:
    param = f"steps[{index}].request"
    after = dict.fromkeys(step.after)
    for reference in find_references(step.request.fields()):
        kind = kinds.get(reference.step)
        fields = KINDS[kind].fields if kind else ()
        if reference.field not in fields:
            results = f"Its results are: {', '.join(fields)}." if fields else "There is no such step."
            message = f"Invalid reference '{clip(reference.step)}.{clip(reference.field)}'. {results}"
            code = "result_not_found" if fields else "step_not_found"
            raise InvalidRequest(message, param=f"{param}.{reference.param}", code=code)
        after[reference.step] = None
    stored = build_request(call, step.kind, step.request, param).model_dump(mode="json", exclude_defaults=True)
    return StepDefinition(name=step.name, kind=step.kind, after=list(after), request=stored)


def build_request(call: CallContext, kind: str, body: Body, param: str) -> BaseModel:
    """Check the request for a job of a kind, which `param` names in errors; return it as it is stored.

    Raises: InvalidRequest, MissingPermission, NotFound.
    """
    if (permission := KINDS[kind].permission) not in call.caller.permissions:
        raise MissingPermission(permission)
    with errors_below(param):
        return _BUILDERS[kind](call, body)


@contextmanager
def errors_below(param: str) -> Iterator[None]:
    """Let errors name their fields with the path that leads to them. Raises InvalidRequest, NotFound."""
    try:
        yield
    except (InvalidRequest, NotFound) as error:
        path = f"{param}.{error.param}" if error.param else param
        raise type(error)(error.message, param=path, code=error.code) from None


def _build_batch(call: CallContext, body: BatchFields) -> BatchRequest:
    request = build_batch_request(call, body, check_webhook(call, body.webhook))
    if not has_reference(body.input_file_id):
        with call.db.read() as session:
            file_id = batches.pin_input(session, call.project_id, request).input_file_id
            file = batches.input_file(session, call.project_id, file_id, lock=False)
        if file is None:
            message = f"No file found with id '{clip(body.input_file_id)}'."
            raise InvalidRequest(message, param="input_file_id", code="file_not_found")
    return request


def _build_fine_tuning(call: CallContext, body: FineTuningStepRequest) -> TuningRequest:
    request, registry = build_tuning_request(call, body), call.services.registry()
    files = {field: file_id for field, file_id in request.files().items() if not has_reference(file_id)}
    with call.db.read() as session:
        tuning_requests.find_files(session, call.project_id, files, lock=False)
        if not has_reference(body.model):
            base, _ = tuning_requests.resolve_base(session, registry, call.work(body.model, FINE_TUNING), body.peft)
            tuning_requests.check_training(registry, base, body.peft, request.payload.training)
    return request


def _build_eval_run(call: CallContext, body: EvalRunStepRequest) -> EvalRunRequest:
    request = build_file_run(call, body, body.eval_id)
    if not has_reference(request.file_id):
        with call.db.read() as session:
            run_requests.find_file(session, call.config, call.project_id, str(request.file_id), lock=False)
    return request


def _build_promotion(call: CallContext, body: PromotionStepRequest) -> PromotionRequest:
    request = build_promotion_request(call, body)
    for index, gate in enumerate(request.gates):
        if not has_reference(gate.run.file_id):
            param = f"gates[{index}].data_source.source.id"
            with call.db.read() as session:
                run_requests.find_file(session, call.config, call.project_id, str(gate.run.file_id), param, lock=False)
    return request


def _build_dataset(call: CallContext, body: DatasetStepRequest) -> VersionRequest:
    request = build_version_request(body.dataset, body)
    with call.db.read() as session:
        dataset_versions.find(session, call.project_id, body.dataset)
        for index, source in enumerate(request.sources):
            if source["type"] in ("stored_completions", "responses"):
                param = f"sources[{index}].type"
                message = f"Invalid '{param}': a version that is made later takes 'file_id', 'eval_run' and 'batch'."
                raise InvalidRequest(message, param=param, code="unsupported_value")
            if not any(has_reference(text) for text in source.values()):
                version_requests.resolve(session, call.project_id, "", index, source, lock=False)
    return request


def _build_drift(call: CallContext, body: DriftBaselineStepRequest | DriftCheckStepRequest) -> DriftRequest:
    fields = body.model_dump(include=set(DriftRequest.model_fields), exclude_none=True)
    request = DriftRequest.model_validate(fields)
    with call.db.read() as session:
        if not has_reference(request.monitor_id):
            monitors.find(session, call.project_id, request.monitor_id)
        if isinstance(request.source, TextFile) and not has_reference(request.source.file_id):
            monitors.find_file(session, call.project_id, request.source.file_id, lock=False)
    return request


def _build_ingestion(call: CallContext, body: IngestionStepRequest) -> IngestionRequest:
    files = [file_id for file_id in body.file_ids if not has_reference(file_id)]
    with call.db.read() as session:
        if not has_reference(body.vector_store_id):
            get_store(session, call, body.vector_store_id, alive=True)
        find_names(session, call, files, lock=False)
    return IngestionRequest(
        vector_store_id=body.vector_store_id,
        file_ids=body.file_ids,
        attributes=body.attributes,
        chunking=dump_chunking(body.chunking_strategy),
    )


_BUILDERS: Final[Mapping[str, Callable[[CallContext, Any], BaseModel]]] = {
    "batch": _build_batch,
    "fine_tuning": _build_fine_tuning,
    "eval_run": _build_eval_run,
    "dataset": _build_dataset,
    "ingestion": _build_ingestion,
    "promotion": _build_promotion,
    "drift_baseline": _build_drift,
    "drift_check": _build_drift,
}
