"""Jobs of kind `sampling`: make the requests to one model, and have them answered as the lines of a batch are.

claim ─▶ cases of the run ─▶ requests, a file of lines ─▶ planned as a batch is ─▶ answered ─▶ closed, without files
            └─ bad items: the job is rejected, and so is its run, before any model was asked
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.batches import lines
from jobs.batches.batches import BatchPayload
from jobs.batches.lines import Bad
from jobs.errors import InvalidRequest
from jobs.evals.graders import parse_grader
from jobs.evals.graders.base import GradingError, Ports
from jobs.evals.grading import requests_of
from jobs.evals.runs import MAX_RESULTS, SAMPLING, Evaluation, Sampled, Sampling
from jobs.evals.tables import EvalRun
from jobs.evals.templates import TemplateError
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.tables import Job, Segment, Shard
from jobs.platform.storage import remove_objects
from jobs.requests.endpoints import SEARCH
from workers.batches.planning import Planner
from workers.batches.running import LineRun, read_items
from workers.engines.port import Answer, Request
from workers.evals.cases import name_of, sampled_cases, source_of
from workers.evals.item_sources import RunCase
from workers.evals.sampled_model import enable_cache, request_of
from workers.evals.store_search import StoreSearch
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle
from workers.runtime.output_lines import Item as LineItem
from workers.runtime.output_lines import LineRecord

log = logging.getLogger(__name__)


def plan(context: Context, claim: JobClaim, handle: ClaimHandle) -> None:
    """Write the requests of the claimed job, and plan them. Raises Abandoned, ClaimLost."""
    planner = Planner(context, claim, handle)
    with planner.writer.own_input():
        planner.read(lines.number_lines(_requests(context, claim.job)))
    planner.writer.finish()


def _requests(context: Context, job: Job) -> Iterator[bytes | Bad]:
    """Yield the lines of the requests of a job, and the errors of items."""
    step = Sampling.model_validate(job.payload)
    with context.db.read() as session:
        run = session.get_one(Job, step.run_id)
    requests = _samples(context, run) if step.criterion is None else _judgements(context, run, step, job.endpoint)
    for request in requests:
        if isinstance(request, Bad):
            yield request
            continue
        name, body = request
        line = {"custom_id": name, "method": "POST", "url": job.endpoint, "body": {"model": step.model, **body}}
        yield msgspec.json.encode(line)


def _samples(context: Context, run: Job) -> Iterator[tuple[str, dict[str, Any]] | Bad]:
    """Yield the requests for samples, by name."""
    sampled = Evaluation.model_validate(run.payload).sampled
    assert sampled is not None
    case: RunCase | Bad | None = None
    for case in source_of(context, run, checked=True).cases():
        if isinstance(case, Bad):
            yield case
        elif sampled.retrieval is not None and case.row.number >= sampled.retrieval.max_items and case.needs_sample:
            message = f"A run searches for at most {MAX_RESULTS} results, all items together."
            yield Bad("too_many_results", message, None, "data_source.max_num_results")
            return
        elif case.needs_sample:
            yield from _request_of(sampled, case)
    if case is None:
        yield Bad("empty_file", "The run has no items.")


def _request_of(sampled: Sampled, case: RunCase) -> Iterator[tuple[str, dict[str, Any]] | Bad]:
    """Yield the request for a sample, or why there is none, once for each item."""
    try:
        _, body = request_of(sampled, case.row.item, case.index)
    except (GradingError, InvalidRequest, TemplateError) as error:
        param = "data_source.input_messages" if sampled.text is None else "data_source"
        if case.index == 0:
            yield Bad("invalid_variable", str(error), case.line, param)
    else:
        yield name_of(case), body


def _judgements(
    context: Context, run: Job, step: Sampling, endpoint: str | None
) -> Iterator[tuple[str, dict[str, Any]] | Bad]:
    """Yield the requests of a criterion to one model, by name."""
    assert step.criterion is not None
    payload = Evaluation.model_validate(run.payload)
    grader = parse_grader(payload.criteria[step.criterion], is_stored=True)
    ports = Ports(embedding_model=payload.embedding_model)
    for case in sampled_cases(context, run):
        if isinstance(case, Bad):
            yield case
        elif case.row.sample is not None and step.criterion in case.to_judge:
            for request in requests_of(grader, case.row.item, case.row.sample, ports):
                if (request.url, request.body["model"]) == (endpoint, step.model):
                    yield name_of(case, request.key), enable_cache(request.url, request.body)


class SamplingRun(LineRun):
    """A claim on a shard of requests."""

    ends_at_once = False  # `finish` ends the job
    _search: Callable[[Request], Awaitable[Answer]] | None = None

    def run_lines(self) -> None:
        if self.claim.job.endpoint != SEARCH:
            super().run_lines()
            return
        with self.context.db.read() as session:
            run = session.get_one(Job, self.claim.job.parent_id)
        sampled = Evaluation.model_validate(run.payload).sampled
        assert sampled is not None
        assert sampled.retrieval is not None
        queue = self.claim.queue or self.claim.job.queue or ""
        with closing(StoreSearch(self.context, self.host, queue, sampled.retrieval)) as search:
            self._search = search.answer
            super().run_lines()

    def answer_function(self) -> Callable[[Request], Awaitable[Answer]] | None:
        return self._search

    def read(self) -> tuple[list[LineItem], list[LineRecord]]:
        return read_items(self.context, self.claim, BatchPayload())


def finish(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    """End the claimed job: its run reads the segments. Raises ClaimLost."""
    close(context, claim)


def close(context: Context, claim: JobClaim, criteria: list[dict[str, Any]] | None = None) -> None:
    """End a job of a run with the sums of its shards, and note the results of the run by its `criteria`.

    The objects of a run that was removed meanwhile go too.
    """
    job = claim.job
    run_id = Sampling.model_validate(job.payload).run_id if job.kind == SAMPLING else job.id
    with context.db.read() as session:
        values = {**ledger.sums(session, job.id), "total": job.total}
        counts = Counter[str]()
        for outcomes in session.scalars(select(Segment.outcomes).where(Segment.job_id == job.id)):
            counts.update(outcomes or {})

    def end(session: Session) -> bool:
        ledger.close(session, claim, values, [], counts)
        run = session.get(EvalRun, run_id)
        if run is not None and criteria is not None:
            stored = (select(func.sum(table.length)).where(table.job_id == job.id) for table in (Shard, Segment))
            run.criteria, run.bytes = criteria, sum(int(session.scalar(size) or 0) for size in stored)
        return run is not None

    if not context.db.retrying(end):
        remove_objects(context.storage, [f"jobs/{job.id}"])
    log.info("evaluation_step_closed", extra={"job_id": job.id, **values})
