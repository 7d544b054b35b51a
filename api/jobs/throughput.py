"""The lines and tokens of a project's jobs over time, in buckets."""

import math
from typing import Annotated, Final, Literal

from fastapi import Query
from pydantic import BaseModel

from api.deps import Call
from api.http.bodies import resource
from jobs.clock import now
from jobs.errors import InvalidRequest
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


class Throughput(BaseModel):
    """Buckets of `step` seconds, the oldest first, empty ones included. The last one has not ended."""

    object: Literal["throughput"] = "throughput"
    step: int
    data: list[ThroughputBucket]


@router.get("/throughput")
def retrieve_throughput(
    call: Call,
    seconds: Annotated[int, Query(ge=300, le=7 * _DAY, description="How far back.")] = _DAY,
    step: Annotated[
        int, Query(ge=60, le=_MAX_STEP, description=f"Seconds of a bucket; there are at most {_MAX_BUCKETS} buckets.")
    ] = 300,
    model: Annotated[str | None, Query(max_length=255, description="Only jobs that ask for this model.")] = None,
) -> Throughput:
    """Return the lines and tokens that the project's jobs have answered, over a week at most.

    A line counts when a worker has stored its result, which is up to a second after the answer.
    """
    buckets = math.ceil(seconds / step)
    if buckets > _MAX_BUCKETS:
        message = f"{seconds} seconds in steps of {step} are {buckets} buckets; {_MAX_BUCKETS} is the most."
        raise InvalidRequest(message, param="step", code="invalid_value")
    end = (int(now()) // step + 1) * step
    window = ThroughputWindow(end - buckets * step, step, buckets)
    with call.db.read() as session:
        sums = throughput.throughput(session, call.project_id, window, sqlite=call.db.sqlite, model=model)
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
    return Throughput(step=step, data=data)
