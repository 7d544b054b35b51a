"""Runs of evals: created with the jobs that make them up, listed, cancelled and removed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
from fastapi import Query, Request
from fastapi.responses import Response
from sqlalchemy import ColumnElement, Select, exists, select
from sqlalchemy.orm import Session, aliased

from api.deps import Call, CallContext
from api.errors import clip
from api.evals import item_sources
from api.evals.item_sources import RunItems
from api.evals.routes import get_eval
from api.evals.schemas import (
    MAX_SHOWN_BYTES,
    CompletionsSource,
    CreateRun,
    DataSource,
    EvalRunObject,
    FileReference,
    ItemReference,
    JsonlSource,
    ModelUsage,
    PerplexitySource,
    PromptMessages,
    ResponsesSource,
    RetrievalSource,
    RunDeleted,
    RunStatus,
    TemplateMessages,
    counts_of,
    show_run,
    status_of,
)
from api.http.bodies import resource
from api.http.idempotency import Idempotent
from api.http.paging import OldestFirst, Page, find, page
from api.http.space import check_not_full, check_space, count_if_due, reserve_or_remove
from api.retrieval.search import index_for_search, search_of
from jobs.errors import InvalidRequest, NotFound, TooManyLiveJobs
from jobs.evals import evals, run_requests, runs
from jobs.evals.run_requests import EvalRunRequest, RunRequest
from jobs.evals.runs import Retrieval, Sampled, SampledPrompt
from jobs.evals.tables import EvalRun
from jobs.fleet import access, routing
from jobs.fleet.models_file import EngineKind
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.progress import outcomes, totals
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.platform.storage import remove_objects
from jobs.prompts import versions
from jobs.prompts.rendering import check_names
from jobs.prompts.resolution import PromptReference
from jobs.requests.endpoints import CHAT, LIKELIHOOD, RESPONSES, SEARCH
from jobs.requests.values import RESPONSE_TOOLS
from jobs.retrieval.filters import check_filter
from jobs.usage.project_limits import limit_of

router = resource("Evals", area="evals")

Status = Annotated[RunStatus | None, Query(description="Only runs of this status.")]


@router.post("/evals/{eval_id}/runs", status_code=201, response_model=EvalRunObject)
def create_run(request: Request, call: Call, once: Idempotent, eval_id: str, body: CreateRun) -> Response:
    """Queue a run. Its items are checked after the answer."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    with call.db.read() as session:
        existing = get_eval(session, call, eval_id)
        own_id, config = existing.id, existing.data_source_config
    sampled, run_id = sampling_of(call, body.data_source), new_id(runs.PREFIX)
    items = item_sources.items_of(call, config, body.data_source.source)
    run_request = build_run_request(body, items, sampled)
    if items.lines:
        check_space(call, len(items.lines))
        call.storage.put(runs.items_path(run_id), items.lines)

    def make(session: Session) -> EvalRunObject:
        check_not_full(session, call)
        limit = limit_of(session, call.config, call.project_id, "eval_runs")
        ledger.check_room(session, call.project_id, runs.NAME, limit)
        row = evals.lock(session, own_id, call.project_id)
        if row is None:
            raise NotFound(f"No eval found with id '{clip(eval_id)}'.", param="eval_id")
        reserve_or_remove(session, call, len(items.lines), runs.items_path(run_id), EvalRun.id == run_id)
        run, job = run_requests.submit(
            session,
            call.config,
            call.services.registry(),
            row,
            run_request,
            run_id=run_id,
            key_id=call.caller.key_id,
            actor=call.actor,
            size=len(items.lines),
            idempotency_key=once.key,
            request_id=call.request_id,
        )
        call.record(session, "eval.run.create", run_id)
        return show_runs(session, request, call, [(run, job)])[0]

    count_if_due(call)
    try:
        return once.run(fields, make, 201)
    except (InvalidRequest, TooManyLiveJobs):
        remove_objects(call.storage, [f"jobs/{run_id}"] if items.lines else [])
        raise


@router.get("/evals/{eval_id}/runs")
def list_runs(
    request: Request, call: Call, eval_id: str, listing: OldestFirst, status: Status = None
) -> Page[EvalRunObject]:
    """List the runs of an eval."""
    with call.db.read() as session:
        own = runs_of(call, get_eval(session, call, eval_id).id)
        statement = own if status is None else own.where(_has(status))
        rows, more = find(session, statement, EvalRun, **asdict(listing), among=own)
        jobs = {job.id: job for job in session.scalars(select(Job).where(Job.id.in_([row.id for row in rows])))}
        shown = {row.id: row for row in show_runs(session, request, call, [(row, jobs[row.id]) for row in rows])}
    return page(rows, more, lambda row: shown[row.id])


@router.get("/evals/{eval_id}/runs/{run_id}")
def retrieve_run(request: Request, call: Call, eval_id: str, run_id: str) -> EvalRunObject:
    """Return a run, with its counts so far."""
    with call.db.read() as session:
        return show_runs(session, request, call, [get_run(session, call, eval_id, run_id)])[0]


@router.post("/evals/{eval_id}/runs/{run_id}/cancel")
@router.post("/evals/{eval_id}/runs/{run_id}", deprecated=True, operation_id="cancel_run_before_3")
def cancel_run(request: Request, call: Call, eval_id: str, run_id: str) -> EvalRunObject:
    """Stop a run; graded items stay. Cancelling twice is not an error. Older SDKs use the path without `/cancel`."""
    with call.db.write() as session:
        run, job = get_run(session, call, eval_id, run_id)
        job = call.cancel(session, job, "eval.run.cancel", _refusal)
        return show_runs(session, request, call, [(run, job)])[0]


def _refusal(job: Job) -> str:
    return f"Cannot cancel a run with status '{status_of(job, ())}'."


@router.delete("/evals/{eval_id}/runs/{run_id}")
def delete_run(call: Call, eval_id: str, run_id: str) -> RunDeleted:
    """Remove a run with its items. A run that is not complete is cancelled."""
    with call.db.write() as session:
        own_id = get_run(session, call, eval_id, run_id)[0].id
        folders = evals.remove_runs(session, [own_id], actor=call.actor)
        call.record(session, "eval.run.delete", own_id)
    remove_objects(call.storage, folders)
    return RunDeleted(run_id=own_id)


def runs_of(call: CallContext, eval_id: str) -> Select[EvalRun]:
    return select(EvalRun).where(EvalRun.project_id == call.project_id, EvalRun.eval_id == eval_id)


def get_run(session: Session, call: CallContext, eval_id: str, run_id: str) -> tuple[EvalRun, Job]:
    """Return a run with its job. Each id may be the one that the object had elsewhere. Raises NotFound."""
    own = runs_of(call, get_eval(session, call, eval_id).id)
    run = session.scalar(own.where(EvalRun.id == run_id)) or session.scalar(own.where(EvalRun.imported_from == run_id))
    if run is None:
        raise NotFound(f"No run found with id '{clip(run_id)}'.", param="run_id")
    return run, session.get_one(Job, run.id)


# ── what is asked for ──


def build_run_request(body: CreateRun, items: RunItems, sampled: Sampled | None) -> RunRequest:
    """Return the request that a body makes, with its items and the way in which a model is asked about them."""
    shown = body.data_source.fields()
    if len(items.lines) > MAX_SHOWN_BYTES and "content" in shown["source"]:
        shown["source"] = {**shown["source"], "content": []}
    if sampled is not None and sampled.prompt is not None:  # the version that was found
        messages = shown["input_messages"]
        messages["prompt"] = {**messages["prompt"], "version": str(sampled.prompt.version)}
    return RunRequest(
        name=body.name,
        data_source=shown,
        metadata=body.metadata,
        file_id=items.file_id,
        stored=items.stored,
        sampled=sampled,
    )


def build_file_run(call: CallContext, body: CreateRun, eval_id: str) -> EvalRunRequest:
    """Return the request for a run of an eval that a later job makes: its items are those of a file.

    Raises: Expired, InvalidRequest, NotFound.
    """
    source = body.data_source.source
    if not isinstance(source, FileReference):
        param = "data_source.source.type"
        message = f"Invalid '{param}': the items are read from a file, with the type 'file_id'."
        raise InvalidRequest(message, param=param, code="unsupported_value")
    with call.db.read() as session:
        own_id = get_eval(session, call, eval_id).id
    request = build_run_request(body, RunItems(file_id=source.id), sampling_of(call, body.data_source))
    return EvalRunRequest(**dict(request), eval_id=own_id)


def sampling_of(call: CallContext, source: DataSource) -> Sampled | None:
    """Return how a model is asked for the samples. Raises NotFound, Expired, InvalidRequest."""
    match source:
        case JsonlSource():
            return None
        case RetrievalSource():
            return _search_sampling(call, source)
        case PerplexitySource():
            _check_has_likelihoods(call, source.model)
            return Sampled(endpoint=LIKELIHOOD, model=source.model, text=source.text)
    return _model_sampling(call, source) if source.input_messages is not None else None


def _search_sampling(call: CallContext, source: RetrievalSource) -> Sampled:
    if source.filters is not None:
        check_filter(source.filters, "data_source.filters")
    index = index_for_search(call, source.vector_store_id, source.ranking_options)
    search = search_of(index, (), source.max_num_results, source.filters, source.ranking_options)
    options = msgspec.to_builtins(search)
    for name in ("model", "store_id", "queries"):
        del options[name]
    retrieval = Retrieval(vector_store_id=source.vector_store_id, options=options)
    return Sampled(endpoint=SEARCH, model=index.model, text=source.query, retrieval=retrieval)


def _check_has_likelihoods(call: CallContext, model: str) -> None:
    """Check that the engine of a model is not known to give no likelihoods. Raises InvalidRequest."""
    with call.db.read() as session:
        registry = call.services.registry()
        target = access.model_of_name(session, registry, model, call.project_id)
        engine = routing.engines(session, registry).get(target, EngineKind.VLLM)
    if engine != EngineKind.VLLM:
        message = f"Invalid 'data_source.model': the engine '{engine}' gives no likelihoods of texts."
        raise InvalidRequest(message, param="data_source.model", code="model_not_supported")


def _model_sampling(call: CallContext, source: CompletionsSource | ResponsesSource) -> Sampled:
    messages = source.input_messages
    if isinstance(source, ResponsesSource):
        _check_tools(source.sampling_params.tools or ())
    params = source.sampling_params.to_params()
    model, given = source.model, dict[str, Any]()
    match messages:
        case PromptMessages():
            prompt = _prompt_of_sampling(call, messages.prompt)
            model, given["prompt"] = model or prompt.content["model"], prompt
            if model is None:
                param = "data_source.model"
                message = f"Missing required parameter: '{param}'. The prompt names no model."
                raise InvalidRequest(message, param=param, code="missing_required_parameter")
        case ItemReference():
            given["reference"] = messages.item_reference
        case TemplateMessages():
            given["template"] = messages.model_dump(exclude_none=True)["template"]
    assert model is not None
    endpoint = CHAT if isinstance(source, CompletionsSource) else RESPONSES
    return Sampled(endpoint=endpoint, model=model, n=params.pop("n"), params=params, **given)


def _prompt_of_sampling(call: CallContext, reference: PromptReference) -> SampledPrompt:
    """Return the version of a prompt that a run samples with, however labels move. Raises InvalidRequest, NotFound."""
    try:
        with call.db.read() as session:
            prompt = versions.resolve(session, call.project_id, reference)
        check_names(prompt.content["variables"], reference.variables or {})
    except (InvalidRequest, NotFound) as error:
        raise type(error)(error.message, param=f"data_source.input_messages.{error.param}", code=error.code) from None
    return SampledPrompt(**asdict(prompt), variables=reference.variables or {})


def _check_tools(tools: Sequence[Mapping[str, Any]]) -> None:
    """Check that the tools of responses are some that run here. Raises InvalidRequest."""
    for index, tool in enumerate(tools):
        if tool.get("type") not in RESPONSE_TOOLS:
            param = f"data_source.sampling_params.tools[{index}]"
            message = f"The tool '{clip(str(tool.get('type')))}' is not supported. Supported are: "
            supported = ", ".join(RESPONSE_TOOLS)
            raise InvalidRequest(f"{message}{supported}.", param=param, code="unsupported_tool")


# ── what is shown ──


def _has(status: RunStatus) -> ColumnElement[bool]:
    """Return the condition that a run has a status."""
    job, step = aliased(Job), aliased(Job)
    begun = exists().where(step.parent_id == EvalRun.id, step.kind == runs.SAMPLING, step.state != JobState.QUEUED)
    working = job.state.in_((JobState.RUNNING, JobState.FINISHING))
    conditions: dict[RunStatus, ColumnElement[bool]] = {
        "queued": (job.state == JobState.QUEUED) & ~begun,
        "in_progress": working | ((job.state == JobState.QUEUED) & begun),
        "completed": job.state == JobState.SUCCEEDED,
        "canceled": job.state.in_((JobState.CANCELLING, JobState.CANCELLED)),
        "failed": job.state.in_((JobState.FAILED, JobState.EXPIRED, JobState.EXPIRING)),
    }
    return exists().where(job.id == EvalRun.id, conditions[status])


def show_runs(
    session: Session, request: Request, call: CallContext, rows: Sequence[tuple[EvalRun, Job]]
) -> list[EvalRunObject]:
    """Return runs, each with its job, as clients see them."""
    steps = runs.steps_of(session, [run.id for run, _ in rows])
    base = call.config.public_url.rstrip("/") or str(request.base_url).rstrip("/")
    return [
        show_run(
            run,
            job,
            steps[run.id],
            counts_of(outcomes(session, job)),
            _usage(session, steps[run.id]),
            f"{base}/console/evals/{run.eval_id}/runs/{run.id}",
        )
        for run, job in rows
    ]


def _usage(session: Session, steps: Sequence[Job]) -> list[ModelUsage]:
    """Return what each model was asked for, summed over the jobs that ask it."""
    sums = totals(session, steps)
    usage: dict[str, dict[str, int]] = {}
    for step in steps:
        numbers = usage.setdefault(step.model or step.payload["model"], dict.fromkeys(_COUNTED, 0))
        total = sums[step.id]
        values = (total.completed + total.failed, total.input_tokens, total.output_tokens, total.cached_tokens)
        for name, value in zip(_COUNTED, values, strict=True):
            numbers[name] += value
    return [
        ModelUsage(model_name=name, total_tokens=numbers["prompt_tokens"] + numbers["completion_tokens"], **numbers)
        for name, numbers in usage.items()
    ]


_COUNTED = ("invocation_count", "prompt_tokens", "completion_tokens", "cached_tokens")
