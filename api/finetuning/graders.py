"""Validate a grader, and run it on one sample: OpenAI's alpha routes.

grader ─▶ requests to judges and embedding models, as interactive requests ─▶ grade ─▶ reward
                                    python graders: a sandboxed process of this host
"""

import asyncio
import json
import subprocess
import threading
import time
from functools import partial
from typing import Any, Final

import msgspec
from fastapi import Request
from pydantic import BaseModel

from api.deps import Call, CallContext
from api.http.bodies import Body, resource
from api.inference.interactive import submit
from api.shares import run_unshared
from jobs.errors import NightmillError, Unavailable
from jobs.evals import graders
from jobs.evals.availability import check_available, deployment_of, ports_of
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
    Answer,
    Grade,
    GradingError,
    ModelRequest,
    RunPython,
    Values,
)
from jobs.evals.grading import grade, requests_of
from jobs.evals.samples import sample_from_text
from jobs.programs import run_python_grader
from jobs.requests.endpoints import SERVED_WITH

router = resource("Fine-tuning")

#: Seconds that a process may take to start and end, beside those of the code.
_MARGIN: Final = 60.0
#: Processes of python graders at once: each takes a core and up to 2 GB.
_AT_ONCE = threading.BoundedSemaphore(2)


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
    """Check a grader, and that this deployment can run it."""
    _check(call, body.grader)
    return GraderValidation(grader=graders.stored(body.grader))


@router.post("/fine_tuning/alpha/graders/run")
async def run_grader(call: Call, request: Request, body: RunGrader) -> GraderRun:
    """Grade one sample. Errors of the grader are in `metadata.errors`."""
    began = time.monotonic()
    await run_unshared(_check, call, body.grader)
    item, sample = body.item or {}, sample_from_text(body.model_sample)
    ports = ports_of(call.config, call.services.registry(), _python_runner(call))
    requests = requests_of(body.grader, item, sample, ports)
    replies = await asyncio.gather(*(_ask(call, request, asked) for asked in requests))
    answers = {asked.key: reply for asked, reply in zip(requests, replies, strict=True)}
    result = await run_unshared(partial(grade, body.grader, item, sample, answers, ports))
    return _show(result, requests, replies, time.monotonic() - began)


def _check(call: CallContext, grader: Grader) -> None:
    """Check that the deployment can run a grader. Raises InvalidRequest."""
    with call.db.read() as session:
        deployment = deployment_of(session, call.config, call.services.registry())
    check_available(grader, deployment, "grader")


async def _ask(call: CallContext, request: Request, asked: ModelRequest) -> Answer:
    """Ask a model, and return its answer or the error that a client of the model would get."""
    try:
        endpoint = SERVED_WITH.get(asked.url)
        end, entries = await submit(call, request, asked.url, asked.body, stream=False, endpoint=endpoint)
        await entries.aclose()
    except NightmillError as error:
        return Answer(error.status, {"error": {"message": error.message}})
    try:
        return Answer(end.status, msgspec.json.decode(end.body, type=dict[str, Any]))
    except msgspec.MsgspecError:
        return Answer(end.status, {})


def _python_runner(call: CallContext) -> RunPython:
    """Return a function that runs a python grader's code in a process of this host."""

    def run(source: str, item: Values, sample: Values, seconds: float) -> float:
        if not _AT_ONCE.acquire(blocking=False):
            raise Unavailable("Other python graders are running. Try again in a moment.", code="graders_busy")
        try:
            given = {"project": call.project_id, "source": source, "item": item, "sample": sample, "seconds": seconds}
            ran = run_python_grader(json.dumps(given), seconds + _MARGIN)
        except subprocess.TimeoutExpired as error:
            raise GradingError(PYTHON_SERVER, "The sandbox of python graders gave no answer.") from error
        finally:
            _AT_ONCE.release()
        if ran.returncode != 0:
            raise GradingError(PYTHON_SERVER, "The sandbox of python graders did not start.")
        result = json.loads(ran.stdout)
        if result["code"]:
            raise GradingError(result["code"], result["message"], result["score"])
        return float(result["score"])

    return run


def _show(result: Grade, requests: list[ModelRequest], replies: list[Answer], seconds: float) -> GraderRun:
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


def _usage_by_model(requests: list[ModelRequest], replies: list[Answer]) -> dict[str, dict[str, int]]:
    """Return the tokens that each model has counted."""
    usage: dict[str, dict[str, int]] = {}
    for asked, reply in zip(requests, replies, strict=True):
        counted = reply.body.get("usage")
        if isinstance(counted, dict):
            counts = usage.setdefault(asked.body["model"], {})
            for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
                counts[name] = counts.get(name, 0) + int(counted.get(name) or 0)
    return usage
