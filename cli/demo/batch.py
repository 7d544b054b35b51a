"""Run one batch of the demo: write the file, upload, create, download, and compare with the requests."""

import json
import math
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from openai import OpenAI

from cli.demo.inbox import Inbox

Endpoint = Literal["/v1/chat/completions", "/v1/embeddings"]
LIVE = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
_MARK = {"made_by": "nightmill demo"}


@dataclass(slots=True)
class DemoBatch:
    """A batch of the demo. `job` is the job as the server shows it, `outputs` are the downloaded lines.

    `seconds` is the time of work on the batch, without the time in which it waited for its model.
    """

    title: str
    id: str
    requests: dict[str, dict[str, Any]]
    folder: Path
    job: dict[str, Any] = field(default_factory=dict)
    began: float | None = None
    seconds: float = 0.0
    outputs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return bool(self.job) and self.job["status"] not in LIVE

    def look(self, client: OpenAI) -> None:
        """Request the state of the batch."""
        self.job = cast("dict[str, Any]", client.get(f"/jobs/{self.id}", cast_to=object))
        if self.job["waiting_for"] or self.job["status"] == "validating":
            self.began = None
        elif self.began is None:
            self.began = time.monotonic()
        if self.began and not (self.ended and self.seconds):
            self.seconds = time.monotonic() - self.began

    def download(self, client: OpenAI) -> None:
        """Download the output and error files that exist."""
        for name in ("output", "error"):
            file_id = self.job[f"{name}_file_id"]
            if file_id:
                data = client.files.content(file_id).content
                (self.folder / f"{self.title}-{name}.jsonl").write_bytes(data)
                self.outputs += [json.loads(line) for line in data.splitlines()]

    def bodies(self) -> dict[str, dict[str, Any]]:
        """Return the answers by custom_id."""
        return {line["custom_id"]: line["response"]["body"] for line in self.outputs if line["response"]}


def submit(client: OpenAI, title: str, endpoint: Endpoint, lines: Sequence[dict[str, Any]], folder: Path) -> DemoBatch:
    """Upload the lines and create the batch, through the SDK."""
    path = folder / f"{title}.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with path.open("rb") as handle:
        file = client.files.create(file=handle, purpose="batch")
    once = {"Idempotency-Key": str(uuid.uuid4())}
    batch = client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata=_MARK, extra_headers=once
    )
    return DemoBatch(title, batch.id, {line["custom_id"]: line for line in lines}, folder)


def cancel_live(client: OpenAI) -> None:
    """Cancel the batches that an interrupted demo has left."""
    for batch in client.batches.list(limit=100):
        if batch.status in LIVE and (batch.metadata or {}) == _MARK:
            client.batches.cancel(batch.id)


Vector = Sequence[float]


def faults(batches: Sequence[DemoBatch], inbox: Inbox) -> Iterator[str]:
    """Return what differs from the expected outcome, in words."""
    for batch in batches:
        for fault in (*_of_state(batch), *_of_lines(batch), *_of_usage(batch)):
            yield f"{batch.title}: {fault}"
        if inbox.events.get(batch.id) != "batch.completed":
            yield f"{batch.title}: no verified webhook batch.completed came ({inbox.events.get(batch.id, 'none')})"
    if inbox.refused:
        yield f"{inbox.refused} webhooks could not be verified"


def _of_state(batch: DemoBatch) -> Iterator[str]:
    progress, sent = batch.job["progress"], len(batch.requests)
    if batch.job["status"] != "completed":
        yield f"it is {batch.job['status']}: {batch.job['errors']}"
    if progress["total"] != sent or progress["completed"] != sent:
        yield f"{sent} requests were sent, the server counts {progress}"


def _of_lines(batch: DemoBatch) -> Iterator[str]:
    times = Counter(line["custom_id"] for line in batch.outputs)
    if missing := batch.requests.keys() - times.keys():
        yield f"{len(missing)} requests have no result, {min(missing)} for one"
    if strange := [name for name, count in times.items() if count > 1 or name not in batch.requests]:
        yield f"{len(strange)} results are there twice or were not asked for, {strange[0]} for one"
    bad = [line for line in batch.outputs if line["error"] or line["response"]["status_code"] != 200]
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
    reported = {name: batch.job["usage"][name] for name in sums}
    if reported != sums:
        yield f"its lines used {sums}, the batch says {reported}"


def answer(body: Mapping[str, Any]) -> str:
    """Return the text of a chat completion, empty where it has none."""
    choices = body.get("choices") or [{}]
    return str((choices[0].get("message") or {}).get("content") or "").strip()


def vector(body: Mapping[str, Any]) -> Vector:
    """Return the vector of an embedding, empty where it has none."""
    data = body.get("data") or [{}]
    embedding: Vector = data[0].get("embedding") or []
    return embedding


def nearest(query: Vector, among: Mapping[str, Vector], count: int) -> list[tuple[float, str]]:
    """Return the names with the highest cosine similarity, best first."""
    return sorted(((_cosine(query, candidate), name) for name, candidate in among.items()), reverse=True)[:count]


def _cosine(left: Vector, right: Vector) -> float:
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    return dot / (math.hypot(*left) * math.hypot(*right) or 1.0)
