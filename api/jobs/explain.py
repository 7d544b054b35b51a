"""Explain a job: what it waits for, which errors its input has, how its answers ended, and why lines failed.

Examples come from the job's results. Only the beginning of each file is read, so the cost does not grow with the job.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, Literal

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.http.bodies import resource
from api.jobs.routes import get_job, model_statuses
from jobs.batches import outcome_examples
from jobs.batches.outcome_examples import EMPTY, EXAMPLES, Failure, short
from jobs.errors import NotFound
from jobs.files.tables import File
from jobs.fleet import quarantine, standstill
from jobs.ledger import dependencies
from jobs.ledger.progress import outcomes, pace, queue_position
from jobs.ledger.states import TERMINAL, JobState
from jobs.ledger.tables import Job, Segment
from jobs.platform.storage import CHUNK
from jobs.requests.endpoints import COMPLETIONS, RESPONSES
from jobs.retrieval.attachments import FAILED
from jobs.retrieval.indexes import index_of
from jobs.retrieval.tables import VectorStoreFile

router = resource("Jobs", area="jobs")

_READ_BYTES: Final = 16 << 20  # of a job's results, in search of examples
_SEGMENTS: Final = 64
_ERROR: Final = "error:"
_INGESTION_FILES: Final = 100

#: The field of a request that limits its answer, by endpoint.
_LIMITS = {RESPONSES: "max_output_tokens", COMPLETIONS: "max_tokens"}
_WAITS = {
    "model": "no live worker serves {model}; `nightmill workers` shows what each serves",
    "worker": "no live worker of {queue}; `nightmill status` shows the processes on the server's host",
    "job": "these jobs have to complete first, see `nightmill graph`",
    "pause": "its queue, model or project is paused; `nightmill workers` shows what is",
    "time": "it was submitted to begin later",
    "vectors": "the vector database cannot be reached; what is embedded is written when it is back",
    "device": "engines on the device of its training end what they run, and are closed",
    "checkpoint": "its training is paused, and makes a checkpoint first",
    "spend_limit": "its project, or all projects together, may spend no more this month (UTC); "
    "it goes on when the spend limit is raised or removed, or the month ends",
    "disk": "there is too little free space for results; it goes on when there is more",
}

Finding = Callable[[Iterable[bytes], Mapping[str, int]], dict[str, list[str]]]


class Reason(BaseModel):
    """A fact that explains a job.

    `wait`: why it does not go on. `input`: errors of its input. `answers`: how answers ended. `failure`: lines that
    failed. `code` is a word for programs: of a failure or of the input the code of the error. `advice` says what to do.
    `is_permanent`, of failed lines of a batch: the same request fails again.
    """

    type: Literal["wait", "input", "answers", "failure"]
    code: str
    message: str
    count: int | None = None
    examples: list[str] = []
    advice: str | None = None
    is_permanent: bool | None = None


class Explanation(BaseModel):
    """The reasons why a job waits, failed, or has doubtful answers, also as text of several lines."""

    object: Literal["job.explanation"] = "job.explanation"
    job_id: str
    reasons: list[Reason]
    text: str


@router.get("/jobs/{job_id}/explain")
def explain_job(call: Call, job_id: str) -> Explanation:
    """Explain why a job waits or failed, and count its lines by outcome, with examples."""
    with call.db.read() as session:
        job = get_job(session, call, job_id)
        waits, is_late = _waits(session, call, job)
        counts, paths = outcomes(session, job), _results(session, call, job)
        ingestion = _file_errors(session, job) if "store_id" in job.payload else None
    if is_late:
        waits += [_waiting(reason) for reason in standstill.publishing_faults(call.config, call.db)]
    results = _Results(call, job, *paths)
    reasons = [*waits, *_input_errors(job), *_answers(results, counts), *_failures(results, counts, ingestion)]
    return Explanation(job_id=job.id, reasons=reasons, text="\n".join(_lines(reasons)))


def _lines(reasons: Sequence[Reason]) -> Iterator[str]:
    for reason in reasons:
        yield _join_lines(reason.message)
        yield from (f"    {_join_lines(text)}" for text in (*reason.examples, reason.advice) if text)


def _join_lines(text: str) -> str:
    return " ".join(text.split())


def _waiting(reason: standstill.StandstillReason) -> Reason:
    return Reason(type="wait", code=reason.code, message=reason.text)


def _waits(session: Session, call: CallContext, job: Job) -> tuple[list[Reason], bool]:
    """Return why the job does not go on, and whether the broker and the dispatcher are in doubt."""
    if job.state in TERMINAL:
        return [], False
    status = model_statuses(session, call, [job]).get(job.id)
    if status is not None and status.status == "loading":
        text = "its model answers when it is loaded; `nightmill workers` shows the worker that loads it"
        return [Reason(type="wait", code="model_loading", message=text)], False
    if job.waiting_for in _WAITS:
        return [_wait_reason(session, job), *_quarantine_reasons(session, call, job)], False
    return _queue_reasons(session, job)


def _wait_reason(session: Session, job: Job) -> Reason:
    """Return what the job itself says that it waits for."""
    message = _WAITS[str(job.waiting_for)].format(model=job.model or "its model", queue=job.queue)
    before = _describe_predecessors(session, job) if job.waiting_for == dependencies.WAITING else []
    return Reason(type="wait", code=f"waiting_for_{job.waiting_for}", message=message, examples=before)


def _describe_predecessors(session: Session, job: Job) -> list[str]:
    """Describe the predecessors that have not completed."""
    ids = dependencies.predecessors(session, [job])[job.id]
    rows = session.scalars(select(Job).where(Job.id.in_(ids), Job.state != JobState.SUCCEEDED).order_by(Job.id))
    return [
        f"{row.id} ({row.kind}): {row.state}{f', waiting for {row.waiting_for}' if row.waiting_for else ''}"
        for row in rows
    ]


def _quarantine_reasons(session: Session, call: CallContext, job: Job) -> Iterator[Reason]:
    """Yield the quarantines of the job's model. The log and the lines in flight, which the operator sees, stay out."""
    if job.waiting_for != "model" or not job.model:
        return
    for row in quarantine.all_quarantines(session, call.services.registry().aliases.get(job.model, job.model)):
        message = f"model {row.model} is quarantined: its engine died {row.deaths} times"
        advice = f"to fix it: correct what its log says, then `nightmill resume model {row.model}`"
        yield Reason(type="wait", code="model_quarantined", message=message, count=row.deaths, advice=advice)


def _queue_reasons(session: Session, job: Job) -> tuple[list[Reason], bool]:
    """Return why no worker has taken a job that makes no progress and reports nothing that it waits for."""
    speed = pace(session, job)
    if speed is not None and (speed.items_per_second or speed.tokens_per_second):
        return [], False
    why, is_late = standstill.reasons(session, job)
    reasons, position = [_waiting(reason) for reason in why], queue_position(session, job)
    if position is not None and (position or not why):
        message = f"{position} of its project's jobs come before it" if position else "its project's next job"
        reasons.append(Reason(type="wait", code="queue_position", message=message, count=position))
    return reasons, is_late


def _input_errors(job: Job) -> Iterator[Reason]:
    errors: list[dict[str, Any]] = sorted(job.errors or (), key=lambda error: str(error.get("code")))
    for code, group in groupby(errors, key=lambda error: str(error.get("code"))):
        same = list(group)
        faults = [_fault(error) for error in same[:EXAMPLES]]
        yield Reason(type="input", code=code, message=f"{len(same)} x {code}", count=len(same), examples=faults)


def _fault(error: Mapping[str, Any]) -> str:
    line = f"line {error['line']}: " if error.get("line") else ""
    where = f" ({error['param']})" if error.get("param") else ""
    return f"{line}{error.get('message')}{where}"


class _Results:
    """The results of a job, of which the beginnings are read."""

    def __init__(self, call: CallContext, job: Job, answers: list[str], errors: list[str]) -> None:
        self.job = job
        self._call, self._answers, self._errors = call, answers, errors

    def answer_examples(self, counts: Mapping[str, int]) -> dict[str, list[str]]:
        return outcome_examples.answer_examples(self._first_lines(self._answers), counts) if counts else {}

    def failure_examples(self, counts: Mapping[str, int]) -> dict[str, Failure]:
        return outcome_examples.failure_examples(self._first_lines(self._errors), counts) if counts else {}

    def _first_lines(self, paths: Sequence[str]) -> Iterator[bytes]:
        """Yield the first lines; of a segment, without the prefix of the ledger."""
        left, is_live = _READ_BYTES, self.job.state not in TERMINAL
        for path in paths:
            try:
                with self._call.storage.reader(path) as handle:
                    while left > 0 and (lines := handle.readlines(CHUNK)):
                        left -= sum(map(len, lines))
                        yield from (line.split(b"\t", 2)[2] if is_live else line for line in lines)
            except NotFound:  # retention has removed it
                continue


def _results(session: Session, call: CallContext, job: Job) -> tuple[list[str], list[str]]:
    """Return the paths of answers and of errors: of a live job the same segments twice."""
    if job.state not in TERMINAL:
        segments = select(Segment.path).where(Segment.job_id == job.id).order_by(Segment.created_at).limit(_SEGMENTS)
        paths = list(session.scalars(segments))
        return paths, paths
    files = select(File.id, File.path).where(File.project_id == call.project_id, File.deleted_at.is_(None))
    named = dict(session.execute(files.where(File.id.in_((job.output_file_id, job.error_file_id)))).all())
    answers, errors = ([named[name]] if name in named else [] for name in (job.output_file_id, job.error_file_id))
    return answers, errors


def _answers(results: _Results, counts: Mapping[str, int]) -> Iterator[Reason]:
    """Count the answers by finish reason, with examples of those that are cut off or empty."""
    reasons = {name: count for name, count in sorted(counts.items()) if name != EMPTY and not name.startswith(_ERROR)}
    doubtful = {name: count for name, count in reasons.items() if name != "stop"}
    if empty := counts.get(EMPTY, 0):
        doubtful[EMPTY] = empty
    shown = results.answer_examples(doubtful)
    if reasons:
        message = "answers ended by " + ", ".join(f"{name} ({count})" for name, count in reasons.items())
        texts = [f"{name}: {text}" for name, some in shown.items() if name != EMPTY for text in some]
        yield Reason(
            type="answers", code="finish_reasons", message=message, count=sum(reasons.values()), examples=texts
        )
    if empty:
        message = f"{empty} of the answers are empty"
        yield Reason(type="answers", code=EMPTY, message=message, count=empty, examples=shown[EMPTY])
    if cut := reasons.get("length"):
        message = f"{cut} cut off at the token limit; with a higher limit, run these again as a new job:"
        yield Reason(type="answers", code="length", message=message, count=cut, advice=_retry_command(results.job))


def _retry_command(job: Job) -> str:
    """Return the command that runs the lines that were cut off again."""
    if job.state not in TERMINAL:
        return "`nightmill retry`, when this job has ended"
    limit = _LIMITS.get(job.endpoint, "max_completion_tokens")
    return f"nightmill retry {job.id} --which length --override '{{\"{limit}\": 4096}}'"


def _failures(
    results: _Results, counts: Mapping[str, int], ingestion: Mapping[str, list[str]] | None
) -> Iterator[Reason]:
    """Count the failed lines by code, with examples. `ingestion` has those of files of a vector store."""
    errors = {name.removeprefix(_ERROR): count for name, count in counts.items() if name.startswith(_ERROR)}
    failures = results.failure_examples(errors) if ingestion is None else {}
    for code, count in sorted(errors.items(), key=lambda pair: -pair[1]):
        failure = failures.get(code)
        permanent = failure.is_permanent if failure else None
        yield Reason(
            type="failure",
            code=code,
            message=f"{count} x {code}",
            count=count,
            examples=failure.examples if failure else (ingestion or {}).get(code, []),
            advice=_retry_advice(results.job.id, permanent) if results.job.state in TERMINAL else None,
            is_permanent=permanent,
        )


def _retry_advice(job_id: str, permanent: bool | None) -> str:
    """Return the command that runs failed lines again."""
    if permanent:
        return f"the same requests fail again; with other fields: `nightmill retry {job_id} --override JSON`"
    return f"`nightmill retry {job_id}` runs these again as a new job"


def _file_errors(session: Session, job: Job) -> dict[str, list[str]]:
    """Return error messages of files that failed to come into a vector store, by code."""
    failed = select(VectorStoreFile).where(
        VectorStoreFile.store_id == index_of(job.payload),
        VectorStoreFile.job_id == job.id,
        VectorStoreFile.status == FAILED,
    )
    texts: dict[str, list[str]] = {}
    for file in session.scalars(failed.order_by(VectorStoreFile.id).limit(_INGESTION_FILES)):
        some = texts.setdefault(file.error_code or "", [])
        if len(some) < EXAMPLES:
            some.append(f"{file.id}: {short(file.error_message)}")
    return texts
