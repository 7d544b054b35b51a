"""Jobs of kind `sampling`: make the requests to one model, and have them answered as the lines of a batch are.

claim ─▶ cases of the run ─▶ requests, a file of lines ─▶ planned as a batch is ─▶ answered ─▶ closed, without files
            └─ bad items: the job is rejected, and so is its run, before any model was asked
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from typing import Any, Final

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.batches.batches import Batch
from jobs.batches.lines import Bad
from jobs.evals.graders import parse_grader
from jobs.evals.graders.base import GradingError, Ports
from jobs.evals.graders.messages import Message
from jobs.evals.grading import chat_messages, requests_of
from jobs.evals.runs import MAX_RESULTS, Evaluation, Sampled, Sampling
from jobs.evals.tables import EvalRun
from jobs.evals.templates import TemplateError, references, render, resolve
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.tables import Job, Segment, Shard
from jobs.platform.storage import let_go
from jobs.requests.endpoints import CHAT, SEARCH
from workers.batches.planning import MAX_ERRORS, Planner, set_input
from workers.batches.running import LineRun, read_items
from workers.engines.port import Answer, Request
from workers.evals.cases import cases_of, name_of, sample_of, unanswered_cases
from workers.evals.store_search import StoreSearch
from workers.runtime.attempts import Abandoned
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle
from workers.runtime.output_lines import Item as LineItem
from workers.runtime.output_lines import Record

log = logging.getLogger(__name__)
#: The names of sampling parameters in the requests to each endpoint. Responses know no seed.
_RESPONSE_FIELDS: Final = {"max_completion_tokens": "max_output_tokens", "reasoning_effort": "reasoning"}


def plan(context: Context, claim: JobClaim, handle: ClaimHandle) -> None:
    """Write the requests of the claimed job, and plan them. Raises Abandoned, ClaimLost."""
    SamplingPlanner(context, claim, handle).run()


class SamplingPlanner(Planner):
    """The planning of the requests to one model."""

    may_be_empty = True

    def input_path(self) -> str | None:
        step = Sampling.model_validate(self.claim.job.payload)
        with self.context.db.read() as session:
            run = session.get_one(Job, step.run_id)
        path = f"jobs/{self.claim.job.id}/input-{self.claim.epoch}.jsonl"
        size = 0
        with self.context.storage.writer(path) as out:
            for line in self._lines(run, step):
                size += out.write(line)
                if self._ended:
                    raise Abandoned
                if size > self.config.batch_max_bytes:
                    break
        if self.errors:
            return None
        set_input(self.context, self.claim, path)
        return path

    def _lines(self, run: Job, step: Sampling) -> Iterator[bytes]:
        """Yield the lines of the requests; collect errors."""
        payload = Evaluation.model_validate(run.payload)
        endpoint, model = self.claim.job.endpoint, step.model
        requests = self._samples(run, payload) if step.criterion is None else self._judgements(run, payload, step)
        empty = True
        for name, body in requests:
            empty = False
            line = {"custom_id": name, "method": "POST", "url": endpoint, "body": {"model": model, **body}}
            yield msgspec.json.encode(line) + b"\n"
        if empty and step.criterion is None and payload.retried is None and not self.errors:
            self.errors.append(Bad("empty_file", "The run has no items."))

    def _samples(self, run: Job, payload: Evaluation) -> Iterator[tuple[str, dict[str, Any]]]:
        sampled = payload.sampled
        assert sampled is not None
        for case in unanswered_cases(self.context, run, checked=True):
            if isinstance(case, Bad):
                self.errors.append(case)
                continue
            if case.earlier is not None and not case.earlier.needs_sample:
                continue
            if sampled.retrieval is not None and case.item.number >= sampled.retrieval.max_items:
                message = f"A run searches for at most {MAX_RESULTS} results, all items together."
                self.errors.append(Bad("too_many_results", message, None, "data_source.max_num_results"))
                return
            try:
                messages = input_of(sampled, case.item.item)
            except (GradingError, TemplateError) as error:
                param = "data_source.input_messages" if sampled.text is None else "data_source"
                if case.index == 0:
                    self.errors.append(Bad("invalid_variable", str(error), case.item.line, param))
                if len(self.errors) >= MAX_ERRORS:
                    return
                continue
            yield name_of(case.item.number, case.index), body_of(sampled, messages, case.index)

    def _judgements(self, run: Job, payload: Evaluation, step: Sampling) -> Iterator[tuple[str, dict[str, Any]]]:
        assert step.criterion is not None
        grader = parse_grader(payload.criteria[step.criterion], is_stored=True)
        ports = Ports(embedding_model=payload.embedding_model)
        url, sampled = self.claim.job.endpoint, payload.sampled
        for case in cases_of(self.context, run, checked=sampled is None, judged=False):
            if isinstance(case, Bad):
                self.errors.append(case)
                continue
            if case.earlier is not None and not case.earlier.needs_judgement(step.criterion):
                continue
            sample = sample_of(case, sampled.endpoint if sampled else None)
            for request in requests_of(grader, case.item.item, sample, ports) if sample is not None else ():
                if (request.url, request.body["model"]) == (url, step.model):
                    yield name_of(case.item.number, case.index, request.key), _cached(request.url, request.body)


def input_of(sampled: Sampled, item: dict[str, Any]) -> list[Any]:
    """Return the messages to the sampled model about an item; a text is one message.

    Raises GradingError, TemplateError.
    """
    if sampled.text is not None:
        return [{"role": "user", "content": render(sampled.text, item, {})}]
    if sampled.template is not None:
        return chat_messages([Message.model_validate(message) for message in sampled.template], item, {})
    (reference,) = references("{{" + (sampled.reference or "") + "}}")
    messages = resolve(reference, {"item": item}, {})
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise TemplateError(f"'{reference}' is not a list of messages.", "invalid_variable_error")
    return messages


def body_of(sampled: Sampled, messages: list[Any], index: int) -> dict[str, Any]:
    """Return the body of the request for the sample `index` of an item. Samples differ by their seed."""
    if sampled.text is not None:
        return {"input": messages[0]["content"]}
    params = dict(sampled.params)
    if index and "seed" in params:
        params["seed"] += index
    if sampled.endpoint == CHAT:
        body = {"messages": messages, **params}
        return body if index else _cached(CHAT, body)
    params.pop("seed", None)
    if "reasoning_effort" in params:
        params["reasoning_effort"] = {"effort": params["reasoning_effort"]}
    named = {_RESPONSE_FIELDS.get(name, name): value for name, value in params.items()}
    return {"input": [_response_message(message) for message in messages], **named}


def _response_message(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message of a chat as responses have it."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_response_part(part, str(message.get("role"))) for part in content]}


def _response_part(part: Any, role: str) -> Any:
    match part:
        case {"type": "text", "text": text}:
            return {"type": "output_text" if role == "assistant" else "input_text", "text": text}
        case {"type": "image_url", "image_url": {"url": url, **rest}}:
            return {"type": "input_image", "image_url": url, **rest}
    return part


def _cached(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Let an answer be repeated that is the same each time."""
    return {**body, "cache": True} if url == CHAT and body.get("temperature") == 0 else body


class SamplingRun(LineRun):
    """A claim on a shard of requests."""

    ends_at_once = False  # `finish` ends the job
    _search: Callable[[Request], Awaitable[Answer]] | None = None

    def all(self) -> None:
        if self.claim.job.endpoint != SEARCH:
            super().all()
            return
        with self.context.db.read() as session:
            run = session.get_one(Job, self.claim.job.parent_id)
        sampled = Evaluation.model_validate(run.payload).sampled
        assert sampled is not None
        assert sampled.retrieval is not None
        queue = self.claim.queue or self.claim.job.queue or ""
        with closing(StoreSearch(self.context, self.host, queue, sampled.retrieval)) as search:
            self._search = search.answer
            super().all()

    def answer_function(self) -> Callable[[Request], Awaitable[Answer]] | None:
        return self._search

    def read(self) -> tuple[list[LineItem], list[Record]]:
        return read_items(self.context, self.claim, Batch())


def finish(context: Context, claim: JobClaim, _handle: ClaimHandle) -> None:
    """End the claimed job: its run reads the segments. Raises ClaimLost."""
    close(context, claim)


def close(context: Context, claim: JobClaim, criteria: list[dict[str, Any]] | None = None) -> None:
    """End a job of a run with the sums of its shards, and note the results of the run by its `criteria`.

    The objects of a run that was removed meanwhile go too.
    """
    job, run_id = claim.job, claim.job.parent_id or claim.job.id
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
        let_go(context.storage, [f"jobs/{job.id}"])
    log.info("evaluation_step_closed", extra={"job_id": job.id, **values})
