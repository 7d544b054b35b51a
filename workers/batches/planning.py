"""Plan a batch: read its input once, check every line, and cut it into shards of bytes.

    claim ─▶ each line: check, add to the shards ─▶ planned      the job runs
                 └─ bad lines ─▶ rejected, with line numbers     the job fails, no line was run

Memory holds one line, the numbers of the shards and 8 bytes per `custom_id`.

Small inputs are planned together: the jobs of one message are read first, in memory, then claimed and planned in one
transaction. They are read without a claim, because reading takes less time than writing one. Two workers that read the
same jobs meet at the claim; a worker that dies leaves only messages, which are published again. A job that is larger,
or not at its first try, or unusual, is planned alone.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from jobs.batches import batches, lines
from jobs.batches.batches import BatchPayload, Which
from jobs.batches.lines import Bad, InputLine
from jobs.errors import DatabaseBusy, NotFound, StorageFull, StorageUnavailable
from jobs.fleet import access, enqueued_tokens, routing
from jobs.fleet.access import Work
from jobs.fleet.models_file import ModelsFileError
from jobs.fleet.routing import Route
from jobs.inference import responses
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.outbox import SMALL_BYTES
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Segment, Shard
from jobs.prompts import versions
from jobs.prompts.resolution import PinnedPrompts, PromptReference, ResolvedPrompt
from jobs.queues import Task
from jobs.registry.aliases import AliasRouting
from jobs.requests import token_estimates
from jobs.requests.endpoints import EMBEDDINGS, SERVED_WITH
from jobs.security.ended_keys import find_ends
from jobs.security.tables import Project
from workers.batches.shard_writer import MAX_ERRORS, ShardWriter
from workers.runtime.attempts import Abandoned
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle

log = logging.getLogger(__name__)


def plan(context: Context, claim: JobClaim, handle: ClaimHandle) -> None:
    """Cut the claimed job's input into shards and let it run, or reject it. Raises Abandoned, ClaimLost."""
    planner = Planner(context, claim, handle)
    planner.read_input()
    planner.writer.finish()


@dataclass(slots=True)
class RouteCache:
    """The routes of jobs that are planned together. An alias is looked up once, and drawn from for each job."""

    context: Context
    aliases: dict[tuple[str, str], AliasRouting | None] = field(default_factory=dict)
    routes: dict[Work, Route] = field(default_factory=dict)

    def find(self, work: Work) -> Route:
        """Return which workers do the work. Raises ModelsFileError, NotServed, NotYet."""
        context, name = self.context, (work.model, work.project_id)
        if name not in self.aliases:
            with context.db.read() as session:
                self.aliases[name] = access.routing_of_alias(session, context.models.now(), *name)
        work = access.draw(work, self.aliases[name])
        if work not in self.routes:
            with context.db.read() as session:
                self.routes[work] = access.resolve(session, context.config, context.models.now(), work)
        return self.routes[work]


class Planner:
    """The check of one input: lines in, shards out. `routes` may be those of other planners too."""

    def __init__(
        self,
        context: Context,
        claim: JobClaim,
        handle: ClaimHandle | None = None,
        routes: RouteCache | None = None,
    ) -> None:
        self.context, self.config, self.job = context, context.config, claim.job
        self.routes = routes or RouteCache(context)
        self.prompts = PinnedPrompts(self._find_prompt, claim.job.payload.get("prompts"))
        self.checker = lines.LineChecker(claim.job.endpoint, self.prompts)
        self.writer = ShardWriter(context, claim, handle, check=self._check_quota)
        self.inputs = self.prompt_bytes = 0
        self._overrides = claim.job.payload.get("overrides") or {}

    def read_input(self) -> None:
        """Read the file of a batch, or those of its lines that a retry runs. An input without lines is an error."""
        path = self.job.input_path
        if path is None:
            self.writer.add(_missing_file(self.job))
        elif self.job.retry_of is None:
            self._read_file(path)
        else:
            self._read_retry(path)
        if not self.writer.total and not self.writer.errors:
            self._complain("empty_file", "The input file contains no requests.")
        if self.prompts.pins:
            self.writer.payload = {**self.job.payload, "prompts": self.prompts.pins}

    def read(self, texts: Iterable[InputLine | Bad]) -> None:
        """Check lines and add them to the shards, up to the limits of an input. Raises Abandoned."""
        for text in texts:
            if isinstance(text, InputLine) and text.offset + text.length > self.config.batch_max_bytes:
                self._complain("file_too_large", f"The input file exceeds {self.config.batch_max_bytes} bytes.")
                break
            line, tokens = self._check(text) if isinstance(text, InputLine) else (text, 0)
            self.writer.add(line, tokens)
            if self.writer.is_full:
                break
        limit = self.config.batch_max_lines
        if self.writer.total > limit:
            self._complain("too_many_requests", f"The input file has more than {limit} requests.")
        if self.job.endpoint == EMBEDDINGS and self.inputs > limit:
            self._complain("too_many_inputs", f"The batch has more than {limit} embedding inputs.")

    def conclude(self, session: Session, claim: JobClaim) -> None:
        """Plan what was read without a claim, under a claim of the same transaction."""
        self.writer.claim = claim
        if not self.writer.let_run(session):
            self.writer.reject(session)

    def _read_file(self, path: str) -> None:
        try:
            with self.context.storage.reader(path) as handle:
                self.read(lines.read(handle))
            if suspects := self.checker.ids.suspects():
                with self.context.storage.reader(path) as handle:
                    self._name_duplicates(handle, suspects)
        except NotFound:
            self.writer.add(_missing_file(self.job))

    def _name_duplicates(self, handle: BinaryIO, suspects: frozenset[int]) -> None:
        errors = self.writer.errors
        for bad in lines.duplicates(handle, suspects):
            self.writer.add(bad)
            if len(errors) >= MAX_ERRORS:
                break
        errors.sort(key=lambda bad: (bad.line is None, bad.line))

    def _read_retry(self, path: str) -> None:
        """Read the lines that a retry runs, and copy them to an input of its own."""
        with self.context.db.read() as session:
            first, which = batches.last_run(session, self.job, BatchPayload.model_validate(self.job.payload).which)
            if first is not None:
                is_chosen = _line_filter(session, first, which)
                is_known = batches.results_known(session, first, which)
        if first is None:
            self._read_file(path)
        elif not is_known:
            self.writer.add(Bad(batches.RESULTS_EXPIRED, batches.expiry_message(first)))
        else:
            with self.context.storage.reader(first.input_path or path) as handle, self.writer.own_input():
                texts = enumerate(lines.read(handle))
                chosen = (text.raw for number, text in texts if text.raw is not None and is_chosen(number))
                self.read(lines.number_lines(chosen))

    def _check(self, text: InputLine) -> tuple[InputLine | Bad, int]:
        """Return the line, or its error, and the most tokens that its answer and the prompt that it names may have."""
        checked = self.checker.check(text)
        if isinstance(checked, Bad):
            return checked, 0
        if self.writer.errors:
            return text, 0
        self.inputs += checked.inputs
        tokens = token_estimates.output_tokens(self.job.endpoint, {**checked.bounds, **self._overrides})
        tokens += token_estimates.input_tokens(checked.prompt_bytes)
        self.prompt_bytes += checked.prompt_bytes
        refusal = None if self.writer.queue else self._route(checked.model, text.number)
        return refusal or text, tokens

    def _find_prompt(self, reference: PromptReference) -> ResolvedPrompt:
        with self.context.db.read() as session:
            return versions.resolve(session, self.job.project_id, reference)

    def _route(self, model: str, number: int) -> Bad | None:
        """Set the model, after a retry's overrides, and the queue that serves it; return an error where there is none.

        One model is drawn from those of an alias, for all lines: what is changed later concerns other jobs. A job that
        was made with a model, such as a background response, keeps that.

        Raises: Abandoned, where there may be one later.
        """
        model = self._overrides.get("model") or self.job.model or model
        endpoint = SERVED_WITH.get(self.job.endpoint, self.job.endpoint)
        writer = self.writer
        try:
            route = self.routes.find(access.work_of(self.job, model, endpoint))
        except routing.NotServed as refusal:
            return Bad(refusal.code, str(refusal), number, "body.model")
        except (routing.NotYet, ModelsFileError):
            raise Abandoned(5.0, "model") from None
        writer.queue, writer.model, writer.serves_as = route[:3]
        return None

    def _check_quota(self, session: Session) -> Sequence[Bad]:
        """Return an error if the job's project would exceed its quota. Of two planners each counts the other's job."""
        job, registry = self.job, self.context.models.now()
        limit = enqueued_tokens.limit_for(session, self.config, registry, job.project_id, self.writer.model or "")
        if limit is None:
            return []
        # no other planner adds to the project's jobs meanwhile, and new jobs may still name it
        session.get(Project, job.project_id, with_for_update={"key_share": True})
        refusal = limit.refusal(session, self.writer.bytes + self.prompt_bytes, excluded=job.id)
        return [] if refusal is None else [refusal]

    def _complain(self, code: str, message: str) -> None:
        self.writer.add(Bad(code, message))


def _missing_file(job: Job) -> Bad:
    message = f"Cannot find file {job.input_file_id}, or your project does not have access to it."
    return Bad("invalid_request", message, None, "file_id")


def _line_filter(session: Session, job: Job, which: Which) -> Callable[[int], bool]:
    """Return a function that tells, of rising line numbers of a job that ran, whether a retry runs the line."""
    if batches.runs_all(job, which):
        return lambda _number: True
    shards_of = select(Shard.n, Shard.first_line).where(Shard.job_id == job.id).order_by(Shard.n)
    firsts = dict(session.execute(shards_of).all())
    noted = dict.fromkeys(firsts, 0)
    column = Segment.cut_off if which == batches.LENGTH else Segment.good
    for n, bitmap in session.execute(select(Segment.n, column).where(Segment.job_id == job.id)):
        if n in noted:  # else retention is deleting the job, and its results are unknown
            noted[n] |= int.from_bytes(bitmap or b"", "little")
    spans = deque((first, noted[n]) for n, first in firsts.items())

    def chosen(number: int) -> bool:
        while len(spans) > 1 and spans[1][0] <= number:
            spans.popleft()
        first, bitmap = spans[0] if spans else (0, 0)
        return bool(bitmap >> (number - first) & 1) is (which == batches.LENGTH)

    return chosen


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
    drafts = _drafts(context, job_ids)
    if drafts and not _plan_drafts(context, drafts):
        return list(job_ids)
    return [job_id for job_id in job_ids if job_id not in drafts]


def _drafts(context: Context, job_ids: Sequence[str]) -> dict[str, Planner]:
    """Return the drafts of the jobs with small inputs, by job, in the order of their ids, in which rows are locked."""
    with context.db.read() as session:
        jobs = session.scalars(_UNTOUCHED, {"ids": job_ids}).all()
    routes = RouteCache(context)
    drafts = {job.id: _draft(context, job, routes) for job in sorted(jobs, key=lambda job: job.id)}
    return {job_id: draft for job_id, draft in drafts.items() if draft is not None}


def _draft(context: Context, job: Job, routes: RouteCache) -> Planner | None:
    """Read and check a small input without a claim and without writing; return None where it is not small.

    Return None also after an error, which will occur again, and be handled, when the job is planned alone.
    """
    try:
        if job.input_path is None or context.storage.size(job.input_path) > SMALL_BYTES:
            return None
        planner = Planner(context, JobClaim(job, 0, ""), routes=routes)
        planner.read_input()
        return planner
    except (Abandoned, NotFound, StorageUnavailable, StorageFull):
        return None
    except Exception:  # must not keep the other jobs from being planned
        log.exception("draft_failed", extra={"job_id": job.id})
        return None


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
    ended = find_ends(session, list(drafts))
    claims = [ledger.claim(session, job_id, Task.PLAN, worker_id) for job_id in drafts if job_id not in ended]
    for claim in sorted(filter(None, claims), key=lambda claim: claim.job.project_id):
        if claim.epoch == 1:
            drafts[claim.job.id].conclude(session, claim)
        else:  # another planner has cut shards since it was read
            ledger.release(session, claim.job.id, claim.epoch)
