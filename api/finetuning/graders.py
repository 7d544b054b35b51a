"""Validate a grader, and run it on one sample: OpenAI's alpha routes.

grader ─▶ child: requests to judges and embedding models, if any ─▶ answers to interactive requests
            └─▶ grade ─▶ reward                                        └─▶ child: grade ─▶ reward

The project's slot for a child is free while models answer.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
from fastapi import Request
from pydantic import BaseModel

from api.deps import Call, CallContext
from api.http.bodies import Body, resource
from api.inference.interactive import submit
from api.shares import reserve, run_in_threadpool
from jobs.errors import NightmillError
from jobs.evals import graders, grading_process, source_process
from jobs.evals.availability import check_available, deployment_of
from jobs.evals.graders import Grader
from jobs.evals.graders.base import (
    FORMULA,
    JUDGE_PARSE,
    JUDGE_REFUSAL,
    JUDGE_SERVER,
    OTHER,
    PYTHON_RUNTIME,
    PYTHON_SERVER,
    TRUNCATED,
    Grade,
    GraderError,
    ModelAnswer,
    ModelRequest,
)
from jobs.evals.grading_process import GradingOutcome, GradingTask, decode_outcome
from jobs.platform.children import ChildFailed
from jobs.requests.endpoints import SERVED_WITH

router = resource("Fine-tuning", area="fine_tuning")

#: Seconds that processes may take to start and end, beside those of the graders.
_MARGIN: Final = 60.0


class ValidateGrader(Body):
    grader: Grader


class GraderValidation(BaseModel):
    """The grader, as it would be stored."""

    grader: dict[str, Any]


class RunGrader(Body):
    """`model_sample` is what a model answered, the namespace `sample`; `item` is a row of the data set."""

    grader: Grader
    model_sample: str
    item: dict[str, Any] | None = None


class GraderErrors(BaseModel):
    """The errors of a run, by OpenAI's names."""

    formula_parse_error: bool
    sample_parse_error: bool
    truncated_observation_error: bool
    unresponsive_reward_error: bool
    invalid_variable_error: bool
    other_error: bool
    python_grader_server_error: bool
    python_grader_server_error_type: str | None
    python_grader_runtime_error: bool
    python_grader_runtime_error_details: str | None
    model_grader_server_error: bool
    model_grader_refusal_error: bool
    model_grader_parse_error: bool
    model_grader_server_error_details: str | None


class GraderRunMetadata(BaseModel):
    """`scores` are those of the graders of a `multi`. `token_usage` counts the tokens of all judges."""

    name: str
    type: str
    errors: GraderErrors
    execution_time: float
    scores: dict[str, float | None]
    token_usage: int | None
    sampled_model_name: str | None


class GraderRun(BaseModel):
    """The result of a grader for one sample. `reward` is 0 where there is an error and no score."""

    reward: float
    metadata: GraderRunMetadata
    sub_rewards: dict[str, float | None]
    model_grader_token_usage_per_model: dict[str, dict[str, int]]


@router.post("/fine_tuning/alpha/graders/validate")
def validate_grader(call: Call, body: ValidateGrader) -> GraderValidation:
    """Check a grader, that its code compiles, and that this deployment can run it."""
    _check(call, body.grader)
    if sources := source_process.sources_of({"grader": body.grader}):
        with call.services.computations.slot(call.project_id):
            source_process.check(sources)
    return GraderValidation(grader=graders.dump_grader(body.grader))


@router.post("/fine_tuning/alpha/graders/run")
async def run_grader(call: Call, request: Request, body: RunGrader) -> GraderRun:
    """Grade one sample. Errors of the grader are in `metadata.errors`."""
    began = time.monotonic()
    await run_in_threadpool(_check, call, body.grader)
    question = GradingTask(
        project=call.project_id,
        grader=graders.dump_grader(body.grader),
        item=body.item or {},
        model_sample=body.model_sample,
        embedding_model=call.services.registry().embedder(call.config.embedding_model),
        wordnet=call.config.wordnet,
    )
    outcome, replies = await run_in_threadpool(_grade, call, question), list[ModelAnswer]()
    requests = outcome.requests
    if outcome.grade is None:
        replies = await asyncio.gather(*(_ask(call, request, asked) for asked in requests))
        answers = {asked.key: reply for asked, reply in zip(requests, replies, strict=True)}
        outcome = await run_in_threadpool(_grade, call, replace(question, answers=answers))
    assert outcome.grade is not None
    return _show(outcome.grade, requests, replies, time.monotonic() - began)


def _check(call: CallContext, grader: Grader) -> None:
    """Check that the deployment can run a grader. Raises InvalidRequest, Unavailable."""
    with call.db.read() as session:
        deployment = deployment_of(session, call.config, call.services.registry())
    check_available(grader, deployment, "grader")


async def _ask(call: CallContext, request: Request, asked: ModelRequest) -> ModelAnswer:
    """Ask a model, and return its answer or the error that a client of the model would get."""
    try:
        endpoint = SERVED_WITH.get(asked.url)
        end, entries = await submit(call, request, asked.url, asked.body, stream=False, endpoint=endpoint)
        await entries.aclose()
    except NightmillError as error:
        return ModelAnswer(error.status, {"error": {"message": error.message}})
    try:
        return ModelAnswer(end.status, msgspec.json.decode(end.body, type=dict[str, Any]))
    except msgspec.MsgspecError:
        return ModelAnswer(end.status, {})


def _grade(call: CallContext, question: GradingTask) -> GradingOutcome:
    """Return what the child answers. That it was too much for the child is an error of the grader.

    A request whose models have answered is not refused any more.
    """
    try:
        with call.services.computations.slot(call.project_id, admitted=question.answers is not None):
            raw = grading_process.ask(question, call.services.timings.python_grader + _MARGIN)
    except ChildFailed as failure:
        error = GraderError(OTHER, f"The sample could not be graded: {failure}.")
        return GradingOutcome(Grade(question.grader["name"], question.grader["type"], None, None, error))
    reserve(len(raw))
    return decode_outcome(raw)


def _show(result: Grade, requests: Sequence[ModelRequest], replies: Sequence[ModelAnswer], seconds: float) -> GraderRun:
    usage = _usage_by_model(requests, replies)
    scores = {name: part.score for name, part in result.sub_grades.items()}
    metadata = GraderRunMetadata(
        name=result.name,
        type=result.type,
        errors=_show_errors(result),
        execution_time=seconds,
        scores=scores,
        token_usage=sum(counts["total_tokens"] for counts in usage.values()) if usage else None,
        sampled_model_name=next((asked.body["model"] for asked in requests), None),
    )
    return GraderRun(
        reward=result.score or 0.0,
        metadata=metadata,
        sub_rewards=scores,
        model_grader_token_usage_per_model=usage,
    )


def _show_errors(result: Grade) -> GraderErrors:
    grades = (result, *result.sub_grades.values())
    errors = {part.error.code: part.error.message for part in grades if part.error is not None}
    flags = (
        FORMULA, "sample_parse_error", TRUNCATED, "unresponsive_reward_error", "invalid_variable_error", OTHER,
        PYTHON_SERVER, PYTHON_RUNTIME, JUDGE_SERVER, JUDGE_REFUSAL, JUDGE_PARSE,
    )  # fmt: skip
    return GraderErrors(
        **{flag: flag in errors for flag in flags},
        python_grader_server_error_type=errors.get(PYTHON_SERVER),
        python_grader_runtime_error_details=errors.get(PYTHON_RUNTIME),
        model_grader_server_error_details=errors.get(JUDGE_SERVER),
    )


def _usage_by_model(requests: Sequence[ModelRequest], replies: Sequence[ModelAnswer]) -> dict[str, dict[str, int]]:
    """Return the tokens that each model has counted."""
    usage: dict[str, dict[str, int]] = {}
    for asked, reply in zip(requests, replies, strict=True):
        counted = reply.body.get("usage")
        if isinstance(counted, dict):
            counts = usage.setdefault(asked.body["model"], {})
            for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
                counts[name] = counts.get(name, 0) + int(counted.get(name) or 0)
    return usage
