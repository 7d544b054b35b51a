"""Run a shard: answer the lines that no segment covers, commit segments, close the shard or release it.

    claim ─▶ items ─▶ engine loop ──answers──▶ buffer ──every second, and at the end──▶ file, fsync ─▶ one transaction
                          ▲                                                                  │
      stop (cancel, expiry, shutdown): abort, commit the buffer, release                     ├─ ClaimLost: dropped
      GaveUp (engine unavailable): commit; `workers.lifecycle` releases the shard            └─ last: shard done,
                                                  and a job of one shard is finished at once, if it has one segment
                                                  in that same transaction

The Celery thread owns SQL and files; the engine's loop owns the requests. After repeated stalls the shard is run in
isolation mode, line by line, so that a line that kills its worker is known.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from operator import itemgetter
from typing import Any

import msgspec

from jobs.batches import lines
from jobs.batches.batches import BatchPayload
from jobs.errors import ClaimLost, InvalidRequest, NightmillError, StorageFull
from jobs.fleet import access
from jobs.fleet.access import AccessDenied
from jobs.fleet.models_file import ModelsFileError
from jobs.ledger import shards
from jobs.ledger.shards import ShardClaim, Tally
from jobs.prompts import versions
from jobs.prompts.resolution import PinnedPrompts, PromptReference, ResolvedPrompt
from workers.batches.finishing import JobResults, assemble
from workers.batches.segments import SegmentRun
from workers.engines.port import Answer, EngineFault, Request, refusal
from workers.runtime import output_lines
from workers.runtime.answering import MAX_TRIES, Answering
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost, GaveUp
from workers.runtime.heartbeat import ClaimHandle
from workers.runtime.output_lines import FailureHistory, Item, LineRecord

log = logging.getLogger(__name__)
_CRASHED = ("worker_crashed", "The worker died each time it ran this request.")
_BROKE = "engine_error"


class LineRun(SegmentRun):
    """One claim on one shard of lines.

    If `ends_at_once`, a job with one shard and one segment ends in the transaction of that segment.
    """

    ends_at_once = True

    def __init__(self, context: Context, host: EngineHost, claim: ShardClaim, handle: ClaimHandle) -> None:
        super().__init__(context, claim, handle)
        self.host = host
        self.items: list[Item] = []

    def run_lines(self) -> None:
        if self.context.low_on_disk():
            raise StorageFull
        self.items, broken = self.read()
        self.buffer.extend(broken)
        if (denial := self._denial()) is not None:
            for item in self.items:
                self._fail(item, denial.code, str(denial))
        elif self.is_isolated:
            self._run_isolated_lines()
        else:
            self._answer(self.items)
        self.close()

    def release(self, delay: float, waiting_for: str | None) -> None:
        """End the claim without closing the shard, and store the failures of each line."""
        histories = {item.line: item.failures.to_list() for item in self.items}
        self.claim.faults.update({line: history for line, history in histories.items() if any(history)})
        super().release(delay, waiting_for)

    def read(self) -> tuple[list[Item], list[LineRecord]]:
        """Return the items of the lines that are not covered, and records for lines that are refused."""
        return read_items(self.context, self.claim, BatchPayload.model_validate(self.claim.job.payload))

    def results(self, batch: Sequence[LineRecord], tally: Tally) -> JobResults | None:
        return assemble(self.context, self.claim.job, batch, tally) if self.ends_at_once else None

    def _denial(self) -> AccessDenied | None:
        """Return why the job's key or project may not ask the model any more; None where it may.

        A models file that cannot be read now was read when the job was planned.
        """
        job = self.claim.job
        work = access.work_of(job, job.model or "", job.endpoint)
        try:
            with self.context.db.read() as session:
                access.check(session, self.context.models.now(), work)
        except AccessDenied as denial:
            return denial
        except ModelsFileError:
            pass
        return None

    def answer_function(self) -> Callable[[Request], Awaitable[Answer]] | None:
        """Return the function that answers requests, None for the engine's own."""
        return None

    def _run_isolated_lines(self) -> None:
        """Run one line at a time and record it first. A line that has killed its workers fails."""
        log.warning("shard_isolated", extra={"job_id": self.claim.job.id, "shard": self.claim.n})
        for item in self.items:
            claim = self.claim
            if self.has_killed_workers(item.line):
                self._fail(item, *_CRASHED)
            else:
                self.write(partial(shards.record_isolated_attempt, claim=claim, line=item.line))
                self._answer([item])
            self.commit()
            if self.handle.ended:
                return

    def _answer(self, items: list[Item]) -> None:
        """Answer the items on the engine's loop, and commit their answers on this thread meanwhile."""
        self.handle.changed.clear()
        if self.handle.ended:
            return
        answering = Answering(self.host, MAX_TRIES, self._emit, self.answer_function())
        future = self.host.call(answering.run([item for item in items if not item.failures.is_spent(MAX_TRIES)]))
        future.add_done_callback(lambda _: self.handle.changed.set())
        try:
            self._collect(future)
            broken = future.result()
        except CancelledError:
            return
        except GaveUp:
            self.commit()  # the other lines have their answers
            raise
        finally:
            future.cancel()  # after any error: no more requests are sent
        for item in broken + [item for item in items if item.failures.is_spent(MAX_TRIES) and item.fault is None]:
            self._give_up(item)

    def _collect(self, future: Future[list[Item]]) -> None:
        while not future.done():
            self.handle.changed.wait(self.context.config.segment_seconds)
            if self.handle.lost.is_set():
                raise ClaimLost
            if self.handle.stop.is_set():
                future.cancel()
                self.host.call(_do_nothing()).result()  # so that the loop has handled the cancellation
                return
            if not future.done() and self.buffer:
                self.commit()

    def _emit(self, item: Item, answer: Answer) -> None:
        self.buffer.append(output_lines.answer_record(item, answer))
        self.buffer.extend(output_lines.answer_record(follower, answer, item) for follower in item.followers)

    def _give_up(self, item: Item) -> None:
        """Record a line that failed at each try, with the engine's own error answer where it gave one."""
        fault = item.fault
        answer = fault.answer if isinstance(fault, EngineFault) else None
        if answer is not None:
            self._emit(item, answer)
        else:
            self._fail(item, _BROKE, f"The engine gave no answer to this request: {fault or 'it broke every time'}")

    def _fail(self, item: Item, code: str, message: str) -> None:
        for entry in (item, *item.followers):
            self.buffer.append(output_lines.error_record(entry.line, entry.id, entry.custom_id, code, message))


async def _do_nothing() -> None:
    """Run on the loop after all callbacks that were scheduled before."""


# ── the lines of a shard as items: parsed, with the job's overrides, ordered so that shared prefixes are neighbours ──

_decode = msgspec.json.Decoder(dict).decode
_INVALID = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":"invalid_request"}}'


def read_items(context: Context, claim: ShardClaim, batch: BatchPayload | None) -> tuple[list[Item], list[LineRecord]]:
    """Return the items of the lines that are not covered, and records for lines whose body no engine should get.

    Without a `batch` the lines are taken as they are: the API checked them.
    """
    job = claim.job
    overrides = {**(batch.overrides if batch else {}), "model": job.model}  # the plan's, where the line has an alias
    with context.storage.reader(job.input_path or "", claim.offset) as handle:
        data = handle.read(claim.length)
    make = _item_factory(claim)
    prompts = PinnedPrompts(partial(_find_prompt, context, job.project_id), batch.prompts if batch else None)
    pairs: list[tuple[bytes, Item]] = []
    broken: list[LineRecord] = []
    for line, raw in enumerate(lines.split(data)):
        if claim.covered >> line & 1:
            continue
        text = lines.working.decode(raw)
        try:
            body = _decode(text.body)
        except (msgspec.MsgspecError, RecursionError):
            broken.append(_invalid(make(line, text.custom_id, {})))
            continue
        requested = body.get("model")
        body.update(overrides)
        prompt, refused = None, None
        if batch:
            try:
                body, prompt = prompts.apply(job.endpoint, body)
            except NightmillError as error:
                refused = refusal(error.status, error.message, param=error.param, code=error.code)
            else:
                refused = _refusal(job.endpoint, body)
        item = make(line, text.custom_id, body)
        item.prompt = prompt
        item.resolved_model = job.model if requested != job.model else None
        if refused is not None:
            broken.append(output_lines.answer_record(item, refused))
        else:
            pairs.append((bytes(text.body), item))
    pairs.sort(key=itemgetter(0))
    return (_merge_duplicates(pairs) if batch and batch.dedupe else [item for _, item in pairs]), broken


def _find_prompt(context: Context, project_id: str, reference: PromptReference) -> ResolvedPrompt:
    with context.db.read() as session:
        return versions.resolve(session, project_id, reference)


def _item_factory(claim: ShardClaim) -> Callable[[int, str, dict[str, Any]], Item]:
    """Return a function that makes the items of a claim's lines.

    The values that all items share are looked up once, because reading a job's columns is slow.
    """
    job, n, epoch, faults = claim.job, claim.n, claim.epoch, claim.faults
    job_id = job.id
    key_id = job.key_id or ""
    ask = partial(Request, job.endpoint, priority=-job.priority, tenant=job.project_id, job_id=job_id, key_id=key_id)

    def make(line: int, custom_id: str, body: dict[str, Any]) -> Item:
        item_id = output_lines.line_id(job_id, n, line)
        request = ask(body, f"req_{item_id.removeprefix('batch_req_')}e{epoch}")
        return Item(line, custom_id, item_id, request, failures=FailureHistory(*faults.get(line, ())))

    return make


def _merge_duplicates(pairs: list[tuple[bytes, Item]]) -> list[Item]:
    """Merge equal bodies, which are neighbours after sorting: the first item leads, the others follow."""
    leaders: list[Item] = []
    previous: bytes | None = None
    for body, item in pairs:
        if body == previous:
            leaders[-1].followers.append(item)
        else:
            leaders.append(item)
            previous = body
    return leaders


def _refusal(endpoint: str, body: dict[str, Any]) -> Answer | None:
    """Return the refusal of a batch's line; None for a good one, which is told to be stored nowhere."""
    try:
        lines.check_self_contained(endpoint, body)
    except InvalidRequest as error:
        return refusal(400, error.message, param=error.param, code=error.code)
    lines.disable_storage(endpoint, body)
    return None


def _invalid(item: Item) -> LineRecord:
    answer = Answer(400, _INVALID % b"The body of this request cannot be read as JSON.")
    return output_lines.answer_record(item, answer)
