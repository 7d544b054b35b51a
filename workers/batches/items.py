"""The lines of a shard as items: parsed, the job's overrides laid over them, ordered so that shared prefixes meet."""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import msgspec

from jobs.batches import lines
from jobs.batches.batches import Batch
from jobs.errors import InvalidRequest
from jobs.ledger.shards import ShardClaim
from workers.engines.port import Answer, Request, refusal
from workers.runtime import output_lines
from workers.runtime.context import Context
from workers.runtime.output_lines import Item, Record, Trials

_decode = msgspec.json.Decoder(dict).decode
_INVALID = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":"invalid_request"}}'


def read_items(context: Context, claim: ShardClaim, batch: Batch | None) -> tuple[list[Item], list[Record]]:
    """Return the items of the lines that are not covered, and records for those whose body no engine should take.

    Without a `batch` the lines are taken as they are: the API judged them when they came in.
    """
    job = claim.job
    overrides = batch.overrides if batch else {}
    with context.storage.reader(job.input_path or "", claim.offset) as handle:
        data = handle.read(claim.length)
    make = _maker(claim)
    found: list[tuple[bytes, Item]] = []
    broken: list[Record] = []
    for line, raw in enumerate(lines.split(data)):
        if claim.covered >> line & 1:
            continue
        text = lines.working.decode(raw)
        try:
            body = _decode(text.body)
        except (msgspec.MsgspecError, RecursionError):
            broken.append(_invalid(make(line, text.custom_id, {})))
            continue
        body.update(overrides)
        item = make(line, text.custom_id, body)
        if batch and (refused := _refused(job.endpoint, body)):
            broken.append(output_lines.answered(item, refused))
        else:
            found.append((bytes(text.body), item))
    found.sort(key=itemgetter(0))
    return (_deduped(found) if batch and batch.dedupe else [item for _, item in found]), broken


def _maker(claim: ShardClaim) -> Callable[[int, str, dict[str, Any]], Item]:
    """Items of its lines. What they have in common is looked up once: the job's columns are no plain attributes."""
    job, n, epoch, faults = claim.job, claim.n, claim.epoch, claim.faults
    job_id = job.id
    ask = partial(Request, job.endpoint, priority=-job.priority, tenant=job.project_id, job_id=job_id)

    def make(line: int, custom_id: str, body: dict[str, Any]) -> Item:
        item_id = output_lines.line_id(job_id, n, line)
        request = ask(body, f"req_{item_id.removeprefix('batch_req_')}e{epoch}")
        return Item(line, custom_id, item_id, request, trials=Trials(*faults.get(line, ())))

    return make


def _deduped(found: list[tuple[bytes, Item]]) -> list[Item]:
    """Equal bodies are neighbours after sorting: the first leads, the others follow."""
    leaders: list[Item] = []
    previous: bytes | None = None
    for body, item in found:
        if body == previous:
            leaders[-1].followers.append(item)
        else:
            leaders.append(item)
            previous = body
    return leaders


def _refused(endpoint: str, body: dict[str, Any]) -> Answer | None:
    """Of a batch's line, which is to be kept nowhere."""
    try:
        lines.check_alone(endpoint, body)
    except InvalidRequest as error:
        return refusal(400, error.message, param=error.param, code=error.code)
    lines.unkept(endpoint, body)
    return None


def _invalid(item: Item) -> Record:
    answer = Answer(400, _INVALID % b"The body of this request cannot be read as JSON.")
    return output_lines.answered(item, answer)
