"""What came back, checked against what was asked: nothing missing, nothing twice, and the sums are right."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cli.demo.batch import DemoBatch
from cli.demo.inbox import Inbox

Vector = Sequence[float]


def faults(batches: Sequence[DemoBatch], inbox: Inbox) -> Iterator[str]:
    """Everything that is not as it must be, in words."""
    for batch in batches:
        for fault in (*_of_state(batch), *_of_lines(batch), *_of_usage(batch)):
            yield f"{batch.title}: {fault}"
        if inbox.events.get(batch.id) != "batch.completed":
            yield f"{batch.title}: no verified webhook batch.completed came ({inbox.events.get(batch.id, 'none')})"
    if inbox.refused:
        yield f"{inbox.refused} webhooks could not be verified"


def _of_state(batch: DemoBatch) -> Iterator[str]:
    progress, asked = batch.job["progress"], len(batch.requests)
    if batch.job["status"] != "completed":
        yield f"it is {batch.job['status']}: {batch.job['errors']}"
    if progress["total"] != asked or progress["completed"] != asked:
        yield f"{asked} requests were sent, the server counts {progress}"


def _of_lines(batch: DemoBatch) -> Iterator[str]:
    times = Counter(one["custom_id"] for one in batch.outputs)
    if missing := batch.requests.keys() - times.keys():
        yield f"{len(missing)} requests have no result, {min(missing)} for one"
    if strange := [name for name, count in times.items() if count > 1 or name not in batch.requests]:
        yield f"{len(strange)} results are there twice or were not asked for, {strange[0]} for one"
    bad = [one for one in batch.outputs if one["error"] or one["response"]["status_code"] != 200]
    if bad:
        yield f"{len(bad)} requests failed; the first: {bad[0]}"
    empty = [name for name, body in batch.bodies().items() if not (answer(body) or vector(body))]
    if empty:
        yield f"{len(empty)} answers are empty, {empty[0]} for one"


def _of_usage(batch: DemoBatch) -> Iterator[str]:
    usages = [body.get("usage") or {} for body in batch.bodies().values()]
    sums = {
        "input_tokens": sum(usage.get("prompt_tokens", 0) for usage in usages),
        "output_tokens": sum(usage.get("completion_tokens", 0) for usage in usages),
    }
    said = {name: batch.job["usage"][name] for name in sums}
    if said != sums:
        yield f"its lines used {sums}, the batch says {said}"


def answer(body: Mapping[str, Any]) -> str:
    """The text of a chat completion; empty where there is none."""
    choices = body.get("choices") or [{}]
    return str((choices[0].get("message") or {}).get("content") or "").strip()


def vector(body: Mapping[str, Any]) -> Vector:
    """The vector of an embedding; empty where there is none."""
    data = body.get("data") or [{}]
    found: Vector = data[0].get("embedding") or []
    return found


def nearest(wanted: Vector, among: Mapping[str, Vector], count: int) -> list[tuple[float, str]]:
    """The closest by cosine similarity, the best first."""
    return sorted(((_cosine(wanted, one), name) for name, one in among.items()), reverse=True)[:count]


def _cosine(one: Vector, other: Vector) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / (math.hypot(*one) * math.hypot(*other) or 1.0)
