"""Plan a batch: read its input once, check every line, and cut it into shards of bytes.

    claim ─▶ each line: check, add to the shard being filled ─▶ planned      the job runs, the last shards with it
                 │            └─ 50 shards: one transaction
                 └─ bad lines ─▶ rejected, with line numbers                 the job fails, no line was run

Memory holds one line, the shard's numbers and 8 bytes per `custom_id`. When a planner dies, the next one removes its
shards and starts again; until the job is planned, messages of its shards are ignored.

Small inputs are planned together: the jobs of one message are read first, in memory, then claimed and planned in one
transaction. They are read without a claim, because reading takes less time than writing one. Two workers that read the
same jobs meet at the claim; a worker that dies leaves only messages, which are published again. A job that is larger,
or not at its first try, or unusual, is planned alone.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import BinaryIO, TypeVar

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from jobs.batches import batches, lines
from jobs.batches.batches import Batch, Which
from jobs.db.engine import WRITE_ROWS
from jobs.errors import DatabaseBusy, NotFound, StorageFull, StorageUnavailable
from jobs.fleet import routing
from jobs.fleet.models_file import ModelsFileError
from jobs.fleet.routing import Route
from jobs.inference import responses
from jobs.ledger import ledger, shards
from jobs.ledger.ledger import JobClaim
from jobs.ledger.outbox import SMALL_BYTES
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Segment, Shard
from jobs.queues import Task
from jobs.requests.endpoints import EMBEDDINGS, SERVED_WITH
from jobs.security.tables import Project
from jobs.settings import Settings
from workers.runtime.attempts import Abandoned
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle

T = TypeVar("T")

log = logging.getLogger(__name__)
#: Limit of the errors of a rejected batch.
MAX_ERRORS = 1000
_SHARDS_AT_ONCE = 50


def plan(context: Context, claim: JobClaim, handle: ClaimHandle) -> None:
    """Cut the claimed job's input into shards and let it run, or reject it. Raises Abandoned, ClaimLost."""
    Planner(context, claim, handle).run()


class ShardCutter:
    """Lines in their order, cut into shards of bounded lines and bytes.

    `shards` are those that were not taken; the last one is being filled. `total` counts the lines.
    """

    def __init__(self, job_id: str, config: Settings) -> None:
        self.shards: list[Shard] = []
        self.total = 0
        self._job_id, self._config = job_id, config
        self._next = 0  # the number of the next shard

    def add(self, offset: int, length: int) -> None:
        """Add a line. What stands between the lines, such as blank lines, belongs to the shard before."""
        shard = self.shards[-1] if self.shards else None
        if shard is None or self._is_full(shard, offset + length):
            shard = Shard(job_id=self._job_id, n=self._next, first_line=self.total, lines=0, offset=offset, length=0)
            self.shards.append(shard)
            self._next += 1
        shard.lines += 1
        shard.length = offset + length - shard.offset
        self.total += 1

    def take_full(self) -> list[Shard]:
        """Take the first `_SHARDS_AT_ONCE` shards, if so many are full."""
        if len(self.shards) <= _SHARDS_AT_ONCE:
            return []
        taken, self.shards = self.shards[:_SHARDS_AT_ONCE], self.shards[_SHARDS_AT_ONCE:]
        return taken

    def _is_full(self, shard: Shard, end: int) -> bool:
        return shard.lines >= self._config.shard_lines or end - shard.offset > self._config.shard_bytes


class Planner:
    """One pass over one input. `queues` caches the queue of each (model, endpoint, project).

    `may_be_empty`: an input without requests is no error.
    """

    may_be_empty = False

    def __init__(
        self,
        context: Context,
        claim: JobClaim,
        handle: ClaimHandle | None = None,
        queues: dict[tuple[str, str, str], Route] | None = None,
    ) -> None:
        self.context = context
        self.config = context.config
        self.claim = claim
        self.handle = handle
        self.queues = {} if queues is None else queues
        self.checker = lines.Checker(claim.job.endpoint)
        self.errors: list[lines.Bad] = []
        self.queue: str | None = None
        self.serves_as: str | None = None
        self.inputs = self.bytes = 0
        self.cutter = ShardCutter(claim.job.id, self.config)

    def run(self) -> None:
        if self.context.low_on_disk():
            raise Abandoned(5.0, "disk")
        if self.claim.epoch > 1:  # an earlier planner may have cut shards
            clear(self.context, self.claim)
        if (path := self.input_path()) is not None:
            self._read(path)
        if self._ended:
            raise Abandoned
        if not self.errors and not self._write(self._planned):
            self._complain_of_tokens()
        if self.errors:
            clear(self.context, self.claim)
            self._write(self._rejected)

    def input_path(self) -> str | None:
        """Return the path of the lines to cut; None after errors."""
        path = _input_path(self.context, self.claim)
        if isinstance(path, lines.Bad):
            self.errors.append(path)
            return None
        return path

    def draft(self) -> bool:
        """Read and check a small input without a claim and without writing.

        Return False where the input is not small.
        """
        path = self.claim.job.input_path
        if path is None or self.context.storage.size(path) > SMALL_BYTES:
            return False
        self._read(path)
        return True

    def conclude(self, session: Session, claim: JobClaim) -> None:
        """Write the draft, under a claim of the same transaction. A second run counts the tokens anew."""
        self.claim, errors = claim, list(self.errors)
        if not self.errors and not self._planned(session):
            self._complain_of_tokens()
        if self.errors:
            self._rejected(session)
        self.errors = errors

    @property
    def _ended(self) -> bool:
        return self.handle is not None and self.handle.ended

    def _rejected(self, session: Session) -> None:
        ledger.reject(session, self.claim, [bad.as_dict() for bad in self.errors])

    def _complain_of_tokens(self) -> None:
        self.errors.append(batches.quota_refusal(self.config.project_max_queued_tokens))

    def _planned(self, session: Session) -> bool:
        """Let the job run, unless its project would exceed its quota.

        Of two planners at once, each counts the other's job.
        """
        if self._over_token_limit(session):
            return False
        shards.cut(session, self.claim, self.queue or "", self.cutter.shards)
        model = self.checker.model and self._asked(self.checker.model)
        ledger.planned(
            session, self.claim, total=self.cutter.total, model=model, queue=self.queue or "", serves_as=self.serves_as
        )
        return True

    def _asked(self, model: str) -> str:
        """Return the model of a line after a retry's overrides."""
        overrides = self.claim.job.payload.get("overrides") or {}
        return overrides.get("model") or model

    def _read(self, path: str) -> None:
        try:
            if self.context.storage.size(path) > self.config.batch_max_bytes:
                self._complain("file_too_large", f"The input file exceeds {self.config.batch_max_bytes} bytes.")
                return
            with self.context.storage.reader(path) as handle:
                self._cut_all(handle)
            suspects = self.checker.ids.suspects()
            if suspects:
                with self.context.storage.reader(path) as handle:
                    self._name_duplicates(handle, suspects)
                self.errors.sort(key=lambda bad: bad.line or 0)
        except NotFound:
            self.errors.append(_missing_file(self.claim.job))
        self._check_totals()

    def _cut_all(self, handle: BinaryIO) -> None:
        for text in lines.read(handle, self.config.batch_max_line_bytes):
            checked = self.checker.check(text)
            if isinstance(checked, lines.Bad):
                self.errors.append(checked)
            elif not self.errors:
                self._add(text, checked)
            if len(self.errors) >= MAX_ERRORS or self.cutter.total > self.config.batch_max_lines:
                return

    def _name_duplicates(self, handle: BinaryIO, suspects: frozenset[int]) -> None:
        for bad in lines.duplicates(handle, self.config.batch_max_line_bytes, suspects):
            self.errors.append(bad)
            if len(self.errors) >= MAX_ERRORS:
                return

    def _add(self, text: lines.Text, good: lines.Good) -> None:
        if self.queue is None:
            self.queue, self.serves_as = self._queue_for_model(self._asked(good.model), text.number)
        self.cutter.add(text.offset, text.length)
        self.inputs += good.inputs
        self.bytes += text.length
        cut_full(self.context, self.claim, self.cutter, self.queue or "", self.handle)

    def _queue_for_model(self, model: str, number: int) -> Route:
        job = self.claim.job
        endpoint = SERVED_WITH.get(job.endpoint, job.endpoint)
        key = (model, endpoint, job.project_id)
        if key in self.queues:
            return self.queues[key]
        try:
            with self.context.db.read() as session:
                registry = self.context.models.now()
                queue = routing.route(
                    session, self.config, registry, model, endpoint=endpoint, project_id=job.project_id
                )
                return self.queues.setdefault(key, queue)
        except routing.NotServed as refusal:
            self.errors.append(lines.Bad(refusal.code, str(refusal), number, "body.model"))
            return Route("")
        except (routing.NotYet, ModelsFileError):
            raise Abandoned(5.0, "model") from None

    def _check_totals(self) -> None:
        if self.cutter.total > self.config.batch_max_lines:
            limit = self.config.batch_max_lines
            self._complain("too_many_requests", f"The input file has more than {limit} requests.")
        if self.claim.job.endpoint == EMBEDDINGS and self.inputs > self.config.batch_max_embedding_inputs:
            limit = self.config.batch_max_embedding_inputs
            self._complain("too_many_inputs", f"The batch has more than {limit} embedding inputs.")
        if not self.cutter.total and not self.errors and not self.may_be_empty:
            self._complain("empty_file", "The input file contains no requests.")

    def _over_token_limit(self, session: Session) -> bool:
        limit = self.config.project_max_queued_tokens
        if not limit:
            return False
        return batches.is_over_quota(_queued_bytes(session, self.claim.job), self.bytes, limit)

    def _complain(self, code: str, message: str) -> None:
        self.errors.append(lines.Bad(code, message))

    def _write(self, work: Callable[[Session], T]) -> T:
        return self.context.db.retrying(work, self.context.stop)


def cut_full(
    context: Context, claim: JobClaim, cutter: ShardCutter, queue: str, handle: ClaimHandle | None = None
) -> None:
    """Commit full shards, many at a time; other processes write between the transactions. Raises Abandoned."""
    while full := cutter.take_full():
        if handle is not None and handle.ended:
            raise Abandoned
        context.db.retrying(partial(shards.cut, claim=claim, queue=queue, shards=full), context.stop)
        context.db.breathe(context.stop)


def clear(context: Context, claim: JobClaim) -> None:
    """Remove the shards of an earlier planner, or of this one before an error."""
    while context.db.retrying(lambda session: shards.uncut(session, claim, WRITE_ROWS), context.stop):
        context.db.breathe(context.stop)


# ── the input of a job: its file, or, for a retry, a copy of the lines that the retry runs ──


def _missing_file(job: Job) -> lines.Bad:
    message = f"Cannot find file {job.input_file_id}, or your project does not have access to it."
    return lines.Bad("invalid_request", message, None, "file_id")


def _input_path(context: Context, claim: JobClaim) -> str | lines.Bad:
    """Return the path of the job's input, or the error of a file or of a retry without known lines."""
    job = claim.job
    if job.input_path is None:
        return _missing_file(job)
    if job.retry_of is None:
        return job.input_path
    with context.db.read() as session:
        first, which = batches.last_run(session, job, Batch.model_validate(job.payload).which)
        if first is None:
            return job.input_path
        chosen = None if batches.runs_all(first, which) else _chosen_lines(session, first.id, which)
        if not batches.results_known(session, first, which):
            return lines.Bad(batches.RESULTS_EXPIRED, batches.results_expired(first))
    path = f"jobs/{job.id}/input-{claim.epoch}.jsonl"
    source = first.input_path or job.input_path
    with context.storage.reader(source) as handle, context.storage.writer(path) as out:
        for number, text in enumerate(lines.read(handle, context.config.batch_max_line_bytes)):
            if chosen is None or chosen(number):
                out.write((text.raw or b"") + b"\n")
    set_input(context, claim, path)
    return path


def _queued_bytes(session: Session, job: Job) -> int:
    """Return the bytes of input that the project's other live jobs still read.

    Lock the project's row, so that no other planner adds to them meanwhile.
    """
    session.get(Project, job.project_id, with_for_update={"key_share": True})  # new jobs may still name it
    return batches.queued_bytes(session, job.project_id, excluded=job.id)


def _chosen_lines(session: Session, job_id: str, which: Which) -> Callable[[int], bool]:
    """Return a function that tells, of rising line numbers of a job that ran, whether a retry runs the line."""
    shards_of = select(Shard.n, Shard.first_line).where(Shard.job_id == job_id).order_by(Shard.n)
    firsts = dict(session.execute(shards_of).all())
    noted = dict.fromkeys(firsts, 0)
    column = Segment.cut_off if which == batches.LENGTH else Segment.good
    for n, bitmap in session.execute(select(Segment.n, column).where(Segment.job_id == job_id)):
        if n in noted:  # else retention is deleting the job, and its results are unknown
            noted[n] |= int.from_bytes(bitmap or b"", "little")
    spans = deque((first, noted[n]) for n, first in firsts.items())

    def chosen(number: int) -> bool:
        while len(spans) > 1 and spans[1][0] <= number:
            spans.popleft()
        first, bitmap = spans[0] if spans else (0, 0)
        return bool(bitmap >> (number - first) & 1) is (which == batches.LENGTH)

    return chosen


def set_input(context: Context, claim: JobClaim, path: str) -> None:
    """Note the path of the lines that were written for a job. Raises ClaimLost."""
    context.db.retrying(lambda session: ledger.set_retry_input(session, claim, path), context.stop)


# ── small inputs together ──

_UNTOUCHED = select(Job).where(
    Job.id.in_(bindparam("ids", expanding=True)),
    Job.state == JobState.QUEUED,
    Job.epoch == 0,
    Job.kind.in_((*batches.NAMES, responses.KIND)),
    Job.retry_of.is_(None),
)


def plan_small(context: Context, job_ids: Sequence[str]) -> list[str]:
    """Plan the small ones among these jobs, all or none; return the ids of the others."""
    drafts = {} if context.low_on_disk() else _drafts(context, job_ids)
    if drafts and not _plan_drafts(context, drafts):
        return list(job_ids)
    return [job_id for job_id in job_ids if job_id not in drafts]


def _drafts(context: Context, job_ids: Sequence[str]) -> dict[str, Planner]:
    """Return the drafts of the jobs with small inputs, by job, in the order of their ids, in which rows are locked."""
    with context.db.read() as session:
        jobs = session.scalars(_UNTOUCHED, {"ids": job_ids}).all()
    queues: dict[tuple[str, str, str], Route] = {}
    planners = {job.id: Planner(context, ledger.JobClaim(job, 0, ""), queues=queues) for job in jobs}
    return {job_id: planners[job_id] for job_id in sorted(planners) if _drafted(planners[job_id])}


def _drafted(planner: Planner) -> bool:
    """Draft one job.

    Return False after an error, which will occur again, and be handled, when the job is planned alone.
    """
    try:
        return planner.draft()
    except (Abandoned, NotFound, StorageUnavailable, StorageFull):
        return False
    except Exception:  # must not keep the other jobs from being planned
        log.exception("draft_failed", extra={"job_id": planner.claim.job.id})
        return False


def _plan_drafts(context: Context, drafts: Mapping[str, Planner]) -> bool:
    """Write the drafts in one transaction; return whether it was committed.

    One job that cannot be planned undoes the transaction: the others can then be planned one at a time.

    Raises: DatabaseBusy.
    """
    try:
        context.db.retrying(lambda session: _claim_and_plan(session, drafts, context.worker_id), context.stop)
    except DatabaseBusy:
        raise
    except Exception:  # planned one at a time, only the broken job fails
        log.exception("planning_together_failed", extra={"jobs": len(drafts)})
        return False
    return True


def _claim_and_plan(session: Session, drafts: Mapping[str, Planner], worker_id: str) -> None:
    """Claim the jobs and write their drafts. A second run after a commit finds nothing to claim.

    Rows of jobs are locked in the order of their ids, then rows of projects in the order of theirs.
    """
    claims = [ledger.claim(session, job_id, Task.PLAN, worker_id) for job_id in drafts]
    for claim in sorted(filter(None, claims), key=lambda claim: claim.job.project_id):
        if claim.epoch == 1:
            drafts[claim.job.id].conclude(session, claim)
        else:  # another planner has cut shards since it was read
            ledger.release(session, claim.job.id, claim.epoch)
