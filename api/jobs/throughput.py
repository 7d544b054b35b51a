"""The lines and tokens of a project's jobs over time, in buckets, and its interactive requests by model."""

import math
from typing import Annotated, Final, Literal

from fastapi import Query
from pydantic import BaseModel

from api.deps import Call
from api.http.bodies import resource
from jobs.clock import now
from jobs.errors import InvalidRequest
from jobs.inference import request_counts
from jobs.inference.request_counts import TOKEN_TYPES, Distribution, ModelRequests
from jobs.ledger import throughput
from jobs.ledger.throughput import ThroughputWindow

router = resource("Jobs", area="jobs")

_DAY: Final = 86_400
_MAX_STEP: Final = 10_800
_MAX_BUCKETS: Final = 360


class ThroughputBucket(BaseModel):
    """The lines and tokens answered from `start_time` until before `end_time`. `lines` includes those that failed."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    lines: int
    failed: int
    input_tokens: int
    output_tokens: int


class RequestMeasure(BaseModel):
    """The mean of a measure, and the values that half of the requests and all but a twentieth stay below.

    Both are estimated from buckets; they are null where nothing was measured.
    """

    mean: float | None
    p50: float | None
    p95: float | None


class InteractiveRequests(BaseModel):
    """The interactive requests for a model, as their clients saw them.

    `requests` includes those that ended with an error; `errors` has their number by code. Times are in seconds:
    `first_token` to the first chunk of a stream, `duration` to the end of an answer. `speed` is in output tokens a
    second.
    """

    object: Literal["interactive_requests"] = "interactive_requests"
    model: str
    requests: int
    errors: dict[str, int]
    first_token: RequestMeasure
    duration: RequestMeasure
    speed: RequestMeasure
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int


class Throughput(BaseModel):
    """Buckets of `step` seconds, the oldest first, empty ones included. The last one has not ended.

    `interactive` has the models of interactive requests in the same span; their names are those of the models file and
    of tuned models, or `other`.
    """

    object: Literal["throughput"] = "throughput"
    step: int
    data: list[ThroughputBucket]
    interactive: list[InteractiveRequests]


@router.get("/throughput")
def retrieve_throughput(
    call: Call,
    seconds: Annotated[int, Query(ge=300, le=7 * _DAY, description="How far back.")] = _DAY,
    step: Annotated[
        int, Query(ge=60, le=_MAX_STEP, description=f"Seconds of a bucket; there are at most {_MAX_BUCKETS} buckets.")
    ] = 300,
    model: Annotated[str | None, Query(max_length=255, description="Only jobs that ask for this model.")] = None,
) -> Throughput:
    """Return the lines and tokens that the project's jobs have answered, over a week at most; and interactive requests.

    A line counts when a worker has stored its result, which is up to a second after the answer; an interactive request
    up to ten seconds after its end.
    """
    buckets = math.ceil(seconds / step)
    if buckets > _MAX_BUCKETS:
        message = f"{seconds} seconds in steps of {step} are {buckets} buckets; {_MAX_BUCKETS} is the most."
        raise InvalidRequest(message, param="step", code="invalid_value")
    end = (int(now()) // step + 1) * step
    window = ThroughputWindow(end - buckets * step, step, buckets)
    with call.db.read() as session:
        sums = throughput.throughput(session, call.project_id, window, sqlite=call.db.sqlite, model=model)
        by_model = request_counts.summarize(session, call.project_id, window.start, window.end, model)
    data = [
        ThroughputBucket(
            start_time=start,
            end_time=start + step,
            lines=bucket.lines,
            failed=bucket.failed,
            input_tokens=bucket.input_tokens,
            output_tokens=bucket.output_tokens,
        )
        for start, bucket in zip(range(window.start, window.end, step), sums, strict=True)
    ]
    interactive = [_show_requests(name, requests) for name, requests in by_model.items()]
    return Throughput(step=step, data=data, interactive=interactive)


def _show_requests(model: str, requests: ModelRequests) -> InteractiveRequests:
    measures = {measure: _show_measure(values) for measure, values in requests.distributions.items()}
    tokens = {f"{kind}_tokens": requests.tokens.get(kind, 0) for kind in TOKEN_TYPES}
    return InteractiveRequests(model=model, requests=requests.requests, errors=requests.errors, **measures, **tokens)


def _show_measure(values: Distribution) -> RequestMeasure:
    return RequestMeasure(mean=values.mean, p50=values.quantile(0.5), p95=values.quantile(0.95))
