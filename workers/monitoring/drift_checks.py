"""Jobs of kind `drift_check`: sample texts, have them embedded, and compare their features with those of a baseline.

claim ─▶ sampled texts ─▶ a line for each, a request for its embedding ─▶ planned as a batch is
claim ─▶ features ─┬─ of a baseline ─▶ stored ─▶ closed
                   └─ of a check ─▶ compared with the baseline's ─▶ closed with the distances, one event

The texts are on the lines, which are removed after the end of the job. A baseline has numbers and vectors alone.
"""

import base64
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.batches import lines
from jobs.batches.batches import BatchPayload
from jobs.batches.lines import Bad
from jobs.errors import NotFound
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Segment
from jobs.monitoring.monitors import DETECTED, MIN_TEXTS, DriftSample, baseline_path
from jobs.monitoring.tables import DriftCheck
from workers.batches.finishing import outputs_of
from workers.batches.planning import Planner
from workers.batches.running import LineRun, read_items
from workers.monitoring.distances import Array
from workers.monitoring.features import Features, compare
from workers.monitoring.texts import SampledText, TextFeatures, sample
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle
from workers.runtime.output_lines import Item, LineRecord

log = logging.getLogger(__name__)


def plan(context: Context, claim: JobClaim, handle: ClaimHandle) -> None:
    """Write the requests for the embeddings of the sampled texts, and plan them. Raises Abandoned, ClaimLost."""
    planner = Planner(context, claim, handle)
    texts = sample(context, claim.job)
    with planner.writer.own_input():
        planner.read(lines.number_lines(_requests(claim.job, texts)))
    if planner.writer.total < MIN_TEXTS and not planner.writer.errors:
        message = f"The source has {planner.writer.total} texts, and a comparison needs {MIN_TEXTS}."
        planner.writer.add(Bad("too_few_texts", message, None, "source"))
    planner.writer.finish()


def _requests(job: Job, texts: Sequence[SampledText | Bad]) -> Iterator[bytes | Bad]:
    """Yield the line of each text, and the errors of lines."""
    for number, sampled in enumerate(texts):
        if isinstance(sampled, Bad):
            yield sampled
            continue
        body = {
            "model": job.model,
            "input": sampled.beginning,
            "encoding_format": "base64",
            "truncate": True,
        }
        line = {"custom_id": str(number), "method": "POST", "url": job.endpoint, "body": body, "text": sampled.text}
        yield msgspec.json.encode(line)


class EmbeddingRun(LineRun):
    """A claim on a shard of texts."""

    ends_at_once = False  # `finish` ends the job

    def read(self) -> tuple[list[Item], list[LineRecord]]:
        return read_items(self.context, self.claim, BatchPayload())


# ── the end ──


def finish(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    """Store the features of a baseline, or compare those of a check, and end the job. Raises ClaimLost."""
    rows, error = _results_of(context, claim.job) if claim.job.state == JobState.FINISHING else (None, None)
    errors = [] if error is None else [{"code": error[0], "message": error[1], "line": None, "param": None}]
    _close(context, claim, rows, errors)


def _results_of(context: Context, job: Job) -> tuple[list[dict[str, Any]] | None, tuple[str, str] | None]:
    """Return the distances of a check, or the code and the message of an error; neither of a baseline, now stored."""
    payload, features = DriftSample.model_validate(job.payload), _features_of(context, job)
    count = len(features.embedding)
    if count < MIN_TEXTS:
        return None, ("too_few_texts", f"The model '{job.model}' embedded {count} texts; {MIN_TEXTS} are needed.")
    if payload.baseline_id is None:
        context.storage.put(baseline_path(job.id), features.encode())
        return None, None
    try:
        with context.storage.reader(baseline_path(payload.baseline_id)) as handle:
            baseline = Features.decode(handle.read())
    except NotFound:
        return None, ("baseline_gone", "Another baseline took the place of the one to compare with: check again.")
    if baseline.embedding.shape[1] != features.embedding.shape[1]:
        message = f"The model '{job.model}' is not the one that embedded the baseline: make another baseline."
        return None, ("embedding_model_changed", message)
    return compare(baseline, features), None


def _close(
    context: Context, claim: JobClaim, rows: list[dict[str, Any]] | None, errors: Sequence[dict[str, Any]]
) -> None:
    job, is_drift = claim.job, any(row["is_drift"] for row in rows or ())
    with context.db.read() as session:
        values = {**ledger.sums(session, job.id), "total": job.total}
        counts = Counter[str]()
        for outcomes in session.scalars(select(Segment.outcomes).where(Segment.job_id == job.id)):
            counts.update(outcomes or {})

    def end(session: Session) -> None:
        ledger.close(session, claim, values, [], counts, event=DETECTED if is_drift else None, errors=errors)
        check = session.get(DriftCheck, job.id)
        if check is not None and rows is not None:
            check.features, check.is_drift = rows, is_drift

    context.db.retrying(end)
    log.info("drift_check_closed", extra={"job_id": job.id, "is_drift": is_drift, **values})


class _Line(msgspec.Struct):
    text: TextFeatures


class _Embedding(msgspec.Struct):
    embedding: str | list[float]


class _Body(msgspec.Struct):
    data: list[_Embedding] = []


class _Response(msgspec.Struct):
    body: _Body


class _Output(msgspec.Struct):
    """The parts of an output line that are read; `response` is null where there is no answer."""

    response: _Response | None = None


_line = msgspec.json.Decoder(_Line).decode
_output = msgspec.json.Decoder(_Output).decode


def _features_of(context: Context, job: Job) -> Features:
    """Return the features of the texts of a job, and those embeddings that there are. Raises: NotFound."""
    with context.storage.reader(job.input_path or "") as handle:
        texts = [_line(line.raw or b"").text for line in lines.read(handle)]
    answers = (_output(output).response for output in outputs_of(context, job.id))
    vectors = [_vector_of(answer.body.data[0].embedding) for answer in answers if answer and answer.body.data]
    return Features.of(texts, [vector for vector in vectors if np.isfinite(vector).all()])


def _vector_of(embedding: str | list[float]) -> Array:
    """Return an embedding; an engine may answer with a list where base64 was asked for."""
    if isinstance(embedding, list):
        return np.array(embedding, dtype=float)
    return np.frombuffer(base64.b64decode(embedding), dtype="<f4").astype(float)
